"""An image from its start to its end: read, and digested block by block. Touches the image, for reading.

Run in a thread of its own (ahead.py), at both ends: so that each reads its disk while the other reads its own, and
while what differs is being moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Iterator, List, Optional, Sequence, Tuple, Union

from anvil_dr.ports import Image
from anvil_dr.wire.digest import BLOCK_BYTES, SEGMENT_BYTES, Digester, block_count, segment_count

CHUNK_BYTES = 1 << 20
"""What is read at a time: it stays in the second-level cache of a core until it is digested."""
CHUNK_BLOCKS = CHUNK_BYTES // BLOCK_BYTES


@dataclass(frozen=True)
class Chunk:
    """Some blocks of a segment, not all of them zeros, and their bytes."""

    segment: int
    first_block: int
    digests: Sequence[bytes]
    data: memoryview


@dataclass(frozen=True)
class Segment:
    """The end of a segment: the digests of all its blocks."""

    segment: int
    digests: Sequence[bytes]
    zero: bool


def segments(digester: Digester, image: Image, size_bytes: int, begin: int = 0) -> Iterator[Segment]:
    """Every segment of the first `size_bytes` of an image, from the segment `begin` on. Raise ImageIOError."""
    for item in _scan(digester, image, size_bytes, [memoryview(bytearray(CHUNK_BYTES))], begin):
        if isinstance(item, Segment):
            yield item


def chunks(digester: Digester, image: Image, size_bytes: int, buffers: int) -> Iterator[Union[Chunk, Segment]]:
    """The same, and before each segment its chunks, whose bytes are good for that many items. Raise ImageIOError."""
    return _scan(digester, image, size_bytes, [memoryview(bytearray(CHUNK_BYTES)) for _ in range(buffers)])


def _scan(
    digester: Digester, image: Image, size_bytes: int, buffers: Sequence[memoryview], begin: int = 0
) -> Iterator[Union[Chunk, Segment]]:
    following = cycle(buffers)
    buffer = next(following)
    zero_block = digester.zero_block
    for segment in range(begin, segment_count(size_bytes)):
        start, blocks = segment * SEGMENT_BYTES, block_count(size_bytes, segment)
        digests = [zero_block] * blocks
        zero = True
        for first, count in _holding(image, start, min(size_bytes, start + SEGMENT_BYTES)):
            data = buffer[: count * BLOCK_BYTES]
            image.read_into(start + first * BLOCK_BYTES, data)
            found = digester.blocks(data)
            if found.count(zero_block) == count:
                continue
            zero = False
            digests[first : first + count] = found
            # Only now: a chunk of zeros must not cost the buffer of one that was yielded and is not sent yet.
            buffer = next(following)
            yield Chunk(segment, first, found, data)
        yield Segment(segment, digests, zero)


def _holding(image: Image, start: int, end: int) -> Iterator[Tuple[int, int]]:
    """The blocks of a segment that may hold other than zeros, as (first, count) within one chunk each."""
    chunk: Optional[Tuple[int, int]] = None
    for at, length in image.data_ranges(start, max(0, min(end, image.size_bytes) - start)):
        first, last = (at - start) // BLOCK_BYTES, -(-(at + length - start) // BLOCK_BYTES)
        if chunk is not None:
            begins, ends = chunk
            if first <= ends or first // CHUNK_BLOCKS == (ends - 1) // CHUNK_BLOCKS:
                first = begins  # so near to the one before it that both are read together
            else:
                yield from _split(*chunk)
        chunk = first, last
    if chunk is not None:
        yield from _split(*chunk)


def _split(first: int, last: int) -> List[Tuple[int, int]]:
    """Cut where chunks begin."""
    cuts = [first, *range((first // CHUNK_BLOCKS + 1) * CHUNK_BLOCKS, last, CHUNK_BLOCKS), last]
    return [(one, other - one) for one, other in zip(cuts, cuts[1:])]
