"""A complete set on a cache drive is never given up while the store has none as new, whatever happens to the drive."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import List

import pytest

from anvil_dr.activation.overlays import Overlays
from anvil_dr.caching import cached_copy, cached_sets
from anvil_dr.errors import PeerGoneError
from anvil_dr.model import INCOMPLETE
from anvil_dr.ports import Completed
from anvil_dr.receiving.target import Target
from anvil_dr.records.state import State
from tests.doubles.caching_box import MIB, CachingBox, two_disks, wait

pytestmark = pytest.mark.slow

FIRST, SECOND = "/dev/sdb", "/dev/sdc"


@pytest.fixture
def web(tmp_path: Path) -> CachingBox:
    return CachingBox(tmp_path, {FIRST: 64 * MIB, SECOND: 32 * MIB}, ["Web01"])


@pytest.fixture
def waiting(web: CachingBox) -> CachingBox:
    """Set 0 in the store; set 1 complete on the first drive, because the service stopped before the copy."""
    web.change(1)
    with web.box.running() as target:
        target.stopping.set()
        assert web.send() == [None]
        wait(target)
        assert web.stored(0)
    return web


@pytest.fixture
def half_copied(waiting: CachingBox, monkeypatch: pytest.MonkeyPatch) -> CachingBox:
    """The same, but the copy had begun to write: the store has nothing complete, the drive has the only set."""
    scan = cached_copy.scan

    def dying(source, size_bytes, digester, advanced, to=None):  # type: ignore[no-untyped-def]
        if to is not None:
            advanced = stop
        return scan(source, size_bytes, digester, advanced, to)

    def stop(length_bytes: int) -> None:
        raise OSError("the power fails")

    with monkeypatch.context() as patched:
        patched.setattr(cached_copy, "scan", dying)
        patched.setattr(threading, "excepthook", lambda unused: None)
        with waiting.box.running() as target:
            wait(target)
            assert {image.sequence for image in target.store.images()} == {INCOMPLETE}
    return waiting


def remembered(web: CachingBox) -> List[str]:
    return [one.server for one in cached_sets.all_of_them(web.box.config.state)]


def on_drive(web: CachingBox, device: str) -> List[bytes]:
    return [path.read_bytes() for path in sorted(web.drives.folder(device).iterdir())]


def plug_in(web: CachingBox, target: Target) -> None:
    web.drives.pulled.clear()
    web.drives.unreadable.clear()
    for thread in cached_copy.resume(target):
        thread.join()


def test_while_its_drive_is_absent_the_next_job_takes_another_and_it_is_freed_when_it_comes(
    waiting: CachingBox,
) -> None:
    waiting.drives.pulled.append(FIRST)
    waiting.change(2)
    with waiting.box.running() as target:
        assert waiting.send() == [None]
        wait(target)
        assert waiting.stored(2)
        assert on_drive(waiting, SECOND) == [] and len(on_drive(waiting, FIRST)) == 2
        plug_in(waiting, target)
        assert waiting.stored(2), "what is older is not copied over what is newer"
    assert waiting.drives.names() == [] and remembered(waiting) == []


def test_while_its_drive_is_absent_a_job_that_fails_on_another_leaves_it_and_the_store(waiting: CachingBox) -> None:
    waiting.drives.pulled.append(FIRST)
    waiting.change(2)
    with waiting.box.running() as target:
        with pytest.raises(PeerGoneError):
            waiting.box.send(waiting.nodes["Web01"].outgoing(), break_after_bytes=1)
        wait(target)
        assert waiting.stored(0) and remembered(waiting) == ["Web01"]
        plug_in(waiting, target)
        assert waiting.stored(1)
    assert on_drive(waiting, FIRST) == []


def test_the_only_set_is_on_an_absent_drive_and_a_job_that_fails_does_not_cost_it(half_copied: CachingBox) -> None:
    half_copied.drives.pulled.append(FIRST)
    half_copied.change(2)
    with half_copied.box.running() as target:
        for _ in range(2):
            with pytest.raises(PeerGoneError):
                half_copied.box.send(half_copied.nodes["Web01"].outgoing(), break_after_bytes=1)
            wait(target)
            assert remembered(half_copied) == ["Web01"]
        plug_in(half_copied, target)
        assert half_copied.stored(1)
    assert half_copied.drives.names() == [] and remembered(half_copied) == []


def test_the_only_set_is_on_an_absent_drive_and_stays_until_the_next_one_is_in_the_store(
    half_copied: CachingBox,
) -> None:
    half_copied.drives.pulled.append(FIRST)
    half_copied.change(2)
    kept: List[bool] = []
    with half_copied.box.running() as target:
        assert half_copied.send() == [None]
        kept.append(remembered(half_copied) == ["Web01"] and len(on_drive(half_copied, FIRST)) == 2)
        wait(target)
        assert half_copied.stored(2) and kept == [True]
        plug_in(half_copied, target)
        assert half_copied.stored(2)
    assert half_copied.drives.names() == [] and remembered(half_copied) == []


def test_a_drive_that_does_not_give_it_back_is_gone_around(waiting: CachingBox) -> None:
    waiting.drives.make_unreadable(FIRST)
    waiting.change(2)
    with waiting.box.running() as target:
        wait(target)
        assert waiting.stored(0) and remembered(waiting) == ["Web01"]
        assert waiting.send() == [None]
        wait(target)
        assert waiting.stored(2), "it went over the other drive"
    assert waiting.drives.names() == [] and remembered(waiting) == []


def test_it_makes_room_where_the_next_job_fits_nowhere_else_and_the_store_has_a_set(waiting: CachingBox) -> None:
    waiting.drives.make_unreadable(FIRST)
    waiting.drives.pulled.append(SECOND)
    waiting.change(2)
    with waiting.box.running() as target:
        wait(target)
        assert waiting.send() == [None]
        wait(target)
        assert waiting.stored(2)
    assert remembered(waiting) == []


def test_the_only_set_makes_no_room_for_anybody(half_copied: CachingBox) -> None:
    half_copied.drives.make_unreadable(FIRST)
    half_copied.change(2)
    with half_copied.box.running() as target:
        wait(target)
        assert not cached_copy.make_room(target, cached_sets.of_server(half_copied.box.config.state, "Web01"))
        with pytest.raises(PeerGoneError):
            half_copied.box.send(half_copied.nodes["Web01"].outgoing(), break_after_bytes=1)
        wait(target)
        assert remembered(half_copied) == ["Web01"] and len(on_drive(half_copied, FIRST)) == 2
        plug_in(half_copied, target)
        assert half_copied.stored(1), "it could be read after all"


def test_one_whose_bytes_changed_is_kept_while_it_is_the_only_one(half_copied: CachingBox) -> None:
    path = half_copied.drives.folder(FIRST) / "Web01_Web01_1_1.raw"
    with open(path, "r+b") as file:
        right = file.read(3)
        file.seek(0)
        file.write(b"rot")
    half_copied.change(2)
    with half_copied.box.running() as target:
        wait(target)
        with pytest.raises(PeerGoneError):
            half_copied.box.send(half_copied.nodes["Web01"].outgoing(), break_after_bytes=1)
        wait(target)
        assert remembered(half_copied) == ["Web01"], "a set with one bad block is more than none"
        with open(path, "r+b") as file:
            file.write(right)
        plug_in(half_copied, target)
        assert half_copied.stored(1)


def test_a_job_that_comes_while_it_is_copied_is_refused_as_busy(
    waiting: CachingBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, go_on = cached_copy.scan, threading.Event()

    def slow(*arguments):  # type: ignore[no-untyped-def]
        assert go_on.wait(60)
        return scan(*arguments)

    monkeypatch.setattr(cached_copy, "scan", slow)
    waiting.change(2)
    with waiting.box.running() as target:
        (error,) = waiting.send()
        assert "busy" in str(error).lower()
        assert cached_copy.resume(target) == (), "nor is it copied twice at the same time"
        go_on.set()
        wait(target)
        assert waiting.stored(1)


def test_what_was_not_renamed_yet_is_never_taken_for_half_an_image(waiting: CachingBox) -> None:
    """The power failed between the moment when the set was complete and the renames."""
    folder = waiting.drives.folder(FIRST)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("_1.raw", "_incomplete.raw"))
    before = on_drive(waiting, FIRST)
    waiting.drives.make_unreadable(FIRST)
    waiting.drives.when_checked = lambda count: seen.append(on_drive(waiting, FIRST))
    seen: List[List[bytes]] = []
    waiting.change(2)
    with waiting.box.running() as target:
        wait(target)
        with pytest.raises(PeerGoneError):
            waiting.box.send(waiting.nodes["Web01"].outgoing(), break_after_bytes=1)
        wait(target)
        assert on_drive(waiting, FIRST) == before and all(one == before for one in seen)
        plug_in(waiting, target)
        assert waiting.stored(1)


def test_a_clock_that_is_behind_makes_no_old_set_of_a_new_one(waiting: CachingBox) -> None:
    """As after an empty battery, before the network tells the time."""
    web = waiting
    with web.box.running() as target:
        wait(target)
        target.now = lambda: "2024-01-01T00:00:30+00:00"
        web.change(7)
        assert web.send() == [None]
        wait(target)
    assert web.stored(7)
    assert web.drives.names() == []


def test_a_set_that_rotted_in_the_store_is_copied_from_its_drive_again(waiting: CachingBox) -> None:
    web = waiting
    (cached,) = cached_sets.all_of_them(web.box.config.state)
    with web.box.running() as target:
        wait(target)
    cached_sets.keep(web.box.config.state, cached, {})  # as if the drive had been pulled behind the copy
    for disk, content in two_disks(1).items():
        (web.drives.folder(FIRST) / f"Web01_{disk}_1.raw").write_bytes(content)
    with State.open(web.box.config.state) as state:
        (record,) = state.set_records("Web01")
        for image in record.images:
            state.judge_image(image.identity, image.digest, "2026-11-26T00:00:00+00:00", "a bad sector")
    with web.box.running() as target:
        wait(target)
        (record,) = target.state.set_records("Web01")
        assert [image.rotten for image in record.images] == [None, None]
        assert target.state.pending() == ()
    assert web.stored(1)


def test_a_server_that_was_activated_meanwhile_keeps_its_cached_set(waiting: CachingBox) -> None:
    with waiting.box.running() as target:
        wait(target)
    waiting.change(2)
    with waiting.box.running() as target:
        target.stopping.set()
        assert waiting.send() == [None]
        wait(target)
        target.state.activate("Web01", 1, "root")
        target.stopping.clear()
        for thread in cached_copy.resume(target):
            thread.join()
        assert remembered(waiting) == ["Web01"] and len(on_drive(waiting, FIRST)) == 2
        assert waiting.stored(1)
        target.state.release("Web01")
        plug_in(waiting, target)
        assert waiting.stored(2)


@pytest.mark.parametrize("ran_on", ["set 1", "its drive"])
def test_nothing_changes_under_overlays_whose_mark_is_lost(waiting: CachingBox, ran_on: str) -> None:
    waiting.drives.pulled.append(FIRST)
    with waiting.box.running() as target:
        overlays = Overlays(target.config.overlays, lambda argv, **more: Completed(argv, b"", b""))
        (image, *_) = target.store.images()
        overlays.make("Web01", 1, "2026-11-25T00:00:00+00:00", [(image, image.path)])
        if ran_on == "its drive":
            # As new as what is in the store, so that it would only be removed.
            (cached,) = cached_sets.all_of_them(target.config.state)
            cached_sets.keep(target.config.state, replace(cached, jobs_before=()), {})
        plug_in(waiting, target)
        assert waiting.stored(0) and remembered(waiting) == ["Web01"] and len(on_drive(waiting, FIRST)) == 2


def test_what_was_copied_with_its_drive_pulled_in_the_end_is_removed_when_it_comes_back(waiting: CachingBox) -> None:
    def pull(count: int) -> None:
        if (waiting.box.store_folder / "Web01_Web01_0_1.raw").read_bytes() == two_disks(1)["Web01_0"]:
            waiting.drives.pulled.append(FIRST)

    waiting.drives.when_checked = pull
    with waiting.box.running() as target:
        wait(target)
        assert waiting.stored(1) and remembered(waiting) == ["Web01"]
        waiting.drives.when_checked = lambda count: None
        plug_in(waiting, target)
        assert waiting.stored(1)
    assert waiting.drives.names() == [] and remembered(waiting) == []


def run_here(web: CachingBox, target: Target) -> List[bytes]:
    """Activated from set 1 in the store, written to, and given back. Returns its images."""
    target.state.activate("Web01", 1, "root")
    paths = [web.box.store_folder / f"Web01_{disk}_1.raw" for disk in two_disks(0)]
    with open(paths[0], "r+b") as image:
        image.write(b"the day's orders")
    (record,) = target.state.set_records("Web01")
    target.state.ran_here((image.identity for image in record.images), "2020-01-01T00:00:00+00:00")
    target.state.release("Web01")
    return [path.read_bytes() for path in paths]


def in_store(web: CachingBox) -> List[bytes]:
    return [web.box.image(f"Web01_{disk}_1") for disk in two_disks(0)]


def test_what_a_server_wrote_here_since_is_not_written_over_and_the_next_job_frees_the_drive(
    waiting: CachingBox,
) -> None:
    waiting.drives.pulled.append(FIRST)
    with waiting.box.running() as target:
        written = run_here(waiting, target)  # the clock was behind: that says nothing
        plug_in(waiting, target)
        assert in_store(waiting) == written
        assert remembered(waiting) == ["Web01"] and len(on_drive(waiting, FIRST)) == 2
        waiting.change(2)
        with pytest.raises(PeerGoneError):
            waiting.box.send(waiting.nodes["Web01"].outgoing(), break_after_bytes=1)
        wait(target)
        assert in_store(waiting) == written and len(on_drive(waiting, FIRST)) == 2
        assert waiting.send() == [None]
        wait(target)
        assert waiting.stored(2)
    assert waiting.drives.names() == [] and remembered(waiting) == []


def test_it_makes_room_for_a_job_that_fits_nowhere_else_before_what_the_server_wrote_does(
    waiting: CachingBox,
) -> None:
    waiting.drives.sizes = {FIRST: 12 * MIB}
    waiting.drives.pulled.append(FIRST)
    with waiting.box.running() as target:
        written = run_here(waiting, target)
        plug_in(waiting, target)
        waiting.change(2)
        with pytest.raises(PeerGoneError):
            waiting.box.send(waiting.nodes["Web01"].outgoing(), break_after_bytes=1)
        wait(target)
        assert in_store(waiting) == written and remembered(waiting) == []
        assert waiting.send() == [None]
        wait(target)
        assert waiting.stored(2)


def test_a_server_that_runs_here_and_is_given_back_while_its_set_is_read_keeps_what_it_wrote(
    waiting: CachingBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, written = cached_copy.scan, []

    def slow(*arguments):  # type: ignore[no-untyped-def]
        if not written:
            written.extend(run_here(waiting, now))
        return scan(*arguments)

    monkeypatch.setattr(cached_copy, "scan", slow)
    waiting.drives.pulled.append(FIRST)
    with waiting.box.running() as now:
        plug_in(waiting, now)
        assert written and in_store(waiting) == written and remembered(waiting) == ["Web01"]
