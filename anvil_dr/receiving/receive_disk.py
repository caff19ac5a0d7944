"""One disk, on the target: compares what the node announces with what is there, and writes what differs.

Touches the channel, and the images through image_blocks.py. Called with one frame after the other by the session's
thread; a second thread reads the recycled image ahead of it. Nothing is written before its digest has been checked, and
nothing that is right already is written again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Set, Tuple

from anvil_dr.errors import DigestMismatchError, ProtocolError
from anvil_dr.model import Owner
from anvil_dr.ports import Image
from anvil_dr.receiving.image_blocks import ImageBlocks
from anvil_dr.receiving.newest import Newest
from anvil_dr.receiving.recycled import Recycled
from anvil_dr.wire import bulk
from anvil_dr.wire.bulk import FULL_BLOCK, Entry
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.compression import Decompressor
from anvil_dr.wire.delta import PagePlan, plan_blocks
from anvil_dr.wire.digest import (
    BLOCK_BYTES,
    SEGMENT_BYTES,
    Digester,
    ImageDigest,
    block_count,
    segment_count,
)
from anvil_dr.wire.protocol import Kind

_WHOLE = PagePlan(zeros=0, copied=0, asked=FULL_BLOCK)


@dataclass
class _Segment:
    """A segment that is not done."""

    digest: Optional[bytes]
    present: Optional[Sequence[bytes]]
    """Block digests of the recycled image; None where its content is not known."""
    wanted: List[bytes] = field(default_factory=list)
    """Block digests as the node announced them."""
    announced: int = 0
    """How many blocks were announced, where they come unasked."""
    waiting: Dict[int, Optional[PagePlan]] = field(default_factory=dict)
    """Blocks of which something was asked for: the plan for their pages, None for their pages' digests."""
    retried: Set[int] = field(default_factory=set)


class DiskReceiver:
    """The dialogue about one disk."""

    def __init__(
        self,
        channel: Channel,
        digester: Digester,
        owner: Owner,
        size_bytes: int,
        *,
        image: Image,
        recycled: Recycled,
        newest: Optional[Image],
        window: int,
    ) -> None:
        self._channel, self._digester, self.owner, self._size_bytes = channel, digester, owner, size_bytes
        self._recycled, self._newest, self._window = recycled, Newest(newest), window
        self._image = ImageBlocks(digester, owner, size_bytes, image, recycled, self._newest)
        self._segments = segment_count(size_bytes)
        self._image_digest = ImageDigest(digester, size_bytes)
        self._open: Dict[int, _Segment] = {}
        self._announced = 0
        self._decompressor = Decompressor()
        self.compare = recycled.has_content or newest is not None
        """Whether there is something to compare with; without, the node sends everything unasked."""
        self.done_bytes = 0
        """How much of the disk is known to be right."""

    @property
    def written_bytes(self) -> int:
        """What was written to the image."""
        return self._image.written_bytes

    def handle(self, kind: Kind, content: memoryview) -> None:
        """Act on one record. Raise ProtocolError, DigestMismatchError, ImageIOError."""
        if kind is Kind.SEGMENT:
            self._segment(*bulk.unpack_segment(content))
        elif kind is Kind.ZEROS:
            self._zeros(*bulk.unpack_run(content))
        elif kind is Kind.BLOCKS:
            self._blocks(*bulk.unpack_blocks(content))
        elif kind is Kind.PAGES:
            self._pages(*bulk.unpack_pages(content))
        elif kind is Kind.DATA:
            header, encoded = bulk.unpack_data(content)
            raw = self._decompressor.decode(header.encoding, encoded, header.raw_bytes)
            self._data(header.segment, header.entries, raw)
        else:
            raise ProtocolError(f"{kind.name} came in the middle of a disk")

    @property
    def warnings(self) -> Tuple[str, ...]:
        """What was here already and could not be read, so that it was sent again."""
        problems = ("an older image", self._recycled.problem), ("the newest set", self._newest.problem)
        return tuple(
            f"disk {self.owner.disk}: {what} cannot be read, and was done without; its drive may be failing: {problem}"
            for what, problem in problems
            if problem
        )

    def finish(self) -> str:
        """The digest of the whole image, once every segment is done. Raise ProtocolError before that."""
        if self._announced < self._segments or self._open:
            raise ProtocolError(f"disk {self.owner.disk} was ended before all of it was sent")
        return self._image_digest.text()

    # — what the node announces —

    def _segment(self, segment: int, digest: bytes) -> None:
        present = self._next_present(segment)
        self._image_digest.add(digest)
        if not self.compare:
            pushed = self._open.get(segment) or self._open_pushed(segment, present)
            self._check_blocks(segment, pushed.wanted, digest)
            pushed.digest = digest
            self._zero(segment, [n for n, block in enumerate(pushed.wanted) if block == self._digester.zero_block])
            if not pushed.waiting:
                self._done(segment)
        elif present is not None and self._digester.segment(present) == digest:
            self._done(segment)
        else:
            self._open[segment] = _Segment(digest, present)
            self._channel.send(Kind.WANT_BLOCKS, bulk.pack_want_blocks(segment))

    def _zeros(self, first: int, count: int) -> None:
        if count < 1 or first + count > self._segments:
            raise ProtocolError("ZEROS goes past the end of the disk")
        for segment in range(first, first + count):
            self._channel.check()  # a few bytes of the node's can mean minutes of work
            present = self._next_present(segment)
            if segment in self._open:
                raise ProtocolError(f"ZEROS came for segment {segment}, which has blocks")
            wanted = self._zero_blocks(segment)
            self._image_digest.add(self._digester.segment(wanted))
            self._zero(segment, plan_blocks(wanted, present, self._digester.zero_block).zeros)
            self._done(segment, tell=False)
        self._channel.send(Kind.DONE, bulk.pack_run(first, count))

    def _blocks(self, segment: int, first: int, digests: List[bytes]) -> None:
        if first + len(digests) > self._block_count(segment):
            raise ProtocolError("BLOCKS goes past the end of the disk")
        if not self.compare:
            opened = self._open.get(segment)
            if opened is None:
                self._check_pushed(segment)
                opened = self._open_pushed(segment, self._zero_blocks(segment) if self._recycled.known_zero else None)
            if opened.digest is not None or first < opened.announced:
                raise ProtocolError(f"the blocks of segment {segment} came twice")
            opened.announced = first + len(digests)
            opened.wanted[first : first + len(digests)] = digests
            opened.waiting.update(
                (first + n, _WHOLE) for n, digest in enumerate(digests) if digest != self._digester.zero_block
            )
            return
        opened = self._opened(segment)
        if opened.wanted or opened.digest is None:
            raise ProtocolError(f"the blocks of segment {segment} came twice")
        self._check_blocks(segment, digests, opened.digest)
        opened.wanted = digests
        plan = plan_blocks(digests, opened.present, self._digester.zero_block)
        self._zero(segment, plan.zeros)
        known = opened.present is not None
        offset = self._offset(segment, 0)
        missing = [n for n in plan.differing if not self._image.copy(offset + n * BLOCK_BYTES, digests[n], known=known)]
        self._ask(segment, opened, missing)

    def _ask(self, segment: int, opened: _Segment, blocks: Sequence[int]) -> None:
        """Ask for blocks: for their pages' digests if some pages may be here, for all their bytes if not."""
        unlike = [n for n in blocks if not self._has_something(segment, opened, n)]
        alike = sorted(set(blocks) - set(unlike))
        opened.waiting.update((n, None) for n in alike)
        opened.waiting.update((n, _WHOLE) for n in unlike)
        if alike:
            self._channel.send(Kind.WANT_PAGES, bulk.pack_want_pages(segment, alike))
        if unlike:
            self._channel.send(Kind.WANT_DATA, bulk.pack_want_data(segment, [(n, FULL_BLOCK) for n in unlike]))
        if not blocks:
            self._done(segment)

    def _pages(self, segment: int, pages: Sequence[tuple[int, Sequence[bytes]]]) -> None:
        opened = self._opened(segment)
        asked: List[Entry] = []
        for block, digests in pages:
            if opened.waiting.get(block, _WHOLE) is not None:
                raise ProtocolError("PAGES came for a block that was not asked for")
            known = opened.present is not None
            plan = self._image.plan_pages(self._offset(segment, block), digests, known=known)
            opened.waiting[block] = plan
            if plan.asked:
                asked.append((block, plan.asked))
            else:
                asked += self._fill(segment, opened, block, plan, memoryview(b""))
        if asked:
            self._channel.send(Kind.WANT_DATA, bulk.pack_want_data(segment, asked))
        elif not opened.waiting:
            self._done(segment)

    def _data(self, segment: int, entries: Sequence[Entry], raw: memoryview) -> None:
        opened = self._opened(segment)
        again: List[Entry] = []
        while entries:
            count = self._whole_blocks(opened, entries)
            if count:
                raw_bytes = count * BLOCK_BYTES
                again += self._fill_whole(segment, opened, entries[0][0], raw[:raw_bytes])
            else:
                block, mask = entries[0]
                count, raw_bytes = 1, bulk.data_bytes(entries[:1])
                again += self._fill(segment, opened, block, self._answered(opened, block, mask), raw[:raw_bytes])
            entries, raw = entries[count:], raw[raw_bytes:]
        if again:
            self._channel.send(Kind.WANT_DATA, bulk.pack_want_data(segment, again))
        elif not opened.waiting and opened.digest is not None:
            self._done(segment)

    @staticmethod
    def _whole_blocks(opened: _Segment, entries: Sequence[Entry]) -> int:
        """How many of the first entries are neighbouring blocks that came as they were asked for, whole."""
        first = entries[0][0]
        for count, (block, mask) in enumerate(entries):
            if block != first + count or mask != FULL_BLOCK or opened.waiting.get(block) is not _WHOLE:
                return count
        return len(entries)

    @staticmethod
    def _answered(opened: _Segment, block: int, mask: int) -> PagePlan:
        """The plan for a block of which some pages came. Those that were asked for and did not come are zeros."""
        plan = opened.waiting.get(block)
        if plan is None or mask & ~plan.asked:
            raise ProtocolError("DATA came for pages that were not asked for")
        return PagePlan(plan.zeros | (plan.asked & ~mask), plan.copied, mask)

    def _has_something(self, segment: int, opened: _Segment, block: int) -> bool:
        if opened.present is not None and opened.present[block] != self._digester.zero_block:
            return True
        return self._image.newest_may_hold_data(self._offset(segment, block))

    # — writing —

    def _fill_whole(self, segment: int, opened: _Segment, first: int, raw: memoryview) -> List[Entry]:
        """Check neighbouring blocks and write them at once; like `_fill`, if one of them is wrong."""
        digests = self._digester.blocks(raw)
        blocks = range(first, first + len(digests))
        if digests != opened.wanted[blocks.start : blocks.stop]:
            again = [
                self._fill(segment, opened, block, _WHOLE, raw[at : at + BLOCK_BYTES])
                for block, at in zip(blocks, range(0, len(raw), BLOCK_BYTES))
            ]
            return [entry for entries in again for entry in entries]
        offset = self._offset(segment, first)
        self._image.check_end(offset, raw)
        self._image.write(offset, raw)
        for block in blocks:
            del opened.waiting[block]
        return []

    def _fill(self, segment: int, opened: _Segment, block: int, plan: PagePlan, raw: memoryview) -> List[Entry]:
        """Put one block together, check it, write it. Returns what must be asked for once more, if it is wrong."""
        offset = self._offset(segment, block)
        whole = self._image.assembled(offset, plan, raw)
        if self._digester.of(whole) != opened.wanted[block]:
            if block in opened.retried:
                raise DigestMismatchError(
                    self.owner.server, self.owner.disk, offset, "the bytes that arrived do not match their digest"
                )
            opened.retried.add(block)
            opened.waiting[block] = _WHOLE
            return [(block, FULL_BLOCK)]
        self._image.check_end(offset, whole)
        written = FULL_BLOCK if opened.present is None else plan.changed
        if self._recycled.known_zero:
            written &= ~plan.zeros
        self._image.write_pages(offset, whole, written)
        del opened.waiting[block]
        return []

    def _zero(self, segment: int, blocks: Sequence[int]) -> None:
        self._image.zero(self._offset(segment, 0), blocks)

    # — bookkeeping —

    def _next_present(self, segment: int) -> Optional[Sequence[bytes]]:
        if segment != self._announced or segment >= self._segments:
            raise ProtocolError(f"segment {segment} was announced where {self._announced} was due")
        if len(self._open) >= self._window + 1:
            raise ProtocolError("more segments are open than was agreed")
        self._announced += 1
        return self._recycled.next(self._block_count(segment))

    def _opened(self, segment: int) -> _Segment:
        opened = self._open.get(segment)
        if opened is None:
            raise ProtocolError(f"segment {segment} is not open")
        return opened

    def _open_pushed(self, segment: int, present: Optional[Sequence[bytes]]) -> _Segment:
        opened = self._open[segment] = _Segment(None, present, self._zero_blocks(segment))
        return opened

    def _check_pushed(self, segment: int) -> None:
        if not self._announced <= segment < min(self._segments, self._announced + self._window):
            raise ProtocolError(f"data came for segment {segment} where {self._announced} was due")

    def _done(self, segment: int, *, tell: bool = True) -> None:
        self._open.pop(segment, None)
        self.done_bytes += min(SEGMENT_BYTES, self._size_bytes - segment * SEGMENT_BYTES)
        if tell:
            self._channel.send(Kind.DONE, bulk.pack_run(segment, 1))

    def _check_blocks(self, segment: int, digests: Sequence[bytes], digest: bytes) -> None:
        if len(digests) != self._block_count(segment) or self._digester.segment(digests) != digest:
            raise DigestMismatchError(
                self.owner.server, self.owner.disk, segment * SEGMENT_BYTES, "the digests that arrived do not agree"
            )

    def _block_count(self, segment: int) -> int:
        if segment >= self._segments:
            raise ProtocolError(f"segment {segment} is past the end of the disk")
        return block_count(self._size_bytes, segment)

    def _zero_blocks(self, segment: int) -> List[bytes]:
        return [self._digester.zero_block] * self._block_count(segment)

    @staticmethod
    def _offset(segment: int, block: int) -> int:
        return segment * SEGMENT_BYTES + block * BLOCK_BYTES
