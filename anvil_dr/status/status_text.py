"""The status in words, for somebody who looks twice a year. Pure: a Status in, lines out.

The first line says whether all is well; what isn't stands below it; details follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Iterator, List, Literal, Optional, Tuple

from anvil_dr import words
from anvil_dr.cycling import sets
from anvil_dr.model import INCOMPLETE, ImageSet, JobRecord, Location, RunningJob
from anvil_dr.status.status import ServerStatus, Status

_LABEL_CHARACTERS: Final = 12
_NAMED_AT_MOST: Final = 4
Tone = Literal["title", "good", "bad", "plain", "quiet"]


@dataclass(frozen=True)
class Line:
    """One line and how it's meant; whoever prints it chooses colours."""

    text: str
    tone: Tone = "plain"
    hang: Optional[int] = None
    """The column that it goes on in where it has to be folded; None: a little behind where it begins."""


def lines(status: Status, now: datetime) -> Tuple[Line, ...]:
    """The whole status. Times are shown in the time zone of `now`."""
    found: List[Line] = [*_verdict(status, now)]
    for server in status.servers:
        found += [Line(""), *_server(server, now)]
    found += [Line(""), Line("Store: " + {"fs": "files", "lvm": "logical volumes"}[status.store_kind], "title")]
    found += [_location(one) for one in status.locations] or [Line("  unknown", "bad")]
    found += [Line(""), Line("Cache drives", "title")]
    usable = [drive for drive in status.cache_drives if drive.problem is None]
    for drive in usable:
        where = f"mounted on {drive.mountpoint}" if drive.mountpoint else "not mounted"
        space = f"{words.size(drive.free_bytes)} of {words.size(drive.size_bytes)} free"
        found.append(_labelled(drive.device, words.printable(f"{space}, {drive.filesystem}, {where}")))
        indent = " " * _LABEL_CHARACTERS
        if drive.carries:
            found += [Line(f"{indent}  brings {words.printable(one)}") for one in drive.carries]
            found.append(Line(f"{indent}  to take that: anvil-dr-import {words.printable(drive.device)}", "good"))
        else:
            found += [Line(f"{indent}  has {words.printable(name)}", "quiet") for name in drive.contents]
    if not usable:
        found.append(Line("  none", "quiet"))
    for drive in status.cache_drives:
        if drive.problem is not None and (drive.signed or (drive.filesystem and drive.mountpoint is None)):
            found.append(Line(f"  not used: {words.printable(f'{drive.device}: {drive.problem}')}", "quiet"))
    found += [Line(""), Line("Running jobs", "title")]
    if status.jobs is None:
        found.append(Line("  unknown: the service cannot be asked", "bad"))
    elif not status.jobs:
        found.append(Line("  none", "quiet"))
    found += [_job(one) for one in status.jobs or ()]
    return tuple(found)


def verdict(status: Status, now: datetime) -> Tuple[Line, ...]:
    """Whether all is well, and each thing that is not."""
    found = [*_verdict(status, now)]
    for server in status.servers:
        for remark in server.remarks:
            if remark.serious:
                found.append(Line(f"! {words.printable(server.name)}: {remark.text}", "bad"))
    return tuple(found)


def _verdict(status: Status, now: datetime) -> Iterator[Line]:
    troubled = [server for server in status.servers if server.needs_attention]
    if not status.all_is_well:
        yield Line(f"{status.target}: NOT ALL IS WELL", "bad")
    elif status.servers:
        yield Line(f"{status.target}: all is well", "good")
    else:
        yield Line(f"{status.target}: ready, but no server has been received yet", "title")
    for problem in status.problems:
        yield Line(f"! {words.printable(problem)}", "bad")
    if status.service_problem:
        yield Line(f"! the service cannot be reached, so no job can be received: {status.service_problem}", "bad")
    if troubled:
        names = [server.name for server in troubled[:_NAMED_AT_MOST]]
        if len(troubled) > _NAMED_AT_MOST:
            names.append(words.count(len(troubled) - _NAMED_AT_MOST, "other"))
        needs = "needs" if len(troubled) == 1 else "need"
        total = words.count(len(status.servers), "server")
        yield Line(f"! {words.listed(names)} (of {total}) {needs} attention: see below", "bad")
    if status.servers:
        yield Line(_bootable(status, now))


def _bootable(status: Status, now: datetime) -> str:
    servers = [one for one in status.servers if one.bootable and one.definition is not None]
    newest = [sets.newest_complete(found for found in one.sets if not found.rotten) for one in servers]
    bootable = [found for found in newest if found is not None]
    times = [found.record.received_at for found in bootable if found.record is not None]
    total = words.count(len(status.servers), "server")
    can = "could be booted, if anything can be booted here" if status.boots_unknown else "can be booted here"
    text = f"{len(bootable)} of {total} {can}" if bootable else "no server can be booted here"
    if not times:
        return text + "."
    first, last = (words.age(one, now) for one in (max(times), min(times)))
    when = first if first == last else f"between {last} and {first}"
    return f"{text}, from sets received {when}."


def _server(server: ServerStatus, now: datetime) -> Iterator[Line]:
    yield Line(words.printable(server.name), "title")
    for remark in server.remarks:
        yield _labelled("! warning" if remark.serious else "note", remark.text, "bad" if remark.serious else "plain")
    for one in server.sets:
        yield _set(one, now)
    yield _labelled("definition", words.printable(server.definition or "none"))
    yield _labelled("last job", "none is known" if server.last_job is None else _last_job(server.last_job, now))


def _set(one: ImageSet, now: datetime) -> Line:
    disks = words.count(len({image.owner.disk for image in one.images}), "disk")
    what = f"{disks}, {words.size(sum(image.size_bytes for image in one.images))}"
    if one.sequence == INCOMPLETE:
        return _labelled("incomplete", f"{what}: what a job has written so far, and the next one goes on with", "quiet")
    when = "at an unknown time"
    if one.record is not None:
        when = f"{_when(one.record.received_at, now)} from {words.printable(one.record.source)}"
    text = f"{what}, received {when}"
    return _labelled(f"set {one.sequence}", text if one.complete else f"NOT COMPLETE: {text}")


def _last_job(job: JobRecord, now: datetime) -> str:
    if job.state == "running":
        return f"running since {_when(job.started_at, now)}"
    moved = f"{words.size(job.wire_bytes)} over the network, {words.size(job.written_bytes)} written"
    return f"{job.state} {_when(job.finished_at or job.started_at, now)}{_took(job)}, {moved}"


def _took(job: JobRecord) -> str:
    begun, ended = words.moment(job.started_at), words.moment(job.finished_at or "")
    if begun is None or ended is None or ended < begun:
        return ""
    return f" after {words.duration((ended - begun).total_seconds())}"


def _when(iso: str, now: datetime) -> str:
    then = words.moment(iso)
    exact = "" if then is None else f" ({then.astimezone(now.tzinfo):%Y-%m-%d %H:%M})"
    return words.age(iso, now) + exact


def _location(one: Location) -> Line:
    return _labelled(one.name, f"{words.size(one.free_bytes)} of {words.size(one.size_bytes)} free")


def _job(job: RunningJob) -> Line:
    percent = f"{100 * job.bytes_done // job.bytes_total} %, " if job.bytes_total else ""
    progress = f"{percent}{words.size(job.bytes_done)} of {words.size(job.bytes_total)}"
    if job.seconds and job.bytes_done:
        left_seconds = job.seconds * (job.bytes_total - job.bytes_done) / job.bytes_done
        progress += f", {words.size(job.bytes_done // job.seconds)}/s, about {words.duration(left_seconds)} left"
    if job.wire_bytes:
        progress += f", {words.size(job.wire_bytes)} over the wire"
    if job.disk:
        progress += f"; now disk {job.disk}"
    servers = words.listed(job.servers)
    return _labelled(words.printable(job.id), words.printable(f"{servers} from {job.node}: {job.state}, {progress}"))


def _labelled(label: str, text: str, tone: Tone = "plain") -> Line:
    padded = label.ljust(_LABEL_CHARACTERS) if len(label) < _LABEL_CHARACTERS else f"{label}  "
    return Line(f"  {padded}{text}", tone, hang=2 + _LABEL_CHARACTERS)
