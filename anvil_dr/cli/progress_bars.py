"""How a job goes, as bars on a terminal: one for each disk under way, one for the job. Writes to one stream."""

from __future__ import annotations

from typing import Dict, Mapping, Optional, TextIO, Tuple

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
from anvil_dr.cli.progress import Silent, Watcher, ended
from anvil_dr.sending.job import ServerOutcome
from anvil_dr.wire.protocol import JobPlan


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
        self.note(ended(outcome))

    def _update_job(self, current_bytes: int) -> None:
        if self._job is not None:
            done_bytes = sum(self._finished_bytes.values()) + current_bytes
            wire = words.size(sum(self._wire_bytes.values()))
            self._progress.update(self._job, completed=done_bytes, wire=wire)
