"""What a start finds and resolves: plans that can't go on, a state that was lost, and what belongs to a set."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Callable, List, Optional, Tuple

import pytest

from anvil_dr.cli import target as command
from anvil_dr.cycling import cycle, lost_sets
from anvil_dr.errors import ServerActivatedError, StoreError
from anvil_dr.model import INCOMPLETE, Location, Owner, Rename
from anvil_dr.receiving import recover
from anvil_dr.sending.job import JobOutcome
from tests.doubles.bad_inode import unopenable
from tests.doubles.memory_store import Died, Fate
from tests.doubles.mortal_box import DirectoryWorld, MemoryWorld, MortalBox
from tests.doubles.provenance import Checker, Push

DISKS = {"Web01_0": 90_000, "Web01_1": 5_000}
FIRMWARE = ("nvram",)


class Box(MortalBox):
    """With a directory store, and a count of its jobs."""

    def __init__(self, folder: Path, *, copies: int = 2) -> None:
        super().__init__(folder, DirectoryWorld(folder), copies=copies)
        self.checker = Checker()

    def receive(
        self, server: str = "Web01", *, firmware: Tuple[str, ...] = (), fate: Optional[Fate] = None
    ) -> JobOutcome:
        disks = {name.replace("Web01", server): size for name, size in DISKS.items()}
        self.checker.pushes.append(Push(len(self.checker.pushes) + 1, disks, server, firmware))
        return self.push(self.checker.pushes[-1], fate=fate)

    def die(self, step: str, *, firmware: Tuple[str, ...] = (), after: bool = True) -> None:
        """Receive once more, and die after, or before, the first step whose name begins like this."""
        fate = _Named(step, after=after)
        with pytest.raises(Died):
            self.receive(firmware=firmware, fate=fate)

    def sets(self, server: str = "Web01") -> List[Tuple[int, int]]:
        return self.checker.complete(server, self.world.images())

    def names(self) -> List[str]:
        return sorted(self.world.images())

    @property
    def plan(self) -> int:
        """The number of the one plan that is not finished."""
        with self.process() as target:
            (entry,) = target.state.pending()
        return entry.id

    @property
    def config_file(self) -> str:
        path = self.folder / "target.yaml"
        one = self.config
        path.write_text(
            f"store: fs:{self.folder}/store\ncopies: {one.copies}\nstate: {one.state}\n"
            f"definitions: {one.definitions}\nruntime: {one.runtime}\n"
        )
        return str(path)


class _Named(Fate):
    """Strikes after, or before, the first step whose name begins like this."""

    def __init__(self, beginning: str, *, after: bool = True) -> None:
        super().__init__(after=after)
        self._beginning = beginning

    def strikes(self, name: str) -> bool:
        return name.startswith(self._beginning)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    made = Box(tmp_path)
    made.receive()
    made.receive()
    return made


def error_of(outcome: JobOutcome) -> str:
    return str(outcome.servers[0].error)


def test_a_plan_that_cannot_be_finished_stops_its_own_server_only_until_it_can(box: Box) -> None:
    box.die("rename Web01_Web01_1_2 incomplete")
    obstacle = box.folder / "store" / "Web01_Web01_0_2.raw"
    obstacle.write_bytes(b"an admin's")
    with box.process() as target:
        (one,) = recover.recover(target).plans
    assert one.entry.server == "Web01" and "Web01_Web01_0_2.raw" in str(one.problem)
    assert "Web01_Web01_0_2.raw" in error_of(box.receive())
    assert box.receive("Db01").succeeded
    obstacle.unlink()
    assert box.receive().succeeded
    assert box.sets() == [(1, 6), (2, 2)]


def test_an_image_that_cannot_be_opened_stops_the_plans_and_jobs_of_its_own_server_only(box: Box) -> None:
    box.die("rename Web01_Web01_1_2 incomplete")
    image = box.folder / "store" / "Web01_Web01_0_1.raw"
    with unopenable(image):
        with box.process() as target:
            (one,) = recover.recover(target).plans
        assert f"cannot look at {image}" in str(one.problem)
        assert f"cannot look at {image}" in error_of(box.receive())
        assert box.receive("Db01").succeeded
    assert box.receive().succeeded
    assert box.sets() == [(1, 6), (2, 2)]


def test_a_job_that_died_before_it_wrote_a_byte_costs_no_set(tmp_path: Path) -> None:
    box = Box(tmp_path, copies=1)
    box.receive()
    for step in ("rename Web01_Web01_0_1 incomplete", "rename Web01_Web01_1_1 incomplete", "commit"):
        box.die(step)
        box.recover()
        assert box.sets() == [(1, 1)]


def test_a_rename_that_fails_at_the_start_of_a_job_is_taken_back_at_once(tmp_path: Path) -> None:
    world = MemoryWorld()
    box, checker = MortalBox(tmp_path, world, copies=1), Checker()
    checker.pushes += [Push(number, DISKS) for number in (1, 2)]
    assert box.push(checker.pushes[0]).succeeded
    outcome = box.push(checker.pushes[1], fate=_Failing("rename Web01_Web01_1_1 incomplete"))
    assert "no answer" in str(outcome.servers[0].error)
    assert checker.complete("Web01", world.images()) == [(1, 1)]
    with box.process() as target:
        assert target.state.pending() == ()


def test_a_promotion_that_the_next_job_finishes_has_its_definition_and_variables_though_that_job_fails(
    tmp_path: Path,
) -> None:
    box, checker = MortalBox(tmp_path, MemoryWorld(), copies=2), Checker()
    checker.pushes += [Push(number, DISKS, firmware=FIRMWARE) for number in (1, 2)]
    outcome = box.push(checker.pushes[0], fate=_Failing("rename Web01_Web01_1_incomplete 1"))
    assert "no answer" in str(outcome.servers[0].error)
    assert not box.push(checker.pushes[1], fails=True).succeeded
    assert checker.complete("Web01", box.world.images()) == [(2, 1)]
    assert (tmp_path / "definitions" / "Web01.xml").exists()
    variables = tmp_path / "definitions" / "nvram" / "Web01.fd"
    assert variables.read_bytes() == checker.pushes[0].firmware_content("nvram")
    with box.process() as target:
        assert target.state.pending() == ()


def test_what_cannot_be_published_still_does_not_keep_the_next_job_from_coming(box: Box) -> None:
    variables = box.folder / "definitions" / "nvram"
    variables.write_text("in the way")
    assert "cannot be written" in error_of(box.receive(firmware=FIRMWARE))
    assert box.receive().succeeded
    assert box.sets() == [(1, 4), (2, 3)]


def test_nothing_is_published_by_the_next_job_over_a_server_that_runs(tmp_path: Path) -> None:
    world = MemoryWorld()
    box, variables = MortalBox(tmp_path, world, copies=2), tmp_path / "definitions" / "nvram"
    variables.write_text("in the way")
    assert "cannot be written" in str(box.push(Push(1, DISKS, firmware=FIRMWARE)).servers[0].error)
    variables.unlink()
    world.use_number(1, "process 7 (qemu-system-x86)")
    assert "in use by process 7" in str(box.push(Push(2, DISKS)).servers[0].error)
    assert not variables.exists()
    with box.process() as target:
        for image in target.store.images():
            world.use(image, None)
    assert not box.push(Push(3, DISKS), fails=True).succeeded
    assert (variables / "Web01.fd").exists()


def test_the_next_job_finishes_no_promotion_of_a_server_that_runs(tmp_path: Path) -> None:
    world = MemoryWorld()
    box, checker = MortalBox(tmp_path, world, copies=2), Checker()
    checker.pushes += [Push(number, DISKS) for number in (1, 2, 3)]
    assert box.push(checker.pushes[0]).succeeded
    box.push(checker.pushes[1], fate=_Failing("rename Web01_Web01_1_incomplete 1"))
    names = sorted(world.images())
    world.use_number(2, "process 7 (qemu-system-x86)")
    assert "in use by process 7" in str(box.push(checker.pushes[2]).servers[0].error)
    assert sorted(world.images()) == names


class _Failing(_Named):
    """Kills nobody: LVM does not answer."""

    def strikes(self, name: str) -> bool:
        if super().strikes(name):
            raise StoreError("lvrename: no answer within 120 seconds")
        return False


def test_the_names_of_a_server_that_was_activated_or_runs_are_left_alone(tmp_path: Path) -> None:
    world = MemoryWorld()
    box, checker = MortalBox(tmp_path, world, copies=2), Checker()
    checker.pushes += [Push(number, DISKS) for number in (1, 2, 3)]
    for push in checker.pushes[:2]:
        assert box.push(push).succeeded
    with pytest.raises(Died):
        box.push(checker.pushes[2], fate=_Named("rename Web01_Web01_0_1 2"))
    names = sorted(world.images())
    with box.process() as target:
        for image in target.store.images():
            world.use(image, "process 7 (qemu-system-x86)")
        (one,) = recover.recover(target).plans
        assert "in use by process 7" in str(one.problem)
        for image in target.store.images():
            world.use(image, None)
        target.state.activate("Web01", 1, "root")
        (one,) = recover.recover(target).plans
        assert "activated" in str(one.problem)
        assert sorted(world.images()) == names
        target.state.release("Web01")
    box.recover()
    assert checker.complete("Web01", world.images()) == [(1, 2), (2, 1)]


def test_a_job_that_finds_the_server_activated_once_its_plan_can_be_seen_changes_no_name(box: Box) -> None:
    names = box.names()
    with box.process() as target:

        def activated() -> None:
            assert [entry.purpose for entry in target.state.pending("Web01")] == ["cycle"]
            raise ServerActivatedError("Web01")

        step = Rename(Owner("Web01", "Web01_0"), 2, INCOMPLETE)
        with pytest.raises(ServerActivatedError):
            cycle.carry_out(target.store, target.state, "Web01", "cycle", (step,), still_may=activated)
        assert target.state.pending() == ()
    assert box.names() == names


def test_an_old_set_that_could_not_be_removed_is_not_removed_later_when_it_is_wanted_again(tmp_path: Path) -> None:
    world = MemoryWorld()
    box, checker = MortalBox(tmp_path, world, copies=2), Checker()
    checker.pushes += [Push(number, DISKS) for number in (1, 2, 3)]
    for push in checker.pushes[:2]:
        assert box.push(push).succeeded
    box.config = replace(box.config, copies=1)
    assert box.push(checker.pushes[2], fate=_Using(world, "rename Web01_Web01_1_incomplete 1", 2)).succeeded
    with box.process() as target:
        for image in target.store.images():
            world.use(image, None)
    box.config = replace(box.config, copies=2)
    box.recover()
    assert len(checker.complete("Web01", world.images())) == 2


def test_the_reason_is_kept_for_the_status(box: Box) -> None:
    box.die("rename Web01_Web01_1_2 incomplete")
    (box.folder / "store" / "Web01_Web01_0_2.raw").write_bytes(b"an admin's")
    box.recover()
    with box.process() as target:
        (entry,) = target.state.pending()
    assert "Web01_Web01_0_2.raw: File exists" in str(entry.failure)


def test_a_plan_whose_images_an_admin_removed_is_taken_back_with_what_is_left(box: Box) -> None:
    box.die("rename Web01_Web01_1_2 incomplete")
    for name in ("Web01_Web01_0_1", "Web01_Web01_0_incomplete"):
        (box.folder / "store" / f"{name}.raw").unlink()
    box.recover()
    assert box.names() == ["Web01_Web01_1_1", "Web01_Web01_1_2"]
    assert box.receive().succeeded
    assert box.sets() == [(1, 4)]


def test_a_plan_that_nobody_can_read_stops_its_server_until_it_is_forgotten(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.die("rename Web01_Web01_1_1 2")
    with sqlite3.connect(box.folder / "state" / "state.sqlite") as connection:
        connection.execute("UPDATE journal SET steps = 'half of i'")
    connection.close()
    box.recover()
    refused, plan = error_of(box.receive()), str(box.plan)
    assert "cannot be read" in refused and f"anvil-dr-target --forget {plan}" in refused
    assert box.receive("Db01").succeeded
    assert command.main(["--config", box.config_file, "--forget", plan]) == 0
    assert f"Plan {plan} of server Web01 is forgotten" in capsys.readouterr().out
    assert box.receive().succeeded
    assert box.sets() == [(1, 6), (2, 2)]
    assert command.main(["--config", box.config_file, "--forget", plan]) == 2


def test_what_a_crash_kept_from_being_published_is_published_at_the_start(box: Box) -> None:
    (box.folder / "definitions" / "Web01.xml").unlink()
    box.die("rename Web01_Web01_1_incomplete 1", firmware=FIRMWARE)
    assert box.sets() == [(1, 3), (2, 2)]
    variables = box.folder / "definitions" / "nvram" / "Web01.fd"
    assert not variables.exists()
    box.recover()
    assert variables.read_bytes() == box.checker.pushes[-1].firmware_content("nvram")
    assert "Web01_Web01_0_1.raw" in (box.folder / "definitions" / "Web01.xml").read_text()
    with box.process() as target:
        assert target.state.pending() == ()
        assert target.state.last_jobs()["Web01"].state == "succeeded"


def test_the_firmware_state_of_a_set_that_is_about_to_be_promoted_outlives_the_publishing_of_an_older_one(
    tmp_path: Path,
) -> None:
    box = Box(tmp_path)
    variables = tmp_path / "definitions" / "nvram"
    variables.write_text("in the way")
    assert "cannot be written" in error_of(box.receive(firmware=FIRMWARE))
    box.die("rename Web01_Web01_0_incomplete 1", firmware=FIRMWARE, after=False)
    variables.unlink()
    box.recover()
    assert box.sets() == [(1, 2), (2, 1)]
    kept = {path.read_bytes() for path in (tmp_path / "state" / "firmware" / "Web01").glob("*/nvram")}
    assert kept == {push.firmware_content("nvram") for push in box.checker.pushes}
    assert (variables / "Web01.fd").read_bytes() == box.checker.pushes[-1].firmware_content("nvram")


def test_the_variables_of_a_server_that_was_activated_meanwhile_are_its_own(box: Box) -> None:
    box.receive(firmware=FIRMWARE)
    box.die("rename Web01_Web01_1_incomplete 1", firmware=FIRMWARE)
    variables = box.folder / "definitions" / "nvram" / "Web01.fd"
    variables.write_bytes(b"what the server wrote")
    with box.process() as target:
        target.state.activate("Web01", 1, "root")
    box.recover()
    assert variables.read_bytes() == b"what the server wrote"


def test_nothing_is_published_over_a_server_that_runs_and_it_is_done_at_the_next_start(tmp_path: Path) -> None:
    world = MemoryWorld()
    box = MortalBox(tmp_path, world, copies=2)
    with pytest.raises(Died):
        box.push(Push(1, DISKS, firmware=FIRMWARE), fate=_Named("rename Web01_Web01_1_incomplete 1"))
    with box.process() as target:
        for image in target.store.images():
            world.use(image, "process 7 (qemu-system-x86)")
        (one,) = recover.recover(target).plans
        assert "in use by process 7" in str(one.problem)
        assert not (tmp_path / "definitions" / "nvram").exists()
        for image in target.store.images():
            world.use(image, None)
    box.recover()
    assert (tmp_path / "definitions" / "nvram" / "Web01.fd").exists()


def test_a_definition_that_cannot_be_written_fails_the_job_and_is_made_later(tmp_path: Path) -> None:
    box = Box(tmp_path)
    (tmp_path / "definitions").rmdir()
    (tmp_path / "definitions").write_text("in the way")
    assert "the set is complete, but its definition" in error_of(box.receive())
    assert box.sets() == [(1, 1)]
    (tmp_path / "definitions").unlink()
    box.recover()
    assert (tmp_path / "definitions" / "Web01.xml").is_file()


@pytest.mark.slow
def test_an_old_set_that_is_in_use_delays_nothing_and_goes_later(tmp_path: Path) -> None:
    world = MemoryWorld()
    box, checker = MortalBox(tmp_path, world, copies=3), Checker()
    checker.pushes += [Push(number, DISKS) for number in range(1, 6)]
    for push in checker.pushes[:3]:
        assert box.push(push).succeeded
    box.config = box.config.__class__(**{**vars(box.config), "copies": 2})
    outcome = box.push(checker.pushes[3], fate=_Using(world, "rename Web01_Web01_1_incomplete 1"))
    assert outcome.succeeded
    assert any("could not be removed" in warning for warning in outcome.servers[0].warnings)
    assert checker.complete("Web01", world.images()) == [(1, 4), (2, 3), (3, 1)]
    with box.process() as target:
        for image in target.store.images():
            world.use(image, None)
    assert box.push(checker.pushes[4]).succeeded
    assert checker.complete("Web01", world.images()) == [(1, 5), (2, 4)]


class _Using(_Named):
    """Kills nobody: somebody opens a set at that moment."""

    def __init__(self, world: MemoryWorld, beginning: str, number: int = 3) -> None:
        super().__init__(beginning)
        self._world, self._number = world, number

    def strikes(self, name: str) -> bool:
        if super().strikes(name):
            self._world.use_number(self._number, "a rehearsal")
        return False


# — the state is lost —


def lose_database(box: Box) -> None:
    (box.folder / "state" / "state.sqlite").unlink()


def damage_database(box: Box) -> None:
    path = box.folder / "state" / "state.sqlite"
    path.write_bytes(b"\xff" * path.stat().st_size)


def lose_everything(box: Box) -> None:
    shutil.rmtree(box.folder / "state")


@pytest.mark.parametrize("lose", [lose_database, damage_database, lose_everything])
def test_a_state_that_is_lost_is_made_again_from_what_is_there_and_said(
    box: Box, lose: object, caplog: pytest.LogCaptureFixture
) -> None:
    lose(box)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        box.recover()
    assert "Web01" in caplog.text
    with box.process() as target:
        assert target.state.owners() == tuple(Owner("Web01", disk) for disk in DISKS)
    assert box.receive().succeeded
    assert box.sets() == [(1, 3), (2, 2)]


@pytest.mark.parametrize("lose", [lose_database, damage_database])
def test_a_server_that_was_activated_stays_so_when_the_database_is_lost(box: Box, lose: object) -> None:
    with box.process() as target:
        target.state.activate("Web01", 2, "root")
    lose(box)  # type: ignore[operator]
    assert "anvil-activate-dr --release Web01" in error_of(box.receive())
    assert box.sets() == [(1, 2), (2, 1)]


def test_the_firmware_state_of_sets_that_nobody_remembers_is_kept(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.receive(firmware=FIRMWARE)
    box.receive(firmware=FIRMWARE)
    lose_database(box)
    shutil.rmtree(tmp_path / "state" / "servers")
    box.receive(firmware=FIRMWARE)
    assert len(list((tmp_path / "state" / "firmware" / "Web01").iterdir())) == 3
    box.receive(firmware=FIRMWARE)
    assert len(list((tmp_path / "state" / "firmware" / "Web01").iterdir())) == 2, "now all of them are known"


def test_sets_whose_images_are_gone_are_forgotten_with_the_next_job(box: Box) -> None:
    box.receive("Db01")
    for path in (box.folder / "store").glob("Web01*"):
        path.unlink()
    box.receive()
    with box.process() as target:
        assert len(target.state.set_records("Web01")) == 1


# — the store is not there, or lost —


EMPTY = "store: there is no image at all, and 2 sets of 1 server should be there"


def test_a_store_that_is_empty_and_should_not_be_gets_no_job_and_loses_nothing(tmp_path: Path) -> None:
    box, world = Box(tmp_path), tmp_path / "store"
    for _ in range(2):
        assert box.receive(firmware=FIRMWARE).succeeded, "the first job ever finds an empty store"
    away = world.rename(tmp_path / "not mounted")
    world.mkdir()
    with box.process() as target, pytest.raises(StoreError, match=EMPTY):
        recover.recover(target)
    with box.process() as target, pytest.raises(StoreError, match=EMPTY):
        recover.look(target)
    for server in ("Web01", "Db01"):
        assert EMPTY in error_of(box.receive(server))
    assert box.names() == []
    world.rmdir()
    away.rename(world)
    box.recover()
    assert box.sets() == [(1, 2), (2, 1)]
    with box.process() as target:
        assert len(target.state.set_records()) == 2
    assert len(list((tmp_path / "state" / "firmware" / "Web01").iterdir())) == 2


def test_a_first_set_that_was_about_to_be_complete_counts_as_one_that_should_be_there(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.die("rename Web01_Web01_0_incomplete 1")
    for path in (tmp_path / "store").iterdir():
        path.unlink()
    with box.process() as target, pytest.raises(StoreError, match="1 set of 1 server should be there"):
        recover.recover(target)
    with box.process() as target:
        assert [one.job_id for one in lost_sets.forget(target.store, target.state)]
        assert (target.state.pending(), target.state.set_records()) == ((), ())
    assert box.receive().succeeded


@pytest.mark.parametrize("lose", [lambda box: None, lose_database])
def test_once_lost_sets_are_forgotten_all_begins_anew(
    box: Box, lose: Callable[[Box], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (box.folder / "store").iterdir():
        path.unlink()
    lose(box)
    arguments = ["--config", box.config_file]
    for asked in ("--check-config", "--recover"):
        assert command.main([*arguments, asked]) == 1
        assert "anvil-dr-target --forget-lost-sets" in capsys.readouterr().err
    assert command.main([*arguments, "--forget-lost-sets"]) == 0
    assert capsys.readouterr().out.count("set of server Web01, received ") == 2
    for asked in ("--check-config", "--recover", "--forget-lost-sets"):
        assert command.main([*arguments, asked]) == 0
    assert "nothing to forget" in capsys.readouterr().out
    assert box.receive().succeeded
    assert box.sets() == [(1, 3)]


def test_only_what_is_lost_is_forgotten(box: Box) -> None:
    box.receive("Db01")
    (box.folder / "store" / "Web01_Web01_0_1.raw").unlink()
    for path in (box.folder / "store").glob("Web01_*_2.raw"):
        path.unlink()
    with box.process() as target:
        (forgotten,) = lost_sets.forget(target.store, target.state)
        left = target.state.set_records()
    assert forgotten.server == "Web01"
    assert [one.server for one in left] == ["Web01", "Db01"], "of its other set an image is there"
    assert left[0].received_at > forgotten.received_at


def test_volume_groups_without_any_image_are_asked_about_as_such(tmp_path: Path) -> None:
    world = MemoryWorld((Location("dr01_vg0", 1 << 20, 1 << 20, 4096), Location("dr01_vg1", 1 << 20, 1 << 20, 4096)))
    box = MortalBox(tmp_path, world, copies=2)
    assert box.push(Push(1, DISKS)).succeeded
    world.load({})
    with box.process() as target, pytest.raises(StoreError) as refused:
        recover.recover(target)
    assert str(refused.value).startswith("store dr01_vg0 and dr01_vg1: there is no image at all")
    assert "Are these the right volume groups?" in str(refused.value)


# — the command —


def test_recover_says_what_it_is_about_to_do_and_does_it(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.die("rename Web01_Web01_0_1 2")
    plan = box.plan
    assert command.main(["--config", box.config_file, "--recover"]) == 0
    said = capsys.readouterr().out
    lines = [
        f"plan {plan} of server Web01: take back the start of a job that does not go on",
        "  disk Web01_0 of set 2 goes to set 1",
        "  disk Web01_1 of the incomplete set goes to set 2",
        "  disk Web01_0 of the incomplete set goes to set 2",
    ]
    assert "\n".join(lines) in said
    assert "of server Web01 was running, and has failed" in said
    assert said.endswith("All of it is finished.\n")
    assert box.sets() == [(1, 2), (2, 1)]
    assert command.main(["--config", box.config_file, "--recover"]) == 0
    assert capsys.readouterr().out == "Nothing was begun that is not finished.\n"


@pytest.mark.parametrize(
    ("lose", "said"), [(lose_database, "There was no state database. A"), (damage_database, "was damaged; see ")]
)
def test_recover_says_that_the_state_was_lost(
    box: Box, lose: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lose(box)  # type: ignore[operator]
    assert command.main(["--config", box.config_file, "--recover"]) == 0
    assert said in capsys.readouterr().out
    assert command.main(["--config", box.config_file, "--recover"]) == 0
    assert capsys.readouterr().out == "Nothing was begun that is not finished.\n"


def test_recover_fails_with_the_name_of_what_cannot_be_finished(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.die("rename Web01_Web01_1_2 incomplete")
    (box.folder / "store" / "Web01_Web01_0_2.raw").write_bytes(b"an admin's")
    assert command.main(["--config", box.config_file, "--recover"]) == 1
    assert f"plan {box.plan} cannot be finished: cannot rename an image" in capsys.readouterr().err


def test_recover_leaves_a_running_service_alone(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.die("rename Web01_Web01_0_1 2")
    with box.process() as target:
        target.state.lock_service()
        assert command.main(["--config", box.config_file, "--recover"]) == 1
    assert "another anvil-dr-target is at work" in capsys.readouterr().err
    assert "Web01_Web01_1_1" in box.names()
