"""What the admin sees: everything that was observed, judged.

Pure: values in, values out. observation.py looks at the world; status_text.py puts it in words, status_json.py into
the object of SPEC section 9.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Iterable, Iterator, List, Literal, Mapping, Optional, Tuple

from anvil_dr import words
from anvil_dr.activation import boot_images
from anvil_dr.activation.check_result import CheckResult
from anvil_dr.cycling import sets
from anvil_dr.model import (
    INCOMPLETE,
    Activation,
    CacheDrive,
    ImageSet,
    JobRecord,
    JournalEntry,
    Location,
    RunningJob,
    SetRecord,
    StoredImage,
)
from anvil_dr.rehearsal.rehearsal_result import IN_WORDS, Rehearsed

_DAY_SECONDS: Final = 24 * 3600
OLD_SECONDS: Final = 8 * _DAY_SECONDS
"""A newest set older than this is warned of: a weekly job that was missed, and a day of grace."""


@dataclass(frozen=True)
class DefinitionFacts:
    """What is known of one server's definition file."""

    path: str
    problem: Optional[str] = None
    differences: Tuple[str, ...] = ()
    """How the source's definition of the last job differs from it."""


@dataclass(frozen=True)
class WaitingSet:
    """A complete set on cache drives."""

    server: str
    job_id: str
    received_at: str
    devices: Tuple[str, ...]
    """What a person finds them by."""
    problem: Optional[str] = None
    """Why they can't be used now; None if they can."""
    jobs_before: Optional[Tuple[str, ...]] = None
    """Those whose sets are older; None if nobody noted that."""
    runs_before: Optional[Tuple[str, ...]] = None
    """The `ran_here_until` of the store's sets when it was complete."""
    ran_here_until: Optional[str] = None
    """When the server was given back that had run on it."""


@dataclass(frozen=True)
class Observation:
    """All that was seen. None where something could not be read; `problems` says why."""

    target: str
    store_kind: Literal["fs", "lvm"]
    locations: Tuple[Location, ...] = ()
    images: Optional[Tuple[StoredImage, ...]] = None
    records: Optional[Tuple[SetRecord, ...]] = None
    pending: Tuple[JournalEntry, ...] = ()
    last_jobs: Mapping[str, JobRecord] = field(default_factory=dict)
    activations: Mapping[str, Activation] = field(default_factory=dict)
    check: Optional[CheckResult] = None
    """What the last look at whether the servers could be booted found."""
    rehearsed: Mapping[str, Rehearsed] = field(default_factory=dict)
    """The last rehearsal of each server."""
    definitions: Optional[Mapping[str, DefinitionFacts]] = None
    cache_drives: Tuple[CacheDrive, ...] = ()
    waiting: Tuple[WaitingSet, ...] = ()
    jobs: Optional[Tuple[RunningJob, ...]] = None
    service_problem: Optional[str] = None
    """Why the service said nothing."""
    problems: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Remark:
    """Something the admin should know. What is serious keeps the first line from saying that all is well."""

    text: str
    serious: bool = True


@dataclass(frozen=True)
class ServerStatus:
    """One server on the DR box."""

    name: str
    definition: Optional[str]
    activation: Optional[Activation]
    sets: Tuple[ImageSet, ...]
    last_job: Optional[JobRecord]
    remarks: Tuple[Remark, ...]
    bootable: bool = True
    """False if the last look found something that would keep it from being booted here."""

    @property
    def needs_attention(self) -> bool:
        return any(remark.serious for remark in self.remarks)


@dataclass(frozen=True)
class Status:
    """The DR box."""

    target: str
    store_kind: Literal["fs", "lvm"]
    locations: Tuple[Location, ...]
    servers: Tuple[ServerStatus, ...]
    cache_drives: Tuple[CacheDrive, ...]
    jobs: Optional[Tuple[RunningJob, ...]]
    service_problem: Optional[str]
    problems: Tuple[str, ...]
    """What could not be read, so that this status is not the whole truth."""
    boots_unknown: bool = False
    """Whether the last look could not tell which servers can be booted here."""

    @property
    def all_is_well(self) -> bool:
        """Nothing needs the admin."""
        return not (self.problems or self.service_problem or any(server.needs_attention for server in self.servers))


def assess(seen: Observation, now: datetime) -> Status:
    """Judge what was seen. `now` must have a time zone."""
    assembled = sets.assemble(seen.images or (), seen.records or (), seen.pending)
    names = {one.server for one in assembled} | {one.server for one in seen.records or ()}
    names |= {one.server for one in seen.waiting}
    names |= set(seen.last_jobs) | set(seen.activations) | set(seen.definitions or {})
    servers = tuple(_server(name, sets.of_server(assembled, name), seen, now) for name in sorted(names))
    return Status(
        seen.target,
        seen.store_kind,
        seen.locations,
        servers,
        seen.cache_drives,
        seen.jobs,
        seen.service_problem,
        seen.problems,
        boots_unknown=seen.check is not None and seen.check.problem is not None,
    )


def _server(name: str, present: Tuple[ImageSet, ...], seen: Observation, now: datetime) -> ServerStatus:
    definition = (seen.definitions or {}).get(name)
    activation, last_job = seen.activations.get(name), seen.last_jobs.get(name)
    remarks: List[Remark] = []
    if activation is not None:
        remarks.append(Remark(_activated(activation, now)))
    at_work = any(name in job.servers for job in seen.jobs or ())
    if not at_work:
        remarks += [_unfinished(entry) for entry in seen.pending if entry.server == name]
    waiting = [one for one in seen.waiting if one.server == name]
    remarks += _about_waiting(waiting, present, now)
    if seen.images is not None:
        remarks += _about_sets(present, now, at_work=at_work, database_read=seen.records is not None)
    if seen.definitions is not None:
        remarks += _about_definition(definition)
    if seen.check is not None:
        remarks += _about_check(name, activation, seen.check, now)
    if name in seen.rehearsed:
        remarks += _about_rehearsal(seen.rehearsed[name], now)
    if last_job is not None:
        remarks += _about_last_job(last_job, seen, now)
    path = None if definition is None else definition.path
    bootable = seen.check is None or not seen.check.problems.get(name)
    return ServerStatus(name, path, activation, present, last_job, tuple(remarks), bootable)


def _unfinished(entry: JournalEntry) -> Remark:
    why = words.printable(entry.failure or "the service does that when it starts")
    return Remark(f"plan {entry.id} ({entry.purpose}) was begun and is not finished: {why}")


def _activated(activation: Activation, now: datetime) -> str:
    return (
        f"activated {words.age(activation.since, now)} by {words.printable(activation.user)} from "
        f"{boot_images.set_name(activation.sequence)}; its jobs are refused until: "
        f"anvil-activate-dr --release {activation.server}"
    )


def _about_sets(
    present: Tuple[ImageSet, ...], now: datetime, *, at_work: bool, database_read: bool
) -> Iterator[Remark]:
    newest = sets.newest_complete(present)
    if newest is None:
        yield Remark("no complete set: this server cannot be booted here")
    for one in present:
        if one.sequence != INCOMPLETE and not one.complete:
            yield Remark(f"set {one.sequence} is not complete: {_lack(one)}")
        yield from _about_rot(one)
    if newest is None:
        return
    if newest.sequence != 1:
        why = "a job is running" if at_work else "a job was begun that has not succeeded"
        yield Remark(f"the newest complete set is number {newest.sequence}: {why}", serious=not at_work)
    unknown = [str(one.sequence) for one in present if one.complete and one.record is None]
    if unknown and database_read:
        noun, verb = ("sets", "are") if len(unknown) > 1 else ("set", "is")
        yield Remark(
            f"{noun} {words.listed(unknown)} {verb} not in the state database: "
            "nobody knows when it was received, and its digests cannot be checked"
        )
    for one in present:
        if one.complete and one.record is not None and one.record.ran_here_until is not None:
            ran = words.age(one.record.ran_here_until, now)
            yield Remark(f"set {one.sequence} holds what it wrote here: it ran here until {ran}", serious=False)
    if newest.record is not None:
        received = words.moment(newest.record.received_at)
        if received is not None and (now - received).total_seconds() > _old_seconds(present, received):
            yield Remark(f"the newest set was received {words.age(newest.record.received_at, now)}")


def _about_waiting(
    waiting: Iterable[WaitingSet], present: Tuple[ImageSet, ...], now: datetime
) -> Iterator[Remark]:
    stored = sets.newest_complete(present) is not None
    again = "it is copied by itself as soon as the drive can be used"
    for one in waiting:
        what, where = f"complete set, received {words.age(one.received_at, now)}", words.listed(one.devices)
        where = words.printable(f"cache drive {where}")
        ran = sets.ran_after(present, one)
        if sets.has_one_as_new(present, one):
            yield Remark(f"a {what}, is on {where} and not needed any more: it is removed there", serious=False)
        elif ran is not None:
            yield Remark(
                f"a {what}, is on {where} and stays there until its next job has succeeded: "
                f"set {ran.sequence} holds what it wrote here after that",
                serious=False,
            )
        elif one.problem is None:
            yield Remark(f"a {what}, is on {where} and on its way to the store", serious=False)
        elif stored:
            yield Remark(f"a newer {what}, is on {where}: {words.printable(one.problem)}; {again}")
        else:
            yield Remark(
                f"its only {what}, is on {where}: {words.printable(one.problem)}; {again}. "
                "The next job leaves that drive alone and writes into the store"
            )


def _about_rot(one: ImageSet) -> Iterator[Remark]:
    for image in one.record.images if one.record else ():
        if image.disk in one.rotten and one.sequence != INCOMPLETE:
            yield Remark(f"set {one.sequence} is rotten: disk {image.disk}: {words.printable(image.rotten or '')}")


def _old_seconds(present: Tuple[ImageSet, ...], newest_received: datetime) -> float:
    """When the newest set is too old: where jobs are known to come less often, after twice that time."""
    earlier = [
        moment
        for one in present
        if one.complete and one.record is not None
        for moment in [words.moment(one.record.received_at)]
        if moment is not None and moment < newest_received
    ]
    interval = (newest_received - max(earlier)).total_seconds() if earlier else 0.0
    return max(float(OLD_SECONDS), 2 * interval)


def _lack(one: ImageSet) -> str:
    if one.record is None:
        return "its images did not come in one job"
    here = {image.identity for image in one.images}
    missing = [image.disk for image in one.record.images if image.identity not in here]
    return f"disk {words.listed(missing)} is missing" if missing else "an image in it is not what was received"


def _about_definition(definition: Optional[DefinitionFacts]) -> Iterator[Remark]:
    if definition is None:
        yield Remark("no definition: this server cannot be booted here")
        return
    if definition.problem is not None:
        yield Remark(f"the definition cannot be used: {words.printable(definition.problem)}")
    for difference in definition.differences:
        yield Remark(f"the definition differs from the source: {words.printable(difference)}", serious=False)


def _about_check(
    name: str, activation: Optional[Activation], check: CheckResult, now: datetime
) -> Iterator[Remark]:
    when = words.age(check.at, now)
    if check.problem is not None:
        yield Remark(f"whether it could be booted could not be looked at ({when}): {words.printable(check.problem)}")
    for text in check.problems.get(name, ()):
        yield Remark(f"it could not be booted here (looked at {when}): {words.printable(text)}")
    if name in check.by_hand and activation is None:
        yield Remark(
            f"it ran here {when}, started by hand; so that no job writes over it: anvil-activate-dr --server {name}"
        )


def _about_rehearsal(last: Rehearsed, now: datetime) -> Iterator[Remark]:
    when, result = words.age(last.at, now), last.result
    if result.verdict in ("failed", "not bootable"):
        detail = words.printable(result.detail)
        yield Remark(f"its last rehearsal, {when}, failed: {IN_WORDS[result.verdict]}: {detail}")


def _about_last_job(job: JobRecord, seen: Observation, now: datetime) -> Iterator[Remark]:
    if job.state == "failed":
        when = words.age(job.finished_at or job.started_at, now)
        yield Remark(f"the last job failed {when}: {words.printable(job.error or 'no reason is known')}")
    elif job.state == "running" and seen.jobs is None:
        yield Remark(f"job {words.printable(job.id)} was running when the service was last heard of")
