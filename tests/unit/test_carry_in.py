"""First copies that travel by car: a node fills a drive, the DR box finds it, checks it, and takes what is on it."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from anvil_dr.caching import cached_copy, cached_sets, carry_in
from anvil_dr.caching.cached_sets import CachedSet
from anvil_dr.cli import import_drive, send
from anvil_dr.errors import (
    AnvilDrError,
    CacheDriveError,
    DriveRefusedError,
    ProtocolError,
    SourceChangedError,
    StoreError,
)
from anvil_dr.receiving.target import Target, utc_now
from anvil_dr.records import carried_job
from anvil_dr.sending.to_drive import DriveSender
from anvil_dr.stores.directory import DirectoryStore
from tests.doubles.cache_drives import FolderDrives
from tests.doubles.caching_box import noise, wait
from tests.doubles.dr_box import DrBox, Node, Quiet

pytestmark = pytest.mark.slow

DEVICE = "/dev/sdb"
KIB = 1 << 10


def disks(seed: int, server: str = "Web01") -> Dict[str, bytes]:
    return {f"{server}_0": noise(300 * KIB, seed) + bytes(700 * KIB) + noise(1001, seed), f"{server}_1": noise(9, seed)}


class Trip:
    """A node, a drive, a DR box."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.drives = FolderDrives(folder / "drives", {DEVICE: 1 << 30})
        self.drive = self.drives.folder(DEVICE)
        (self.drive / ".dr_cache").touch()
        self.box = DrBox(folder, **changes)
        self.node = Node(folder / "node", disks=disks(0))

        def open_drives(state: Any) -> FolderDrives:
            self.drives.owners = state.owners
            return self.drives

        self.box.open_cache_drives = open_drives

    def fill(self, *nodes: Node, observer: Optional[Quiet] = None) -> List[Optional[AnvilDrError]]:
        sender = DriveSender(
            str(self.drive), lambda folder, owners: DirectoryStore(folder, owners), node="an-a05n01",
            observer=observer or Quiet(), now=utc_now,
        )  # fmt: skip
        outcome = sender.run("by car", tuple(node.outgoing() for node in nodes or (self.node,)))
        return [one.error for one in outcome.servers]

    def bring(self, target: Target) -> List[Optional[AnvilDrError]]:
        return [one.error for one in carry_in.bring_in(target, DEVICE)]

    def stored(self, seed: int, sequence: int = 1, server: str = "Web01") -> bool:
        return all(
            self.box.image(f"{server}_{disk}_{sequence}") == content for disk, content in disks(seed, server).items()
        )

    @property
    def on_drive(self) -> List[str]:
        return sorted(path.name for path in self.drive.iterdir())

    def edit(self, change: Callable[[Dict[str, Any]], None]) -> None:
        """What somebody does to the record who has the drive for a night."""
        path = self.drive / carried_job.FILE
        record = json.loads(path.read_text())
        change(record["servers"][0])
        path.write_text(json.dumps(record))


@pytest.fixture
def trip(tmp_path: Path) -> Trip:
    return Trip(tmp_path)


IMAGES = ["Web01_Web01_0_1.raw", "Web01_Web01_1_1.raw"]


def test_a_node_fills_a_drive_with_plain_sparse_files_and_a_record(trip: Trip) -> None:
    assert trip.fill() == [None]
    assert trip.on_drive == sorted([".dr_cache", *IMAGES, carried_job.FILE])
    assert (trip.drive / IMAGES[0]).read_bytes() == disks(0)["Web01_0"]
    assert (trip.drive / IMAGES[0]).stat().st_blocks * 512 < 400 * KIB
    (line,) = carried_job.in_words(str(trip.drive))
    assert line.startswith("Web01 of ") and "from an-a05n01" in line


def test_a_drive_without_the_signature_is_not_written_to(trip: Trip) -> None:
    (trip.drive / ".dr_cache").unlink()
    with pytest.raises(StoreError, match="Is it mounted"):
        trip.fill()
    assert trip.on_drive == []


def test_a_set_that_a_dr_box_waits_for_is_not_written_over_at_the_node(tmp_path: Path) -> None:
    trip = Trip(tmp_path, copies=1)
    trip.drives.pulled.append(DEVICE)
    with trip.box.running():
        assert trip.box.send(trip.node.outgoing()).succeeded
    trip.drives.pulled.clear()
    trip.node.disks = disks(1)
    with trip.box.running() as target:
        target.stopping.set()  # before the copy
        assert trip.box.send(trip.node.outgoing()).succeeded
    before = {name: (trip.drive / name).read_bytes() for name in trip.on_drive}
    trip.node.disks = disks(2)
    (error,) = trip.fill()
    assert isinstance(error, DriveRefusedError) and "plug the drive in there first" in str(error)
    assert {name: (trip.drive / name).read_bytes() for name in trip.on_drive} == before
    with trip.box.running() as target:
        for thread in target.background:
            thread.join()
    assert trip.stored(1) and trip.fill() == [None]


def test_a_fill_that_broke_off_before_every_image_was_begun_goes_on(trip: Trip) -> None:
    assert trip.fill() == [None]
    trip.edit(lambda server: server.update(name="Other"))
    (trip.drive / IMAGES[0]).rename(trip.drive / IMAGES[0].replace("_1.raw", "_incomplete.raw"))
    assert trip.fill() == [None] and IMAGES[0] in trip.on_drive


def test_what_is_half_written_is_never_on_record_and_the_next_try_goes_on(trip: Trip) -> None:
    assert trip.fill() == [None]
    trip.node.disks = disks(1)
    outgoing = trip.node.outgoing

    @contextmanager
    def powers_off() -> Iterator[None]:
        yield
        raise StoreError("the power fails")

    trip.node.outgoing = lambda: replace(outgoing(), keep_off=powers_off)  # type: ignore[method-assign]
    (error,) = trip.fill()
    assert "the power fails" in str(error)
    assert carried_job.in_words(str(trip.drive)) == ()
    with trip.box.running() as target, pytest.raises(CacheDriveError, match="nothing to be imported"):
        trip.bring(target)
    trip.node.outgoing = outgoing  # type: ignore[method-assign]
    seen = Quiet()
    assert trip.fill(observer=seen) == [None]
    assert [told[3] for told in seen.told if told[0] == "done"] == [0, 0], "the bytes were there already"


def test_a_drive_that_comes_back_is_filled_with_what_differs(trip: Trip) -> None:
    trip.fill()
    content = bytearray(trip.node.disks["Web01_0"])
    content[5000] ^= 1
    trip.node.disks["Web01_0"] = bytes(content)
    seen = Quiet()
    assert trip.fill(observer=seen) == [None]
    assert [told[3] for told in seen.told if told[0] == "done"] == [64 * KIB, 0]


def test_servers_that_are_sent_one_by_one_are_all_on_the_drive(trip: Trip, tmp_path: Path) -> None:
    other = Node(tmp_path / "other", "Db01", disks=disks(3, "Db01"))
    assert trip.fill() == [None] and trip.fill(other) == [None]
    assert len(carried_job.in_words(str(trip.drive))) == 2
    with trip.box.running() as target:
        assert trip.bring(target) == [None, None]
    assert trip.stored(0) and trip.stored(3, server="Db01")


def test_a_disk_that_is_written_to_meanwhile_is_not_on_record(trip: Trip) -> None:
    seen = Quiet(when_advanced=lambda: os.utime(trip.node.folder / "Web01_0.img"))
    (error,) = trip.fill(observer=seen)
    assert isinstance(error, SourceChangedError) and carried_job.in_words(str(trip.drive)) == ()


@pytest.mark.parametrize("copies", [1, 2])
def test_what_a_drive_brings_is_a_set_like_any_other_and_the_drive_stays_as_it_is(tmp_path: Path, copies: int) -> None:
    trip = Trip(tmp_path, copies=copies)
    firmware = {"nvram": b"variables", "tpm/tpm2-00.permall": b"t"}
    outgoing = trip.node.outgoing
    trip.node.outgoing = lambda: replace(outgoing(), firmware=firmware)  # type: ignore[method-assign]
    trip.fill()
    before = {path.name: path.read_bytes() for path in trip.drive.iterdir()}
    with trip.box.running() as target:
        assert trip.bring(target) == [None]
        (record,) = target.state.set_records("Web01")
        assert record.source == "an-a05n01" and all(image.digest.startswith("sha256:") for image in record.images)
        assert target.state.last_jobs()["Web01"].state == "succeeded"
        (again,) = carry_in.bring_in(target, DEVICE)
        assert again.was_here, "it is not taken twice"
        assert cached_sets.all_of_them(target.config.state) == ()
    assert trip.stored(0)
    assert (tmp_path / "definitions" / "Web01.xml").exists()
    assert (tmp_path / "definitions" / "nvram" / "Web01.fd").read_bytes() == b"variables"
    assert {path.name: path.read_bytes() for path in trip.drive.iterdir()} == before


def test_a_second_trip_cycles_as_a_job_does(trip: Trip) -> None:
    with trip.box.running() as target:
        trip.fill()
        assert trip.bring(target) == [None]
        trip.node.disks = disks(1)
        trip.fill()
        target.now = lambda: "2030-01-01T00:00:00+00:00"
        trip.edit(lambda server: server.update(received_at="2029-01-01T00:00:00+00:00"))
        assert trip.bring(target) == [None]
    assert trip.stored(1, 1) and trip.stored(0, 2)


def test_bytes_that_changed_on_the_way_change_nothing_in_the_store(trip: Trip) -> None:
    with trip.box.running() as target:
        trip.box.send(trip.node.outgoing())
        trip.node.disks = disks(1)
        trip.fill()
        with open(trip.drive / IMAGES[1], "r+b") as file:
            file.write(b"rot")
        trip.edit(lambda server: server.update(received_at="2029-01-01T00:00:00+00:00"))
        target.now = lambda: "2030-01-01T00:00:00+00:00"
        (error,) = trip.bring(target)
        assert error is not None and error.code == "DigestMismatch" and DEVICE in str(error)
        assert target.state.last_jobs()["Web01"].state == "failed"
        assert cached_sets.all_of_them(target.config.state) == ()
    assert trip.stored(0) and trip.box.names() == IMAGES


def test_an_import_that_is_cut_short_is_finished_at_the_next_start(trip: Trip) -> None:
    trip.fill()
    with trip.box.running() as target:
        keep = cached_sets.keep

        def stop(*arguments: Any) -> None:
            keep(*arguments)
            target.stopping.set()

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(cached_sets, "keep", stop)
            (error,) = trip.bring(target)
        assert error is not None
        (waiting,) = cached_sets.all_of_them(target.config.state)
        assert waiting.carried
    with trip.box.running() as target:
        for thread in target.background:
            thread.join()
        assert cached_sets.all_of_them(target.config.state) == ()
    assert trip.stored(0) and IMAGES[0] in trip.on_drive


def test_a_clock_that_is_ahead_at_the_node_makes_nothing_newer_than_it_is(trip: Trip) -> None:
    trip.fill()
    trip.edit(lambda server: server.update(received_at="2999-01-01T00:00:00+00:00"))
    with trip.box.running() as target:
        assert trip.bring(target) == [None]
        (record,) = target.state.set_records("Web01")
        assert record.received_at <= utc_now()


def test_a_server_that_is_activated_here_is_refused(trip: Trip) -> None:
    trip.fill()
    with trip.box.running() as target:
        target.state.activate("Web01", 1, "root")
        (error,) = trip.bring(target)
        assert error is not None and error.code == "ServerActivated" and trip.box.names() == []


def test_a_server_that_a_job_has_is_refused_as_busy(trip: Trip) -> None:
    trip.fill()
    with trip.box.running() as target:
        target.occupy("Web01", "a job")
        (error,) = trip.bring(target)
        assert error is not None and error.code == "ServerBusy"
        target.vacate("Web01", "a job")


CACHE = "/dev/sdc"
MONDAY, TUESDAY = "2026-11-23T10:00:00+00:00", "2026-11-24T10:00:00+00:00"


def fill_on(trip: Trip, day: str) -> None:
    assert trip.fill() == [None]
    trip.edit(lambda server: server.update(received_at=day))


@pytest.fixture
def newer_waits(tmp_path: Path) -> Trip:
    """Set 0 in the store; set 1 on a drive that came by car on Monday; set 2, Tuesday's, on a cache drive that is away.
    """
    trip = Trip(tmp_path, copies=1)
    trip.drives.sizes[CACHE] = 1 << 30
    trip.drives.pulled.append(CACHE)
    with trip.box.running() as target:
        target.now = lambda: "2026-11-22T10:00:00+00:00"
        assert trip.box.send(trip.node.outgoing()).succeeded
    trip.drives.pulled[:] = [DEVICE]
    trip.node.disks = disks(2)
    with trip.box.running() as target:
        target.now = lambda: TUESDAY
        target.stopping.set()  # before the copy
        assert trip.box.send(trip.node.outgoing()).succeeded
    trip.drives.pulled[:] = [CACHE]
    trip.node.disks = disks(1)
    fill_on(trip, MONDAY)
    assert len(cached_sets.all_of_them(trip.box.config.state)) == 1
    return trip


def come_back(trip: Trip, target: Target) -> None:
    wait(target)  # the end of a job may still be at work, and what is busy is not copied
    trip.drives.pulled.clear()
    for thread in cached_copy.resume(target):
        thread.join()


def test_a_newer_set_that_waits_on_a_drive_is_not_given_up_for_one_that_is_carried_in(newer_waits: Trip) -> None:
    trip = newer_waits
    with trip.box.running() as target:
        (one,) = carry_in.bring_in(target, DEVICE)
        assert one.error is None and trip.stored(1)
        assert all(word in one.note for word in (TUESDAY, CACHE))
        come_back(trip, target)
        assert trip.stored(2)
        assert cached_sets.all_of_them(target.config.state) == () and not list(trip.drives.folder(CACHE).iterdir())
        (again,) = carry_in.bring_in(target, DEVICE)
        assert again.was_here and trip.stored(2)


def test_an_older_set_whose_import_was_cut_short_does_not_go_over_a_newer_one(newer_waits: Trip) -> None:
    trip = newer_waits
    with trip.box.running() as target, pytest.MonkeyPatch.context() as patched:
        keep = cached_sets.keep

        def stop(directory: str, cached: CachedSet, firmware: Dict[str, bytes]) -> None:
            keep(directory, cached, firmware)
            if cached.carried:
                target.stopping.set()

        patched.setattr(cached_sets, "keep", stop)
        (error,) = trip.bring(target)
        assert error is not None and len(cached_sets.all_of_them(target.config.state)) == 2
    trip.drives.pulled.clear()
    with trip.box.running() as target:
        for thread in target.background:
            thread.join()
        assert cached_sets.all_of_them(target.config.state) == ()
    assert trip.stored(2)


def test_a_carried_set_that_waits_is_older_than_the_next_job_whatever_the_clock_says(tmp_path: Path) -> None:
    trip = Trip(tmp_path, copies=1)
    fill_on(trip, MONDAY)
    with trip.box.running() as target, pytest.MonkeyPatch.context() as patched:
        target.now = lambda: TUESDAY
        keep = cached_sets.keep

        def stop(*arguments: Any) -> None:
            keep(*arguments)
            target.stopping.set()

        patched.setattr(cached_sets, "keep", stop)
        assert trip.bring(target) != [None]
    trip.drives.pulled.append(DEVICE)
    trip.node.disks = disks(1)
    with trip.box.running() as target:
        target.now = lambda: "2024-01-01T00:00:00+00:00"
        assert trip.box.send(trip.node.outgoing()).succeeded
        assert len(cached_sets.all_of_them(target.config.state)) == 1
        come_back(trip, target)
        assert trip.stored(1) and cached_sets.all_of_them(target.config.state) == ()


def test_what_a_server_wrote_here_is_not_written_over_by_what_was_made_before(trip: Trip) -> None:
    with trip.box.running() as target:
        trip.box.send(trip.node.outgoing())
        trip.node.disks = disks(1)
        fill_on(trip, utc_now()[:10] + "T23:59:59+00:00")
        target.now = lambda: "2999-01-01T00:00:00+00:00"
        (record,) = target.state.set_records("Web01")
        target.state.ran_here((image.identity for image in record.images), "2998-01-01T00:00:00+00:00")
        (error,) = trip.bring(target)
        assert error is not None and error.code == "RanHere" and "a new job from its node" in str(error)
        assert trip.stored(0) and trip.box.names() == IMAGES
        trip.edit(lambda server: server.update(received_at="2998-01-02T00:00:00+00:00"))
        assert trip.bring(target) == [None]


def symlink(trip: Trip) -> None:
    (trip.drive / IMAGES[0]).unlink()
    (trip.drive / IMAGES[0]).symlink_to("/etc/passwd")


def fifo(trip: Trip) -> None:
    (trip.drive / IMAGES[0]).unlink()
    os.mkfifo(trip.drive / IMAGES[0])


HOSTILE: Dict[str, Callable[[Trip], None]] = {
    "a name that leaves the folder": lambda trip: trip.edit(lambda server: server.update(name="../../etc")),
    "a job that leaves the folder": lambda trip: trip.edit(lambda server: server.update(job_id="../../etc")),
    "a disk that leaves the folder": lambda trip: trip.edit(lambda server: server["disks"][0].update(name="../x")),
    "a definition of another server": lambda trip: trip.edit(lambda server: server.update(name="Other")),
    "entities": lambda trip: trip.edit(
        lambda server: server.update(definition='<!DOCTYPE d [<!ENTITY e "x">]><domain>&e;</domain>')
    ),
    "no XML": lambda trip: trip.edit(lambda server: server.update(definition="<domain")),
    "a size that nothing has": lambda trip: trip.edit(lambda server: server["disks"][0].update(size_bytes=1 << 55)),
    "a size below nothing": lambda trip: trip.edit(lambda server: server["disks"][0].update(size_bytes=-1)),
    "no digest": lambda trip: trip.edit(lambda server: server["disks"][0].update(digest="")),
    "a digest that nobody knows": lambda trip: trip.edit(lambda server: server["disks"][0].update(digest="md5:00")),
    "firmware that leaves the folder": lambda trip: trip.edit(
        lambda server: server.update(firmware=[{"name": "tpm/../../x", "content": "eA=="}])
    ),
    "firmware that is no base64": lambda trip: trip.edit(
        lambda server: server.update(firmware=[{"name": "nvram", "content": "\u20ac"}])
    ),
    "no time": lambda trip: trip.edit(lambda server: server.update(received_at="yesterday")),
    "a symlink": symlink,
    "a fifo": fifo,
    "a missing image": lambda trip: (trip.drive / IMAGES[1]).unlink(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_drive_is_refused_and_nothing_has_changed(trip: Trip, what: str) -> None:
    with trip.box.running() as target:
        trip.box.send(trip.node.outgoing())
        before = trip.box.names()
        trip.node.disks = disks(1)
        trip.fill()
        target.now = lambda: "2030-01-01T00:00:00+00:00"
        trip.edit(lambda server: server.update(received_at="2029-01-01T00:00:00+00:00"))
        HOSTILE[what](trip)
        try:
            (error,) = trip.bring(target)
        except AnvilDrError as raised:
            error = raised
        assert error is not None
        assert trip.box.names() == before and trip.stored(0)
        assert cached_sets.all_of_them(target.config.state) == ()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"version": 2}', '{"version": true}', "[" * 100_000])
def test_a_record_that_is_none_is_told_in_the_status_and_refused(trip: Trip, content: str) -> None:
    (trip.drive / carried_job.FILE).write_text(content)
    assert "cannot be used" in carried_job.in_words(str(trip.drive))[0]
    with trip.box.running() as target, pytest.raises(ProtocolError):
        trip.bring(target)


def test_a_record_that_is_a_symlink_is_not_followed(trip: Trip) -> None:
    (trip.drive / carried_job.FILE).symlink_to("/etc/hostname")
    assert "cannot be used" in carried_job.in_words(str(trip.drive))[0]


def test_the_log_tells_of_such_a_drive_and_it_is_taken_by_itself_where_the_admin_wants_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trip = Trip(tmp_path)
    trip.fill()
    with trip.box.running() as target:
        carry_in.notice(target, DEVICE)
        (line,) = [message for message in caplog.messages if "a drive brings images" in message]
        assert all(word in line for word in ("USBDRIVE", f"S-{DEVICE}", "Web01", f"anvil-dr-import {DEVICE}"))
        assert trip.box.names() == []
        target.config = replace(target.config, auto_import=True)
        carry_in.notice_all(target)
        for thread in target.background:
            thread.join()
    assert trip.stored(0)


def test_the_commands_do_it(trip: Trip, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trip.node.outgoing()
    (tmp_path / "web01.xml").write_text(trip.node.definition(list(trip.node.disks)))
    entries = "".join(f"      - {{name: {name}, path: {trip.node.folder}/{name}.img}}\n" for name in trip.node.disks)
    (tmp_path / "job.yaml").write_text(
        f"name: by car\nservers:\n  - name: Web01\n    definition: web01.xml\n    disks:\n{entries}"
    )
    sent = send.main(["--to", f"drive:{trip.drive}", "--job", str(tmp_path / "job.yaml"), "--no-progress"])
    out = capsys.readouterr().out
    assert sent == 0 and "1 of 1 server complete" in out and f"umount {trip.drive}" in out
    (tmp_path / "t.yaml").write_text(
        f"name: dr01\nstore: fs:{trip.box.store_folder}\nstate: {tmp_path}/state\nruntime: {tmp_path}/run\n"
    )
    with trip.box.running():
        assert import_drive.main(["--config", str(tmp_path / "t.yaml"), DEVICE]) == 0
        assert "Web01: imported as set 1" in capsys.readouterr().out
        assert import_drive.main(["--config", str(tmp_path / "t.yaml"), "--json", DEVICE]) == 0
        assert json.loads(capsys.readouterr().out)["servers"][0]["state"] == "was here"
        assert import_drive.main(["--config", str(tmp_path / "t.yaml"), "/dev/sdz"]) == 1
        assert "there is no such drive" in capsys.readouterr().err
    assert trip.stored(0)


def test_a_drive_that_brings_something_is_no_cache(tmp_path: Path) -> None:
    trip = Trip(tmp_path, copies=1)
    with trip.box.running() as target:
        trip.box.send(trip.node.outgoing())
        trip.fill()
        before = trip.on_drive
        (outcome,) = trip.box.send(trip.node.outgoing()).servers
        assert outcome.error is None and "no cache drive with room" in outcome.warnings[0]
        assert target.is_busy("Web01") is False and trip.on_drive == before
