"""Complete sets on cache drives that are mounted, as sets to boot from: number 0, newer than the store's number 1.

Reads what is remembered of such sets, and the drives where they are mounted; mounts nothing, writes nothing. A copy to
the store may have been cut short, and then they are the only complete sets of their servers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Dict, Iterable, List, Literal, Mapping, Optional, Tuple

from anvil_dr.cache.cache_rules import is_below
from anvil_dr.caching.cached_sets import CachedSet
from anvil_dr.cycling import sets
from anvil_dr.errors import StoreError
from anvil_dr.model import (
    CACHED,
    INCOMPLETE,
    CacheDrive,
    ImageRecord,
    ImageSet,
    Location,
    Owner,
    Sequence,
    SetRecord,
    StoredImage,
)
from anvil_dr.ports import Image, Store

StoreIn = Callable[[str], Store]
"""The ordinary files in the root of a drive, by its mount point."""


@dataclass(frozen=True)
class _Lying:
    """An image of such a set: as it is booted from, and as the drive's files have it."""

    image: StoredImage
    drive: Store
    file: StoredImage


@dataclass(frozen=True)
class Bootable:
    """Those that could be booted from."""

    store: StoreWithCached
    records: Tuple[SetRecord, ...]
    warnings: Tuple[str, ...]
    """Of those that could not, why, and what to do."""


class StoreWithCached:
    """Implements ports.Store: the store itself, and the images of sets on cache drives beside it."""

    def __init__(self, store: Store, lying: Iterable[_Lying] = ()) -> None:
        self._store = store
        self._lying: Mapping[str, _Lying] = {one.image.identity: one for one in lying}

    @property
    def kind(self) -> Literal["fs", "lvm"]:
        return self._store.kind

    def check(self) -> None:
        self._store.check()

    def locations(self) -> Tuple[Location, ...]:
        return self._store.locations()

    def images(self, server: Optional[str] = None) -> Tuple[StoredImage, ...]:
        """Those that are there now. Raise StoreError."""
        asked = [one for one in self._lying.values() if server in (None, one.image.owner.server)]
        there = [one.image for one in asked if one.file in one.drive.images(server)]
        return (*self._store.images(server), *there)

    def path(self, owner: Owner, sequence: Sequence) -> str:
        cached = next((one for one in self._lying.values() if one.image.owner == owner), None)
        return cached.image.path if cached is not None and sequence == CACHED else self._store.path(owner, sequence)

    def create(self, owner: Owner, size_bytes: int, location: str, *, data_bytes: Optional[int] = None) -> StoredImage:
        return self._store.create(owner, size_bytes, location, data_bytes=data_bytes)

    def resize(self, image: StoredImage, size_bytes: int, *, data_bytes: Optional[int] = None) -> StoredImage:
        return self._store.resize(image, size_bytes, data_bytes=data_bytes)

    def rename(self, image: StoredImage, sequence: Sequence) -> StoredImage:
        return self._store.rename(image, sequence)

    def remove(self, image: StoredImage) -> None:
        self._store.remove(image)

    def open(self, image: StoredImage, *, writable: bool) -> Image:
        cached = self._lying.get(image.identity)
        if cached is not None:
            return cached.drive.open(cached.file, writable=writable)
        return self._store.open(image, writable=writable)

    def users(self, images: Iterable[StoredImage]) -> Dict[StoredImage, str]:
        asked = tuple(images)
        found = dict(self._store.users(image for image in asked if image.identity not in self._lying))
        for image in asked:
            cached = self._lying.get(image.identity)
            if cached is not None:
                found.update((image, user) for user in cached.drive.users((cached.file,)).values())
        return found

    def is_known_zero(self, image: StoredImage) -> bool:
        return self._store.is_known_zero(image)


def find(
    waiting: Iterable[CachedSet],
    stored: Tuple[ImageSet, ...],
    store: Store,
    drives: Iterable[CacheDrive],
    mounted_by_service: str,
    store_in: StoreIn,
) -> Bootable:
    """The newest set of each server that waits on drives which are mounted, unless the store has one as new.

    `mounted_by_service` is the folder where the service mounts drives, for as long as it needs them.
    """
    by_identity = {drive.identity: drive for drive in reversed(tuple(drives))}
    newest = {cached.server: cached for cached in waiting}
    lying: List[_Lying] = []
    records: List[SetRecord] = []
    warnings: List[str] = []
    for server, cached in sorted(newest.items()):
        own_sets = sets.of_server(stored, server)
        if sets.has_one_as_new(own_sets, cached):
            continue
        ran = sets.ran_after(own_sets, cached)
        try:
            own = _images(cached, by_identity, mounted_by_service, store_in)
        except StoreError as error:
            # What it wrote here goes before: nobody has to look for that drive.
            if ran is None:
                what = f"the newest set of {server}, received {cached.received_at}"
                warnings.append(f"{what}, is on a cache drive: {error}")
            continue
        if ran is not None:
            warnings.append(
                f"{server}: its set on a cache drive was received {cached.received_at}, before it ran here; "
                f"to go on with what it wrote here: --server {server} --sequence {ran.sequence}"
            )
        lying += own.values()
        records.append(_record(cached, own))
    return Bootable(StoreWithCached(store, lying), tuple(records), tuple(warnings))


def _images(
    cached: CachedSet, drives: Mapping[str, CacheDrive], mounted_by_service: str, store_in: StoreIn
) -> Dict[str, _Lying]:
    """By disk. Raise StoreError, which says what to do."""
    found: Dict[str, _Lying] = {}
    for one in cached.images:
        drive, device = drives.get(one.drive), one.known_as or one.device
        if drive is None:
            raise StoreError(f"plug in {device} to boot from it")
        if drive.mountpoint is None or drive.problem is not None:
            why = f" ({drive.problem})" if drive.problem is not None else ""
            raise StoreError(
                f"to boot from it: mount -o nosuid,nodev,noexec {drive.device} /mnt; then type the same again{why}"
            )
        if is_below(drive.mountpoint, mounted_by_service):
            raise StoreError(
                "the service copies it to the store at this moment: wait (anvil-dr-status), or to boot from the drive "
                "now: systemctl stop anvil-dr-target.socket anvil-dr-target; "
                f"mount -o nosuid,nodev,noexec {drive.device} /mnt; then type the same again"
            )
        files = store_in(drive.mountpoint)
        of_disk = {image.sequence: image for image in files.images(cached.server) if image.owner.disk == one.disk}
        # A node that fills a drive again has its own incomplete images there.
        file = (None if cached.carried else of_disk.get(INCOMPLETE)) or of_disk.get(1)
        if file is None or file.size_bytes < one.size_bytes:
            raise StoreError(f"the image of disk {one.disk} is not on {device} any more")
        identity = f"cached:{cached.job_id}:{one.disk}"
        found[one.disk] = _Lying(replace(file, sequence=CACHED, identity=identity), files, file)
    return found


def _record(cached: CachedSet, own: Mapping[str, _Lying]) -> SetRecord:
    images = tuple(
        ImageRecord(one.disk, own[one.disk].image.identity, one.size_bytes, one.digest) for one in cached.images
    )
    return SetRecord(cached.server, cached.received_at, cached.source, cached.job_id, images, cached.ran_here_until)
