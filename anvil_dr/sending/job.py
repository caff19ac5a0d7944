"""One job as the node has it: what is to be sent, who is told how it goes, and what became of it.

Values only; a disk is opened, and a server kept off, through what its values bring along.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, ContextManager, Iterable, Mapping, Optional, Protocol, Tuple

from anvil_dr.errors import AnvilDrError, SourceChangedError, SourceError
from anvil_dr.ports import Image
from anvil_dr.wire.protocol import JobPlan, ServerDone


class Source(Image, Protocol):
    """A disk of the node, open for reading."""

    def changed(self) -> Optional[str]:
        """What shows that somebody wrote to it since it was opened, in words; None if nothing does."""
        ...


@dataclass(frozen=True)
class OutgoingDisk:
    """One disk to be sent."""

    name: str
    path: str
    """As the definition has it."""
    size_bytes: int
    open: Callable[[], Source]
    """Opens what is really read, once the server is off. Raise SourceError."""
    data_bytes: Optional[int] = None
    """What lies outside of holes now; None where nobody can tell."""


@dataclass(frozen=True)
class OutgoingServer:
    """One server to be sent."""

    name: str
    definition: str
    disks: Tuple[OutgoingDisk, ...]
    keep_off: Callable[[], ContextManager[object]]
    """Entered before its disks are read: makes sure that it is off, and puts it back as it was."""
    left_out: Tuple[str, ...] = ()
    firmware: Mapping[str, bytes] = field(default_factory=dict)
    """Firmware state as it is when the job is announced."""
    read_firmware: Optional[Callable[[], Mapping[str, bytes]]] = None
    """Reads the same files once the server is off: a guest changes them as long as it runs. Raise SourceError."""

    def firmware_now(self) -> Mapping[str, bytes]:
        """The files that were announced, as they are now. Raise SourceError if one can't be read any more."""
        now = self.firmware if self.read_firmware is None else self.read_firmware()
        for name in self.firmware:
            if name not in now:
                raise SourceError(f"server {self.name}: its firmware state {name} has gone since the job began")
        return {name: now[name] for name in self.firmware}


@dataclass(frozen=True)
class ServerOutcome:
    """What became of one server."""

    name: str
    error: Optional[AnvilDrError] = None
    done: Optional[ServerDone] = None
    warnings: Tuple[str, ...] = ()


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job."""

    job_id: str
    servers: Tuple[ServerOutcome, ...]
    wire_bytes: int

    @property
    def succeeded(self) -> bool:
        return all(server.error is None for server in self.servers)


class Observer(Protocol):
    """Told how a job goes, from the thread that sends it or from a worker of its."""

    def job_planned(self, plan: JobPlan) -> None: ...

    def server_begun(self, server: str) -> None: ...

    def disk_begun(self, server: str, disk: str, size_bytes: int) -> None: ...

    def disk_advanced(self, server: str, disk: str, done_bytes: int, wire_bytes: int) -> None:
        """`done_bytes` of the disk are sent, or right at the target already; `wire_bytes` crossed for it so far."""
        ...

    def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None: ...

    def server_ended(self, outcome: ServerOutcome) -> None: ...


def check_unchanged(opened: Iterable[Tuple[OutgoingDisk, Source]]) -> None:
    """Raise SourceChangedError if somebody wrote to one of these disks since it was opened."""
    for disk, source in opened:
        changed = source.changed()
        if changed is not None:
            raise SourceChangedError(disk.path, changed)
