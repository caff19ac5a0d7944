"""What a transfer costs: seconds, CPU seconds and peak memory of either end. Starts processes and reads /proc.

CPU seconds of a command come from wait4(2), with those of what it started; of a server that goes on, from
/proc/PID/stat before and after. Peak memory is VmHWM, the largest process of each end, looked at many times a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Dict, Iterator, List, Literal, Optional, Sequence, Tuple

End = Literal["node", "target"]
ENDS: Tuple[End, End] = ("node", "target")

_TICKS = os.sysconf("SC_CLK_TCK")
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Cost:
    """One transfer."""

    seconds: float
    cpu_seconds: Dict[End, float]
    memory_bytes: Dict[End, int]
    wire_bytes: Optional[int] = None


class FailedError(Exception):
    """A command did not do what it was measured for."""


@dataclass
class Meter:
    """Runs the commands of one transfer and adds up what they cost."""

    log: IO[str]
    servers: Dict[int, End] = field(default_factory=dict)
    """Processes that were there before and go on afterwards, by number."""
    _cpu: Dict[End, float] = field(default_factory=lambda: dict.fromkeys(ENDS, 0.0))
    _peaks: Dict[End, int] = field(default_factory=lambda: dict.fromkeys(ENDS, 0))
    _running: Dict[int, End] = field(default_factory=dict)

    @contextmanager
    def transfer(self) -> Iterator[List[Cost]]:
        """Measure the block; the list has its cost afterwards."""
        result: List[Cost] = []
        before = {pid: _cpu_seconds(pid) for pid in self.servers}
        for pid in self.servers:
            _forget_peak(pid)
        stop = threading.Event()
        looking = threading.Thread(target=self._look, args=(stop,), daemon=True)
        looking.start()
        began = time.perf_counter()
        try:
            yield result
        finally:
            seconds = time.perf_counter() - began
            stop.set()
            looking.join()
        time.sleep(0.05)  # sshd reaps its session a moment after the client has gone
        for pid, end in self.servers.items():
            self._cpu[end] += _cpu_seconds(pid) - before[pid]
        result.append(Cost(seconds, dict(self._cpu), dict(self._peaks)))

    def call(self, argv: Sequence[str], *, end: End = "node", output: Optional[Path] = None) -> str:
        """Run one command; what it printed. Raise FailedError."""
        return self.pipe([(argv, end)], output=output)

    def pipe(self, commands: Sequence[Tuple[Sequence[str], End]], *, output: Optional[Path] = None) -> str:
        """Run commands, each reading what the one before it writes; what the last one printed. Raise FailedError."""
        return self.together([commands], output=output)[0]

    def together(
        self, pipes: Sequence[Sequence[Tuple[Sequence[str], End]]], *, output: Optional[Path] = None
    ) -> List[str]:
        """Run some pipes at once. Raise FailedError."""
        started: List[Tuple[subprocess.Popen[bytes], End]] = []
        lasts: List[subprocess.Popen[bytes]] = []
        for commands in pipes:
            stdin: Optional[IO[bytes]] = None
            for number, (argv, end) in enumerate(commands):
                last = number == len(commands) - 1
                with open(output, "wb") if last and output else open(os.devnull, "rb") as file:
                    one = subprocess.Popen(
                        argv,
                        stdin=stdin or subprocess.DEVNULL,
                        stdout=file if last and output else subprocess.PIPE,
                        stderr=self.log,
                    )
                if stdin:
                    stdin.close()
                stdin = one.stdout
                started.append((one, end))
                self._running[one.pid] = end
            lasts.append(started[-1][0])
        printed = [(last.stdout.read() if last.stdout else b"").decode() for last in lasts]
        for one, end in started:
            _, status, usage = os.wait4(one.pid, 0)
            one.returncode = os.waitstatus_to_exitcode(status)
            self._cpu[end] += usage.ru_utime + usage.ru_stime
            del self._running[one.pid]
        for one, _ in started:
            if one.returncode:
                raise FailedError(f"{one.args!r} ended with exit code {one.returncode}")
        return printed

    def _look(self, stop: threading.Event) -> None:
        while not stop.wait(_LOOK_SECONDS):
            for pid, end in [*self._running.items(), *self.servers.items()]:
                for one in _family(pid):
                    self._peaks[end] = max(self._peaks[end], _peak_bytes(one))


class Server:
    """A process that runs until the end of the case."""

    def __init__(self, argv: Sequence[str], log: IO[str]) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._argv = argv

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, path: Path, *, timeout_seconds: float = 20.0) -> None:
        """Return once there is such a file, or a socket. Raise FailedError."""
        deadline = time.monotonic() + timeout_seconds
        while not path.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise FailedError(f"{self._argv!r} does not start")
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _family(pid: int) -> Iterator[int]:
    """A process and all that it started (proc(5), /proc/PID/task/TID/children)."""
    yield pid
    try:
        children = [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except OSError:
        return
    for child in children:
        yield from _family(child)


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split()[0]) << 10 if found else 0


def _forget_peak(pid: int) -> None:
    """Begin a new peak (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _cpu_seconds(pid: int) -> float:
    """Of a process and of those that it has reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS
