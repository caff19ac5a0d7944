"""An image read from beginning to end, digested as it is kept with a set, and written over another where they differ.

Touches the open images that it is given.
"""

from __future__ import annotations

from typing import Callable, List, Optional, Tuple

from anvil_dr.ports import Image
from anvil_dr.wire.digest import (
    BLOCK_BYTES,
    SEGMENT_BYTES,
    Digester,
    ImageDigest,
    block_count,
    segment_count,
)

_CHUNK_BYTES = 1 << 20
_ZERO_BLOCK = bytes(BLOCK_BYTES)

Advanced = Callable[[int], None]


class Difference:
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


def scan(
    source: Image,
    size_bytes: int,
    with_digester: Digester,
    advanced: Advanced,
    to: Optional[Difference] = None,
) -> str:
    """Read an image from beginning to end: its digest, as it is kept with a set. Raise ImageIOError."""
    whole = ImageDigest(with_digester, size_bytes)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for segment in range(segment_count(size_bytes)):
        start, blocks = segment * SEGMENT_BYTES, block_count(size_bytes, segment)
        digests = [with_digester.zero_block] * blocks
        end = min(start + SEGMENT_BYTES, size_bytes)
        position = start
        for first, last in _chunks(source, start, end):
            if to is not None and first > position:
                to.hole(position, first - position)
            # Past the end it reads as zeros, and so a last block is digested whole.
            padded = buffer[: -(-(last - first) // BLOCK_BYTES) * BLOCK_BYTES]
            source.read_into(first, padded[: last - first])
            padded[last - first :] = bytes(len(padded) - (last - first))
            at = (first - start) // BLOCK_BYTES
            digests[at : at + len(padded) // BLOCK_BYTES] = with_digester.blocks(padded)
            if to is not None:
                to.data(first, padded[: last - first])
            position = last
        if to is not None and position < end:
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
