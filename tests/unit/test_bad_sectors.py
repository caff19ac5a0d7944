"""A bad sector in what is here already: the next job just works, does without it, and writes over it."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Set, Tuple

import pytest

from anvil_dr.errors import ImageIOError
from anvil_dr.ports import OwnerSource, Store
from anvil_dr.sending.job import JobOutcome
from tests.doubles.memory_store import MemoryImage
from tests.doubles.mortal_box import MemoryWorld, MortalBox
from tests.doubles.provenance import Checker, Push

SECTOR_BYTES = 4096
DISKS = {"Web01_0": 17 << 20, "Web01_1": 5_000}


class WornWorld(MemoryWorld):
    """Sectors of its images, known by identity, that can't be read until they are written to."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: Dict[str, Set[int]] = {}

    def store(self, owners: OwnerSource) -> Store:
        store = super().store(owners)
        opening = store.open

        def opened(image, *, writable):  # type: ignore[no-untyped-def]
            return _Worn(opening(image, writable=writable), self.bad.setdefault(image.identity, set()))

        store.open = opened  # type: ignore[method-assign]
        return store

    def wear(self, disk: str, sequence: int, *offsets_bytes: int) -> None:
        for identity, one in self.store(tuple).held.items():  # type: ignore[attr-defined]
            if (one.owner.disk, one.sequence) == (disk, sequence):
                self.bad[identity] = {offset // SECTOR_BYTES for offset in offsets_bytes}


class _Worn:
    """Implements ports.Image."""

    def __init__(self, image: MemoryImage, bad: Set[int]) -> None:
        self._image, self._bad = image, bad

    def __getattr__(self, name: str) -> object:
        return getattr(self._image, name)

    def _sectors(self, offset_bytes: int, length_bytes: int) -> Set[int]:
        return set(range(offset_bytes // SECTOR_BYTES, -(-(offset_bytes + length_bytes) // SECTOR_BYTES)))

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        if self._bad & self._sectors(offset_bytes, len(buffer)):
            raise ImageIOError(self._image.path, offset_bytes, "read", "Input/output error")
        self._image.read_into(offset_bytes, buffer)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        self._bad -= self._sectors(offset_bytes, len(data))
        self._image.write(offset_bytes, data)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        self._bad -= self._sectors(offset_bytes, length_bytes)
        self._image.zero(offset_bytes, length_bytes)


class Worn:
    def __init__(self, folder: Path) -> None:
        self.world, self.checker = WornWorld(), Checker()
        self.box = MortalBox(folder, self.world)

    def receive(self) -> JobOutcome:
        push = Push(len(self.checker.pushes) + 1, DISKS)
        self.checker.pushes.append(push)
        return self.box.push(push)

    def sets(self) -> List[Tuple[int, int]]:
        return self.checker.complete("Web01", self.world.images())

    def bad_sectors(self) -> int:
        return sum(map(len, self.world.bad.values()))


@pytest.fixture
def worn(tmp_path: Path) -> Worn:
    worn = Worn(tmp_path)
    for _ in range(2):
        assert worn.receive().succeeded
    return worn


@pytest.mark.slow
@pytest.mark.parametrize("offsets", [(0,), (1 << 20,), (16 << 20, (17 << 20) - 1), (5000, 10 << 20)])
def test_where_the_recycled_image_cannot_be_read_it_is_written_anew(worn: Worn, offsets: Tuple[int, ...]) -> None:
    worn.world.wear("Web01_0", 2, *offsets)
    outcome = worn.receive()
    assert outcome.succeeded and worn.sets() == [(1, 3), (2, 2)]
    assert "disk Web01_0: an older image cannot be read" in " ".join(outcome.servers[0].warnings)
    assert worn.bad_sectors() == 0


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 10 << 20])
def test_a_newest_set_that_cannot_be_read_is_done_without(worn: Worn, offset: int) -> None:
    worn.world.wear("Web01_0", 1, offset)
    outcome = worn.receive()
    assert outcome.succeeded and worn.sets() == [(1, 3), (2, 2)]
    assert "disk Web01_0: the newest set cannot be read" in " ".join(outcome.servers[0].warnings)
    assert worn.receive().succeeded and worn.bad_sectors() == 0, "it was recycled, and mended"


def test_a_drive_that_is_well_is_not_complained_of(tmp_path: Path) -> None:
    worn = Worn(tmp_path)
    outcome = worn.box.push(Push(1, {"Web01_0": SECTOR_BYTES}))
    assert outcome.succeeded and outcome.servers[0].warnings == ()
