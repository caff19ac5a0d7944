"""zstd, where it helps: when it makes records smaller, and faster than the line would take them as they are.

Touches only the clock. Nothing is configured: what the line takes is seen from how long sending had to wait, what zstd
gives and costs from the last records. A line that is faster than this end is never held up by compressing.
"""

from __future__ import annotations

import time
from typing import Callable, Optional, Sequence, Tuple, Union

import zstandard

from anvil_dr.errors import ProtocolError
from anvil_dr.wire.bulk import RAW, ZSTD

Buffer = Union[bytes, bytearray, memoryview]

_FAST_LEVEL = 1
_SLOW_LINE_LEVEL = 3
_SLOW_LINE_SECONDS = 20e-9
"""A byte: 50 MB/s. The higher level takes twice the time of the lower one, a fraction of what such a line takes."""

_WORTH_IT = 0.9
"""Both of size and of time: what gains less is not worth the other end's work."""
_SAMPLE_BYTES = 64 << 10
"""Is compressed first, where the records before did not get smaller."""
_SKIPPED_AFTER_A_MISS = 15
_SKIPPED_WHEN_TOO_SLOW = 63
_FREE_RECORDS = 8
"""So many sent without a wait, one after the other: the line is faster than this end."""
_PROBE_AFTER_RECORDS = 256
_PROBE_RECORDS = 2 * _FREE_RECORDS
"""Compressed records that don't have to wait say little of the line, so that now and then some go as they are."""
_SMALL_BYTES = 32 << 10
"""Too small a record to tell what a byte costs."""
_WEIGHT = 0.25
"""Of a new measurement against those before it."""


class Compressor:
    """Decides for each record. To be told by `sent` how it went."""

    def __init__(self, enabled: bool, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._enabled, self._clock = enabled, clock
        self._fast = zstandard.ZstdCompressor(level=_FAST_LEVEL)
        self._slow = zstandard.ZstdCompressor(level=_SLOW_LINE_LEVEL)
        self._line: Optional[float] = None
        """Seconds for each byte of the wire; None for a line that is faster than this end."""
        self._cost: Optional[float] = None
        """Seconds of compressing for each byte."""
        self._shrinks = False
        self._skip = 0
        self._compressed = False
        self._free = 0
        self._waited_at: Optional[float] = None
        self._since_bytes = 0

    def encode(self, parts: Sequence[Buffer]) -> Tuple[int, Sequence[Buffer]]:
        """The encoding, and what to send."""
        self._compressed = False
        if not self._enabled or self._line is None:
            return RAW, parts
        if self._skip:
            self._skip -= 1
            return RAW, parts
        raw = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        if self._shrinks or len(raw) <= 2 * _SAMPLE_BYTES or self._try(raw[:_SAMPLE_BYTES], self._line):
            packed = self._try(raw, self._line)
            if packed is not None:
                if self._cost is not None and self._cost >= self._line * _WORTH_IT:
                    self._skip = _SKIPPED_WHEN_TOO_SLOW
                self._compressed = True
                return ZSTD, (packed,)
        self._skip = _SKIPPED_AFTER_A_MISS
        return RAW, parts

    def sent(self, wire_bytes: int, waited_seconds: float) -> None:
        """Say that so many bytes went since it was said last, and how long they had to wait."""
        if not self._enabled:
            return
        now = self._clock()
        self._since_bytes += wire_bytes
        if waited_seconds > 0:
            if self._waited_at is not None:
                # What went between two times when nothing more would go is what the line took meanwhile.
                self._line = _mean(self._line, (now - self._waited_at) / self._since_bytes)
            self._waited_at, self._since_bytes, self._free = now, 0, 0
            return
        self._free += 1
        if self._free >= _FREE_RECORDS:
            self._waited_at = None
            if not self._compressed:
                self._line = None
            elif self._free >= _PROBE_AFTER_RECORDS:
                self._free, self._skip = 0, _PROBE_RECORDS

    def _try(self, raw: memoryview, line: float) -> Optional[bytes]:
        """What became of it, if that is enough smaller."""
        began = self._clock()
        packed: bytes = (self._slow if line > _SLOW_LINE_SECONDS else self._fast).compress(raw)
        if len(raw) >= _SMALL_BYTES:
            self._cost = _mean(self._cost, (self._clock() - began) / len(raw))
        self._shrinks = len(packed) < len(raw) * _WORTH_IT
        return packed if self._shrinks else None


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


def _mean(before: Optional[float], now: float) -> float:
    return now if before is None else before + (now - before) * _WEIGHT
