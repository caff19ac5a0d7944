"""A whole machine to test on: user-mode Linux on the host's own root, with drives, LVM and udev, in two seconds.

    with Box(folder, drives=[image], writable=[folder]) as box:
        box.run("pvcreate -q /dev/ubda")
        box.mconsole("config", f"ubdb={other}")     # plug a drive in
        box.kill()                                  # cut the power

The guest sees the host's files read-only, at their own paths; what it writes there stays in its memory. Where it
hides them (/tmp, /run, /dev, /proc, /sys), only what is shared shows. Anything it must leave behind goes to a
`writable` folder. It has one CPU and is slow: forking takes 10 ms. Measure nothing in it, and be generous with time.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Dict, Iterable, List, Optional, Sequence, Tuple, Type

_GUEST = Path(__file__).resolve().parent / "guest"
_WIDE_XSTATE = _GUEST.with_name("wide_xstate.c")
_HIDDEN = tuple(Path(name) for name in ("/tmp", "/run", "/var/run", "/dev", "/proc", "/sys", "/mnt"))
_POLL_SECONDS = 0.01
_BOOT_SECONDS = 300.0


class BoxError(Exception):
    """The guest did not do what it should. Ends with the last lines of its console."""


@dataclass(frozen=True)
class Result:
    """What a command in the guest came to."""

    exit_code: int
    output: str
    """stdout and stderr, as they came."""


def missing() -> Optional[str]:
    """Why no guest can be booted here; None if one can."""
    programs: Tuple[str, ...] = ("linux.uml", "busybox", "lvcreate", "udevadm")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    programs += ("cc",) if _has_wide_registers() else ()
    absent = [name for name in programs if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def make_drive(path: Path, size: str, *mkfs: str) -> Path:
    """A sparse file for a drive, of a size such as `2G`, with a file system: `mkfs.ext4 -L LABEL`. No root needed."""
    subprocess.run(["truncate", "-s", size, str(path)], check=True)
    if mkfs:
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
        subprocess.run([*mkfs, str(path)], check=True, capture_output=True, env=environment)
    return path


class Box:
    """One boot of a guest. `start` and `stop` it, or use it in a `with`."""

    def __init__(
        self,
        folder: Path,
        *,
        drives: Sequence[Path] = (),
        read_only: Iterable[Path] = (),
        writable: Iterable[Path] = (),
        systemd: bool = False,
        memory: str = "512M",
    ) -> None:
        """`folder` is for this boot alone; `drives` become /dev/ubda, /dev/ubdb, … and are made by `make_drive`.

        With `systemd` it is PID 1, and a boot takes 5 seconds; without it, only udevd runs.
        """
        self.folder = folder
        self.console: List[str] = []
        self._share, self._sockets = folder / "share", folder / "uml"
        for made in (self._share, self._sockets):
            made.mkdir(parents=True)
        self._name = "box"
        shown = [path for path in read_only if _is_hidden(path)]
        self._write_settings("systemd" if systemd else "udev", shown, writable)
        self._argv = [
            "taskset", "--cpu-list", str(_cpu()),
            "linux.uml", "rootfstype=hostfs", "rootflags=/", "ro", f"mem={memory}", f"init={self._share}/init.sh",
            "con=null", "con0=null,fd:1", "con1=fd:0,null", "quiet", "loglevel=3", "lsm=yama",
            "pty.legacy_count=0", "panic=-1", f"umid={self._name}", f"uml_dir={self._sockets}",
            f"BOX_SHARE={self._share}",
            *(f"ubd{chr(ord('a') + number)}={drive}" for number, drive in enumerate(drives)),
        ]  # fmt: skip
        if any(" " in word for word in self._argv):
            raise BoxError("the kernel's command line takes no blanks in a path")
        self._commands = 0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._reader: Optional[threading.Thread] = None

    def __enter__(self) -> Box:
        return self.start()

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if error is None and self.running:
            self.stop()
        else:
            self.kill()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Box:
        """Boot, until it takes commands. Raise BoxError."""
        # A session of its own: the guest's processes are the host's, and a signal to their group is a power cut.
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **self._preload(), **self._memory()},
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read_console, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        try:
            self._wait_for(self._share / "ready", _BOOT_SECONDS, "it did not boot")
        except BoxError:
            self.kill()
            raise
        return self

    def run(self, command: str, *, timeout_seconds: float = 300.0, check: bool = True) -> Result:
        """Run a bash script in the guest, as root. Raise BoxError if it fails (`check`), or if the guest does."""
        return self.wait(self.begin(command), timeout_seconds=timeout_seconds, check=check)

    def begin(self, command: str) -> int:
        """Start a bash script in the guest and come back at once; the number is for `wait`."""
        process = self._process
        if process is None or process.stdin is None or not self.running:
            raise BoxError(f"the guest is off\n{self._tail()}")
        self._commands += 1
        (self._share / f"{self._commands}.sh").write_text(command)
        try:
            process.stdin.write(f"{self._commands}\n".encode())
            process.stdin.flush()
        except BrokenPipeError as error:
            raise BoxError(f"the guest went off\n{self._tail()}") from error
        return self._commands

    def wait(self, number: int, *, timeout_seconds: float = 300.0, check: bool = True) -> Result:
        """Wait for what `begin` started. Raise BoxError as `run` does."""
        code = self._share / f"{number}.code"
        self._wait_for(code, timeout_seconds, f"command {number} is not done")
        result = Result(int(code.read_text()), (self._share / f"{number}.out").read_text(errors="replace"))
        if check and result.exit_code != 0:
            raise BoxError(f"exit code {result.exit_code}\n{result.output}")
        return result

    def exit_code(self, number: int) -> Optional[int]:
        """What `begin` started came to; None while it runs."""
        code = self._share / f"{number}.code"
        return int(code.read_text()) if code.exists() else None

    def wait_for_line(self, text: str, *, timeout_seconds: float = 300.0) -> str:
        """The first line with `text` on the console, where what commands say shows at once. Raise BoxError."""
        seen, deadline = 0, time.monotonic() + timeout_seconds
        while True:
            ended = not self.running
            while seen < len(self.console):
                if text in self.console[seen]:
                    return self.console[seen]
                seen += 1
            if ended or time.monotonic() > deadline:
                raise BoxError(f"no line with {text!r}\n{self._tail()}")
            time.sleep(_POLL_SECONDS)

    def mconsole(self, *words: str) -> str:
        """Ask the guest's kernel, as uml_mconsole does: `config ubdb=FILE` plugs a drive in, `remove ubdb` pulls it.

        Raise BoxError with what the kernel said.
        """
        # struct mconsole_request and mconsole_reply of arch/um/drivers/mconsole.h, version 2.
        data = " ".join(words).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(20)
            client.bind(str(self._sockets / f"client{time.monotonic_ns()}"))
            request = struct.pack("=III", 0xCAFEBABE, 2, len(data)) + data.ljust(512, b"\0")
            client.sendto(request, str(self._sockets / self._name / "mconsole"))
            answer, failed, more = b"", 0, 1
            while more:
                reply = client.recv(4096)
                failed, more, length = struct.unpack("=III", reply[:12])
                answer += reply[12 : 12 + length].rstrip(b"\0")
        text = answer.decode(errors="replace").strip()
        if failed:
            raise BoxError(f"mconsole {' '.join(words)}: {text}")
        return text

    def stop(self) -> None:
        """Write everything back and go off. Raise BoxError."""
        self.begin("sync; echo o >/proc/sysrq-trigger")
        assert self._process is not None
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise BoxError(f"the guest does not go off\n{self._tail()}") from error
        self._clean_up()

    def kill(self) -> None:
        """Cut the power: what the guest has not put on its drives is lost. Nothing happens if it is off."""
        process = self._process
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(60)
        self._clean_up()

    def _clean_up(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):  # of what it did not take any more
                self._process.stdin.close()
        if self._reader is not None:
            self._reader.join(20)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _preload(self) -> Dict[str, str]:
        """What linux.uml needs in its environment on this CPU; see wide_xstate.c."""
        if not _has_wide_registers():
            return {}
        library = self.folder / "wide_xstate.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(_WIDE_XSTATE)], check=True)
        return {"LD_PRELOAD": str(library)}

    def _memory(self) -> Dict[str, str]:
        """Where the guest's memory lies: on /dev/shm by itself, but in a container that can be too small."""
        shared_memory = os.statvfs("/dev/shm")
        fits = shared_memory.f_bavail * shared_memory.f_frsize > 2 << 30
        return {} if fits else {"TMPDIR": str(self.folder)}

    def _write_settings(self, init: str, read_only: Iterable[Path], writable: Iterable[Path]) -> None:
        for script in _GUEST.glob("*.sh"):
            shutil.copy(script, self._share)
        (self._share / "init.sh").chmod(0o755)
        settings = {
            "BOX_SHARE": str(self._share),
            "BOX_GUEST": str(self._share),
            "BOX_INIT": init,
            "BOX_READ_ONLY": _words(read_only),
            "BOX_WRITABLE": _words(writable),
        }
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
        (self._share / "settings").write_text("".join(lines))

    def _read_console(self, stream: IO[bytes]) -> None:
        for line in stream:
            self.console.append(line.decode(errors="replace").rstrip("\r\n"))

    def _wait_for(self, path: Path, timeout_seconds: float, what: str) -> None:
        deadline = time.monotonic() + timeout_seconds
        while True:
            running = self.running
            if path.exists():
                return
            if not running:
                raise BoxError(f"{what}: the guest went off\n{self._tail()}")
            if time.monotonic() > deadline:
                raise BoxError(f"{what} after {timeout_seconds:g} seconds\n{self._tail()}")
            time.sleep(_POLL_SECONDS)

    def _tail(self) -> str:
        return "\n".join(self.console[-40:])


def _cpu() -> int:
    """The one CPU that this process' guests run on, so that those of two workers run on two.

    Each system call in a guest goes back and forth between two processes of the host, which takes five times as long
    when one CPU has to wake the other for it.
    """
    cpus = sorted(os.sched_getaffinity(0))
    worker = re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", ""))
    return cpus[int(worker or 0) % len(cpus)]


def _has_wide_registers() -> bool:
    """True if the CPU has registers that are younger than the guest's kernel."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and not {"amx_tile", "apx_f"}.isdisjoint(flags[1].split())


def _is_hidden(path: Path) -> bool:
    return any(path == folder or folder in path.parents for folder in _HIDDEN)


def _words(paths: Iterable[Path]) -> str:
    words = [str(path) for path in paths]
    if any(" " in word for word in words):
        raise BoxError("a shared folder's path has no blanks")
    return " ".join(words)
