"""Which servers of a job arrive on cache drives first, and on which (SPEC section 5).

Reads the drives, the store and the state; removes from a drive only what a job left there half done.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Collection, Dict, FrozenSet, List, Mapping, Sequence, Tuple

from anvil_dr import naming
from anvil_dr.cache.cache_rules import usable
from anvil_dr.caching import cache_plan, cached_sets
from anvil_dr.caching.cache_plan import CacheDemand, CachePlan
from anvil_dr.errors import CacheDriveError, StoreError
from anvil_dr.model import INCOMPLETE, CacheDrive, Owner
from anvil_dr.ports import CacheFolder
from anvil_dr.receiving import admission
from anvil_dr.receiving.target import Target
from anvil_dr.wire.protocol import ServerOffer

log = logging.getLogger(__name__)

_Present = Dict[Owner, Tuple[str, int]]
_Drives = Mapping[Owner, FrozenSet[str]]
"""Identities of drives."""


def plan(target: Target, offers: Sequence[ServerOffer]) -> CachePlan:
    """How the servers of a job are cached that would lose their last complete set otherwise. Raise StoreError.

    A drive that cannot be looked at is not counted on. A set that still waits there to be copied is counted as room:
    when its server's turn comes, it is copied first.
    """
    if target.cache_drives is None or target.config.copies > 1:
        return CachePlan()
    wanted = [offer for offer in offers if admission.needs_cache(target, offer)]
    if not wanted:
        return CachePlan()
    drives, present, _ = _look(target, wanted, _remembered(target), copied_first=True)
    made = cache_plan.plan_cache(_demands(wanted, present, {}), drives)
    log.info(
        "cache planned drives=%s servers=%s together=%s too_large=%s",
        ",".join(drive.device for drive in drives), ",".join(made.servers), made.together, ",".join(made.too_large),
    )  # fmt: skip
    return made


def places(target: Target, offer: ServerOffer, failed: Collection[str] = ()) -> Mapping[str, CacheDrive]:
    """The drive for each disk of one server, by what is free now. Raise CacheDriveError if there is no room.

    Never one in `failed` (identities), nor one that a complete set of the disk waits on.
    """
    remembered = _remembered(target)
    drives, present, problems = _look(target, [offer], remembered, copied_first=False)
    never_on = {owner: frozenset(failed) | remembered.get(owner, frozenset()) for owner in _owners([offer])}
    found = cache_plan.place(_demands([offer], present, never_on), drives)
    if found is None:
        names = ", ".join(drive.device for drive in drives) or "(none)"
        reasons = "".join(f"; {reason}" for reason in problems)
        raise CacheDriveError(names, f"there is not enough room any more for server {offer.name}{reasons}")
    return {owner.disk: drive for owner, drive in found.items()}


def _owners(offers: Sequence[ServerOffer]) -> FrozenSet[Owner]:
    return frozenset(Owner(offer.name, disk.name) for offer in offers for disk in offer.disks)


def _remembered(target: Target) -> _Drives:
    """Which drives have an image of a complete set that waits to be copied, by whose it is."""
    found: Dict[Owner, FrozenSet[str]] = {}
    for cached in cached_sets.all_of_them(target.config.state):
        for one in cached.images:
            owner = Owner(cached.server, one.disk)
            found[owner] = found.get(owner, frozenset()) | {one.drive}
    return found


def _demands(offers: Sequence[ServerOffer], present: _Present, never_on: _Drives) -> List[CacheDemand]:
    return [
        CacheDemand(owner, disk.size_bytes, *present.get(owner, ("", 0)), never_on.get(owner, frozenset()))
        for offer in offers
        for disk in offer.disks
        for owner in [Owner(offer.name, disk.name)]
    ]


def _look(
    target: Target, offers: Sequence[ServerOffer], remembered: _Drives, *, copied_first: bool
) -> Tuple[Tuple[CacheDrive, ...], _Present, List[str]]:
    """The drives that can be used; what of these servers lies on them already; and what is wrong with the others.

    Drives that failed in a job come last.
    With `copied_first`, what waits there of these servers will have been copied and freed when they need the room.
    """
    if target.cache_drives is None:
        return (), {}, []
    ours = _owners(offers)
    servers = sorted({owner.server for owner in ours})
    drives: List[CacheDrive] = []
    present: _Present = {}
    try:
        candidates = [drive for drive in usable(target.cache_drives.survey()) if not drive.carries]
    except StoreError as error:
        log.error("cache drives cannot be looked for error=%s", error)
        return (), {}, [str(error)]
    problems: List[str] = []
    for drive in candidates:
        try:
            with target.cache_drives.use(drive) as folder:
                folder.check()
                _clear(target, folder, ours, remembered)
                for image in (one for server in servers for one in folder.store.images(server)):
                    waits = drive.identity in remembered.get(image.owner, ())
                    if image.owner in ours and (copied_first if waits else image.sequence == INCOMPLETE):
                        # What is a hole in it takes its space only when it is written.
                        present[image.owner] = drive.identity, os.stat(image.path).st_blocks * 512
                drives.append(replace(drive, free_bytes=folder.store.locations()[0].free_bytes))
        except (StoreError, OSError) as error:
            log.warning("cache drive is not used device=%s error=%s", drive.device, error)
            problems.append(str(error))
    sound = [drive for drive in drives if drive.identity not in target.failing_drives]
    if sound:
        # What lies on the others in part is not worth to go there again.
        present = {owner: where for owner, where in present.items() if where[0] not in target.failing_drives}
    drives.sort(key=lambda drive: drive.identity in target.failing_drives)
    return tuple(drives), present, problems


def _clear(target: Target, folder: CacheFolder, ours: Collection[Owner], remembered: _Drives) -> None:
    """Remove what jobs of other servers left half done here; only the next job of their own could use it."""
    for image in folder.store.images():
        waits = folder.drive.identity in remembered.get(image.owner, ())
        if image.sequence != INCOMPLETE or image.owner in ours or waits or target.is_busy(image.owner.server):
            continue
        name = naming.file_name(image.owner, image.sequence)
        log.info("half an image is removed from a cache drive device=%s file=%s", folder.drive.device, name)
        folder.store.remove(image)
