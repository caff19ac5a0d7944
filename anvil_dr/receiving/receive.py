"""One server of a job as a transaction, on the target: names cycled, images written, the set promoted.

Touches the store, the state, and through publish.py the definitions folder. Until `complete` returns, the new set is
`_incomplete` and every set that was kept is as it was; whatever ends it before that leaves the next job
something to resume.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Dict, Mapping, Optional, Sequence, Tuple

from anvil_dr import firmware
from anvil_dr.cycling import cycle, rotation, sets
from anvil_dr.errors import DigestMismatchError, ProtocolError, ServerActivatedError, StoreError
from anvil_dr.model import (
    INCOMPLETE,
    Allocation,
    Create,
    ImageRecord,
    ImageSet,
    JournalEntry,
    Keep,
    Owner,
    Replace,
    Resize,
    SetRecord,
    StoredImage,
)
from anvil_dr.ports import Image
from anvil_dr.receiving import admission, publish, reread, space
from anvil_dr.receiving.receive_disk import DiskReceiver
from anvil_dr.receiving.recycled import Content, KnownZeros, Recycled, UnknownContent
from anvil_dr.receiving.target import Target
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.digest import Digester
from anvil_dr.wire.protocol import DiskDone, DiskOffer, ServerOffer

log = logging.getLogger(__name__)


class SetWriter:
    """One server's set in the store as a transaction, wherever its bytes come from."""

    safe_elsewhere = False
    """True if a complete set lies on a cache drive meanwhile, so that the last one here may be written over."""

    def __init__(self, target: Target, digester: Digester, job_id: str, source: str, offer: ServerOffer) -> None:
        self._target, self._digester = target, digester
        self._job_id, self._source, self._offer = job_id, source, offer
        self._open = ExitStack()
        self._images: Dict[str, StoredImage] = {}
        self._fresh: Dict[str, bool] = {}
        self._writable: Dict[str, Image] = {}
        self._newest: Dict[str, Image] = {}
        self._received: Dict[str, ImageRecord] = {}
        self._firmware: Dict[str, bytes] = {}
        self._received_at: Optional[str] = None
        self.written_bytes = 0
        self.finished_bytes = 0
        self.warnings: Tuple[str, ...] = ()
        self._unread: Tuple[str, ...] = ()
        """What was here and could not be read."""

    def begin(self) -> Mapping[str, bool]:
        """Cycle the names and make room. Returns for each disk whether there is something to compare with.

        Raise ImageInUseError, StoreFullError, StoreError, StateError.
        """
        server, target = self._offer.name, self._target
        with target.names:
            self._refuse_if_activated()
            cycle.settle(target.store, target.state, server)
            safe = (server,) if self.safe_elsewhere else ()
            plan = admission.plan_servers(target, self._job_id, [self._offer], safe)[server]
            self.warnings = plan.warnings
            for warning in plan.warnings:
                log.warning("server=%s job=%s %s", server, self._job_id, warning)
            cycle.carry_out(
                target.store, target.state, server, "cycle", plan.steps, still_may=self._refuse_if_activated
            )
            present = cycle.images_of(target.store, server)
            recycled = {image.owner: image for image in present if image.sequence == INCOMPLETE}
            for allocation in plan.allocations:
                disk = allocation.owner.disk
                self._images[disk] = self._allocate(allocation, recycled.get(allocation.owner))
                self._fresh[disk] = isinstance(allocation, (Create, Replace))
            # Their content is about to change, so they must not count as part of the set they were in; nor must
            # a new file whose inode was that of an image which somebody deleted by hand.
            target.state.forget_images(image.identity for image in self._images.values())
        if target.store.kind == "lvm":
            target.vacate_space(self._job_id, server)  # the volumes exist now, so the space is taken for real
        else:
            target.lower_promise(self._job_id, server, self._space_left)
        newest = sets.newest_complete(admission.server_sets(target, server, present))
        for disk, image in self._images.items():
            self._writable[disk] = self._opened(image, writable=True)
        for image in newest.images if newest else ():
            if image.owner.disk in self._images:
                self._newest[image.owner.disk] = self._opened(image, writable=False)
        return {
            disk: disk in self._newest or not self._fresh[disk] for disk in self._images
        }

    @property
    def firmware_bytes(self) -> int:
        """How much firmware state has come so far."""
        return sum(len(content) for content in self._firmware.values())

    def firmware(self, name: str, content: bytes) -> None:
        """Keep one file of firmware state until the set is complete."""
        if name not in self._offer.firmware or name in self._firmware:
            raise ProtocolError(f"firmware state {name!r} is not due")
        self._firmware[name] = content

    def complete(self) -> Tuple[str, str, bool, Tuple[str, ...]]:
        """Promote the set. Returns when it was received, its definition's path, whether that was made now, warnings.

        Raise ProtocolError if something is missing, DigestMismatchError, StoreError, StateError.
        """
        server, target = self._offer.name, self._target
        self._refuse_if_unfinished()
        if target.config.verify == "read-back":
            self._read_back()
        self._open.close()
        received_at = self._received_at or target.now()
        record = SetRecord(server, received_at, self._source, self._job_id, tuple(self._received.values()))
        firmware.keep(target.config.state, record, self._firmware)
        # Before the promotion: recovery makes the definition from it, if this process does not live to.
        target.state.keep_source_definition(
            server, self._offer.definition, self._offer.left_out, admission.disk_names(self._offer)
        )
        published, old_stay = self._promote(record)
        log.info("set complete server=%s sequence=1 job=%s source=%s", server, self._job_id, self._source)
        path, made, warnings = publish.publish(target, published)
        return record.received_at, path, made, warnings + old_stay + self._unread

    def _read_back(self) -> None:
        """Compare what the drives hold with what was received. Raise DigestMismatchError: then a drive lies."""
        for record in self._received.values():
            wrong = reread.what_is_wrong(self._writable[record.disk], record.digest, record.size_bytes)
            if wrong is not None:
                raise DigestMismatchError(
                    self._offer.name, record.disk, None, f"the drive does not hold what was written to it: {wrong}"
                )
            log.info("disk read back server=%s disk=%s bytes=%d", self._offer.name, record.disk, record.size_bytes)

    def _promote(self, record: SetRecord) -> Tuple[JournalEntry, Tuple[str, ...]]:
        """Give the images their number, then free the sets that are too many. Returns what to publish, and warnings."""
        server, target = self._offer.name, self._target
        with target.names:
            self._refuse_if_activated()
            present = admission.server_sets(target, server)
            self._refuse_if_taken_away(present)
            known = tuple(sets.to_planner(one) for one in present)
            names = tuple(disk.name for disk in self._offer.disks)
            promotion, trim = rotation.split_end(
                rotation.plan_end(server, known, names, target.config.copies)
            )
            follower = cycle.carry_out(
                target.store, target.state, server, "promote", promotion, record, still_may=self._refuse_if_activated
            )
            if follower is None:
                raise AssertionError("a set with a record is to be published")
            try:
                cycle.carry_out(target.store, target.state, server, "trim", trim)
            except StoreError as error:
                log.warning("old images stay for now server=%s error=%s", server, error)
                return follower, (f"a set that is not needed any more could not be removed: {error}",)
        return follower, ()

    def close(self) -> None:
        """Let go of everything that is open. Idempotent."""
        self._open.close()

    def _refuse_if_unfinished(self) -> None:
        missing = [disk.name for disk in self._offer.disks if disk.name not in self._received]
        missing += [name for name in self._offer.firmware if name not in self._firmware]
        if missing:
            raise ProtocolError(f"server {self._offer.name} was ended before {missing[0]} was sent")

    def _refuse_if_taken_away(self, present: Sequence[ImageSet]) -> None:
        """Somebody may have removed by hand what was being written, or put another image there."""
        there = {image.identity for one in present if one.sequence == INCOMPLETE for image in one.images}
        for image in self._images.values():
            if image.identity not in there:
                raise StoreError(
                    f"{image.path} was removed or replaced on the DR box while server {self._offer.name} was received; "
                    "send it again",
                    image=image.path,
                )

    def _refuse_if_activated(self) -> None:
        """It may have been activated since the job was admitted; its images are live disks then."""
        if self._offer.name in self._target.state.activations():
            raise ServerActivatedError(self._offer.name)

    def _allocate(self, allocation: Allocation, recycled: Optional[StoredImage]) -> StoredImage:
        store, owner = self._target.store, allocation.owner
        data_bytes = next(disk.data_bytes for disk in self._offer.disks if disk.name == owner.disk)
        if isinstance(allocation, Create) or recycled is None:
            if isinstance(allocation, Keep):
                raise StoreError(f"the recycled image of {owner} has gone")
            return store.create(owner, allocation.size_bytes, allocation.location, data_bytes=data_bytes)
        if isinstance(allocation, Resize):
            return store.resize(recycled, allocation.size_bytes, data_bytes=data_bytes)
        if isinstance(allocation, Replace):
            # Both would have one name, and it holds nothing that is promised to anyone any more.
            store.remove(recycled)
            return store.create(owner, allocation.size_bytes, allocation.location, data_bytes=data_bytes)
        return recycled

    def _space_left(self) -> Mapping[str, int]:
        """Asked by other jobs: files have taken what was written into them. Raise StoreError."""
        present = cycle.images_of(self._target.store, self._offer.name)
        ours = {image.identity for image in self._images.values()}
        return space.left(self._offer.disks, self._received, [one for one in present if one.identity in ours])

    def _recycled(self, disk: str, offer: DiskOffer) -> Recycled:
        if not self._fresh[disk]:
            return Content(self._digester, self._writable[disk], offer.size_bytes)
        if self._target.store.is_known_zero(self._images[disk]):
            return KnownZeros(self._digester)
        return UnknownContent()

    def _zero_tail(self, image: Image, offer: DiskOffer) -> None:
        """What a volume has beyond the disk, because extents are whole, reads as zeros too."""
        if image.size_bytes > offer.size_bytes:
            image.zero(offer.size_bytes, image.size_bytes - offer.size_bytes)

    def _opened(self, image: StoredImage, *, writable: bool) -> Image:
        opened = self._target.store.open(image, writable=writable)
        self._open.callback(opened.close)
        return opened


class ServerReceiver(SetWriter):
    """One server's images on their way in from a node."""

    def __init__(
        self, target: Target, channel: Channel, digester: Digester, job_id: str, source: str, offer: ServerOffer
    ) -> None:
        super().__init__(target, digester, job_id, source, offer)
        self._channel = channel
        self._current: Optional[DiskReceiver] = None

    def done_bytes(self) -> int:
        """How much of the server's disks is known to be right."""
        current = self._current
        return self.finished_bytes + (current.done_bytes if current else 0)

    def close(self) -> None:
        """Let go of everything that is open; what was written of a disk that did not end counts too. Idempotent."""
        if self._current is not None:
            self.written_bytes += self._current.written_bytes
            self._current = None
        super().close()

    def disk(self, name: str, window: int) -> DiskReceiver:
        """Begin one disk. Raise ProtocolError for one that the job does not have, or that was sent already."""
        offer = next((disk for disk in self._offer.disks if disk.name == name), None)
        if offer is None or name in self._received or self._current is not None:
            raise ProtocolError(f"disk {name!r} is not due")
        image = self._writable[name]
        self._zero_tail(image, offer)
        recycled = self._recycled(name, offer)
        self._open.callback(recycled.close)
        self._current = DiskReceiver(
            self._channel,
            self._digester,
            Owner(self._offer.name, name),
            offer.size_bytes,
            image=image,
            recycled=recycled,
            newest=self._newest.get(name),
            window=window,
        )
        log.info("disk begun server=%s disk=%s bytes=%d", self._offer.name, name, offer.size_bytes)
        return self._current

    def disk_done(self, name: str, digest: str) -> DiskDone:
        """End the current disk: compare digests, put it on stable storage. Raise DigestMismatchError, ImageIOError."""
        current, offer = self._current, next((disk for disk in self._offer.disks if disk.name == name), None)
        if current is None or offer is None or current.owner.disk != name:
            raise ProtocolError(f"disk {name!r} is not being sent")
        ours = current.finish()
        if ours != digest:
            raise DigestMismatchError(
                self._offer.name, name, None, f"the whole image has digest {ours} here and {digest} at the node"
            )
        self._writable[name].flush()
        self.written_bytes += current.written_bytes
        self.finished_bytes += offer.size_bytes
        self._unread += current.warnings
        self._received[name] = ImageRecord(name, self._images[name].identity, offer.size_bytes, ours)
        self._current = None
        log.info(
            "disk done server=%s disk=%s bytes=%d written_bytes=%d digest=%s",
            self._offer.name, name, offer.size_bytes, current.written_bytes, ours,
        )  # fmt: skip
        return DiskDone(name, ours, current.written_bytes)
