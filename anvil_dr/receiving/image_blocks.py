"""The blocks of the image that is being written: compared with what is there, put together, written.

Touches that image, and the newest set's for reading. Knows nothing of the dialogue: receive_disk.py says which blocks.
Offsets and lengths are in bytes.
"""

from __future__ import annotations

from typing import Sequence

from anvil_dr.errors import DigestMismatchError
from anvil_dr.model import Owner
from anvil_dr.ports import Image
from anvil_dr.receiving.newest import Newest
from anvil_dr.receiving.recycled import Recycled
from anvil_dr.wire import bulk
from anvil_dr.wire.bulk import FULL_BLOCK
from anvil_dr.wire.delta import PagePlan, plan_pages, runs
from anvil_dr.wire.digest import BLOCK_BYTES, PAGE_BYTES, Digester


class ImageBlocks:
    """One image, and what it may be put together from."""

    def __init__(
        self, digester: Digester, owner: Owner, size_bytes: int, image: Image, recycled: Recycled, newest: Newest
    ) -> None:
        """`size_bytes` is the disk's; the image may be larger."""
        self._digester, self._owner, self._size_bytes = digester, owner, size_bytes
        self._image, self._recycled, self._newest = image, recycled, newest
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self._other = memoryview(bytearray(BLOCK_BYTES))
        self.written_bytes = 0

    def plan_pages(self, offset: int, digests: Sequence[bytes], *, known: bool) -> PagePlan:
        """Where the pages of a block come from. `known`: whether the image's own content can be relied on.

        Raise ImageIOError.
        """
        present = newest = None
        if known:
            self._image.read_into(offset, self._block)
            present = self._digester.pages(self._block)
        if self._newest.read_into(offset, self._other):
            newest = self._digester.pages(self._other)
        return plan_pages(digests, present, newest, self._digester.zero_page)

    def newest_may_hold_data(self, offset: int) -> bool:
        """Whether the newest set may have something there that is worth comparing with."""
        return self._newest.may_hold_data(offset, BLOCK_BYTES)

    def copy(self, offset: int, digest: bytes, *, known: bool) -> bool:
        """Take a block from the newest set if it is the same there; of a known image only the pages that differ.

        Raise ImageIOError, DigestMismatchError.
        """
        if not self._newest.read_into(offset, self._other) or self._digester.of(self._other) != digest:
            return False
        self.check_end(offset, self._other)
        if not known:
            self.write(offset, self._other)
            return True
        self._image.read_into(offset, self._block)
        changed = 0
        for page in range(BLOCK_BYTES // PAGE_BYTES):
            at = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
            changed |= (bytes(self._block[at]) != bytes(self._other[at])) << page
        self.write_pages(offset, self._other, changed)
        return True

    def assembled(self, offset: int, plan: PagePlan, raw: memoryview) -> memoryview:
        """A block with the pages of `raw` that were asked for, and the others from where they are; good until the
        next call. Raise ImageIOError.
        """
        if plan.asked == FULL_BLOCK:
            return raw
        if plan.changed != FULL_BLOCK:
            self._image.read_into(offset, self._block)
        if plan.copied and self._newest.read_into(offset, self._other):
            for page, count in bulk.page_runs(plan.copied):
                at = slice(page * PAGE_BYTES, (page + count) * PAGE_BYTES)
                self._block[at] = self._other[at]
        for page, count in bulk.page_runs(plan.zeros):
            self._block[page * PAGE_BYTES : (page + count) * PAGE_BYTES] = bytes(count * PAGE_BYTES)
        for page, count in bulk.page_runs(plan.asked):
            size = count * PAGE_BYTES
            self._block[page * PAGE_BYTES : page * PAGE_BYTES + size] = raw[:size]
            raw = raw[size:]
        return self._block

    def check_end(self, offset: int, blocks: memoryview) -> None:
        """What lies past the end of the disk counts as zeros, so it must come as zeros. Raise DigestMismatchError."""
        past = offset + len(blocks) - self._size_bytes
        if past > 0 and bytes(blocks[-past:]).strip(b"\0"):
            raise DigestMismatchError(
                self._owner.server, self._owner.disk, self._size_bytes, "there are bytes past the end of the disk"
            )

    def write_pages(self, offset: int, block: memoryview, pages: int) -> None:
        """Write the pages of this mask. Raise ImageIOError."""
        for page, count in bulk.page_runs(pages):
            start = page * PAGE_BYTES
            self.write(offset + start, block[start : start + count * PAGE_BYTES])

    def write(self, offset: int, data: memoryview) -> None:
        """Raise ImageIOError."""
        data = data[: max(0, self._image.size_bytes - offset)]  # a block's tail past the end is zeros
        self._image.write(offset, data)
        self.written_bytes += len(data)

    def zero(self, segment_offset: int, blocks: Sequence[int]) -> None:
        """Make blocks of a segment read as zeros, unless all the image does by itself. Raise ImageIOError."""
        if self._recycled.known_zero:
            return
        for first, count in runs(blocks):
            offset = segment_offset + first * BLOCK_BYTES
            self._image.zero(offset, min(count * BLOCK_BYTES, self._image.size_bytes - offset))
