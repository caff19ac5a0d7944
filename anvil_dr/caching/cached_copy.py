"""Copies a complete set from its cache drives to the store, and frees it there (SPEC section 5).

Touches the store, the state and the drives. The node isn't needed: it may be long gone, and this may be the next
start of the service. The cached set is read whole, and its digests compared, before the store's last set is written
over; only what differs is written. Whatever ends it, the cached set stays, and it can be begun again.

When a set is given up:
- Once the store has a complete set that is as new, and not before. Until then it is remembered, whether or not its
  drive is there: it may be the only one, because the store's images are half written.
- So where its drive is absent, or fails while it is read, the next job of its server goes around it: to another drive
  while the store has a complete set; straight into the store's `_incomplete` images where it has none, since nothing in
  them is needed any more. If that job fails as well, the drive still has the set, and it's copied when it is there.
- A set that the server ran on here is newer than what was complete before that, and holds what is nowhere else: no set
  that waits is written over it. Both stay as they are until a job has succeeded.
- The one exception: a set that its drive does not give back, although the drive is there, or that stays because
  the server ran here, makes room for the next job if that fits nowhere else and the store has a complete set
  (`make_room`).
"""

from __future__ import annotations

import logging
import threading
import uuid
from contextlib import ExitStack
from typing import Dict, List, Mapping, Optional, Tuple

from anvil_dr import naming
from anvil_dr.cache.cache_rules import usable
from anvil_dr.caching import cached_sets
from anvil_dr.caching.blame import blamed_for_bytes, blamed_on
from anvil_dr.caching.cached_sets import CachedImage, CachedSet
from anvil_dr.caching.difference import Advanced, Difference, scan
from anvil_dr.cycling import sets
from anvil_dr.errors import AnvilDrError, CacheDriveError, DigestMismatchError, RanHereError, ServiceError
from anvil_dr.model import INCOMPLETE, ImageRecord, Owner, StoredImage
from anvil_dr.ports import CacheFolder, Image
from anvil_dr.receiving import admission
from anvil_dr.receiving.receive import SetWriter
from anvil_dr.receiving.target import JobProgress, Target
from anvil_dr.wire.digest import Digester, available, digester

log = logging.getLogger(__name__)


def copy(target: Target, cached: CachedSet, firmware: Optional[Mapping[str, bytes]] = None) -> None:
    """Make it the newest set in the store, and remove it from its drives. The caller has the server to itself.

    With `firmware` it isn't remembered yet, and is as soon as its digests are known to be right.
    Raise CacheDriveError if a drive is not there or fails, DigestMismatchError, StoreError, StateError,
    ServerActivatedError, RanHereError; then everything stays as it is, and this can be tried again.
    """
    with ExitStack() as held:
        files = _files(target, cached, held)
        stored = admission.server_sets(target, cached.server)
        if not sets.has_one_as_new(stored, cached):
            # Asked before it is read too, which takes its time.
            admission.refuse_if_activated(target, cached.server)
            refuse_if_ran_after(target, cached)
            _into_store(target, cached, files, held, firmware)
        # Whoever boots it marks the server first, then looks who has the files open: these have, until they are gone.
        admission.refuse_if_activated(target, cached.server)
        _remove(cached, files)
        cached_sets.forget(target.config.state, cached)


def refuse_if_ran_after(target: Target, cached: CachedSet) -> None:
    """Raise RanHereError if the store has what the server wrote here after this set was complete."""
    ran = sets.ran_after(admission.server_sets(target, cached.server), cached)
    if ran is not None and ran.record is not None and ran.record.ran_here_until is not None:
        devices = ", ".join(cached.devices)
        raise RanHereError(cached.server, ran.sequence, ran.record.ran_here_until, cached.received_at, devices)


def copy_what_waits(target: Target, server: str) -> Tuple[CachedSet, ...]:
    """Copy the newest set of a server that can be had, and free those that are older.

    Returns those that stay, because their drives are not there or don't give them back, or because the server ran here
    since. Raise StoreError or StateError
    where only the store keeps one from being copied.
    """
    stay: List[CachedSet] = []
    for cached in reversed(cached_sets.of_server(target.config.state, server)):
        try:
            copy(target, cached)
        except (CacheDriveError, DigestMismatchError) as error:
            log.error(
                "set stays on its cache drive server=%s received_at=%s devices=%s code=%s error=%s",
                server, cached.received_at, ",".join(cached.devices), error.code, error,
            )  # fmt: skip
            stay.append(cached)
        except RanHereError as error:
            log.warning("set stays on its cache drive server=%s code=%s error=%s", server, error.code, error)
            stay.append(cached)
    return tuple(stay)


def make_room(target: Target, stay: Tuple[CachedSet, ...]) -> bool:
    """Give up sets that stay on their drives, for a job that fits nowhere else. True if there were any.

    Only where the drive is there, and the store has a complete set. Raise StoreError, StateError.
    """
    freed = False
    for cached in stay:
        if cached.carried:
            continue
        if sets.newest_complete(admission.server_sets(target, cached.server)) is None:
            return freed
        try:
            with ExitStack() as held:
                _remove(cached, _files(target, cached, held))
        except CacheDriveError as error:
            log.info("no room is made server=%s error=%s", cached.server, error)
            continue
        log.error(
            "a set on a cache drive is given up to make room for a job server=%s received_at=%s devices=%s",
            cached.server, cached.received_at, ",".join(cached.devices),
        )  # fmt: skip
        cached_sets.forget(target.config.state, cached)
        freed = True
    return freed


def copy_later(target: Target, server: str, holder: str) -> threading.Thread:
    """`copy_what_waits` in a thread of its own; `holder` has the server, and gives it back at the end."""

    def work() -> None:
        try:
            copy_what_waits(target, server)
        except AnvilDrError as error:
            log.error("set stays on its cache drive server=%s code=%s error=%s", server, error.code, error)
        finally:
            target.vacate(server, holder)

    thread = threading.Thread(target=work, name=f"copy {server}", daemon=True)
    thread.start()
    target.background.append(thread)
    return thread


def resume(target: Target) -> Tuple[threading.Thread, ...]:
    """Copy every set that waits for it, as far as its drives are there. Raise StateError, CacheDriveError."""
    waiting = cached_sets.all_of_them(target.config.state)
    if target.cache_drives is None or not waiting:
        return ()
    here = {drive.identity for drive in usable(target.cache_drives.survey())}
    threads: List[threading.Thread] = []
    for server in dict.fromkeys(cached.server for cached in waiting):
        own = [cached for cached in waiting if cached.server == server]
        for cached in own:
            if not cached.drives <= here:
                log.warning(
                    "a complete set waits for its cache drive server=%s received_at=%s devices=%s",
                    server, cached.received_at, ",".join(cached.devices),
                )  # fmt: skip
        if not any(cached.drives <= here for cached in own):
            continue
        holder = f"{own[-1].job_id} (from its cache drive, {uuid.uuid4().hex[:8]})"  # two of these may not meet
        try:
            target.occupy(server, holder)
        except AnvilDrError as error:
            log.info("not copied now server=%s reason=%s", server, error)
            continue
        threads.append(copy_later(target, server, holder))
    return tuple(threads)


def stop(target: Target) -> None:
    """End what `copy_later` began, at the next chunk; it is gone on with at the next start."""
    target.stopping.set()
    for thread in target.background:
        thread.join()


_Files = Dict[str, Tuple[CacheFolder, StoredImage]]


def _files(target: Target, cached: CachedSet, held: ExitStack) -> _Files:
    """The set's files, by disk, with their drives mounted. Those that were removed already are missing."""
    if target.cache_drives is None:
        raise CacheDriveError(", ".join(cached.devices), "cache drives are not looked for (use_cache)")
    drives = {drive.identity: drive for drive in usable(target.cache_drives.survey())}
    files: _Files = {}
    for one in cached.images:
        drive = drives.get(one.drive)
        if drive is None:
            device = one.known_as or one.device
            raise CacheDriveError(device, f"it is not there, and has a complete set of server {cached.server}")
        folder = held.enter_context(target.cache_drives.use(drive))
        owner = Owner(cached.server, one.disk)
        # No job puts an image on a drive where one of that disk is remembered: it is ours, renamed already or not.
        with blamed_on(folder):
            found = {image.sequence: image for image in folder.store.images(cached.server) if image.owner == owner}
        image = None if cached.carried else found.get(INCOMPLETE)
        image = image or found.get(1)
        if image is not None:
            files[one.disk] = folder, image
    return files


def _remove(cached: CachedSet, files: _Files) -> None:
    if cached.carried:
        return
    for folder, image in files.values():
        folder.check()
        with blamed_on(folder):
            folder.store.remove(image)
        log.info(
            "cached image removed server=%s device=%s file=%s",
            cached.server, folder.drive.device, naming.file_name(image.owner, image.sequence),
        )  # fmt: skip


def _into_store(
    target: Target, cached: CachedSet, files: _Files, held: ExitStack, firmware: Optional[Mapping[str, bytes]]
) -> None:
    total = sum(one.size_bytes for one in cached.images)
    progress = JobProgress(
        f"{cached.job_id}/{cached.server}", cached.source, (cached.server,), 2 * total, state="copying to the store"
    )

    def advanced(length_bytes: int) -> None:
        progress.finished_bytes += length_bytes
        if target.stopping.is_set():
            raise ServiceError("the service stops; the rest is copied at its next start")

    log.info("copying to the store server=%s job=%s bytes=%d", cached.server, cached.job_id, total)
    with target.running(progress):
        sources: Dict[str, Image] = {}
        for one in cached.images:
            if one.disk not in files:
                device = one.known_as or one.device
                raise CacheDriveError(device, f"the image of server {cached.server} disk {one.disk} is gone")
            folder, stored = files[one.disk]
            folder.check()
            with blamed_on(folder):
                sources[one.disk] = folder.store.open(stored, writable=False)
                held.callback(sources[one.disk].close)
                digest = scan(sources[one.disk], one.size_bytes, _digester(one), advanced)
            _check(cached, one, digest)
        if firmware is not None:
            cached_sets.keep(target.config.state, cached, firmware)
        writer = _Copy(target, cached)
        try:
            writer.begin()
            for one in cached.images:
                with blamed_for_bytes(files[one.disk][0]):
                    writer.fill(one, sources[one.disk], advanced)
            writer.complete()
            if cached.ran_here_until is not None:
                target.state.ran_here(writer.identities, cached.ran_here_until)
        finally:
            writer.close()
        log.info("copied to the store server=%s job=%s written_bytes=%d", cached.server, cached.job_id,
                 writer.written_bytes)  # fmt: skip


class _Copy(SetWriter):
    """The set in the store, filled from the drives."""

    safe_elsewhere = True

    def __init__(self, target: Target, cached: CachedSet) -> None:
        super().__init__(target, _digester(cached.images[0]), cached.job_id, cached.source, cached.offer)
        self._cached, self._received_at = cached, cached.received_at
        self._firmware = dict(cached_sets.firmware_of(target.config.state, cached))

    @property
    def identities(self) -> Tuple[str, ...]:
        """Of the images in the store."""
        return tuple(image.identity for image in self._images.values())

    def _refuse_if_activated(self) -> None:
        """Nor may it have been activated and released since this began: asked again before each change."""
        admission.refuse_if_activated(self._target, self._cached.server)
        refuse_if_ran_after(self._target, self._cached)

    def fill(self, one: CachedImage, source: Image, advanced: Advanced) -> None:
        """Raise DigestMismatchError, ImageIOError."""
        image = self._writable[one.disk]
        offer = next(disk for disk in self._offer.disks if disk.name == one.disk)
        self._zero_tail(image, offer)
        difference = Difference(source, image)
        digest = scan(source, one.size_bytes, self._digester, advanced, difference)
        _check(self._cached, one, digest)
        image.flush()
        self.written_bytes += difference.written_bytes
        self._received[one.disk] = ImageRecord(one.disk, self._images[one.disk].identity, one.size_bytes, digest)
        log.info(
            "disk copied server=%s disk=%s bytes=%d written_bytes=%d",
            self._cached.server, one.disk, one.size_bytes, difference.written_bytes,
        )  # fmt: skip


def _check(cached: CachedSet, one: CachedImage, digest: str) -> None:
    if one.digest and digest != one.digest:
        raise DigestMismatchError(
            cached.server, one.disk, None,
            f"on cache drive {one.device} it has digest {digest}, and {one.digest} arrived there",
        )  # fmt: skip


def _digester(one: CachedImage) -> Digester:
    return digester(one.digest.partition(":")[0] or available()[0])
