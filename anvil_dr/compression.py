"""zstd, where it helps. Pure: bytes in, bytes out; what helps is judged from what the last records gave."""

from __future__ import annotations

from typing import Sequence, Tuple, Union

import zstandard

from anvil_dr.bulk import RAW, ZSTD
from anvil_dr.errors import ProtocolError

Buffer = Union[bytes, bytearray, memoryview]

_LEVEL = 1
_WORTH_IT = 0.9
_SKIPPED_AFTER_A_MISS = 15


class Compressor:
    """Compresses records while that makes them smaller by a tenth; otherwise tries again every sixteenth."""

    def __init__(self, enabled: bool) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL) if enabled else None
        self._skip = 0

    def encode(self, parts: Sequence[Buffer]) -> Tuple[int, Sequence[Buffer]]:
        """The encoding, and what to send."""
        if self._zstd is None:
            return RAW, parts
        if self._skip:
            self._skip -= 1
            return RAW, parts
        raw = b"".join(parts)
        packed = self._zstd.compress(raw)
        if len(packed) < len(raw) * _WORTH_IT:
            return ZSTD, (packed,)
        self._skip = _SKIPPED_AFTER_A_MISS
        return RAW, (raw,)


class Decompressor:
    """The other end's. Never makes more bytes than the record's header promised."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def decode(self, encoding: int, content: memoryview, raw_bytes: int) -> memoryview:
        """Raise ProtocolError if the content is not what its header says."""
        if encoding == RAW:
            return content
        try:
            # The frame's own header says how much will be allocated: it is believed only if it agrees.
            if zstandard.frame_content_size(content) != raw_bytes:
                raise ProtocolError("a compressed DATA record has the wrong size")
            raw = self._zstd.decompress(content, max_output_size=raw_bytes)
        except zstandard.ZstdError as error:
            raise ProtocolError(f"a DATA record cannot be decompressed: {error}") from error
        if encoding != ZSTD or len(raw) != raw_bytes:
            raise ProtocolError("a compressed DATA record has the wrong size")
        return memoryview(raw)
