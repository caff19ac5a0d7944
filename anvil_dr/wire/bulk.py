"""The packed records of the wire: the dialogue of a segment, as bytes. Pure; protocol.py says what they mean.

    ZEROS        first segment, count
    SEGMENT      segment, its digest
    BLOCKS       segment, first block, the digests of a run of blocks
    PAGES        segment, bitmap of blocks, for each of them the short digests of its 16 pages
    DATA         segment, encoding, raw length, entries (block, mask of pages), the pages' bytes
    DONE         first segment, count
    WANT_BLOCKS  segment
    WANT_PAGES   segment, bitmap of blocks
    WANT_DATA    segment, entries (block, mask of pages)

Numbers are big-endian. In bitmaps and masks, bit n (from the lowest) of the integer stands for block or page n.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import chain
from operator import lt
from typing import Iterable, List, Sequence, Tuple

from anvil_dr.errors import ProtocolError
from anvil_dr.wire.digest import BLOCKS_PER_SEGMENT, DIGEST_BYTES, PAGE_BYTES, PAGE_DIGEST_BYTES, PAGES_PER_BLOCK
from anvil_dr.wire.protocol import MAX_DATA_BYTES

FULL_BLOCK = (1 << PAGES_PER_BLOCK) - 1
RAW = 0
ZSTD = 1

_RUN = struct.Struct("!II")
_SEGMENT = struct.Struct("!I")
_BLOCKS = struct.Struct("!IB")
_DATA = struct.Struct("!IBxHI")
_ENTRY_FORMAT = "BxH"
_ENTRY = struct.Struct("!" + _ENTRY_FORMAT)
_BITMAP_BYTES = BLOCKS_PER_SEGMENT // 8

Entry = Tuple[int, int]
"""A block and the mask of its pages."""


@dataclass(frozen=True)
class DataHeader:
    """What comes before the bytes of a DATA record."""

    segment: int
    encoding: int
    raw_bytes: int
    entries: Tuple[Entry, ...]


def pack_run(first: int, count: int) -> bytes:
    """ZEROS and DONE."""
    return _RUN.pack(first, count)


def unpack_run(content: memoryview) -> Tuple[int, int]:
    first, count = _unpack(_RUN, content, exact=True)
    return int(first), int(count)


def pack_segment(segment: int, digest: bytes) -> bytes:
    return _SEGMENT.pack(segment) + digest


def unpack_segment(content: memoryview) -> Tuple[int, bytes]:
    if len(content) != _SEGMENT.size + DIGEST_BYTES:
        raise ProtocolError("a SEGMENT record has the wrong length")
    return int(_SEGMENT.unpack_from(content)[0]), bytes(content[_SEGMENT.size :])


def pack_blocks(segment: int, first_block: int, digests: Sequence[bytes]) -> bytes:
    return _BLOCKS.pack(segment, first_block) + b"".join(digests)


def unpack_blocks(content: memoryview) -> Tuple[int, int, List[bytes]]:
    segment, first = _unpack(_BLOCKS, content)
    packed = bytes(content[_BLOCKS.size :])
    if not packed or len(packed) % DIGEST_BYTES or first + len(packed) // DIGEST_BYTES > BLOCKS_PER_SEGMENT:
        raise ProtocolError("a BLOCKS record has the wrong length")
    return int(segment), int(first), [packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)]


def pack_want_blocks(segment: int) -> bytes:
    return _SEGMENT.pack(segment)


def unpack_want_blocks(content: memoryview) -> int:
    return int(_unpack(_SEGMENT, content, exact=True)[0])


def pack_want_pages(segment: int, blocks: Iterable[int]) -> bytes:
    return _SEGMENT.pack(segment) + _bitmap(blocks)


def unpack_want_pages(content: memoryview) -> Tuple[int, List[int]]:
    segment, blocks, rest = _unpack_bitmap(content)
    if len(rest):
        raise ProtocolError("a WANT_PAGES record has the wrong length")
    return segment, blocks


def pack_pages(segment: int, pages: Sequence[Tuple[int, Sequence[bytes]]]) -> bytes:
    """`pages`: for each block, in ascending order, its pages' short digests."""
    return b"".join(
        (_SEGMENT.pack(segment), _bitmap(block for block, _ in pages), *(b"".join(digests) for _, digests in pages))
    )


def unpack_pages(content: memoryview) -> Tuple[int, List[Tuple[int, List[bytes]]]]:
    segment, blocks, rest = _unpack_bitmap(content)
    each = PAGES_PER_BLOCK * PAGE_DIGEST_BYTES
    if len(rest) != each * len(blocks):
        raise ProtocolError("a PAGES record has the wrong length")
    packed = bytes(rest)
    return segment, [
        (block, [packed[at : at + PAGE_DIGEST_BYTES] for at in range(n * each, (n + 1) * each, PAGE_DIGEST_BYTES)])
        for n, block in enumerate(blocks)
    ]


def pack_want_data(segment: int, entries: Sequence[Entry]) -> bytes:
    return _SEGMENT.pack(segment) + _pack_entries(entries)


def unpack_want_data(content: memoryview) -> Tuple[int, Tuple[Entry, ...]]:
    (segment,) = _unpack(_SEGMENT, content)
    return int(segment), _entries(content[_SEGMENT.size :])


def pack_data_header(segment: int, encoding: int, raw_bytes: int, entries: Sequence[Entry]) -> bytes:
    return _DATA.pack(segment, encoding, len(entries), raw_bytes) + _pack_entries(entries)


def unpack_data(content: memoryview) -> Tuple[DataHeader, memoryview]:
    """The header, and the bytes as they were encoded. The raw length is checked against the entries."""
    segment, encoding, count, raw_bytes = _unpack(_DATA, content)
    ends = _DATA.size + count * _ENTRY.size
    entries = _entries(content[_DATA.size : ends])
    if len(entries) != count or not entries:
        raise ProtocolError("a DATA record has the wrong number of entries")
    if raw_bytes != data_bytes(entries) or raw_bytes > MAX_DATA_BYTES:
        raise ProtocolError(f"a DATA record says {raw_bytes} bytes where its pages have {data_bytes(entries)}")
    if encoding not in (RAW, ZSTD) or (encoding == RAW and len(content) - ends != raw_bytes):
        raise ProtocolError("a DATA record has the wrong length")
    return DataHeader(segment, encoding, raw_bytes, entries), content[ends:]


def data_bytes(entries: Iterable[Entry]) -> int:
    """How many raw bytes the pages of some entries have."""
    return sum(PAGES_PER_BLOCK if mask == FULL_BLOCK else bin(mask).count("1") for _, mask in entries) * PAGE_BYTES


def page_runs(mask: int) -> List[Tuple[int, int]]:
    """The (first page, count) runs of neighbouring pages in a mask."""
    if mask == FULL_BLOCK:
        return [(0, PAGES_PER_BLOCK)]
    runs: List[Tuple[int, int]] = []
    page = 0
    while mask >> page:
        if mask >> page & 1:
            first = page
            while mask >> page & 1:
                page += 1
            runs.append((first, page - first))
        else:
            page += 1
    return runs


def extents(entries: Iterable[Entry]) -> List[Tuple[int, int]]:
    """The (first page of the segment, count) runs of neighbouring pages in some entries."""
    found: List[Tuple[int, int]] = []
    for block, mask in entries:
        for page, count in page_runs(mask):
            first = block * PAGES_PER_BLOCK + page
            if found and sum(found[-1]) == first:
                first, count = found[-1][0], found.pop()[1] + count
            found.append((first, count))
    return found


def _pack_entries(entries: Sequence[Entry]) -> bytes:
    return struct.pack("!" + _ENTRY_FORMAT * len(entries), *chain.from_iterable(entries))


def _entries(content: memoryview) -> Tuple[Entry, ...]:
    if len(content) % _ENTRY.size:
        raise ProtocolError("a list of pages has the wrong length")
    entries = tuple(_ENTRY.iter_unpack(content))
    blocks = [block for block, _ in entries]
    if not all(mask for _, mask in entries) or not all(map(lt, blocks, blocks[1:])):
        raise ProtocolError("a list of pages is not in order")
    return entries


def _bitmap(blocks: Iterable[int]) -> bytes:
    bits = 0
    for block in blocks:
        bits |= 1 << block
    return bits.to_bytes(_BITMAP_BYTES, "big")


def _unpack_bitmap(content: memoryview) -> Tuple[int, List[int], memoryview]:
    if len(content) < _SEGMENT.size + _BITMAP_BYTES:
        raise ProtocolError("a record with a bitmap is too short")
    bits = int.from_bytes(content[_SEGMENT.size : _SEGMENT.size + _BITMAP_BYTES], "big")
    blocks = [block for block in range(BLOCKS_PER_SEGMENT) if bits >> block & 1]
    return int(_SEGMENT.unpack_from(content)[0]), blocks, content[_SEGMENT.size + _BITMAP_BYTES :]


def _unpack(record: struct.Struct, content: memoryview, *, exact: bool = False) -> Tuple[int, ...]:
    if len(content) < record.size or (exact and len(content) != record.size):
        raise ProtocolError("a record has the wrong length")
    return record.unpack_from(content)
