"""`verify: read-back`: what the drives hold is compared with what was received before a set counts as complete."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest

from anvil_dr.ports import OwnerSource, Store
from anvil_dr.sending.job import JobOutcome
from tests.doubles.memory_store import MemoryImage
from tests.doubles.mortal_box import MemoryWorld, MortalBox
from tests.doubles.provenance import Checker, Push

DISKS = {"Web01_0": 300_000, "Web01_1": 5_000}


class LyingWorld(MemoryWorld):
    """Its drive says that it has what was flushed, and has none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lies = True
        self.dropped: List[str] = []

    def store(self, owners: OwnerSource) -> Store:
        store = super().store(owners)
        store.open = self._opened(store.open)  # type: ignore[method-assign]
        return store

    def _opened(self, open_image):  # type: ignore[no-untyped-def]
        def opened(image, *, writable):  # type: ignore[no-untyped-def]
            return _Lying(open_image(image, writable=writable), self)

        return opened


class _Lying:
    """Implements ports.Image: what is in memory can be read, until memory forgets it."""

    def __init__(self, image: MemoryImage, world: LyingWorld) -> None:
        self._image, self._world = image, world
        self._before = bytes(image._held.content)

    def __getattr__(self, name: str) -> object:
        return getattr(self._image, name)

    def forget_cached(self) -> None:
        self._world.dropped.append(self._image.path)
        if self._world.lies:
            self._image._held.content[:] = self._before


@pytest.fixture
def world() -> LyingWorld:
    return LyingWorld()


def receive(folder: Path, world: LyingWorld, verify: str) -> JobOutcome:
    return MortalBox(folder, world, verify=verify).push(Push(1, DISKS))


def test_a_drive_that_lies_fails_the_job_with_its_disk_and_no_set_is_made_of_it(
    tmp_path: Path, world: LyingWorld
) -> None:
    outcome = receive(tmp_path, world, "read-back")
    assert "disk Web01_0: the drive does not hold what was written to it" in str(outcome.servers[0].error)
    assert Checker([Push(1, DISKS)]).sets("Web01", world.images()) == {}


def test_a_drive_that_tells_the_truth_is_read_once_and_believed(tmp_path: Path, world: LyingWorld) -> None:
    world.lies = False
    assert receive(tmp_path, world, "read-back").succeeded
    assert len(world.dropped) == 2
    assert Checker([Push(1, DISKS)]).complete("Web01", world.images()) == [(1, 1)]


def test_by_default_nothing_is_read_back(tmp_path: Path, world: LyingWorld) -> None:
    assert receive(tmp_path, world, "none").succeeded
    assert world.dropped == []
