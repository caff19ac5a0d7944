"""Records are compressed where that gets them across sooner, and nowhere else."""

from __future__ import annotations

import random
from typing import List

import pytest

from anvil_dr.wire.bulk import RAW, ZSTD
from anvil_dr.wire.compression import Compressor, Decompressor

MIB = 1 << 20
RANDOM = random.Random(0).randbytes(MIB)
TEXT = (b"every line says nearly what the line before it said, number %d\n" * 20000)[:MIB]


class Line:
    """A line with a rate and a buffer in front of it, and a clock that shows what sending and compressing take."""

    def __init__(
        self, rate_bytes: float, *, compressing_seconds: float = 0.001, making_seconds: float = 0.0005
    ) -> None:
        """`compressing_seconds` for each record, `making_seconds` for reading and digesting one."""
        self.rate_bytes, self._making_seconds = rate_bytes, making_seconds
        self._compressing_seconds = compressing_seconds
        self._now = 0.0
        self._empty_at = 0.0
        self.wire_bytes = 0
        self.compressor = Compressor(True, clock=self._tick)

    def _tick(self) -> float:
        self._now += self._compressing_seconds / 2
        return self._now

    def send(self, record: bytes, times: int = 1) -> List[int]:
        encodings = []
        for _ in range(times):
            self._now += self._making_seconds
            encoding, parts = self.compressor.encode([record])
            size = sum(len(part) for part in parts)
            before = self._now
            buffered = max(0.0, self._empty_at - self._now) * self.rate_bytes
            if buffered + size > 4 * MIB:
                self._now += (buffered + size - 4 * MIB) / self.rate_bytes
            self._empty_at = max(self._empty_at, self._now) + size / self.rate_bytes
            self.compressor.sent(size, self._now - before)
            self.wire_bytes += size
            encodings.append(encoding)
        return encodings


def test_a_slow_line_gets_compressed_records() -> None:
    line = Line(12.5e6)
    encodings = line.send(TEXT, 200)
    assert encodings[20:] == [ZSTD] * 180
    assert line.wire_bytes < 20 * MIB


def test_a_line_that_never_makes_anything_wait_gets_no_compressed_record() -> None:
    assert Line(10e9).send(TEXT, 300) == [RAW] * 300


def test_a_line_that_is_faster_than_compressing_gets_hardly_any() -> None:
    line = Line(1.2e9, compressing_seconds=0.002)
    assert line.send(TEXT, 2000).count(ZSTD) < 60


def test_what_does_not_get_smaller_is_sent_as_it_is_and_tried_now_and_then() -> None:
    line = Line(12.5e6)
    assert line.send(RANDOM, 100) == [RAW] * 100
    assert ZSTD in line.send(TEXT, 17)
    assert line.send(TEXT, 20) == [ZSTD] * 20


def test_a_line_that_has_become_fast_is_noticed() -> None:
    line = Line(12.5e6)
    assert line.send(TEXT, 100)[-1] == ZSTD
    line.rate_bytes = 10e9
    assert line.send(TEXT, 1000)[-300:] == [RAW] * 300


def test_a_line_that_has_become_slow_is_noticed() -> None:
    line = Line(10e9)
    line.send(TEXT, 100)
    line.rate_bytes = 12.5e6
    assert line.send(TEXT, 100)[-50:] == [ZSTD] * 50


def test_small_records_are_compressed_too() -> None:
    line = Line(1e6, making_seconds=1e-6, compressing_seconds=1e-5)
    assert line.send(TEXT[:8192], 2000)[-100:] == [ZSTD] * 100


def test_none_can_be_forced() -> None:
    line = Line(12.5e6)
    line.compressor = Compressor(False)
    assert line.send(TEXT, 100) == [RAW] * 100


@pytest.mark.parametrize("record", [TEXT, bytes(MIB), TEXT[:4096]])
def test_what_was_compressed_comes_out_as_it_was(record: bytes) -> None:
    line = Line(1e6)
    line.send(TEXT, 50)
    encoding, parts = line.compressor.encode([record[:1000], memoryview(record)[1000:]])
    content = memoryview(b"".join(parts))
    assert encoding == ZSTD
    assert bytes(Decompressor().decode(encoding, content, len(record))) == record
