"""Imports what was carried in on a drive that a node had filled: first copies go by car, not over the wire.

Touches what a job touches, and reads the drive. What lies on it is as untrusted as what comes from a node, and goes the
same way: admitted, its digests checked before anything changes, written where it differs, promoted. The drive stays as
it is, so that it can be filled again at the node.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from dataclasses import dataclass
from typing import List, Optional, Tuple

from anvil_dr import words
from anvil_dr.caching import cached_copy, cached_sets
from anvil_dr.caching.blame import blamed_on, known_as
from anvil_dr.caching.cached_sets import CachedImage, CachedSet
from anvil_dr.cycling import sets
from anvil_dr.errors import AnvilDrError, CacheDriveError, ProtocolError
from anvil_dr.model import CacheDrive, JobRecord
from anvil_dr.receiving import admission, announcement
from anvil_dr.receiving.target import Target
from anvil_dr.records import carried_job
from anvil_dr.records.carried_job import CarriedServer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """What became of one server on the drive."""

    server: str
    error: Optional[AnvilDrError] = None
    was_here: bool = False
    """True if the store has this very set, or a newer one: nothing was done."""
    note: str = ""
    """What else there is to know, in words."""


def bring_in(target: Target, device: str) -> Tuple[Imported, ...]:
    """Import every server on a drive, one after the other; one that fails does not stop the others.

    Raise CacheDriveError if there is no such drive, or it can't be used; ProtocolError if its record is none.
    """
    if target.cache_drives is None:
        raise CacheDriveError(device, "cache drives are not looked for (use_cache)")
    drive = _find(target, device)
    with target.cache_drives.use(drive) as folder:
        folder.check()
        with blamed_on(folder):
            job = carried_job.read(folder.folder)
        if job is None or not job.servers:
            raise CacheDriveError(known_as(drive), f"there is nothing to be imported on it ({carried_job.FILE})")
        log.info("import begun device=%s model=%r serial=%r servers=%s", drive.device, drive.model, drive.serial,
                 ",".join(words.printable(one.name) for one in job.servers))  # fmt: skip
        return tuple(_one(target, drive, server) for server in job.servers)


def bring_in_later(target: Target, device: str) -> threading.Thread:
    """The same in a thread of its own."""

    def work() -> None:
        try:
            bring_in(target, device)
        except AnvilDrError as error:
            log.error("drive not imported device=%s code=%s error=%s", device, error.code, error)

    thread = threading.Thread(target=work, name=f"import {device}", daemon=True)
    thread.start()
    target.background.append(thread)
    return thread


def notice(target: Target, device: str) -> None:
    """A drive was plugged in. Say in the log what it carries; import it, if the configuration says so.

    Raise CacheDriveError.
    """
    drives = target.cache_drives.survey() if target.cache_drives is not None else ()
    for drive in drives:
        if drive.device == device and drive.problem is None and drive.carries:
            log.warning(
                "a drive brings images device=%s model=%r serial=%r carries=%r; to take them: anvil-dr-import %s",
                drive.device, drive.model, drive.serial, words.printable("; ".join(drive.carries)), drive.device,
            )  # fmt: skip
            if target.config.auto_import:
                bring_in_later(target, drive.device)


def notice_all(target: Target) -> None:
    """The same for what is there when the service starts. Raise CacheDriveError."""
    for drive in target.cache_drives.survey() if target.cache_drives is not None else ():
        if drive.carries:
            notice(target, drive.device)


def _find(target: Target, device: str) -> CacheDrive:
    wanted = os.path.realpath(device)
    drives = target.cache_drives.survey() if target.cache_drives is not None else ()
    found = next((one for one in drives if os.path.realpath(one.device) == wanted), None)
    if found is None:
        raise CacheDriveError(words.printable(device), "there is no such drive; anvil-dr-status names those that are")
    if found.problem is not None:
        raise CacheDriveError(known_as(found), found.problem)
    return found


def _one(target: Target, drive: CacheDrive, server: CarriedServer) -> Imported:
    job_id = f"{target.now()[:19].replace(':', '').replace('-', '')}-{uuid.uuid4().hex[:8]}"
    name, began = words.printable(server.name[:255]), target.now()
    try:
        done, newer = _import(target, drive, server, job_id)
    except AnvilDrError as error:
        log.error("server not imported server=%s device=%s code=%s error=%s", name, drive.device, error.code, error)
        if target.state.is_at_work(server.name):
            record = JobRecord(job_id, server.name, server.node, "failed", began, target.now(), str(error))
            target.state.job_finished(record)
        return Imported(name, error)
    log.info("server imported server=%s device=%s was_here=%s", name, drive.device, not done)
    return Imported(name, None, was_here=not done, note=_waits(newer))


def _waits(newer: Tuple[CachedSet, ...]) -> str:
    if not newer:
        return ""
    one = newer[-1]
    where = words.printable(words.listed(one.devices))
    return f"a newer one, received {one.received_at}, waits on cache drive {where}: plug that in, and it is taken"


def _import(
    target: Target, drive: CacheDrive, server: CarriedServer, job_id: str
) -> Tuple[bool, Tuple[CachedSet, ...]]:
    """False if the store has it, or a newer one, already; and newer ones that wait on cache drives.

    Raise AnvilDrError.
    """
    offer, firmware = server.offer(), server.firmware_files()
    announcement.check_server(offer)
    admission.check_server(target, offer, ("*",))
    target.occupy(server.name, job_id)
    try:
        admission.claim_names(target, offer)
        cached = _cached(target, drive, server)
        if sets.has_one_as_new(admission.server_sets(target, server.name), cached):
            return False, ()
        cached_copy.refuse_if_ran_after(target, cached)
        began = target.now()
        with target.names:
            # What does not fit, or is in use, is refused before a terabyte has been read for it.
            admission.plan_servers(target, job_id, [offer], (server.name,))
        target.state.job_started(JobRecord(job_id, server.name, server.node, "running", began))
        newer = cached_sets.put_before(target.config.state, cached)
        cached_copy.copy(target, _noted(target, cached, newer), firmware)
        target.state.job_finished(JobRecord(job_id, server.name, server.node, "succeeded", began, target.now()))
        return True, newer
    finally:
        target.vacate(server.name, job_id)


def _noted(target: Target, cached: CachedSet, newer: Tuple[CachedSet, ...]) -> CachedSet:
    """What is here and not newer by its time is older, whatever the clock says later."""
    waiting = cached_sets.of_server(target.config.state, cached.server)
    older = (one for one in waiting if one.job_id not in {cached.job_id, *(each.job_id for each in newer)})
    records = (one for one in target.state.set_records(cached.server) if one.job_id != cached.job_id)
    return cached_sets.newer_than(records, older, cached)


def _cached(target: Target, drive: CacheDrive, server: CarriedServer) -> CachedSet:
    """As a set that waits on a cache drive. A time that lies ahead of us would make it newer than what comes next."""
    now = target.now()
    made_at, here = words.moment(server.received_at), words.moment(now)
    if made_at is None or here is None:
        raise ProtocolError(f"server {server.name}: {server.received_at!r} is no time")
    images: List[CachedImage] = [
        CachedImage(one.name, one.path, one.size_bytes, one.digest, drive.identity, drive.device, known_as(drive))
        for one in server.disks
    ]
    return CachedSet(
        server.name,
        server.node,
        server.job_id,
        min(made_at, here).isoformat(timespec="seconds"),
        tuple(images),
        server.definition,
        server.left_out,
        firmware={name: len(content) for name, content in server.firmware_files().items()},
        carried=True,
    )
