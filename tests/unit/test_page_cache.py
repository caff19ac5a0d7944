"""What a big job gives up of the page cache behind itself, and when it waits for the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil_dr.errors import ImageIOError
from anvil_dr.stores.open_image import FileImage
from anvil_dr.stores.page_cache import KEPT_STRETCHES, STRETCH_BYTES, WRITING_STRETCHES, GiveUp

MIB = 1 << 20


class Kernel:
    """Stands for posix_fadvise and sync_file_range; keeps the stretches that each was called for."""

    def __init__(self) -> None:
        self.given_up: List[int] = []
        self.written: List[int] = []
        self.broken = False
        self.cache = GiveUp(7, self._advise, self._write)

    def _advise(self, fd: int, offset: int, length: int, advice: int) -> None:
        assert (fd, advice) == (7, os.POSIX_FADV_DONTNEED)
        assert (offset, length) == (0, 0) or length == STRETCH_BYTES
        self.given_up.append(offset // STRETCH_BYTES if length else -1)

    def _write(self, fd: int, offset: int, length: int) -> None:
        assert (fd, length) == (7, STRETCH_BYTES)
        if self.broken:
            raise OSError(5, "Input/output error")
        self.written.append(offset // STRETCH_BYTES)


def test_a_long_read_gives_up_each_stretch_once_and_keeps_the_last_ones() -> None:
    kernel = Kernel()
    stretches = 3 * KEPT_STRETCHES
    for offset in range(0, stretches * STRETCH_BYTES, MIB):
        kernel.cache.read(offset, MIB)
    assert kernel.given_up == list(range(stretches - KEPT_STRETCHES))
    assert kernel.written == []


def test_a_long_write_waits_for_the_disk_some_stretches_behind_and_drops_what_is_there() -> None:
    kernel = Kernel()
    stretches = 3 * KEPT_STRETCHES
    for offset in range(0, stretches * STRETCH_BYTES, MIB):
        kernel.cache.wrote(offset, MIB)
    begun = stretches - KEPT_STRETCHES
    done = begun - WRITING_STRETCHES
    assert kernel.written == list(range(done))
    assert sorted(kernel.given_up) == sorted([*range(begun), *range(done)]), "begun to be written, then dropped"


def test_work_within_a_stretch_costs_no_call() -> None:
    kernel = Kernel()
    for offset in range(0, STRETCH_BYTES, 4096):
        kernel.cache.read(offset, 4096)
        kernel.cache.wrote(offset, 4096)
    kernel.cache.read(3 * STRETCH_BYTES, 0)
    assert kernel.given_up == kernel.written == []


def test_at_the_end_everything_is_given_up() -> None:
    kernel = Kernel()
    kernel.cache.read(0, STRETCH_BYTES)
    kernel.cache.everything()
    assert kernel.given_up == [-1]


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=300))
def test_in_whatever_order_they_come_the_last_ones_touched_stay(touched: List[Tuple[int, bool]]) -> None:
    kernel = Kernel()
    recent: List[int] = []
    for number, write in touched:
        before = len(kernel.given_up)
        (kernel.cache.wrote if write else kernel.cache.read)(number * STRETCH_BYTES + 5, 100)
        recent = [*(one for one in recent if one != number), number][-KEPT_STRETCHES // 2 :]
        assert set(kernel.given_up[before:]).isdisjoint(recent)


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=300))
def test_only_so_much_that_was_written_is_on_its_way_to_the_disk(touched: List[Tuple[int, bool]]) -> None:
    kernel = Kernel()
    dirty: List[int] = []
    for number, write in touched:
        (kernel.cache.wrote if write else kernel.cache.read)(number * STRETCH_BYTES, 1)
        dirty = [one for one in dirty if one not in kernel.written]
        kernel.written.clear()
        if write:
            dirty = [*(one for one in dirty if one != number), number]
            assert len(dirty) <= KEPT_STRETCHES + WRITING_STRETCHES


def test_a_disk_that_does_not_take_what_was_written_is_an_error_of_the_image(tmp_path: Path) -> None:
    size_bytes = (KEPT_STRETCHES + WRITING_STRETCHES + 2) * STRETCH_BYTES
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, size_bytes)
    image = FileImage(fd, "image", size_bytes)
    kernel = Kernel()
    image._cache = kernel.cache  # noqa: SLF001 - no disk breaks when a test asks for it
    kernel.broken = True
    with pytest.raises(ImageIOError, match="Input/output error"):
        for offset in range(0, size_bytes, STRETCH_BYTES):
            image.write(offset, memoryview(b"x"))
    image.close()
