"""How images are digested: pages, blocks, segments, and the whole. Pure: bytes in, digests out.

An image is a row of 16 MiB segments of 256 blocks of 64 KiB of 16 pages of 4 KiB (SPEC section 6).
A block's digest is taken over its bytes; a segment's over its blocks' digests; the image's over its size
and its segments' digests. So one pass over the bytes gives every level, a changed block costs one block
to digest again, and each block can be checked alone before it is written. What lies past the end of an
image counts as zeros, so that every block has its full length.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

from anvil_dr.errors import ProtocolError

_blake3: Optional[Callable[..., Any]]
try:
    from blake3 import blake3 as _blake3
except ImportError:  # not packaged by Debian 12 or EL 9: SHA-256 does the same, slower
    _blake3 = None

PAGE_BYTES = 4096
BLOCK_BYTES = 64 << 10
SEGMENT_BYTES = 16 << 20
PAGES_PER_BLOCK = BLOCK_BYTES // PAGE_BYTES
BLOCKS_PER_SEGMENT = SEGMENT_BYTES // BLOCK_BYTES
DIGEST_BYTES = 32
PAGE_DIGEST_BYTES = 16
"""Page digests only say which pages to ask for; the block's full digest then proves the result."""

Buffer = Union[bytes, bytearray, memoryview]


@dataclass(frozen=True)
class Digester:
    """One digest algorithm, with the digests of zeros worked out once."""

    name: str
    new: Callable[..., Any] = field(repr=False)
    zero_block: bytes = field(init=False, repr=False)
    zero_page: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "zero_block", self.of(bytes(BLOCK_BYTES)))
        object.__setattr__(self, "zero_page", self.of(bytes(PAGE_BYTES))[:PAGE_DIGEST_BYTES])

    def of(self, data: Buffer) -> bytes:
        """The 32-byte digest of some bytes."""
        digest: bytes = self.new(data).digest()
        return digest

    def blocks(self, data: memoryview) -> List[bytes]:
        """The digest of each block in `data`, whose length is a whole number of blocks."""
        new = self.new
        return [new(data[at : at + BLOCK_BYTES]).digest() for at in range(0, len(data), BLOCK_BYTES)]

    def pages(self, block: memoryview) -> List[bytes]:
        """The short digest of each page in `block`."""
        new = self.new
        return [
            new(block[at : at + PAGE_BYTES]).digest()[:PAGE_DIGEST_BYTES] for at in range(0, len(block), PAGE_BYTES)
        ]

    def segment(self, block_digests: Sequence[bytes]) -> bytes:
        """A segment's digest from its blocks' digests."""
        return self.of(b"".join(block_digests))

    def zero_segment(self, blocks: int) -> bytes:
        """The digest of a segment of that many zero blocks."""
        return self.segment([self.zero_block] * blocks)


class ImageDigest:
    """The digest of a whole image, taken segment by segment in order."""

    def __init__(self, digester: Digester, size_bytes: int) -> None:
        self._name = digester.name
        self._hash = digester.new(b"anvil-dr image 1\0" + size_bytes.to_bytes(8, "big"))

    def add(self, segment_digest: bytes) -> None:
        self._hash.update(segment_digest)

    def text(self) -> str:
        """`<algorithm>:<hex>`, as it is kept with the set."""
        return f"{self._name}:{self._hash.digest().hex()}"


def segment_count(size_bytes: int) -> int:
    return -(-size_bytes // SEGMENT_BYTES)


def block_count(size_bytes: int, segment: int) -> int:
    """How many blocks a segment of an image of that size has: 256, fewer in the last one."""
    left = size_bytes - segment * SEGMENT_BYTES
    return min(BLOCKS_PER_SEGMENT, -(-left // BLOCK_BYTES))


def available() -> Tuple[str, ...]:
    """The algorithms this machine has, best first. Which one to use is agreed in the greeting."""
    return ("blake3", "sha256") if _blake3 is not None else ("sha256",)


def digester(name: str) -> Digester:
    """Raise ProtocolError for an algorithm that this machine does not have."""
    if name == "blake3" and _blake3 is not None:
        return Digester("blake3", _blake3)
    if name == "sha256":
        return Digester("sha256", hashlib.sha256)
    raise ProtocolError(f"the digest algorithm {name!r} is not available here")
