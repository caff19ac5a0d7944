"""The clock is set back between two jobs: what is newest is said by the numbers, and never by a time."""

from __future__ import annotations

from pathlib import Path

from tests.doubles.mortal_box import MemoryWorld, MortalBox
from tests.doubles.provenance import Checker, Push

A_YEAR_IN_MINUTES = 365 * 24 * 60


def test_jobs_after_it_are_newer_than_those_before(tmp_path: Path) -> None:
    world, checker = MemoryWorld(), Checker([Push(number, {"Web01_0": 5000}) for number in range(1, 6)])
    box = MortalBox(tmp_path, world)
    for push in checker.pushes:
        assert box.push(push).succeeded
        box.minutes -= A_YEAR_IN_MINUTES
        assert checker.complete("Web01", world.images())[0] == (1, push.number)
    assert checker.complete("Web01", world.images()) == [(1, 5), (2, 4)]
    with box.process() as target:
        assert target.state.last_jobs()["Web01"].started_at == min(
            record.received_at for record in target.state.set_records()
        )


def test_a_set_of_the_future_counts_as_young_so_that_it_pushes_nothing_out(tmp_path: Path) -> None:
    world, checker = MemoryWorld(), Checker([Push(number, {"Web01_0": 5000}) for number in range(1, 4)])
    box = MortalBox(tmp_path, world, min_set_age=12 * 3600)
    box.minutes = A_YEAR_IN_MINUTES
    for push in checker.pushes[:2]:
        assert box.push(push).succeeded
        box.minutes += 24 * 60
    box.minutes = 0
    assert box.push(checker.pushes[2]).succeeded
    assert checker.complete("Web01", world.images()) == [(1, 3), (2, 1)]
