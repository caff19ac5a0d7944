"""What became of a job, in words and as JSON (SPEC section 9). Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Final, Iterator, List, Mapping, Optional, Set, Tuple

from anvil_dr import words
from anvil_dr.errors import AnvilDrError, NotStartedError, RemoteError
from anvil_dr.sending.job import Observer, OutgoingServer, ServerOutcome
from anvil_dr.wire.protocol import JobPlan

_AGAIN: Final = "run the same command again; what has arrived is not sent again"

_ADVICE: Final[Mapping[str, str]] = {
    "DigestMismatch": f"{_AGAIN}. If it comes back, suspect the memory or a disk of either machine",
    "ImageInUse": "see on the DR box what uses it (anvil-dr-status), end that, and run the same command again",
    "NotAllowed": "see --allow in this node's line of authorized_keys on the DR box",
    "PeerStandstill": "see on the DR box what its drives do (journalctl -k), and " + _AGAIN,
    "ServerActivated": "only if the server is not needed there any more; its changes there will be lost",
    "ServerBusy": "wait for that job to end (anvil-dr-status on the DR box), then run the same command again",
    "ShutdownRefused": "the server runs on; once libvirt takes orders for it again, run the same command again",
    "SourceChanged": "make sure that nothing uses its disks, on no other node either, and run the same command again",
    "StoreFull": "make room in the store, or lower `copies` there, and run the same command again",
}
"""What can be done, where the error does not say so itself. By its code."""

_SAY_IT_THEMSELVES: Final = ("Definition", "Source", "ImageName", "NameCollision", "DriveRefused")


class Recorder:
    """A send.Observer that hands everything on and keeps what a report needs, however the session ends."""

    def __init__(self, watcher: Observer) -> None:
        self._watcher = watcher
        self.job_id: Optional[str] = None
        self.outcomes: Dict[str, ServerOutcome] = {}
        self.begun: Set[str] = set()
        """Servers whose disks the other end may have begun to write."""
        self._wire_bytes: Dict[Tuple[str, str], int] = {}
        self._written_bytes: Dict[str, int] = {}

    def wire_bytes(self, server: str) -> int:
        done = self.outcomes[server].done if server in self.outcomes else None
        return done.wire_bytes if done else sum(n for (name, _), n in self._wire_bytes.items() if name == server)

    def written_bytes(self, server: str) -> int:
        done = self.outcomes[server].done if server in self.outcomes else None
        return done.written_bytes if done else self._written_bytes.get(server, 0)

    def job_planned(self, plan: JobPlan) -> None:
        self.job_id = plan.job_id
        self._watcher.job_planned(plan)

    def server_begun(self, server: str) -> None:
        self.begun.add(server)
        self._watcher.server_begun(server)

    def disk_begun(self, server: str, disk: str, size_bytes: int) -> None:
        self._watcher.disk_begun(server, disk, size_bytes)

    def disk_advanced(self, server: str, disk: str, done_bytes: int, wire_bytes: int) -> None:
        self._wire_bytes[server, disk] = wire_bytes
        self._watcher.disk_advanced(server, disk, done_bytes, wire_bytes)

    def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None:
        self._wire_bytes[server, disk] = wire_bytes
        self._written_bytes[server] = self._written_bytes.get(server, 0) + written_bytes
        self._watcher.disk_done(server, disk, written_bytes, wire_bytes)

    def server_ended(self, outcome: ServerOutcome) -> None:
        self.outcomes[outcome.name] = outcome
        self._watcher.server_ended(outcome)


@dataclass(frozen=True)
class ServerReport:
    """One server's part of the report."""

    outcome: ServerOutcome
    disks: int = 0
    size_bytes: int = 0
    wire_bytes: int = 0
    written_bytes: int = 0
    downtime_seconds: Optional[float] = None
    """None if it was not shut down for its image."""
    not_started: Optional[NotStartedError] = None
    """Why it could not be started again, or that it may go off yet."""

    @property
    def complete(self) -> bool:
        """Whether the DR box has its image."""
        return self.outcome.error is None

    @property
    def succeeded(self) -> bool:
        return self.complete and self.not_started is None

    @property
    def error(self) -> Optional[AnvilDrError]:
        return self.not_started or self.outcome.error


@dataclass(frozen=True)
class Report:
    """The whole job."""

    job_id: Optional[str]
    """As the DR box calls it; None if it was never asked, or did not answer."""
    target: str
    servers: Tuple[ServerReport, ...]
    wire_bytes: int
    seconds: float
    session_error: Optional[AnvilDrError] = field(default=None)

    @property
    def succeeded(self) -> bool:
        return all(server.succeeded for server in self.servers)


def server_reports(
    names: Tuple[str, ...],
    prepared: Tuple[OutgoingServer, ...],
    failed: Tuple[ServerOutcome, ...],
    recorder: Recorder,
    session_error: Optional[AnvilDrError],
    downtime_seconds: Mapping[str, float],
    not_started: Mapping[str, NotStartedError],
) -> Tuple[ServerReport, ...]:
    """In the order of `names`. A server of which nothing is known shares the fate of the session."""
    outgoing = {server.name: server for server in prepared}
    known = {**{outcome.name: outcome for outcome in failed}, **recorder.outcomes}
    reports = []
    for name in names:
        outcome = known.get(name) or ServerOutcome(name, session_error or AnvilDrError("it was not sent"))
        disks = outgoing[name].disks if name in outgoing else ()
        reports.append(
            ServerReport(
                outcome,
                len(disks),
                sum(disk.size_bytes for disk in disks),
                recorder.wire_bytes(name),
                recorder.written_bytes(name),
                downtime_seconds.get(name),
                not_started.get(name),
            )
        )
    return tuple(reports)


def to_json(report: Report) -> Dict[str, object]:
    """What --json prints."""
    return {
        "job_id": report.job_id,
        "target": report.target,
        "servers": [_server_json(server) for server in report.servers],
        "wire_bytes": report.wire_bytes,
    }


def to_lines(report: Report) -> Tuple[str, ...]:
    """What is complete, what is not and why, and what to do next."""
    lines: List[str] = []
    for names, server in _grouped(report):
        lines += _server_lines(names, server)
    complete = sum(server.complete for server in report.servers)
    job = f" (job {report.job_id} on {report.target})" if report.job_id else ""
    lines.append(
        f"{complete} of {words.count(len(report.servers), 'server')} complete{job}: "
        f"{words.size(report.wire_bytes)} over the wire in {words.duration(report.seconds)}"
    )
    if report.session_error is not None and complete == len(report.servers):
        lines.append(f"warning: the session did not end in good order: {report.session_error}")
    return tuple(words.printable(line) for line in lines)


def _server_json(server: ServerReport) -> Dict[str, object]:
    return {
        "name": server.outcome.name,
        "state": "succeeded" if server.succeeded else "failed",
        "error": str(server.error) if server.error else None,
        "code": _code(server.error) if server.error else None,
        "wire_bytes": server.wire_bytes,
        "written_bytes": server.written_bytes,
        "downtime_seconds": None if server.downtime_seconds is None else round(server.downtime_seconds, 3),
        "warnings": list(server.outcome.warnings),
    }


def _grouped(report: Report) -> Iterator[Tuple[str, ServerReport]]:
    """The servers with their names; those that nothing befell but the end of the session only once, together."""
    shared = [
        server
        for server in report.servers
        if server.error is not None
        and server.error is report.session_error
        and server.downtime_seconds is None
        and not server.outcome.warnings
    ]
    for server in report.servers:
        if server not in shared:
            yield server.outcome.name, server
        elif server is shared[0]:
            yield words.listed([one.outcome.name for one in shared]), server


def _server_lines(name: str, server: ServerReport) -> List[str]:
    lines: List[str] = []
    downtime = "" if server.downtime_seconds is None else f"; it was off for {words.duration(server.downtime_seconds)}"
    if server.outcome.error is None:
        lines.append(
            f"{name}: complete: {words.count(server.disks, 'disk')}, {words.size(server.size_bytes)}; "
            f"{words.size(server.wire_bytes)} over the wire, {words.size(server.written_bytes)} written{downtime}"
        )
        done = server.outcome.done
        if done is not None and done.definition_made:
            lines.append(f"  its definition was made on the DR box, and is yours to edit: {done.definition}")
    else:
        lines.append(f"{name}: FAILED: {server.outcome.error}{downtime}")
        code = _code(server.outcome.error)
        if code not in _SAY_IT_THEMSELVES:
            lines.append(f"  what to do: {_ADVICE.get(code, _AGAIN)}")
    if server.not_started is not None:
        if server.not_started.is_off:
            lines.append(f"  IT IS OFF: {server.not_started}")
            if server.not_started.by_hand:
                lines.append(f"  what to do: start it by hand, now: {server.not_started.by_hand}")
        else:
            lines.append(f"  IT MAY GO OFF YET: {server.not_started}")
    lines += [f"  warning: {warning}" for warning in server.outcome.warnings]
    return lines


def _code(error: AnvilDrError) -> str:
    return error.remote_code if isinstance(error, RemoteError) else error.code
