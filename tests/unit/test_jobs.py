"""Whole jobs through the real service: names, bytes, refusals, failures and what the next job finds."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple

import pytest

from anvil_dr.activation.overlays import Overlays
from anvil_dr.errors import AnvilDrError, ImageIOError, PeerGoneError, RemoteError
from anvil_dr.model import INCOMPLETE, Location, StoredImage
from anvil_dr.ports import Completed
from anvil_dr.receiving.target import Target
from anvil_dr.records.state import State
from anvil_dr.sending.job import OutgoingDisk, OutgoingServer
from anvil_dr.sending.outgoing import outgoing_disk
from anvil_dr.stores.directory import DirectoryStore
from tests.doubles.dr_box import DrBox, Node, Quiet


def noise(size_bytes: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def two_disks(seed: int) -> Dict[str, bytes]:
    return {"Web01_0": noise(300_000, seed), "Web01_1": noise(70_001, seed + 1000)}


def node(tmp_path: Path, name: str = "Web01", disks: Optional[Dict[str, bytes]] = None) -> Node:
    folder = tmp_path / f"node-{name}"
    return Node(folder, name, disks=two_disks(0) if disks is None else disks)


def error_of(box: DrBox, *servers: OutgoingServer, observer: Optional[Quiet] = None) -> List[Optional[AnvilDrError]]:
    return [outcome.error for outcome in box.send(*servers, observer=observer).servers]


@contextmanager
def held_by_another_process(path: Path) -> Iterator[None]:
    script = "import sys; file = open(sys.argv[1], 'r+b'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        yield
        holder.stdin.close()


def wait_until_idle(target: Target) -> None:
    """A connection that broke is noticed by the service a moment later."""
    deadline = time.monotonic() + 20
    while target.jobs():
        assert time.monotonic() < deadline, "the job did not end"
        time.sleep(0.01)


def test_five_jobs_with_three_copies_have_the_names_and_bytes_of_the_specification(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path, copies=3), node(tmp_path)
    with box.running():
        for job in range(5):
            web.disks = two_disks(job)
            assert box.send(web.outgoing()).succeeded
            kept = range(1, min(3, job + 1) + 1)
            assert box.names() == sorted(f"Web01_{disk}_{n}.raw" for disk in web.disks for n in kept)
            for n in kept:
                for disk, content in two_disks(job + 1 - n).items():
                    assert box.image(f"Web01_{disk}_{n}") == content


def test_the_oldest_images_are_recycled_and_not_made_anew(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path, copies=2), node(tmp_path)

    def inodes() -> List[int]:
        return sorted((tmp_path / "store" / name).stat().st_ino for name in box.names())

    with box.running():
        box.send(web.outgoing())
        box.send(web.outgoing())
        before = inodes()
        box.send(web.outgoing())
        assert inodes() == before


def test_a_definition_is_made_once_and_an_edited_one_is_left_alone_to_the_byte(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path)
    path = tmp_path / "definitions" / "Web01.xml"
    with box.running():
        done = box.send(web.outgoing()).servers[0].done
        assert done is not None and done.definition_made and done.definition == str(path)
        made = path.read_text()
        assert str(tmp_path / "store" / "Web01_Web01_0_1.raw") in made
        assert "install.iso" not in made
        path.write_text("<!-- less RAM -->" + made.replace("256", "128"))
        edited = path.read_bytes()
        done = box.send(web.outgoing()).servers[0].done
        assert done is not None and not done.definition_made
    assert path.read_bytes() == edited


@pytest.mark.slow
def test_a_job_that_breaks_costs_no_good_set_and_the_next_one_resumes(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path, copies=2), node(tmp_path, disks={"Web01_0": noise(64 << 20, 1)})
    with box.running() as target:
        box.send(web.outgoing())
        box.send(web.outgoing())
        good = box.image("Web01_Web01_0_1")
        web.disks["Web01_0"] = noise(64 << 20, 2)
        for number in range(3):
            with pytest.raises(PeerGoneError):
                box.send(web.outgoing(), break_after_bytes=32 << 20)
            wait_until_idle(target)
            assert box.names() == ["Web01_Web01_0_2.raw", "Web01_Web01_0_incomplete.raw"]
            assert box.image("Web01_Web01_0_2") == good
            failed = target.state.last_jobs()["Web01"]
            assert failed.state == "failed"
            assert failed.wire_bytes > 0 and (number > 0 or failed.written_bytes > 16 << 20)
        resumed = box.send(web.outgoing())
        assert resumed.succeeded
        assert resumed.wire_bytes < (33 << 20), "what had arrived was not sent again"
        assert box.image("Web01_Web01_0_1") == web.disks["Web01_0"]
        assert box.image("Web01_Web01_0_2") == good


class Failing:
    """A source whose bytes cannot be read beyond some point. Implements job.Source."""

    def __init__(self, disk: OutgoingDisk, readable_bytes: int) -> None:
        self._source, self._readable = disk.open(), readable_bytes

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        if offset_bytes + len(buffer) > self._readable:
            raise ImageIOError(self._source.path, offset_bytes, "read", "Input/output error")
        self._source.read_into(offset_bytes, buffer)


def test_one_server_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    good, bad = node(tmp_path), node(tmp_path, "Db01", {"Db01_0": noise(40 << 20, 3)})
    broken = replace(bad.outgoing().disks[0], open=lambda: Failing(bad.outgoing().disks[0], 20 << 20))
    with box.running():
        first, second = error_of(box, replace(bad.outgoing(), disks=(broken,)), good.outgoing())
    assert "Input/output error" in str(first) and second is None


class AfterFirstDisk(Quiet):
    """Does something when the first disk is done."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._acts = [act]

    def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None:
        while self._acts:
            self._acts.pop()()


@pytest.mark.parametrize("replaced", [False, True])
def test_an_image_that_is_removed_by_hand_while_it_is_written_fails_its_server_only(
    tmp_path: Path, replaced: bool
) -> None:
    box, victim = DrBox(tmp_path), tmp_path / "store" / "Db01_Db01_0_incomplete.raw"
    servers = [node(tmp_path, name, {f"{name}_0": noise(5000, 3)}).outgoing() for name in ("Db01", "Web01")]

    def remove() -> None:
        victim.unlink()
        if replaced:
            victim.write_bytes(bytes(5000))

    with box.running():
        first, second = error_of(box, *servers, observer=AfterFirstDisk(remove))
        assert f"{victim} was removed or replaced" in str(first) and "send it again" in str(first)
        assert second is None
        assert "Db01_Db01_0_1.raw" not in box.names()
        assert error_of(box, *servers) == [None, None]


@pytest.mark.slow
def test_a_source_that_is_written_to_while_it_is_imaged_fails_and_is_named(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path, disks={"Web01_0": noise(60 << 20, 1)})
    path = tmp_path / "node-Web01" / "Web01_0.img"

    def scribble() -> None:
        with open(path, "r+b") as file:
            file.write(os.urandom(16))

    with box.running():
        (error,) = error_of(box, web.outgoing(), observer=Quiet(when_advanced=scribble))
    assert "Web01_0.img changed while it was being imaged" in str(error)
    assert box.names() == ["Web01_Web01_0_incomplete.raw"]


def test_a_second_job_for_a_server_is_refused_as_busy(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path)
    seen: List[Optional[AnvilDrError]] = []
    with box.running():

        def interfere() -> None:
            if not seen:
                seen.append(None)
                seen[:] = error_of(box, node(tmp_path / "other").outgoing())

        (tmp_path / "other").mkdir()
        assert box.send(web.outgoing(), observer=Quiet(when_advanced=interfere)).succeeded
    assert isinstance(seen[0], RemoteError) and seen[0].remote_code == "ServerBusy"


@pytest.mark.slow
def test_a_disk_that_grows_and_one_that_shrinks_keep_their_images(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path, copies=2), node(tmp_path)
    with box.running():
        for sizes in ((3 << 20, 70_001), (5 << 20, 4096), (5 << 20, 4096), (1 << 20, 200_000)):
            web.disks = {"Web01_0": noise(sizes[0], sizes[0]), "Web01_1": noise(sizes[1], sizes[1])}
            assert box.send(web.outgoing()).succeeded
            for disk, content in web.disks.items():
                assert box.image(f"Web01_{disk}_1") == content


@pytest.mark.slow
def test_a_server_gains_and_loses_a_disk(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path, copies=2), node(tmp_path)
    with box.running():
        box.send(web.outgoing(["Web01_0"]))
        box.send(web.outgoing(["Web01_0", "Web01_1"]))
        assert box.names() == ["Web01_Web01_0_1.raw", "Web01_Web01_0_2.raw", "Web01_Web01_1_1.raw"]
        for _ in range(3):
            assert box.send(web.outgoing(["Web01_0"])).succeeded
        assert box.names() == ["Web01_Web01_0_1.raw", "Web01_Web01_0_2.raw"]


@pytest.mark.slow
def test_one_copy_without_a_cache_drive_warns_and_is_overwritten(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path, copies=1), node(tmp_path)
    with box.running():
        assert box.send(web.outgoing()).servers[0].warnings == ()
        web.disks = two_disks(7)
        outcome = box.send(web.outgoing()).servers[0]
    assert any("no complete set" in warning for warning in outcome.warnings)
    assert box.names() == ["Web01_Web01_0_1.raw", "Web01_Web01_1_1.raw"]
    assert box.image("Web01_Web01_0_1") == web.disks["Web01_0"]


def test_one_copy_is_refused_where_a_cache_drive_is_required(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path, copies=1, require_cache=True), node(tmp_path)
    with box.running():
        assert error_of(box, web.outgoing()) == [None], "there is nothing to lose yet"
        (error,) = error_of(box, web.outgoing())
    assert "require_cache" in str(error)
    assert box.names() == ["Web01_Web01_0_1.raw", "Web01_Web01_1_1.raw"]


@pytest.mark.slow
def test_lowered_copies_free_the_old_sets_only_after_a_job_that_succeeded(tmp_path: Path) -> None:
    web = node(tmp_path, disks={"Web01_0": noise(40 << 20, 1)})
    many, few = DrBox(tmp_path, copies=3), DrBox(tmp_path, copies=2)
    with many.running():
        for _ in range(3):
            many.send(web.outgoing())
    web.disks["Web01_0"] = noise(40 << 20, 2)
    broken = replace(web.outgoing().disks[0], open=lambda: Failing(web.outgoing().disks[0], 20 << 20))
    with few.running():
        few.send(replace(web.outgoing(), disks=(broken,)))
        assert "Web01_Web01_0_3.raw" in few.names()
        assert few.send(web.outgoing()).succeeded
    assert few.names() == ["Web01_Web01_0_1.raw", "Web01_Web01_0_2.raw"]


def test_two_pairs_that_build_one_name_are_refused_over_restarts(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    with box.running():
        box.send(node(tmp_path, "Web", {"01_0": noise(5000, 1)}).outgoing())
    with box.running():
        (error,) = error_of(box, node(tmp_path, "Web_01", {"0": noise(5000, 1)}).outgoing())
    assert "belongs to server 'Web' disk '01_0'" in str(error)


@pytest.mark.parametrize("name", ["../../etc/passwd", "Web 01", "", "-rf", "a/b", "x" * 120, "snapshot1", "Web\n01"])
def test_a_name_that_cannot_be_is_refused_before_anything_is_touched(tmp_path: Path, name: str) -> None:
    box = DrBox(tmp_path)
    bad = node(tmp_path, "bad", {"0": noise(5000, 1)}).outgoing()
    with box.running():
        (error,) = error_of(box, replace(bad, name=name))
    assert error is not None and box.names() == []


class FailingStore(DirectoryStore):
    """One whose file system fails once, in a way that nobody foresaw, when it is asked who uses an image."""

    fails = False

    def users(self, images: Iterable[StoredImage]) -> Dict[StoredImage, str]:
        if self.fails:
            self.fails = False
            raise OSError(errno.ENOLCK, "No locks available")
        return super().users(images)


class FailingBox(DrBox):
    def open_store(self, state: State) -> DirectoryStore:
        return FailingStore(str(self.store_folder), state.owners)


def test_what_nobody_foresaw_ends_a_job_and_the_next_one_finds_no_server_busy(tmp_path: Path) -> None:
    box = FailingBox(tmp_path)
    servers = [node(tmp_path, name, {f"{name}_0": noise(5000, 3)}).outgoing() for name in ("Db01", "Web01")]
    with box.running() as target:
        assert error_of(box, *servers) == [None, None]
        assert isinstance(target.store, FailingStore)
        target.store.fails = True
        with pytest.raises(RemoteError, match="in a way nobody foresaw"):
            box.send(*servers)
        assert error_of(box, *servers) == [None, None]


@pytest.mark.slow
def test_an_image_that_a_qemu_has_is_not_touched_and_the_other_servers_go_on(tmp_path: Path) -> None:
    box, web, other = DrBox(tmp_path), node(tmp_path), node(tmp_path, "Db01", {"Db01_0": noise(5000, 3)})
    with box.running():
        box.send(web.outgoing())
        with held_by_another_process(tmp_path / "store" / "Web01_Web01_0_1.raw"):
            first, second = error_of(box, web.outgoing(), other.outgoing())
        assert "in use" in str(first) and second is None
        assert "Web01_Web01_0_1.raw" in box.names()
        assert error_of(box, web.outgoing()) == [None]


def test_an_activated_server_is_refused_until_it_is_released(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path)
    with box.running() as target:
        box.send(web.outgoing())
        target.state.activate("Web01", 1, "root")
        (error,) = error_of(box, web.outgoing())
        assert "anvil-activate-dr --release Web01" in str(error)
        target.state.release("Web01")
        assert error_of(box, web.outgoing()) == [None]


def test_a_server_whose_overlays_nobody_has_decided_on_is_refused_even_if_its_mark_is_lost(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path)
    overlays = Overlays(box.config.overlays, lambda argv, **unused: Completed(argv, b"", b""))
    with box.running() as target:
        box.send(web.outgoing())
        overlays.make("Web01", 1, "now", [(image, image.path) for image in target.store.images()])
        for damage in (None, "{"):
            if damage is not None:
                Path(overlays.folder, "Web01", "overlays.json").write_text(damage)
            (error,) = error_of(box, web.outgoing())
            assert isinstance(error, RemoteError) and error.remote_code == "ServerActivated"
            assert "ran on overlays" in str(error) and "--release Web01, and --keep or --discard" in str(error)
        overlays.remove("Web01")
        assert error_of(box, web.outgoing()) == [None]


def test_what_does_not_fit_is_refused_with_its_bytes_and_nothing_has_changed(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path)
    with box.running():
        box.send(web.outgoing())
        before = box.names()
        huge = replace(web.outgoing().disks[0], size_bytes=1 << 45)
        (error,) = error_of(box, replace(web.outgoing(), disks=(huge, web.outgoing().disks[1])))
    assert isinstance(error, RemoteError) and error.remote_code == "StoreFull"
    assert "bytes needed" in str(error) and box.names() == before


class SmallStore(DirectoryStore):
    """One with 8 MiB left, whatever is written into it."""

    def locations(self) -> Tuple[Location, ...]:
        return tuple(replace(one, free_bytes=8 << 20) for one in super().locations())


class SmallBox(DrBox):
    def open_store(self, state: State) -> DirectoryStore:
        return SmallStore(str(self.store_folder), state.owners)


def sparse_file(path: Path, size_bytes: int, data_bytes: int) -> Path:
    with open(path, "wb") as file:
        file.truncate(size_bytes)
        file.seek(size_bytes // 2 & -4096)
        file.write(noise(data_bytes, 7))
    return path


def test_a_sparse_disk_that_is_larger_than_the_store_is_taken_if_its_data_fits(tmp_path: Path) -> None:
    box, web = SmallBox(tmp_path), node(tmp_path, disks={"Web01_0": b"x"})
    announced, image = web.outgoing(), sparse_file(tmp_path / "sparse", 1 << 30, 4 << 20)
    disk = outgoing_disk("Web01_0", announced.disks[0].path, str(image))
    with box.running():
        (error,) = error_of(box, replace(announced, disks=(replace(disk, data_bytes=None),)))
        assert isinstance(error, RemoteError) and error.remote_code == "StoreFull"
        assert box.names() == []
        assert error_of(box, replace(announced, disks=(disk,))) == [None]
        stored = box.store_folder / "Web01_Web01_0_1.raw"
        assert stored.stat().st_size == 1 << 30
        assert stored.stat().st_blocks * 512 <= (4 << 20) + (1 << 16)


class FileSystem(DirectoryStore):
    """One of 10 MiB."""

    def locations(self) -> Tuple[Location, ...]:
        (one,) = super().locations()
        used_bytes = sum(image.size_bytes - image.holes_bytes for image in self.images())
        return (replace(one, free_bytes=(10 << 20) - used_bytes),)


class FileSystemBox(DrBox):
    def open_store(self, state: State) -> DirectoryStore:
        return FileSystem(str(self.store_folder), state.owners)


def test_what_a_job_has_written_already_is_not_kept_free_for_it_once_more(tmp_path: Path) -> None:
    box = FileSystemBox(tmp_path)
    web = node(tmp_path, disks={"Web01_0": noise(4 << 20, 1), "Web01_1": noise(2 << 20, 2)}).outgoing()
    fits, too_large = (
        node(tmp_path, f"Db{number}", {f"Db{number}_0": noise(number << 20, 3)}).outgoing() for number in (4, 5)
    )
    errors: List[Optional[AnvilDrError]] = []
    with box.running():
        asks = AfterFirstDisk(lambda: errors.extend((*error_of(box, too_large), *error_of(box, fits))))
        assert error_of(box, web, observer=asks) == [None]
    assert f"{4 << 20} available" in str(errors[0]) and errors[1] is None


def test_data_that_does_not_fit_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    box, web = SmallBox(tmp_path, copies=1), node(tmp_path, disks={"Web01_0": b"x"})
    announced = web.outgoing()
    with box.running():
        for number, data_bytes in enumerate((9 << 20, 4 << 20, 13 << 20)):
            image = sparse_file(tmp_path / f"sparse{number}", 1 << 30, data_bytes)
            disk = outgoing_disk("Web01_0", announced.disks[0].path, str(image))
            (error,) = error_of(box, replace(announced, disks=(disk,)))
            if number == 1:
                assert error is None
            else:  # the last one has to fill holes of what the second left
                assert isinstance(error, RemoteError) and error.remote_code == "StoreFull"
        assert box.names() == ["Web01_Web01_0_1.raw"]


def test_a_store_that_is_unmounted_while_the_service_runs_takes_no_job_and_costs_no_digest(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path)
    with box.running() as target:
        assert box.send(web.outgoing()).succeeded
        before = target.state.set_records("Web01")
        mounted = box.store_folder.rename(tmp_path / "mounted elsewhere")
        box.store_folder.mkdir()
        (error,) = error_of(box, web.outgoing())
        assert "mounted or unmounted" in str(error)
        assert box.names() == []
        box.store_folder.rmdir()
        mounted.rename(box.store_folder)
        assert box.send(web.outgoing()).succeeded
        assert target.state.set_records("Web01")[0] == before[0]


def test_a_hostile_definition_refuses_its_server_only(tmp_path: Path) -> None:
    box, web, other = DrBox(tmp_path), node(tmp_path), node(tmp_path, "Db01", {"Db01_0": noise(5000, 3)})
    bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'>]>" + web.outgoing().definition
    with box.running():
        first, second = error_of(box, replace(web.outgoing(), definition=bomb), other.outgoing())
    assert first is not None and second is None
    assert box.names() == ["Db01_Db01_0_1.raw"]


@pytest.mark.slow
def test_the_firmware_state_is_kept_with_the_set_and_published_for_virsh(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path)
    with box.running() as target:
        for content in (b"first", b"second" * 300_000):
            assert box.send(replace(web.outgoing(), firmware={"nvram": content, "tpm/tpm2-00.permall": b"t"})).succeeded
            assert (tmp_path / "definitions" / "nvram" / "Web01.fd").read_bytes() == content
        assert len(list((tmp_path / "state" / "firmware" / "Web01").iterdir())) == 2
        records = target.state.set_records("Web01")
    assert len(records) == 2 and all(image.digest.count(":") == 1 for image in records[0].images)


@pytest.mark.slow
def test_a_service_that_stops_in_the_middle_leaves_what_the_next_one_finishes(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path, disks={"Web01_0": noise(200 << 20, 1)})
    arrived = threading.Event()
    failed: List[BaseException] = []

    def send() -> None:
        try:
            box.send(web.outgoing(), observer=Quiet(when_advanced=arrived.set))
        except AnvilDrError as error:
            failed.append(error)

    sender = threading.Thread(target=send)
    with box.running():
        box.send(web.outgoing())
        web.disks["Web01_0"] = noise(200 << 20, 2)
        sender.start()
        assert arrived.wait(20)
    sender.join()
    assert failed
    assert box.names() == ["Web01_Web01_0_2.raw", "Web01_Web01_0_incomplete.raw"]
    with box.running() as target:
        assert target.state.last_jobs()["Web01"].state == "failed"
        assert box.send(web.outgoing()).succeeded
        images = {image.sequence for image in target.store.images()}
    assert images == {1, 2} and INCOMPLETE not in images
