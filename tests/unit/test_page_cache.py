"""What a big job gives up of the page cache behind itself."""

from __future__ import annotations

import os
from typing import List, Tuple

from hypothesis import given
from hypothesis import strategies as st

from anvil_dr.page_cache import KEPT_STRETCHES, STRETCH_BYTES, GiveUp


class Advice:
    """Stands for posix_fadvise."""

    def __init__(self) -> None:
        self.given: List[Tuple[int, int]] = []

    def __call__(self, fd: int, offset: int, length: int, advice: int) -> None:
        assert (fd, advice) == (7, os.POSIX_FADV_DONTNEED)
        self.given.append((offset, length))


def test_a_long_read_gives_up_each_stretch_twice_and_keeps_the_last_ones() -> None:
    advice = Advice()
    cache = GiveUp(7, advice)
    stretches = 5 * KEPT_STRETCHES
    for offset in range(0, stretches * STRETCH_BYTES, 1 << 20):
        cache.touched(offset, 1 << 20)

    times = [advice.given.count((number * STRETCH_BYTES, STRETCH_BYTES)) for number in range(stretches)]

    assert times[: -2 * KEPT_STRETCHES] == [2] * (stretches - 2 * KEPT_STRETCHES), "written back, then dropped"
    assert times[-KEPT_STRETCHES:] == [0] * KEPT_STRETCHES


def test_work_within_a_stretch_costs_no_call() -> None:
    advice = Advice()
    cache = GiveUp(7, advice)
    for offset in range(0, STRETCH_BYTES, 4096):
        cache.touched(offset, 4096)
    cache.touched(3, 0)
    assert advice.given == []


def test_at_the_end_everything_is_given_up() -> None:
    advice = Advice()
    cache = GiveUp(7, advice)
    cache.touched(0, STRETCH_BYTES)
    cache.everything()
    assert advice.given == [(0, 0)]


@given(st.lists(st.integers(0, 30), max_size=200))
def test_in_whatever_order_they_come_the_last_ones_touched_stay(numbers: List[int]) -> None:
    advice = Advice()
    cache = GiveUp(7, advice)
    recent: List[int] = []
    for number in numbers:
        before = len(advice.given)
        cache.touched(number * STRETCH_BYTES + 5, 100)
        recent = [*(one for one in recent if one != number), number][-KEPT_STRETCHES:]
        dropped = {offset // STRETCH_BYTES for offset, _ in advice.given[before:]}
        assert dropped.isdisjoint(recent)
