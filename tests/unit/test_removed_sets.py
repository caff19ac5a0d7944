"""Images that an admin removes make room: for names, and for firmware state. What is not sure to be removed stays."""

from __future__ import annotations

from pathlib import Path
from typing import FrozenSet, Iterator, Tuple

import pytest

from anvil_dr import firmware
from anvil_dr.errors import ServiceError, StateError, StoreError
from anvil_dr.receiving import admission, removed_sets
from anvil_dr.receiving.target import Target
from tests.doubles.intruder import offer
from tests.doubles.mortal_box import DirectoryWorld, MortalBox
from tests.doubles.provenance import Push

Standing = Tuple[MortalBox, Target]


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Standing]:
    """A box with two servers of one disk and some firmware state, which has no room for a third."""
    box = MortalBox(tmp_path, DirectoryWorld(tmp_path), copies=2)
    for number, server in enumerate(("Db01", "Web01")):
        push = Push(number, {f"{server}_0": 5000}, server, firmware=("nvram",))
        assert box.push(push).succeeded
    with box.process() as target:
        target.names_known = 2
        target.firmware_kept_bytes = firmware_bytes(box, "Db01") + firmware_bytes(box, "Web01")
        yield box, target


def firmware_bytes(box: MortalBox, server: str) -> int:
    return sum(path.stat().st_size for path in (box.folder / "state" / "firmware" / server).rglob("nvram"))


def remove(box: MortalBox, *servers: str) -> None:
    for server in servers:
        for path in (box.folder / "store").glob(f"{server}_*"):
            path.unlink()


def remembered(target: Target) -> FrozenSet[str]:
    return frozenset(record.server for record in target.state.set_records())


def assert_full(target: Target) -> None:
    with pytest.raises(ServiceError, match="remove images that nobody needs"):
        admission.claim_names(target, offer("Mail01"))
    with pytest.raises(StateError, match="remove images that nobody needs"):
        admission.check_firmware(target, 1)


def test_a_new_server_has_the_names_of_one_whose_images_were_removed(standing: Standing) -> None:
    box, target = standing
    assert_full(target)
    remove(box, "Db01")
    admission.claim_names(target, offer("Mail01"))
    assert {owner.server for owner in target.state.owners()} == {"Mail01", "Web01"}
    assert remembered(target) == {"Web01"}


def test_new_firmware_state_has_the_room_of_a_server_whose_images_were_removed(standing: Standing) -> None:
    box, target = standing
    freed_bytes, kept_bytes = (firmware_bytes(box, server) for server in ("Db01", "Web01"))
    remove(box, "Db01")
    admission.check_firmware(target, freed_bytes)
    assert (firmware_bytes(box, "Db01"), firmware_bytes(box, "Web01")) == (0, kept_bytes)
    with pytest.raises(StateError):
        admission.check_firmware(target, freed_bytes + 1)


def test_firmware_state_that_a_failed_job_left_makes_room_too(standing: Standing) -> None:
    box, target = standing
    left = box.folder / "state" / "firmware" / "Old01" / "some-job"
    left.mkdir(parents=True)
    (left / "nvram").write_bytes(b"123")
    target.firmware_kept_bytes += 3
    admission.check_firmware(target, 3)
    assert not left.exists()


def test_nothing_is_forgotten_while_the_store_has_no_image_at_all(standing: Standing) -> None:
    box, target = standing
    remove(box, "Db01", "Web01")
    with pytest.raises(StoreError, match="no image at all"):
        admission.claim_names(target, offer("Mail01"))
    with pytest.raises(StateError, match="remove images that nobody needs"):
        admission.check_firmware(target, 1)
    assert remembered(target) == {"Db01", "Web01"}
    assert firmware_bytes(box, "Db01") and firmware_bytes(box, "Web01")


def test_nothing_is_forgotten_of_a_server_that_is_at_work_or_activated(standing: Standing) -> None:
    box, target = standing
    remove(box, "Db01")
    target.occupy("Db01", "a job")
    assert_full(target)
    target.vacate("Db01", "a job")
    target.state.activate("Db01", 1, "root")
    assert_full(target)
    target.state.release("Db01")
    admission.check_firmware(target, 1)


def test_nothing_is_forgotten_of_a_server_whose_plan_is_pending(standing: Standing) -> None:
    box, target = standing
    entry = target.state.begin("Db01", "cycle", ())
    remove(box, "Db01")
    assert_full(target)
    target.state.drop(entry)
    admission.check_firmware(target, 1)


def test_servers_with_nothing_to_forget_are_never_busy_with_it(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, target = standing
    asked = []
    monkeypatch.setattr(target, "occupy", lambda server, job_id: asked.append(server))
    remove(box, "Db01")
    removed_sets.forget_all(target)
    assert asked == ["Db01"]
    assert firmware.kept(target.config.state).keys() == {"Web01"}
