"""Which servers of a job arrive on cache drives first, and on which (SPEC section 5).

Reads the drives, the store and the state; removes from a drive only what a job left there half done.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Collection, Dict, List, Mapping, Sequence, Tuple

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


def plan(target: Target, offers: Sequence[ServerOffer]) -> CachePlan:
    """How the servers of a job are cached that would lose their last complete set otherwise. Raise StoreError.

    A drive that cannot be looked at is not counted on.
    """
    if target.cache_drives is None or target.config.copies > 1:
        return CachePlan()
    wanted = [offer for offer in offers if admission.needs_cache(target, offer)]
    if not wanted:
        return CachePlan()
    drives, present, _ = _look(target, wanted)
    made = cache_plan.plan_cache(_demands(wanted, present), drives)
    log.info(
        "cache planned drives=%s servers=%s together=%s too_large=%s",
        ",".join(drive.device for drive in drives), ",".join(made.servers), made.together, ",".join(made.too_large),
    )  # fmt: skip
    return made


def places(target: Target, offer: ServerOffer) -> Mapping[str, CacheDrive]:
    """The drive for each disk of one server, by what is free now. Raise CacheDriveError if there is no room."""
    drives, present, failed = _look(target, [offer])
    found = cache_plan.place(_demands([offer], present), drives)
    if found is None:
        names = ", ".join(drive.device for drive in drives) or "(none)"
        reasons = "".join(f"; {reason}" for reason in failed)
        raise CacheDriveError(names, f"there is not enough room any more for server {offer.name}{reasons}")
    return {owner.disk: drive for owner, drive in found.items()}


def _demands(offers: Sequence[ServerOffer], present: _Present) -> List[CacheDemand]:
    return [
        CacheDemand(owner, disk.size_bytes, *present.get(owner, ("", 0)))
        for offer in offers
        for disk in offer.disks
        for owner in [Owner(offer.name, disk.name)]
    ]


def _look(target: Target, offers: Sequence[ServerOffer]) -> Tuple[Tuple[CacheDrive, ...], _Present, List[str]]:
    """The drives that can be used; what of these servers lies on them already; and what is wrong with the others."""
    if target.cache_drives is None:
        return (), {}, []
    ours = {Owner(offer.name, disk.name) for offer in offers for disk in offer.disks}
    waiting = {one.server for one in cached_sets.all_of_them(target.config.state)}
    drives: List[CacheDrive] = []
    present: _Present = {}
    try:
        candidates = usable(target.cache_drives.survey())
    except StoreError as error:
        log.error("cache drives cannot be looked for error=%s", error)
        return (), {}, [str(error)]
    failed: List[str] = []
    for drive in candidates:
        try:
            with target.cache_drives.use(drive) as folder:
                folder.check()
                _clear(target, folder, ours, waiting)
                for image in folder.store.images():
                    if image.owner in ours and image.sequence == INCOMPLETE and image.owner.server not in waiting:
                        # What is a hole in it takes its space only when it is written.
                        present[image.owner] = drive.identity, os.stat(image.path).st_blocks * 512
                drives.append(replace(drive, free_bytes=folder.store.locations()[0].free_bytes))
        except (StoreError, OSError) as error:
            log.warning("cache drive is not used device=%s error=%s", drive.device, error)
            failed.append(str(error))
    return tuple(drives), present, failed


def _clear(target: Target, folder: CacheFolder, ours: Collection[Owner], waiting: Collection[str]) -> None:
    """Remove what jobs of other servers left half done here; only the next job of their own could use it."""
    for image in folder.store.images():
        server = image.owner.server
        if image.sequence != INCOMPLETE or image.owner in ours or server in waiting or target.is_busy(server):
            continue
        name = naming.file_name(image.owner, image.sequence)
        log.info("half an image is removed from a cache drive device=%s file=%s", folder.drive.device, name)
        folder.store.remove(image)
