"""One server of a job that arrives on cache drives first, so that its last set is not written over meanwhile.

Touches files on the cache drives, and `<state>/cached`. The store is only read, as a base to compare with: until
cached_copy.py begins, it is as it was, whatever becomes of the drives.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import Callable, ContextManager, Dict, Iterator, Mapping, Optional, Tuple

from anvil_dr.caching import cached_copy, cached_sets, caching
from anvil_dr.caching.blame import blamed_on, known_as
from anvil_dr.caching.cached_sets import CachedImage, CachedSet
from anvil_dr.cycling import sets
from anvil_dr.errors import CacheDriveError, StoreError
from anvil_dr.model import INCOMPLETE, CacheDrive, Owner, StoredImage
from anvil_dr.ports import CacheFolder, Image
from anvil_dr.receiving import admission
from anvil_dr.receiving.receive import ServerReceiver
from anvil_dr.receiving.receive_disk import DiskReceiver
from anvil_dr.receiving.recycled import Content, KnownZeros, Recycled, UnknownContent
from anvil_dr.wire.protocol import DiskDone, DiskOffer, Kind

log = logging.getLogger(__name__)


class CachedDisk:
    """The dialogue about one disk whose image is on a cache drive. What fails there names the drive."""

    def __init__(self, dialogue: DiskReceiver, use: Callable[[], ContextManager[None]]) -> None:
        self._dialogue, self._use = dialogue, use

    def handle(self, kind: Kind, content: memoryview) -> None:
        """Raise CacheDriveError for what the drive did; else as DiskReceiver.handle."""
        with self._use():
            self._dialogue.handle(kind, content)


class CachedReceiver(ServerReceiver):
    """Implements what incoming_job.py needs of a ServerReceiver."""

    cached: Optional[CachedSet] = None
    """The set, once it is complete on the drives."""

    def begin(self) -> Mapping[str, bool]:
        """Choose and mount the drives. Raise CacheDriveError, ImageInUseError, StoreError, StateError."""
        server, target = self._offer.name, self._target
        self._folders: Dict[str, CacheFolder] = {}
        stay = cached_copy.copy_what_waits(target, server)
        self._refuse_if_activated()
        drives = target.cache_drives
        if drives is None:
            raise AssertionError("planned without drives")
        for disk, drive in self._places(stay).items():
            self._folders[disk] = self._open.enter_context(drives.use(drive))
        present = admission.server_sets(target, server)
        admission.check_images_free(target, [image for one in present for image in one.images])
        for offer in self._offer.disks:
            with self._using(offer.name):
                self._begin_image(offer, self._folders[offer.name])
        newest = sets.newest_complete(present)
        for image in newest.images if newest else ():
            if image.owner.disk in self._images:
                self._newest[image.owner.disk] = self._opened_in_store(image)
        return {disk: disk in self._newest or not self._fresh[disk] for disk in self._images}

    def disk(self, name: str, window: int) -> DiskReceiver:
        """Begin one disk. Raise ProtocolError, CacheDriveError."""
        folder = self._folders.get(name)
        if folder is None:
            return super().disk(name, window)
        with self._using(name):
            folder.check()
            dialogue = super().disk(name, window)
        log.info("disk goes to a cache drive server=%s disk=%s device=%s", self._offer.name, name, folder.drive.device)
        return CachedDisk(dialogue, lambda: self._using(name))  # type: ignore[return-value]

    def disk_done(self, name: str, digest: str) -> DiskDone:
        """End the current disk. Raise DigestMismatchError, CacheDriveError."""
        folder = self._folders.get(name)
        if folder is None:
            return super().disk_done(name, digest)
        with self._using(name):
            done = super().disk_done(name, digest)
            folder.check()
        return done

    def complete(self) -> Tuple[str, str, bool, Tuple[str, ...]]:
        """Every byte is on the drives: remember the set, and the node's part is done.

        Returns what ServerReceiver.complete does; the definition is made once the set is in the store. Raise
        ProtocolError if something is missing, CacheDriveError, StateError.
        """
        self._refuse_if_unfinished()
        self._refuse_if_activated()
        server, target = self._offer.name, self._target
        for disk, folder in self._folders.items():
            with self._using(disk):
                folder.check()
        cached = CachedSet(
            server,
            self._source,
            self._job_id,
            target.now(),
            tuple(self._cached_image(offer) for offer in self._offer.disks),
            self._offer.definition,
            tuple(self._offer.left_out),
            firmware={name: len(content) for name, content in self._firmware.items()},
        )
        waiting = cached_sets.of_server(target.config.state, server)
        cached = cached_sets.newer_than(target.state.set_records(server), waiting, cached)
        cached_sets.keep(target.config.state, cached, self._firmware)
        self.cached = cached
        log.info(
            "set complete on cache server=%s job=%s source=%s devices=%s",
            server, self._job_id, self._source, ",".join(cached.devices),
        )  # fmt: skip
        for disk, image in self._images.items():
            self._name_complete(self._folders[disk], image)
        return cached.received_at, os.path.join(target.config.definitions, f"{server}.xml"), False, ()

    @contextmanager
    def _using(self, disk: str) -> Iterator[None]:
        """What its drive does wrong is the drive's fault, and it will be the last to be used from then on."""
        folder = self._folders[disk]
        try:
            with blamed_on(folder):
                yield
        except CacheDriveError:
            self._target.failing_drives.add(folder.drive.identity)
            raise

    def _places(self, stay: Tuple[CachedSet, ...]) -> Mapping[str, CacheDrive]:
        """Where its images go. Drives that did not give back what waits on them come last."""
        failed = frozenset().union(*(cached.drives for cached in stay))
        try:
            return caching.places(self._target, self._offer, failed)
        except CacheDriveError:
            if not cached_copy.make_room(self._target, stay):
                raise
            return caching.places(self._target, self._offer)

    def _begin_image(self, offer: DiskOffer, folder: CacheFolder) -> None:
        """The file that this disk goes into: what is left of a job that broke, or a new one."""
        owner = Owner(self._offer.name, offer.name)
        folder.check()
        there = folder.store.images(self._offer.name)
        left = [one for one in there if one.owner == owner and one.sequence == INCOMPLETE]
        if left:
            image, fresh = left[0], False
            if image.size_bytes != offer.size_bytes:
                image = folder.store.resize(image, offer.size_bytes)
        else:
            place = folder.store.locations()[0].name
            image, fresh = folder.store.create(owner, offer.size_bytes, place), True
        self._images[offer.name], self._fresh[offer.name] = image, fresh
        opened = folder.store.open(image, writable=True)
        self._open.callback(opened.close)
        self._writable[offer.name] = opened

    def _recycled(self, disk: str, offer: DiskOffer) -> Recycled:
        if not self._fresh[disk]:
            return Content(self._digester, self._writable[disk], offer.size_bytes)
        if self._folders[disk].store.is_known_zero(self._images[disk]):
            return KnownZeros(self._digester)
        return UnknownContent()

    def _opened_in_store(self, image: StoredImage) -> Image:
        opened = self._target.store.open(image, writable=False)
        self._open.callback(opened.close)
        return opened

    def _cached_image(self, offer: DiskOffer) -> CachedImage:
        drive, received = self._folders[offer.name].drive, self._received[offer.name]
        return CachedImage(
            offer.name, offer.path, offer.size_bytes, received.digest, drive.identity, drive.device, known_as(drive)
        )

    def _name_complete(self, folder: CacheFolder, image: StoredImage) -> None:
        """For whoever looks at the drive. What counts is what was remembered."""
        try:
            folder.store.rename(image, 1)
        except StoreError as error:
            log.warning("an image keeps its name device=%s error=%s", folder.drive.device, error)
