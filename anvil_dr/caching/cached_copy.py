"""Copies a complete set from its cache drives to the store, and frees it there (SPEC section 5).

Touches the store, the state and the drives. The node isn't needed: it may be long gone, and this may be the next
start of the service. The cached set is read whole, and its digests compared, before the store's last set is written
over; only what differs is written. Whatever ends it, the cached set stays, and it can be begun again.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from typing import Callable, Dict, List, Optional, Tuple, Union

from anvil_dr import naming
from anvil_dr.cache.cache_rules import usable
from anvil_dr.caching import cached_sets
from anvil_dr.caching.cached_sets import CachedImage, CachedSet
from anvil_dr.errors import AnvilDrError, CacheDriveError, DigestMismatchError, ServiceError
from anvil_dr.model import INCOMPLETE, ImageRecord, Owner, StoredImage
from anvil_dr.ports import CacheFolder, Image
from anvil_dr.receiving.receive import SetWriter
from anvil_dr.receiving.target import JobProgress, Target
from anvil_dr.wire.digest import (
    BLOCK_BYTES,
    SEGMENT_BYTES,
    Digester,
    ImageDigest,
    block_count,
    digester,
    segment_count,
)

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_ZERO_BLOCK = bytes(BLOCK_BYTES)

Advanced = Callable[[int], None]


def copy(target: Target, cached: CachedSet) -> None:
    """Make it the newest set in the store, and remove it from its drives. The caller has the server to itself.

    Raise CacheDriveError if a drive is not there or fails, DigestMismatchError, StoreError, StateError; then
    everything stays as it is, and this can be tried again.
    """
    with ExitStack() as held:
        files = _files(target, cached, held)
        if not _is_superseded(target, cached):
            _into_store(target, cached, files)
        _remove(cached, files)
        cached_sets.forget(target.config.state, cached.server)


def copy_or_give_up(target: Target, cached: CachedSet) -> None:
    """Before the next job of its server: copy it, or do without it where it can't be had any more.

    Raise StoreError or StateError where only the store keeps it from being copied.
    """
    try:
        copy(target, cached)
    except CacheDriveError as error:
        log.error("a set on a cache drive is given up server=%s reason=%s", cached.server, error)
    except DigestMismatchError as error:
        log.error("a set on a cache drive is given up server=%s reason=%s", cached.server, error)
        with ExitStack() as held:
            _remove(cached, _files(target, cached, held))
    cached_sets.forget(target.config.state, cached.server)


def copy_later(target: Target, cached: CachedSet, holder: str) -> threading.Thread:
    """The same in a thread of its own; `holder` has the server, and gives it back at the end."""

    def work() -> None:
        try:
            copy(target, cached)
        except AnvilDrError as error:
            log.error(
                "set stays on its cache drive server=%s devices=%s code=%s error=%s",
                cached.server, ",".join(cached.devices), error.code, error,
            )  # fmt: skip
        finally:
            target.vacate(cached.server, holder)

    thread = threading.Thread(target=work, name=f"copy {cached.server}", daemon=True)
    thread.start()
    target.background.append(thread)
    return thread


def resume(target: Target) -> Tuple[threading.Thread, ...]:
    """Copy every set that waits for it, as far as its drives are there. Raise StateError, CacheDriveError."""
    if target.cache_drives is None:
        return ()
    threads: List[threading.Thread] = []
    drives = None
    for cached in cached_sets.all_of_them(target.config.state):
        if drives is None:
            drives = {drive.identity for drive in usable(target.cache_drives.survey())}
        missing = [one.device for one in cached.images if one.drive not in drives]
        if missing:
            log.warning(
                "a complete set waits for its cache drive server=%s received_at=%s device=%s",
                cached.server, cached.received_at, missing[0],
            )  # fmt: skip
            continue
        holder = f"{cached.job_id} (from its cache drive)"
        try:
            target.occupy(cached.server, holder)
        except AnvilDrError as error:
            log.info("not copied now server=%s reason=%s", cached.server, error)
            continue
        threads.append(copy_later(target, cached, holder))
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
            raise CacheDriveError(one.device, f"it is not there, and has a complete set of server {cached.server}")
        folder = held.enter_context(target.cache_drives.use(drive))
        owner = Owner(cached.server, one.disk)
        # An incomplete one is ours, not renamed yet; a number 1 beside it is somebody else's.
        found = {image.sequence: image for image in folder.store.images() if image.owner == owner}
        image = found.get(INCOMPLETE) or found.get(1)
        if image is not None:
            files[one.disk] = folder, image
    return files


def _remove(cached: CachedSet, files: _Files) -> None:
    for folder, image in files.values():
        folder.check()
        folder.store.remove(image)
        log.info(
            "cached image removed server=%s device=%s file=%s",
            cached.server, folder.drive.device, naming.file_name(image.owner, image.sequence),
        )  # fmt: skip


def _is_superseded(target: Target, cached: CachedSet) -> bool:
    """True if it was copied, and only its removal was left to be done; or if a newer one came to the store since."""
    records = target.state.set_records(cached.server)
    return any(one.job_id == cached.job_id or one.received_at > cached.received_at for one in records)


def _into_store(target: Target, cached: CachedSet, files: _Files) -> None:
    total = sum(one.size_bytes for one in cached.images)
    progress = JobProgress(
        f"{cached.job_id}/{cached.server}", cached.source, (cached.server,), 2 * total, state="copying to the store"
    )

    def advanced(length_bytes: int) -> None:
        progress.finished_bytes += length_bytes
        if target.stopping.is_set():
            raise ServiceError("the service stops; the rest is copied at its next start")

    log.info("copying to the store server=%s job=%s bytes=%d", cached.server, cached.job_id, total)
    with target.running(progress), ExitStack() as opened:
        sources: Dict[str, Image] = {}
        for one in cached.images:
            if one.disk not in files:
                raise CacheDriveError(one.device, f"the image of server {cached.server} disk {one.disk} is gone")
            folder, stored = files[one.disk]
            folder.check()
            sources[one.disk] = folder.store.open(stored, writable=False)
            opened.callback(sources[one.disk].close)
            _check(cached, one, scan(sources[one.disk], one.size_bytes, _digester(one), advanced))
        writer = _Copy(target, cached)
        try:
            writer.begin()
            for one in cached.images:
                writer.fill(one, sources[one.disk], advanced)
            writer.complete()
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

    def fill(self, one: CachedImage, source: Image, advanced: Advanced) -> None:
        """Raise DigestMismatchError, ImageIOError."""
        image = self._writable[one.disk]
        offer = next(disk for disk in self._offer.disks if disk.name == one.disk)
        self._zero_tail(image, offer)
        difference = _Difference(source, image)
        digest = scan(source, one.size_bytes, self._digester, advanced, difference)
        _check(self._cached, one, digest)
        image.flush()
        self.written_bytes += difference.written_bytes
        self._received[one.disk] = ImageRecord(one.disk, self._images[one.disk].identity, one.size_bytes, digest)
        log.info(
            "disk copied server=%s disk=%s bytes=%d written_bytes=%d",
            self._cached.server, one.disk, one.size_bytes, difference.written_bytes,
        )  # fmt: skip


class _Difference:
    """Writes into an image what differs from the source."""

    def __init__(self, source: Image, image: Image) -> None:
        self._source, self._image = source, image
        self._present = memoryview(bytearray(_CHUNK_BYTES))
        self.written_bytes = 0

    def data(self, offset_bytes: int, wanted: memoryview) -> None:
        """The source has these bytes there, whole blocks but at its end."""
        present = self._present[: len(wanted)]
        self._image.read_into(offset_bytes, present)
        for at in range(0, len(wanted), BLOCK_BYTES):
            block = wanted[at : at + BLOCK_BYTES]
            if block == present[at : at + BLOCK_BYTES]:
                continue
            if block == _ZERO_BLOCK[: len(block)]:
                self._image.zero(offset_bytes + at, len(block))
            else:
                self._image.write(offset_bytes + at, block)
                self.written_bytes += len(block)

    def hole(self, offset_bytes: int, length_bytes: int) -> None:
        """The source has nothing but zeros there."""
        for at, length in list(self._image.data_ranges(offset_bytes, length_bytes)):
            for start in range(at, at + length, _CHUNK_BYTES):
                part = self._present[: min(_CHUNK_BYTES, at + length - start)]
                self._image.read_into(start, part)
                if part != bytes(len(part)):
                    self._image.zero(start, len(part))


class _Nothing:
    def data(self, offset_bytes: int, wanted: memoryview) -> None:
        """The bytes are only digested."""

    def hole(self, offset_bytes: int, length_bytes: int) -> None:
        """Nothing to be done either."""


def scan(
    source: Image,
    size_bytes: int,
    with_digester: Digester,
    advanced: Advanced,
    to: Optional[Union[_Difference, _Nothing]] = None,
) -> str:
    """Read an image from beginning to end: its digest, as it is kept with a set. Raise ImageIOError."""
    to = to or _Nothing()
    whole = ImageDigest(with_digester, size_bytes)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for segment in range(segment_count(size_bytes)):
        start, blocks = segment * SEGMENT_BYTES, block_count(size_bytes, segment)
        digests = [with_digester.zero_block] * blocks
        end = min(start + SEGMENT_BYTES, size_bytes)
        position = start
        for first, last in _chunks(source, start, end):
            if first > position:
                to.hole(position, first - position)
            # Past the end it reads as zeros, and so a last block is digested whole.
            padded = buffer[: -(-(last - first) // BLOCK_BYTES) * BLOCK_BYTES]
            source.read_into(first, padded[: last - first])
            padded[last - first :] = bytes(len(padded) - (last - first))
            at = (first - start) // BLOCK_BYTES
            digests[at : at + len(padded) // BLOCK_BYTES] = with_digester.blocks(padded)
            to.data(first, padded[: last - first])
            position = last
        if position < end:
            to.hole(position, end - position)
        whole.add(with_digester.segment(digests))
        advanced(end - start)
    return whole.text()


def _chunks(source: Image, start: int, end: int) -> List[Tuple[int, int]]:
    """What of a segment has to be read, in whole blocks and parts of a chunk's size at most."""
    chunks: List[Tuple[int, int]] = []
    position = start
    for at, length in source.data_ranges(start, end - start):
        first = max(position, at // BLOCK_BYTES * BLOCK_BYTES)
        last = min(end, -(-(at + length) // BLOCK_BYTES) * BLOCK_BYTES)
        while first < last:
            stop_at = min(last, first + _CHUNK_BYTES)
            chunks.append((first, stop_at))
            first = stop_at
        position = max(position, last)
    return chunks


def _check(cached: CachedSet, one: CachedImage, digest: str) -> None:
    if digest != one.digest:
        raise DigestMismatchError(
            cached.server, one.disk, None,
            f"on cache drive {one.device} it has digest {digest}, and {one.digest} arrived there",
        )  # fmt: skip


def _digester(one: CachedImage) -> Digester:
    return digester(one.digest.partition(":")[0])
