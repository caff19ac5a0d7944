"""The only user of subprocess: runs the system's commands and says exactly what happened."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path
from typing import Optional, Tuple

from anvil_dr.errors import CommandError
from anvil_dr.ports import Completed

log = logging.getLogger(__name__)

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

    def __init__(self, argv: Tuple[str, ...], output: Path) -> None:
        self._argv = argv
        environment = {**os.environ, "PATH": _PATH}
        log.debug("start argv=%r output=%s", argv, output)
        try:
            with open(output, "wb") as file:
                self._popen = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
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

    def kill(self) -> None:
        """End it with SIGKILL and reap it."""
        self._popen.kill()
        self._popen.wait()


def start(argv: Tuple[str, ...], *, output: Path) -> Process:
    """Start `argv` without a shell and come back at once; what it says goes to the file `output`.

    Raise CommandError if there is no such program.
    """
    return Process(argv, output)
