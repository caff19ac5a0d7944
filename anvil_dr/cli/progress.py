"""How a job goes, for those who watch: bars on a terminal, plain lines in a log. Writes to one stream.

Implements send.Observer. What it's told comes from several threads. A stream that breaks ends the reports, never the
job: servers may be off, and must be started again.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Callable, Dict, Final, Mapping, Optional, Protocol, TextIO, Tuple, Type

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from anvil_dr import words
from anvil_dr.sending.send import Observer, ServerOutcome
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
        self.note(_ended(outcome))

    def _say(self, text: str) -> None:
        if self._broken:
            return
        try:
            print(words.printable(text), file=self._stream, flush=True)
        except OSError:
            self._broken = True


class _RateColumn(ProgressColumn):
    """rich's own counts in powers of 1000, and everything beside it in powers of 1024."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("?" if rate is None else f"{words.size(int(rate))}/s", style="progress.data.speed")


class Bars(Silent):
    """A bar for each disk under way, and one for the job, with rates and times left."""

    def __init__(self, stream: TextIO, totals: Mapping[str, int]) -> None:
        """`totals`: for each server, how many bytes all its disks have."""
        self._totals = totals
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            _RateColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[wire]} over the wire", markup=False),
            console=Console(file=stream),
        )
        self._job: Optional[TaskID] = None
        self._finished_bytes: Dict[str, int] = {}
        self._wire_bytes: Dict[Tuple[str, str], int] = {}
        self._tasks: Dict[Tuple[str, str], TaskID] = {}

    @property
    def renderable(self) -> RenderableType:
        """What is drawn now."""
        return self._progress.get_renderable()

    def __enter__(self) -> Watcher:
        try:
            self._progress.start()
        except OSError:
            return Silent()
        return self

    def __exit__(self, *unused: object) -> None:
        try:
            self._progress.stop()
        except OSError:
            return  # the terminal has gone

    def note(self, text: str) -> None:
        try:
            self._progress.console.print(words.printable(text), markup=False, highlight=False)
        except OSError:
            return

    def job_planned(self, plan: JobPlan) -> None:
        accepted = [server.name for server in plan.servers if server.refused is None]
        total = sum(self._totals[name] for name in accepted)
        self._finished_bytes = dict.fromkeys(accepted, 0)
        self._job = self._progress.add_task("all", total=total, wire=words.size(0))

    def disk_begun(self, server: str, disk: str, size_bytes: int) -> None:
        name = words.printable(f"{server} {disk}")
        self._tasks[server, disk] = self._progress.add_task(name, total=size_bytes, wire=words.size(0))

    def disk_advanced(self, server: str, disk: str, done_bytes: int, wire_bytes: int) -> None:
        self._wire_bytes[server, disk] = wire_bytes
        self._progress.update(self._tasks[server, disk], completed=done_bytes, wire=words.size(wire_bytes))
        self._update_job(done_bytes)

    def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None:
        self._wire_bytes[server, disk] = wire_bytes
        task = self._tasks[server, disk]
        size_bytes = next(one.total or 0 for one in self._progress.tasks if one.id == task)
        self._progress.update(task, completed=size_bytes, wire=words.size(wire_bytes))
        self._finished_bytes[server] += int(size_bytes)
        self._update_job(0)

    def server_ended(self, outcome: ServerOutcome) -> None:
        for server, disk in [key for key in self._tasks if key[0] == outcome.name]:
            self._progress.remove_task(self._tasks.pop((server, disk)))
        if outcome.name in self._finished_bytes:
            # A server that failed has nothing left to send either.
            self._finished_bytes[outcome.name] = self._totals[outcome.name]
            self._update_job(0)
        self.note(_ended(outcome))

    def _update_job(self, current_bytes: int) -> None:
        if self._job is not None:
            done_bytes = sum(self._finished_bytes.values()) + current_bytes
            wire = words.size(sum(self._wire_bytes.values()))
            self._progress.update(self._job, completed=done_bytes, wire=wire)


def watcher(stream: TextIO, totals: Mapping[str, int], *, wanted: bool) -> Watcher:
    """What fits the stream."""
    if not wanted:
        return Silent()
    return Bars(stream, totals) if stream.isatty() else Lines(stream)


def _so_far(disk: _Disk, done_bytes: int, wire_bytes: int, now: float) -> str:
    rate = done_bytes / max(now - disk.began, 0.001)
    left_seconds = (disk.size_bytes - done_bytes) / rate
    return (
        f"{words.size(done_bytes)} of {words.size(disk.size_bytes)} ({100 * done_bytes // disk.size_bytes} %), "
        f"{words.size(int(rate))}/s, about {words.duration(left_seconds)} left, {words.size(wire_bytes)} over the wire"
    )


def _ended(outcome: ServerOutcome) -> str:
    return f"{outcome.name}: complete" if outcome.error is None else f"{outcome.name}: failed: {outcome.error}"
