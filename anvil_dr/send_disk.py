"""One disk, on the node: reads it, digests it, and answers the target's questions about it.

Touches the source disk and the channel. The receiving thread hands replies over with `reply`; one worker
thread does everything else, questions first, so no state is shared between them but a queue.
"""

from __future__ import annotations

import queue
import time
from typing import Dict, List, Optional, Protocol, Sequence, Tuple

from anvil_dr import bulk
from anvil_dr.bulk import FULL_BLOCK, Entry
from anvil_dr.channel import Channel
from anvil_dr.compression import Buffer, Compressor
from anvil_dr.delta import runs
from anvil_dr.digest import (
    BLOCK_BYTES,
    PAGE_BYTES,
    SEGMENT_BYTES,
    Digester,
    ImageDigest,
    block_count,
    segment_count,
)
from anvil_dr.errors import ProtocolError
from anvil_dr.ports import Image
from anvil_dr.protocol import MAX_DATA_BYTES, Kind

_CHUNK_BYTES = 1 << 20
_CHUNK_BLOCKS = _CHUNK_BYTES // BLOCK_BYTES


_LOOK_SECONDS = 0.1
"""A segment over a slow line takes seconds; whoever watches wants to see it move."""


class Looked(Protocol):
    """Told how many bytes of the disk have been dealt with: sent, or agreed to be the same."""

    def __call__(self, done_bytes: int) -> None: ...


class DiskSender:
    """The dialogue about one disk."""

    def __init__(
        self,
        channel: Channel,
        digester: Digester,
        source: Image,
        size_bytes: int,
        *,
        compare: bool,
        window: int,
        compressor: Compressor,
        looked: Looked,
    ) -> None:
        self._channel, self._digester, self._source, self._size_bytes = channel, digester, source, size_bytes
        self._compare, self._window, self._compressor, self._looked = compare, window, compressor, looked
        self._segments = segment_count(size_bytes)
        self._replies: queue.SimpleQueue[Optional[Tuple[Kind, bytes]]] = queue.SimpleQueue()
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._image_digest = ImageDigest(digester, size_bytes)
        self._open: Dict[int, List[bytes]] = {}
        self._open_zeros = 0
        self._zero_run: Tuple[int, int] = (0, 0)
        self._done_segments = 0
        self._pushed_bytes = 0
        self._looked_at = 0.0

    def reply(self, kind: Kind, content: bytes) -> None:
        """Hand over a DONE or WANT record of the target. Called from the receiving thread."""
        self._replies.put((kind, content))

    def stop(self) -> None:
        """Make `run` return early, without a digest. Called from the receiving thread."""
        self._replies.put(None)

    def run(self) -> Optional[str]:
        """Send the whole disk. The image's digest as text, or None if stopped.

        Raise ImageIOError when the disk cannot be read, ProtocolError for a reply that makes no sense.
        """
        scanned = 0
        while self._done_segments < self._segments:
            may_scan = scanned < self._segments and len(self._open) + self._open_zeros < self._window
            if not may_scan:
                self._flush_zeros()
            try:
                answer = self._replies.get(block=not may_scan)
            except queue.Empty:
                self._scan(scanned)
                scanned += 1
                continue
            if answer is None:
                return None
            self._answer(*answer)
        return self._image_digest.text()

    # — scanning —

    def _scan(self, segment: int) -> None:
        digests = self._read(segment)
        if all(digest == self._digester.zero_block for digest in digests):
            self._image_digest.add(self._digester.zero_segment(len(digests)))
            first, count = self._zero_run
            self._zero_run = (first if count else segment, count + 1)
            self._open_zeros += 1
            return
        self._flush_zeros()
        digest = self._digester.segment(digests)
        self._image_digest.add(digest)
        self._open[segment] = digests
        self._channel.send(Kind.SEGMENT, bulk.pack_segment(segment, digest))

    def _read(self, segment: int) -> List[bytes]:
        """Read a segment and digest its blocks; send them at once if the target has nothing to compare with."""
        offset, blocks = segment * SEGMENT_BYTES, block_count(self._size_bytes, segment)
        holding = list(self._source.data_ranges(offset, min(SEGMENT_BYTES, self._size_bytes - offset)))
        digests = [self._digester.zero_block] * blocks
        for first in range(0, blocks, _CHUNK_BLOCKS) if holding else ():
            count = min(_CHUNK_BLOCKS, blocks - first)
            start = offset + first * BLOCK_BYTES
            if not any(at < start + count * BLOCK_BYTES and start < at + length for at, length in holding):
                continue
            chunk = self._buffer[: count * BLOCK_BYTES]
            self._source.read_into(start, chunk)
            digests[first : first + count] = self._digester.blocks(chunk)
            if not self._compare:
                self._push(segment, first, chunk, digests[first : first + count])
        return digests

    def _push(self, segment: int, first: int, chunk: memoryview, digests: Sequence[bytes]) -> None:
        filled = [at for at, digest in enumerate(digests) if digest != self._digester.zero_block]
        if filled:
            self._channel.send(Kind.BLOCKS, bulk.pack_blocks(segment, first, digests))
            parts = [chunk[at * BLOCK_BYTES : (at + n) * BLOCK_BYTES] for at, n in runs(filled)]
            self._pushed_bytes = segment * SEGMENT_BYTES + (first + len(digests)) * BLOCK_BYTES
            self._send_data(segment, [(first + at, FULL_BLOCK) for at in filled], parts)

    def _flush_zeros(self) -> None:
        if self._zero_run[1]:
            self._channel.send(Kind.ZEROS, bulk.pack_run(*self._zero_run))
            self._zero_run = (0, 0)

    # — answering —

    def _answer(self, kind: Kind, content: bytes) -> None:
        view = memoryview(content)
        if kind is Kind.DONE:
            self._close(*bulk.unpack_run(view))
        elif kind is Kind.WANT_BLOCKS:
            segment = bulk.unpack_want_blocks(view)
            self._channel.send(Kind.BLOCKS, bulk.pack_blocks(segment, 0, self._opened(segment)))
        elif kind is Kind.WANT_PAGES:
            self._send_pages(*bulk.unpack_want_pages(view))
        elif kind is Kind.WANT_DATA:
            self._send_asked(*bulk.unpack_want_data(view))
        else:
            raise ProtocolError(f"the target sent {kind.name} in the middle of a disk")

    def _close(self, first: int, count: int) -> None:
        if first + count > self._segments:
            raise ProtocolError("the target is done with segments that the disk does not have")
        for segment in range(first, first + count):
            if self._open.pop(segment, None) is None:
                self._open_zeros -= 1
        if self._open_zeros < 0:
            raise ProtocolError("the target is done with a segment that was not sent")
        self._done_segments += count
        self._look()

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        done_bytes = max(self._done_segments * SEGMENT_BYTES, self._pushed_bytes)
        self._looked(min(done_bytes, self._size_bytes))

    def _opened(self, segment: int) -> List[bytes]:
        digests = self._open.get(segment)
        if digests is None:
            raise ProtocolError("the target asks about a segment that is not open")
        return digests

    def _send_pages(self, segment: int, blocks: Sequence[int]) -> None:
        self._check_blocks(segment, blocks)
        pages = []
        for first, count in runs(blocks):
            for at in range(first, first + count, _CHUNK_BLOCKS):
                chunk = self._read_blocks(segment, at, min(_CHUNK_BLOCKS, first + count - at))
                for n in range(0, len(chunk), BLOCK_BYTES):
                    pages.append((at + n // BLOCK_BYTES, self._digester.pages(chunk[n : n + BLOCK_BYTES])))
        self._channel.send(Kind.PAGES, bulk.pack_pages(segment, pages))

    def _send_asked(self, segment: int, entries: Sequence[Entry]) -> None:
        self._check_blocks(segment, [block for block, _ in entries])
        batch: List[Entry] = []
        used = 0
        for block, mask in entries:
            size = bulk.data_bytes([(block, mask)])
            if used + size > MAX_DATA_BYTES:
                self._send_batch(segment, batch)
                batch, used = [], 0
            batch.append((block, mask))
            used += size
        self._send_batch(segment, batch)

    def _send_batch(self, segment: int, entries: Sequence[Entry]) -> None:
        """Read some pages one behind the other into the buffer, and send them."""
        filled = 0
        for block, mask in entries:
            for page, count in bulk.page_runs(mask):
                size = count * PAGE_BYTES
                start = segment * SEGMENT_BYTES + block * BLOCK_BYTES + page * PAGE_BYTES
                self._source.read_into(start, self._buffer[filled : filled + size])
                filled += size
        self._send_data(segment, entries, [self._buffer[:filled]])

    def _send_data(self, segment: int, entries: Sequence[Entry], parts: Sequence[Buffer]) -> None:
        encoding, encoded = self._compressor.encode(parts)
        self._channel.send(
            Kind.DATA, bulk.pack_data_header(segment, encoding, bulk.data_bytes(entries), entries), *encoded
        )
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._look()

    def _read_blocks(self, segment: int, first: int, count: int) -> memoryview:
        chunk = self._buffer[: count * BLOCK_BYTES]
        self._source.read_into(segment * SEGMENT_BYTES + first * BLOCK_BYTES, chunk)
        return chunk

    def _check_blocks(self, segment: int, blocks: Sequence[int]) -> None:
        if not blocks or blocks[-1] >= len(self._opened(segment)):
            raise ProtocolError("the target asks for blocks that the segment does not have")
