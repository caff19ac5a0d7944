"""One disk, on the node: reads it, digests it, and answers the target's questions about it.

Touches the source disk and the channel. The receiving thread hands replies over with `reply`, a second one reads
and digests ahead; both put what they have into one queue, and one worker thread does everything else.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from typing import Deque, Dict, List, Optional, Protocol, Sequence, Tuple, Union

from anvil_dr.errors import AnvilDrError, ProtocolError
from anvil_dr.ports import Image
from anvil_dr.wire import bulk
from anvil_dr.wire.ahead import Ahead, Ended
from anvil_dr.wire.bulk import FULL_BLOCK, Entry
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.compression import Buffer, Compressor
from anvil_dr.wire.delta import runs
from anvil_dr.wire.digest import (
    BLOCK_BYTES,
    PAGE_BYTES,
    SEGMENT_BYTES,
    Digester,
    ImageDigest,
    block_count,
    segment_count,
)
from anvil_dr.wire.protocol import MAX_DATA_BYTES, Kind
from anvil_dr.wire.scan import CHUNK_BLOCKS, CHUNK_BYTES, Chunk, Segment, chunks, segments
from anvil_dr.wire.zeros import filled_pages

_AHEAD = 4
"""Segments, or chunks where they are sent unasked, that are read before they are due."""
_LOOK_SECONDS = 0.1
"""A segment over a slow line takes seconds; whoever watches wants to see it move."""

_Scanned = Union[Chunk, Segment]
_Inbox = Union[_Scanned, Tuple[Kind, bytes], AnvilDrError, Ended, None]


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
        self._inbox: queue.SimpleQueue[_Inbox] = queue.SimpleQueue()
        self._scanned: Deque[_Scanned] = deque()
        """What was read and could not be sent yet, because the window is full."""
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._image_digest = ImageDigest(digester, size_bytes)
        self._open: Dict[int, Sequence[bytes]] = {}
        """Segments that the target knows of and is not done with; their blocks' digests, once all are known."""
        self._open_zeros = 0
        self._zero_run: Tuple[int, int] = (0, 0)
        self._done_segments = 0
        self._pushed_bytes = 0
        self._looked_at = 0.0
        self._sent_before = channel.sent_bytes, channel.waited_seconds

    def reply(self, kind: Kind, content: bytes) -> None:
        """Hand over a DONE or WANT record of the target. Called from the receiving thread."""
        self._inbox.put((kind, content))

    def stop(self) -> None:
        """Make `run` return early, without a digest. Called from the receiving thread."""
        self._inbox.put(None)

    def run(self) -> Optional[str]:
        """Send the whole disk. The image's digest as text, or None if stopped.

        Raise ImageIOError when the disk cannot be read, ProtocolError for a reply that makes no sense.
        """
        items = (
            segments(self._digester, self._source, self._size_bytes)
            if self._compare
            else chunks(self._digester, self._source, self._size_bytes, _AHEAD)
        )
        ahead = Ahead(items, _AHEAD, self._inbox.put, name="scan")
        try:
            return self._run(ahead)
        finally:
            ahead.close()

    def _run(self, ahead: Ahead[_Scanned]) -> Optional[str]:
        ended = False
        while self._done_segments < self._segments:
            item = self._inbox.get()
            if item is None:
                return None
            if isinstance(item, AnvilDrError):
                raise item
            if isinstance(item, tuple):
                self._answer(*item)
            elif isinstance(item, Ended):
                ended = True
            else:
                self._scanned.append(item)
            while self._scanned and self._may_send(self._scanned[0]):
                self._send_scanned(self._scanned.popleft())
                ahead.done()
            if self._scanned or ended:
                self._flush_zeros()  # no more zeros can join these before the target is done with something
        return self._image_digest.text()

    # — what was scanned —

    def _may_send(self, scanned: _Scanned) -> bool:
        return scanned.segment in self._open or len(self._open) + self._open_zeros < self._window

    def _send_scanned(self, scanned: _Scanned) -> None:
        if isinstance(scanned, Chunk):
            self._flush_zeros()
            self._open.setdefault(scanned.segment, ())
            self._push(scanned)
            return
        segment, digests = scanned.segment, scanned.digests
        digest = self._digester.segment(digests)
        self._image_digest.add(digest)
        if scanned.zero:
            first, count = self._zero_run
            self._zero_run = (first if count else segment, count + 1)
            self._open_zeros += 1
            return
        self._flush_zeros()
        self._open[segment] = digests
        self._channel.send(Kind.SEGMENT, bulk.pack_segment(segment, digest))

    def _push(self, chunk: Chunk) -> None:
        """Send some blocks to a target that has nothing to compare them with."""
        self._channel.send(Kind.BLOCKS, bulk.pack_blocks(chunk.segment, chunk.first_block, chunk.digests))
        blocks = range(chunk.first_block, chunk.first_block + len(chunk.digests))
        self._send_data(chunk.segment, list(zip(blocks, filled_pages(chunk.data))), chunk.data)
        self._pushed_bytes = chunk.segment * SEGMENT_BYTES + blocks.stop * BLOCK_BYTES
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._look()

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
            digests = self._open.get(segment)
            if not digests:
                raise ProtocolError("the target asks about a segment that was not announced")
            self._channel.send(Kind.BLOCKS, bulk.pack_blocks(segment, 0, digests))
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

    def _send_pages(self, segment: int, blocks: Sequence[int]) -> None:
        self._check_blocks(segment, blocks)
        pages = []
        for first, count in runs(blocks):
            for at in range(first, first + count, CHUNK_BLOCKS):
                chunk = self._read(segment, at, min(CHUNK_BLOCKS, first + count - at))
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
        for page, count in bulk.extents(entries):
            size = count * PAGE_BYTES
            self._source.read_into(segment * SEGMENT_BYTES + page * PAGE_BYTES, self._buffer[filled : filled + size])
            filled += size
        content = self._buffer[:filled]
        if all(mask == FULL_BLOCK for _, mask in entries):
            # One page at least, in case that somebody has zeroed the block since: the target waits for an answer.
            entries = [(block, mask or 1) for (block, _), mask in zip(entries, filled_pages(content))]
        self._send_data(segment, entries, content)

    def _send_data(self, segment: int, entries: Sequence[Entry], content: memoryview) -> None:
        """Send some pages. Where `entries` name less than `content` has, that is whole blocks."""
        parts: Sequence[Buffer] = [content]
        raw_bytes = bulk.data_bytes(entries)
        if raw_bytes < len(content):
            named = bulk.extents([(at, mask) for at, (_, mask) in enumerate(entries)])
            parts = [content[page * PAGE_BYTES : (page + count) * PAGE_BYTES] for page, count in named]
            entries = [entry for entry in entries if entry[1]]
        encoding, encoded = self._compressor.encode(parts)
        channel = self._channel
        channel.send(Kind.DATA, bulk.pack_data_header(segment, encoding, raw_bytes, entries), *encoded)
        sent_bytes, waited_seconds = channel.sent_bytes, channel.waited_seconds
        self._compressor.sent(sent_bytes - self._sent_before[0], waited_seconds - self._sent_before[1])
        self._sent_before = sent_bytes, waited_seconds

    def _read(self, segment: int, first: int, count: int) -> memoryview:
        chunk = self._buffer[: count * BLOCK_BYTES]
        self._source.read_into(segment * SEGMENT_BYTES + first * BLOCK_BYTES, chunk)
        return chunk

    def _check_blocks(self, segment: int, blocks: Sequence[int]) -> None:
        if segment not in self._open:
            raise ProtocolError("the target asks about a segment that is not open")
        if not blocks or blocks[-1] >= block_count(self._size_bytes, segment):
            raise ProtocolError("the target asks for blocks that the segment does not have")
