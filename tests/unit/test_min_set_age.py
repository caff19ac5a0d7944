"""Retention that a node cannot empty: sets that are too young are replaced, and older ones stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import List

import pytest

from tests.doubles.mortal_box import MemoryWorld, MortalBox
from tests.doubles.provenance import Checker, Push

DISKS = {"Web01_0": 20_000, "Web01_1": 5_000}
HOUR = 60
DAY = 24 * HOUR


class Box(MortalBox):
    def __init__(self, folder: Path, *, copies: int = 3, hours: int = 12) -> None:
        super().__init__(folder, MemoryWorld(), copies=copies, min_set_age=hours * 3600)
        self.checker = Checker()

    def receive(self, minutes: int, *, fails: bool = False) -> None:
        """A job, so many minutes after the last one."""
        self.minutes += minutes - HOUR  # a push takes an hour by itself
        self.checker.pushes.append(Push(len(self.checker.pushes) + 1, DISKS))
        assert self.push(self.checker.pushes[-1], fails=fails).succeeded != fails

    def jobs(self) -> List[int]:
        assert self.checker.faults_of_sets("Web01", self.world.images()) == []
        return [job for _, job in self.checker.complete("Web01", self.world.images())]


@pytest.mark.slow
def test_fifty_jobs_in_an_hour_do_not_push_out_last_weeks_copies(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for _ in range(4):
        box.receive(DAY)
    assert box.jobs() == [4, 3, 2]
    for _ in range(50):
        box.receive(1)
    assert box.jobs() == [54, 3, 2]


def test_by_default_they_do(tmp_path: Path) -> None:
    box = Box(tmp_path, hours=0)
    for _ in range(4):
        box.receive(DAY)
    for _ in range(3):
        box.receive(1)
    assert box.jobs() == [7, 6, 5]


def test_jobs_that_come_at_their_time_are_kept_as_ever(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for _ in range(6):
        box.receive(DAY)
    assert box.jobs() == [6, 5, 4]


@pytest.mark.slow
def test_jobs_that_fail_cost_no_more_than_one_does(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for _ in range(4):
        box.receive(DAY)
    for _ in range(5):
        box.receive(1, fails=True)
        assert box.jobs() == [3, 2]
    box.receive(1)
    assert box.jobs() == [10, 3, 2]


def test_a_young_set_is_kept_as_long_as_there_is_room(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for _ in range(3):
        box.receive(1)
    assert box.jobs() == [3, 2, 1]
    box.receive(1)
    assert box.jobs() == [4, 2, 1]


def test_there_is_a_complete_set_at_every_instant(tmp_path: Path) -> None:
    box = Box(tmp_path, copies=2)
    box.receive(DAY)
    box.receive(1)
    box.receive(1, fails=True)
    assert box.jobs() == [1]


def test_a_clock_that_was_set_back_makes_a_set_young_for_one_job_only(tmp_path: Path) -> None:
    box = Box(tmp_path, copies=2)
    for minutes in (DAY, 400 * DAY, -399 * DAY):
        box.receive(minutes)
    assert box.jobs() == [3, 1], "the set of next year was written over"
    box.receive(DAY)
    assert box.jobs() == [4, 3]


def test_with_one_copy_it_changes_nothing(tmp_path: Path) -> None:
    box = Box(tmp_path, copies=1)
    box.receive(1)
    box.receive(1)
    assert box.jobs() == [2]
    box.config = replace(box.config, copies=2)
    box.receive(1)
    assert box.jobs() == [3, 2]
