"""Where a file may hold data: holes are found, and what becomes data or a hole meanwhile is never taken for zeros."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from anvil_dr.stores.open_image import FileImage

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Iterator[FileImage]:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, SIZE)
    opened = FileImage(fd, "image", SIZE)
    yield opened
    opened.close()


def covered(image: FileImage, at: int, length: int = 4096) -> bool:
    return any(start <= at and at + length <= start + size for start, size in image.data_ranges(at, length))


def test_a_hole_is_no_data_and_data_is(image: FileImage) -> None:
    image.write(8 * MIB, memoryview(b"x" * MIB))
    ranges: List[Tuple[int, int]] = list(image.data_ranges(0, SIZE))
    assert all(start < 9 * MIB and start + size > 8 * MIB for start, size in ranges)
    assert covered(image, 8 * MIB, MIB)
    assert not covered(image, 40 * MIB)


def test_what_is_written_into_a_hole_that_was_looked_at_is_data(image: FileImage) -> None:
    image.write(0, memoryview(b"x" * MIB))
    assert not covered(image, 16 * MIB)
    image.write(16 * MIB, memoryview(b"x" * 4096))
    assert covered(image, 16 * MIB)
    assert covered(image, 0)


def test_ranges_asked_for_piece_by_piece_are_those_asked_for_at_once(image: FileImage) -> None:
    for at in (0, 3 * MIB, 5 * MIB, 31 * MIB):
        image.write(at, memoryview(b"x" * MIB))
    whole = {at for start, size in image.data_ranges(0, SIZE) for at in range(start, start + size, 4096)}
    pieces = {
        at
        for piece in range(0, SIZE, MIB // 2)
        for start, size in image.data_ranges(piece, MIB // 2)
        for at in range(start, start + size, 4096)
    }
    assert pieces == whole
