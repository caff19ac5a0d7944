"""N = 1 with a cache drive: jobs through the real service, onto folders that stand for drives."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from anvil_dr.caching import cached_copy, cached_sets
from anvil_dr.errors import PeerGoneError
from anvil_dr.model import INCOMPLETE
from anvil_dr.sending.conversation import Conversation, Refused
from anvil_dr.sending.send import JobSender
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.protocol import Kind
from tests.doubles.caching_box import MIB, CachingBox, noise, two_disks, wait
from tests.doubles.dr_box import Quiet

pytestmark = pytest.mark.slow


@pytest.fixture
def web(tmp_path: Path) -> CachingBox:
    return CachingBox(tmp_path, {"/dev/sdb": 64 * MIB}, ["Web01"])


def test_everything_arrives_on_the_cache_first_and_then_goes_to_the_store(web: CachingBox) -> None:
    web.change(1)
    seen: List[bool] = []
    with web.box.running() as target:
        assert web.send(Quiet(when_advanced=lambda: seen.append(web.stored(0)))) == [None]
        wait(target)
        assert web.stored(1)
        (record,) = target.state.set_records("Web01")
        assert {image.sequence for image in target.store.images()} == {1}
        assert target.state.last_jobs()["Web01"].state == "succeeded"
        assert len(record.images) == 2
    assert seen and all(seen), "the store was as it was for as long as anything arrived"
    assert web.drives.names() == [] and web.drives.in_use == []


def test_the_node_is_not_warned_where_a_set_is_always_complete(web: CachingBox) -> None:
    web.change(1)
    with web.box.running() as target:
        (outcome,) = web.box.send(web.nodes["Web01"].outgoing()).servers
        wait(target)
    assert outcome.warnings == ()


def test_what_the_store_has_is_a_base_and_only_the_difference_is_sent_and_written(web: CachingBox) -> None:
    content = bytearray(web.nodes["Web01"].disks["Web01_0"])
    content[100_000:100_010] = b"0123456789"
    web.nodes["Web01"].disks["Web01_0"] = bytes(content)
    with web.box.running() as target:
        before = web.box.store_folder / "Web01_Web01_0_1.raw"
        inode = before.stat().st_ino
        outcome = web.box.send(web.nodes["Web01"].outgoing())
        wait(target)
        assert outcome.succeeded and outcome.wire_bytes < 100_000
        assert before.stat().st_ino == inode and web.box.image("Web01_Web01_0_1") == content


def test_a_box_that_dies_before_the_copy_finishes_it_at_its_next_start_without_the_node(web: CachingBox) -> None:
    web.change(1)
    with web.box.running() as target:
        target.stopping.set()  # as if it died: the copy ends at its first chunk
        assert web.send() == [None]
        wait(target)
        assert web.stored(0), "the last set is whole until the cached one has been read and found right"
        (waiting,) = cached_sets.all_of_them(target.config.state)
    assert web.drives.names() == ["Web01_Web01_0_1.raw", "Web01_Web01_1_1.raw"]
    with web.box.running() as target:
        wait(target)
        assert web.stored(1)
        (record,) = target.state.set_records("Web01")
        assert (record.job_id, record.received_at) == (waiting.job_id, waiting.received_at)
    assert web.drives.names() == [] and cached_sets.all_of_them(web.box.config.state) == ()


@pytest.mark.parametrize("chunk", range(1, 6))
def test_whenever_the_copy_stops_a_complete_set_is_in_the_store_or_on_the_drive(
    web: CachingBox, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    web.change(1)
    scan, left = cached_copy.scan, [chunk]

    def dying(source, size_bytes, digester, advanced, to=None):  # type: ignore[no-untyped-def]
        def counted(length_bytes: int) -> None:
            left[0] -= 1
            if left[0] <= 0:
                web_target.stopping.set()
            advanced(length_bytes)

        return scan(source, size_bytes, digester, counted, to)

    monkeypatch.setattr(cached_copy, "scan", dying)
    with web.box.running() as web_target:
        assert web.send() == [None]
        wait(web_target)
        stored = {image.sequence for image in web_target.store.images()}
    on_drive = {name: (web.drives.folder("/dev/sdb") / name).read_bytes() for name in web.drives.names()}
    if on_drive:
        assert on_drive == {f"Web01_{disk}_1.raw": content for disk, content in two_disks(1).items()}
    else:
        assert stored == {1}
    monkeypatch.undo()
    with web.box.running() as target:
        wait(target)
        assert web.stored(1)
    assert web.drives.names() == []


def test_a_job_that_breaks_leaves_the_store_alone_and_the_next_one_resumes_on_the_drive(web: CachingBox) -> None:
    web.nodes["Web01"].disks = {"Web01_0": noise(40 * MIB, 5)}
    with web.box.running() as target:
        with pytest.raises(PeerGoneError):
            web.box.send(web.nodes["Web01"].outgoing(), break_after_bytes=32 * MIB)
        assert {image.sequence for image in target.store.images()} == {1}
        assert web.drives.names() == ["Web01_Web01_0_incomplete.raw"]
        while target.is_busy("Web01"):
            time.sleep(0.01)
        outcome = web.box.send(web.nodes["Web01"].outgoing())
        assert outcome.succeeded and outcome.wire_bytes < 12 * MIB
        wait(target)
        assert web.box.image("Web01_Web01_0_1") == web.nodes["Web01"].disks["Web01_0"]


def test_several_servers_are_cached_together_and_copied_after_the_last_one(tmp_path: Path) -> None:
    both = CachingBox(tmp_path, {"/dev/sdb": 64 * MIB}, ["Web01", "Db01"])
    both.change(1)
    seen: List[bool] = []
    with both.box.running() as target:
        assert both.send(Quiet(when_advanced=lambda: seen.append(both.stored(0)))) == [None, None]
        wait(target)
        assert all(seen) and both.stored(1)
    assert both.drives.names() == []


def test_servers_that_do_not_fit_together_are_cached_copied_and_freed_one_at_a_time(tmp_path: Path) -> None:
    both = CachingBox(tmp_path, {"/dev/sdb": 9 * MIB}, ["Web01", "Db01"])
    both.change(1)
    on_drive: List[List[str]] = []
    with both.box.running() as target:
        assert both.send(Quiet(when_advanced=lambda: on_drive.append(both.drives.names()))) == [None, None]
        wait(target)
        assert both.stored(1)
    assert not any({name[:3] for name in names} >= {"Web", "Db0"} for names in on_drive)
    assert any(names and names[0].startswith("Db01") for names in on_drive)


def test_a_server_too_large_for_any_drive_goes_to_the_store_with_a_warning(tmp_path: Path) -> None:
    small = CachingBox(tmp_path, {"/dev/sdb": 2 * MIB}, ["Web01"])
    small.change(1)
    with small.box.running():
        (outcome,) = small.box.send(small.nodes["Web01"].outgoing()).servers
        assert outcome.error is None and "no cache drive with room" in outcome.warnings[0]
        assert small.stored(1)


def test_a_server_too_large_for_any_drive_is_refused_where_a_cache_drive_is_required(tmp_path: Path) -> None:
    small = CachingBox(tmp_path, {"/dev/sdb": 2 * MIB}, ["Web01"], require_cache=True)
    small.change(1)
    with small.box.running():
        (error,) = small.send()
        assert "require_cache" in str(error) and small.stored(0)


def test_a_drive_that_is_pulled_fails_its_server_by_name_and_the_next_job_works(web: CachingBox) -> None:
    for pulled_at in range(1, 8):
        web.change(pulled_at)
        web.drives.checks = 0

        def pull(count: int, at: int = pulled_at) -> None:
            if count == at:
                web.drives.pulled.append("/dev/sdb")

        web.drives.when_checked = pull
        with web.box.running() as target:
            (error,) = web.send()
            wait(target)
            if error is not None:
                assert "/dev/sdb" in str(error) and web.stored(0)
            web.drives.when_checked = lambda count: None
            web.drives.pulled.clear()
            for thread in cached_copy.resume(target):
                thread.join()
            assert web.send() == [None]
            wait(target)
            assert web.stored(pulled_at)
            web.change(0)
            assert web.send() == [None]
            wait(target)
            assert web.stored(0)


def test_a_set_whose_bytes_rotted_on_the_drive_is_not_copied_over_the_last_good_one(web: CachingBox) -> None:
    web.change(1)
    with web.box.running() as target:
        target.stopping.set()
        assert web.send() == [None]
        wait(target)
    with open(web.drives.folder("/dev/sdb") / "Web01_Web01_1_1.raw", "r+b") as file:
        file.write(b"rot")
    with web.box.running() as target:
        wait(target)
        assert web.stored(0)
        assert [one.server for one in cached_sets.all_of_them(target.config.state)] == ["Web01"]
        assert web.send() == [None], "the next job does without it"
        wait(target)
        assert web.stored(1)


def test_firmware_state_goes_through_the_cache_too(web: CachingBox) -> None:
    web.change(1)
    with web.box.running() as target:
        sent = replace(web.nodes["Web01"].outgoing(), firmware={"nvram": b"variables", "tpm/tpm2-00.permall": b"t"})
        assert web.box.send(sent).succeeded
        wait(target)
        assert web.stored(1)
    assert (web.box.folder / "definitions" / "nvram" / "Web01.fd").read_bytes() == b"variables"


def test_half_an_image_of_a_server_of_another_job_makes_room(tmp_path: Path) -> None:
    both = CachingBox(tmp_path, {"/dev/sdb": 9 * MIB}, ["Web01", "Db01"])
    with both.box.running() as target:
        both.change(1)
        with pytest.raises(PeerGoneError):
            both.box.send(both.nodes["Web01"].outgoing(), break_after_bytes=1)
        assert both.drives.names() and both.stored(0)
        while target.is_busy("Web01"):
            time.sleep(0.01)
        assert both.box.send(both.nodes["Db01"].outgoing()).succeeded
        wait(target)
        assert both.box.image("Db01_Db01_0_1") == two_disks(1, "Db01")["Db01_0"]


def test_no_drive_is_used_where_more_copies_are_kept(tmp_path: Path) -> None:
    two = CachingBox(tmp_path, {"/dev/sdb": 64 * MIB}, ["Web01"])
    two.box.config = replace(two.box.config, copies=2)
    with two.box.running() as target:
        assert two.send(Quiet(when_advanced=lambda: two.drives.names() == [])) == [None]
        assert {image.sequence for image in target.store.images()} == {1, 2}
        assert INCOMPLETE not in {image.sequence for image in target.store.images()}
    assert two.drives.checks == 0


class OldConversation(Conversation):
    """Of a node that does not know that a server may begin again."""

    def next(self) -> Tuple[Kind, memoryview]:
        try:
            return super().next()
        except Refused as refused:
            refused.again = False
            raise


class OldSender(JobSender):
    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, node="old", observer=Quiet(), compress=False)
        self._conversation = OldConversation(channel)


def test_a_drive_that_fails_is_left_for_another_in_the_same_job_and_the_server_stays_off(tmp_path: Path) -> None:
    both = CachingBox(tmp_path, {"/dev/sdb": 64 * MIB, "/dev/sdc": 32 * MIB}, ["Web01"])
    both.drives.unwritable.append("/dev/sdb")
    both.change(1)
    shut_down: List[bool] = []

    @contextmanager
    def off() -> Iterator[None]:
        shut_down.append(True)
        yield

    with both.box.running() as target:
        (outcome,) = both.box.send(replace(both.nodes["Web01"].outgoing(), keep_off=off)).servers
        wait(target)
        assert outcome.error is None and both.stored(1)
        assert any("/dev/sdb" in warning and "sent again" in warning for warning in outcome.warnings)
        assert shut_down == [True]
        assert target.state.last_jobs()["Web01"].state == "succeeded"
        both.change(2)
        (outcome,) = both.box.send(both.nodes["Web01"].outgoing()).servers
        wait(target)
        assert outcome.warnings == () and both.stored(2), "it is not tried first any more"


def test_where_every_drive_fails_the_server_fails_with_the_last_one_named(tmp_path: Path) -> None:
    both = CachingBox(tmp_path, {"/dev/sdb": 64 * MIB, "/dev/sdc": 32 * MIB}, ["Web01"])
    both.drives.unwritable += ["/dev/sdb", "/dev/sdc"]
    both.change(1)
    with both.box.running() as target:
        (error,) = both.send()
        assert "/dev/sdc" in str(error) and both.stored(0)
        both.drives.unwritable.clear()
        assert both.send() == [None]
        wait(target)
        assert both.stored(1)


def test_an_older_node_goes_on_with_its_next_server(tmp_path: Path) -> None:
    both = CachingBox(tmp_path, {"/dev/sdb": 64 * MIB, "/dev/sdc": 32 * MIB}, ["Web01", "Db01"])
    both.drives.unwritable.append("/dev/sdb")
    both.change(1)
    with both.box.running() as target:
        channel = both.box.connect()
        sender = OldSender(channel)
        outcome = sender.run("nightly", tuple(node.outgoing() for node in both.nodes.values()))
        channel.close()
        wait(target)
        assert [one.error is None for one in outcome.servers] == [False, True]
        assert "/dev/sdb" in str(outcome.servers[0].error)
