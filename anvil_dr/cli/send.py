"""`anvil-dr-send`: a node pushes images of its servers to the DR box (SPEC section 9)."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Optional, Sequence, Tuple, Union

from anvil_dr import command, config
from anvil_dr.cli import run_command
from anvil_dr.cli.interruption import Interruption
from anvil_dr.cli.parser import Parser, add_common_options
from anvil_dr.cli.progress import Watcher, watcher
from anvil_dr.cli.send_report import Recorder, Report, server_reports, to_json, to_lines
from anvil_dr.errors import (
    AnvilDrError,
    DriveRefusedError,
    HypervisorError,
    JobInterruptedError,
    ProtocolError,
    UsageError,
)
from anvil_dr.failback.half_back import HalfBack
from anvil_dr.ports import OwnerSource, SourceHypervisor, Store
from anvil_dr.receiving.target import utc_now
from anvil_dr.sending import connect, job_file, off_notes, outgoing, start_log
from anvil_dr.sending.job import ServerOutcome
from anvil_dr.sending.keep_off import Keeper
from anvil_dr.sending.off_notes import OffNotes
from anvil_dr.sending.outgoing import Prepared
from anvil_dr.sending.outgoing_domain import DomainReader
from anvil_dr.sending.send import JobSender
from anvil_dr.sending.start_log import StartLog
from anvil_dr.sending.to_drive import DriveSender
from anvil_dr.stores.directory import DirectoryStore

PROGRAM = "anvil-dr-send"
_DAY_SECONDS = 86400


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    options = _parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _send(options), as_json=options.json)


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Send images of servers that are shut off to a DR box. What it has already is not sent again.",
    )
    parser.add_argument("servers", nargs="*", metavar="SERVER", help="a domain of this machine's libvirt")
    parser.add_argument(
        "--to", required=True, metavar="DEST",
        help="ssh://[user@]host[:port], unix:PATH, or drive:FOLDER: a drive that is carried to the DR box",
    )  # fmt: skip
    parser.add_argument("--job", metavar="FILE", help="a job file that names servers, definitions and disks")
    parser.add_argument(
        "--shutdown",
        action="store_true",
        help="shut running servers down for their image, and start them again whatever became of it",
    )
    parser.add_argument(
        "--shutdown-timeout",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="how long a server may take to shut down (default: %(default)g)",
    )
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="PATH",
        help="a disk that is not sent, and that the DR box's definition won't have; may be given more than once",
    )
    parser.add_argument("--connect", default="qemu:///system", metavar="URI", help="libvirt (default: %(default)s)")
    parser.add_argument(
        "--state", metavar="DIR", default=off_notes.FOLDER,
        help="where it is noted which servers are off for their image (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--libvirt-log", metavar="DIR", default=start_log.FOLDER,
        help="where libvirt notes when a server is started (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--identity", metavar="FILE", help="the private key that ssh is to use, and no other")
    parser.add_argument(
        "--bandwidth-limit", default="0", metavar="RATE", help="bytes a second, such as 10M (default: no limit)"
    )
    parser.add_argument(
        "--compression", choices=("auto", "none"), default="auto", help="zstd where it helps, or none (default: auto)"
    )
    parser.add_argument("--no-progress", action="store_true", help="say nothing before the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of words")
    add_common_options(parser)
    return parser


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) <= _DAY_SECONDS:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is no number of seconds up to {_DAY_SECONDS}, a day")


@dataclass(frozen=True)
class _Work:
    """One job, ready to be sent."""

    name: str
    servers: Tuple[str, ...]
    prepared: Prepared
    keeper: Optional[Keeper] = None


def _send(options: argparse.Namespace) -> int:
    destination = connect.parse_send_destination(options.to)
    limit_bytes = config.parse_rate(options.bandwidth_limit)
    _check(options)
    interruption = Interruption()
    work = _work(options, interruption)
    totals = {server.name: sum(disk.size_bytes for disk in server.disks) for server in work.prepared.servers}
    with watcher(sys.stderr, totals, wanted=not options.no_progress) as watching:
        if work.keeper is not None:
            work.keeper.tell = watching.note
        report = _run(options, work, destination, limit_bytes, interruption, watching)
    if options.json:
        print(json.dumps(to_json(report), indent=2))
    else:
        print("\n".join(to_lines(report)))
        if isinstance(destination, connect.DriveDestination) and any(server.complete for server in report.servers):
            print(
                f"Now: umount {destination.folder}; carry the drive to the DR box, plug it in, and look at "
                "anvil-dr-status there. It says what to type."
            )
    if interruption.by is not None:
        return 128 + interruption.by
    return 0 if report.succeeded else 1


def _check(options: argparse.Namespace) -> None:
    """Raise UsageError for options that don't go together."""
    if bool(options.servers) == bool(options.job):
        raise UsageError("give either servers or --job FILE")
    if options.job and (options.shutdown or options.leave_out):
        given = "--shutdown" if options.shutdown else "--leave-out"
        raise UsageError(f"{given} is for servers that libvirt has; a job file says itself what is sent")


def _work(options: argparse.Namespace, interruption: Interruption) -> _Work:
    """Read what is to be sent. Raise ConfigError, UsageError; other trouble is an outcome of a server."""
    refuse = HalfBack(options.state).refuse
    if options.job:
        job = job_file.load(options.job)
        return _Work(job.name, tuple(server.name for server in job.servers), outgoing.from_job_file(job, refuse))
    names = tuple(options.servers)
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    try:
        keeper = Keeper(
            lambda: _connect(options.connect),
            shut_down=options.shutdown,
            notes=OffNotes(options.state, starts=StartLog(options.libvirt_log)),
            refuse=refuse,
            timeout_seconds=options.shutdown_timeout,
            interrupted=lambda: bool(interruption),
        )
    except HypervisorError as error:
        return _Work(name, names, Prepared((), tuple(ServerOutcome(one, error) for one in names)))
    return _Work(name, names, DomainReader(keeper, leave_out=options.leave_out).read(names), keeper)


def _connect(uri: str) -> SourceHypervisor:
    """Only where servers are libvirt's: a job file can be sent from a machine that has no libvirt."""
    try:
        from anvil_dr import hypervisor
    except ModuleNotFoundError as error:
        raise HypervisorError(f"Python module {error.name} is missing; a job file can be sent without it") from error
    return hypervisor.connect(uri)


def _files(folder: str, owners: OwnerSource) -> Store:
    """Images on a drive; nothing is written where it was once it has gone. Raise DriveRefusedError."""
    try:
        file_system = os.stat(folder).st_dev
    except OSError as error:
        raise DriveRefusedError(f"{folder}: {error.strerror}. Mount the drive there first") from error
    return DirectoryStore(folder, owners, file_system=file_system)


def _run(
    options: argparse.Namespace,
    work: _Work,
    destination: Union[connect.Destination, connect.DriveDestination],
    limit_bytes: int,
    interruption: Interruption,
    watching: Watcher,
) -> Report:
    recorder = Recorder(watching)
    target, wire_bytes, began = str(destination), 0, time.monotonic()
    session_error: Optional[AnvilDrError] = None
    for outcome in work.prepared.failed:
        recorder.server_ended(outcome)
    # From here on servers may be off, until the end of the block.
    with interruption:
        try:
            if work.prepared.servers and isinstance(destination, connect.DriveDestination):
                node = os.uname().nodename
                writer = DriveSender(destination.folder, _files, node=node, observer=recorder, now=utc_now)
                interruption.watch(writer.interrupt)
                writer.run(work.name, work.prepared.servers)
            elif work.prepared.servers and not isinstance(destination, connect.DriveDestination):
                with connect.connected(destination, command.spawn, identity=options.identity) as channel:
                    interruption.watch(channel.abandon)
                    sender = JobSender(
                        channel,
                        node=os.uname().nodename,
                        observer=recorder,
                        bandwidth_limit_bytes=limit_bytes,
                        compress=options.compression != "none",
                    )
                    try:
                        sender.run(work.name, work.prepared.servers)
                    except ProtocolError:
                        if interruption.by is not None:
                            sender.say_why(JobInterruptedError(interruption.by.name))
                        raise
                    finally:
                        interruption.watch(lambda: None)
                        if sender.target:  # else what was written has reached nobody
                            target, wire_bytes = sender.target, channel.wire_bytes
        except AnvilDrError as error:
            session_error = JobInterruptedError(interruption.by.name) if interruption.by is not None else error
        finally:
            if work.keeper is not None:
                work.keeper.start_left_off(work.servers)
                work.keeper.start_late()
    servers = server_reports(
        work.servers,
        work.prepared.servers,
        work.prepared.failed,
        recorder,
        session_error,
        work.keeper.downtime_seconds if work.keeper else {},
        work.keeper.not_started if work.keeper else {},
    )
    return Report(recorder.job_id, target, servers, wire_bytes, time.monotonic() - began, session_error)
