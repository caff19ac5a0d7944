"""How a job goes, for those who watch: plain lines in a log; progress_bars.py on a terminal. Writes to one stream.

Implements job.Observer. What it's told comes from several threads. A stream that breaks ends the reports, never the
job: servers may be off, and must be started again.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Callable, Dict, Final, Mapping, Optional, Protocol, TextIO, Tuple, Type

from anvil_dr import words
from anvil_dr.sending.job import Observer, ServerOutcome
from anvil_dr.wire.protocol import JobPlan

EVERY_SECONDS: Final = 5.0


class Watcher(Observer, Protocol):
    """An observer that is also told what else takes long, and that must be started and stopped."""

    def note(self, text: str) -> None:
        """One line."""
        ...

    def __enter__(self) -> Watcher: ...

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: object
    ) -> None: ...


class Silent:
    """Says nothing."""

    def job_planned(self, plan: JobPlan) -> None: ...

    def server_begun(self, server: str) -> None: ...

    def disk_begun(self, server: str, disk: str, size_bytes: int) -> None: ...

    def disk_advanced(self, server: str, disk: str, done_bytes: int, wire_bytes: int) -> None: ...

    def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None: ...

    def server_ended(self, outcome: ServerOutcome) -> None: ...

    def note(self, text: str) -> None: ...

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *unused: object) -> None: ...


@dataclass
class _Disk:
    size_bytes: int
    began: float
    said: float


class Lines(Silent):
    """One line for each event, and while a disk is sent one every few seconds."""

    def __init__(
        self,
        stream: TextIO,
        *,
        every_seconds: float = EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._every_seconds, self._clock = stream, every_seconds, clock
        self._lock = threading.Lock()
        self._disks: Dict[Tuple[str, str], _Disk] = {}
        self._broken = False

    def note(self, text: str) -> None:
        with self._lock:
            self._say(text)

    def job_planned(self, plan: JobPlan) -> None:
        accepted = sum(server.refused is None for server in plan.servers)
        self.note(f"job {plan.job_id}: {accepted} of {words.count(len(plan.servers), 'server')} accepted")

    def disk_begun(self, server: str, disk: str, size_bytes: int) -> None:
        now = self._clock()
        with self._lock:
            self._disks[server, disk] = _Disk(size_bytes, now, now)
            self._say(f"{server} {disk}: {words.size(size_bytes)}")

    def disk_advanced(self, server: str, disk: str, done_bytes: int, wire_bytes: int) -> None:
        now = self._clock()
        with self._lock:
            known = self._disks[server, disk]
            if now - known.said >= self._every_seconds and 0 < done_bytes < known.size_bytes:
                known.said = now
                self._say(f"{server} {disk}: {_so_far(known, done_bytes, wire_bytes, now)}")

    def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None:
        now = self._clock()
        with self._lock:
            known = self._disks.pop((server, disk))
            self._say(
                f"{server} {disk}: sent in {words.duration(now - known.began)}, "
                f"{words.size(wire_bytes)} over the wire, {words.size(written_bytes)} written"
            )

    def server_ended(self, outcome: ServerOutcome) -> None:
        self.note(ended(outcome))

    def _say(self, text: str) -> None:
        if self._broken:
            return
        try:
            print(words.printable(text), file=self._stream, flush=True)
        except OSError:
            self._broken = True


def watcher(stream: TextIO, totals: Mapping[str, int], *, wanted: bool) -> Watcher:
    """What fits the stream."""
    if not wanted:
        return Silent()
    if not stream.isatty():
        return Lines(stream)
    from anvil_dr.cli.progress_bars import Bars  # a fifth of a command's start, while a server is off

    return Bars(stream, totals)


def _so_far(disk: _Disk, done_bytes: int, wire_bytes: int, now: float) -> str:
    rate = done_bytes / max(now - disk.began, 0.001)
    left_seconds = (disk.size_bytes - done_bytes) / rate
    return (
        f"{words.size(done_bytes)} of {words.size(disk.size_bytes)} ({100 * done_bytes // disk.size_bytes} %), "
        f"{words.size(int(rate))}/s, about {words.duration(left_seconds)} left, {words.size(wire_bytes)} over the wire"
    )


def ended(outcome: ServerOutcome) -> str:
    """The last line about a server."""
    return f"{outcome.name}: complete" if outcome.error is None else f"{outcome.name}: failed: {outcome.error}"
