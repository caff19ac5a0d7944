"""The only user of subprocess: runs the system's commands and says exactly what happened."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from pathlib import Path
from typing import Optional, Tuple

from anvil_dr.errors import CommandError
from anvil_dr.ports import Completed

log = logging.getLogger(__name__)

_KEPT_BYTES = 8192
"""Of what a peer writes to its standard error; more than any message, less than a flood."""

# Debian keeps lvm and mount helpers in sbin, which an unprivileged or cron PATH lacks.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(argv: Tuple[str, ...], *, timeout_seconds: float = 120.0, stdin: bytes = b"") -> Completed:
    """Run `argv` without a shell, in the C locale, both pipes drained.

    Raise CommandError for a non-zero exit, a program that is not there, or a timeout (the command is killed).
    """
    environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C", "PATH": _PATH}
    log.debug("command argv=%r", argv)
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, env=environment, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        reason = f"no answer within {timeout_seconds:g} seconds"
        raise CommandError(argv, None, error.stdout or b"", error.stderr or b"", reason) from error
    except OSError as error:
        raise CommandError(argv, None, b"", b"", error.strerror or str(error)) from error
    log.debug("command argv=%r exit=%d stderr=%r", argv, done.returncode, done.stderr[:500])
    if done.returncode != 0:
        raise CommandError(argv, done.returncode, done.stdout, done.stderr)
    return Completed(argv, done.stdout, done.stderr)


class Process:
    """A command that `start` left running."""

    def __init__(self, argv: Tuple[str, ...], output: Optional[Path]) -> None:
        self._argv = argv
        environment = {**os.environ, "PATH": _PATH}
        log.debug("start argv=%r output=%s", argv, output)
        try:
            if output is None:
                self._popen = subprocess.Popen(argv, env=environment)
                return
            with open(output, "wb") as file:
                # A session of its own: Ctrl-C is for us, who then end it in good order.
                self._popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise CommandError(argv, None, b"", b"", error.strerror or str(error)) from error

    @property
    def pid(self) -> int:
        return self._popen.pid

    def exit_code(self) -> Optional[int]:
        """None while it runs; minus the signal's number if one ended it."""
        return self._popen.poll()

    def wait(self, timeout_seconds: float) -> int:
        """Its exit code, once it has ended. Raise CommandError if it still runs after that time."""
        try:
            return self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            reason = f"still running after {timeout_seconds:g} seconds"
            raise CommandError(self._argv, None, b"", b"", reason) from error

    def terminate(self) -> None:
        """Ask it to end, with SIGTERM. Nothing happens if it has ended."""
        self._popen.terminate()

    def kill(self) -> None:
        """End it with SIGKILL and reap it."""
        self._popen.kill()
        self._popen.wait()


def start(argv: Tuple[str, ...], *, output: Optional[Path]) -> Process:
    """Start `argv` without a shell and come back at once; what it says goes to the file `output`.

    Without a file it has our terminal, Ctrl-C included. Raise CommandError if there is no such program.
    """
    return Process(argv, output)


class Peer:
    """A command that `spawn` left running, to be spoken with over two pipes."""

    def __init__(self, argv: Tuple[str, ...]) -> None:
        self._argv = argv
        environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C", "PATH": _PATH}
        log.debug("spawn argv=%r", argv)
        try:
            # A session of its own: Ctrl-C is for us, who then end it in good order.
            self._popen = subprocess.Popen(
                argv,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise CommandError(argv, None, b"", b"", error.strerror or str(error)) from error
        self._said = bytearray()
        self._reader = threading.Thread(target=self._read, name="stderr", daemon=True)
        self._reader.start()

    def take_pipes(self) -> Tuple[int, int]:
        """Descriptors to read what it says from, and to write to it. The caller closes them; to be called once."""
        outward, inward = self._popen.stdout, self._popen.stdin
        if outward is None or inward is None:
            raise AssertionError("both were asked for")
        with outward, inward:
            return os.dup(outward.fileno()), os.dup(inward.fileno())

    def end(self, timeout_seconds: float) -> int:
        """Wait for it, then end it with SIGKILL; its exit code, or minus the signal's number."""
        try:
            code = self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            code = self._popen.wait()
        # A grandchild may hold the other end of the pipe, as ssh's ControlPersist does.
        self._reader.join(1.0)
        log.debug("spawn ended argv=%r exit=%d stderr=%r", self._argv, code, bytes(self._said[-500:]))
        return code

    def complaint(self) -> str:
        """The last of what it wrote to its standard error, once `end` has returned."""
        return bytes(self._said).decode("utf-8", "replace").strip()

    def _read(self) -> None:
        errors = self._popen.stderr
        if errors is None:
            raise AssertionError("it was asked for")
        with errors:
            for part in iter(lambda: errors.read(4096), b""):
                self._said += part
                del self._said[:-_KEPT_BYTES]


def spawn(argv: Tuple[str, ...]) -> Peer:
    """Start `argv` without a shell, to be spoken with. Raise CommandError if there is no such program."""
    return Peer(argv)
