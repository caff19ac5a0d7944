"""What one node, or all of them together, can't take without end: attempts, names, memory."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest

from anvil_dr import firmware
from anvil_dr.activation import nodes
from anvil_dr.errors import PeerGoneError, ServiceError, StateError
from anvil_dr.model import Owner
from anvil_dr.receiving.failure_rate import FailureRate
from anvil_dr.receiving.receive_disk import DiskReceiver
from anvil_dr.receiving.recycled import KnownZeros
from anvil_dr.receiving.target import Target
from anvil_dr.records.state import State
from anvil_dr.stores.open_image import FileImage
from anvil_dr.wire import bulk
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.digest import SEGMENT_BYTES
from anvil_dr.wire.protocol import Firmware, Kind, ServerBegin
from tests.doubles.dr_box import DrBox, Node, uuid_of
from tests.doubles.intruder import DIGESTER, Intruder, offer

pytestmark = pytest.mark.slow


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Tuple[DrBox, Target, Node]]:
    """A box with a set of Web01."""
    box, web = DrBox(tmp_path), Node(tmp_path / "node", disks={"Web01_0": b"w" * 9000})
    box.limits = replace(box.limits, failures_of_one_node=3)
    with box.running() as target:
        assert box.send(web.outgoing()).succeeded
        yield box, target, web


def fail(box: DrBox, peer: str) -> str:
    with Intruder.by_relay(box, peer=peer) as node:
        node.raw(b"GET / HTTP/1.1\r\n")
        said = node.error()
        node.connection.recv(1)  # the relay is answered once the failure has been counted
        return said


# — attempts —


def test_a_node_whose_sessions_fail_again_and_again_has_to_wait_and_others_have_not(
    standing: Tuple[DrBox, Target, Node],
) -> None:
    box, _, web = standing
    for _ in range(3):
        assert "does not speak this protocol" in fail(box, "10.0.0.1")
    for _ in range(2):
        assert "3 sessions of 10.0.0.1 have failed within a minute; wait one" in fail(box, "10.0.0.1")
    assert "does not speak this protocol" in fail(box, "10.0.0.2")
    assert box.send(web.outgoing()).succeeded


def test_one_key_cannot_take_all_the_sessions_from_addresses_without_end(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    box.limits = replace(box.limits, sessions_of_one_node=1)

    def heard(allowed: str, address: str) -> str:
        with Intruder.by_relay(box, (allowed,), address) as node:
            node.say(ServerBegin("Web01"))
            return node.error()

    with box.running(), Intruder.by_relay(box, ("Web*",), "2001:db8::1") as first, Intruder.by_relay(box) as free:
        for node in (first, free):
            node.hello()
            node.hear(Kind.WELCOME)
        assert "as many as one node may have" in heard("Web*", "2001:db8::2")
        for other in (("Db*", "2001:db8::3"), ("*", "2001:db8::4")):
            assert "SERVER_BEGIN came where HELLO was due" in heard(*other)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_failed_more_than_a_minute_ago_does_not_count() -> None:
    clock = Clock()
    rate = FailureRate(2, clock=clock)
    for at in (0.0, 50.0):
        clock.now = at
        assert not rate.is_too_high("a")
        rate.note("a")
    assert rate.is_too_high("a") and not rate.is_too_high("b")
    clock.now = 60.0
    assert not rate.is_too_high("a")


def test_of_nodes_without_number_those_that_failed_last_are_remembered() -> None:
    rate = FailureRate(1)
    for number in range(3000):
        rate.note(f"node {number}")
    assert rate.is_too_high("node 2999") and rate.is_too_high("node 1976")
    assert not rate.is_too_high("node 1975")


# — names —


def refusals(box: DrBox, server: str, disks: int = 2) -> List[str]:
    """What is refused of a job that is announced and never sent."""
    with Intruder(box) as node:
        node.announce(offer(server, {f"{server}_{number}": 4096 for number in range(disks)}))
        return list(node.refusals().values())


def test_names_that_were_only_claimed_are_given_back_when_there_are_too_many(
    standing: Tuple[DrBox, Target, Node],
) -> None:
    box, target, web = standing
    target.names_known = 5
    for number in range(20):
        nodes.remember(box.config.state, f"Made-up{number}", nodes.Node("an-a01n01", "10.0.0.1", target.now()))
        assert refusals(box, f"Made-up{number}") == []
        with State.open(box.config.state, readonly=True) as state:
            assert len(state.owners()) <= 5
    for kept in ("servers", "nodes"):
        assert len(list((box.folder / "state" / kept).iterdir())) <= 5
    assert Owner("Web01", "Web01_0") in target.state.owners()
    assert box.send(web.outgoing()).succeeded


def test_a_box_that_is_full_of_names_takes_no_new_server_and_goes_on_with_those_it_has(
    standing: Tuple[DrBox, Target, Node],
) -> None:
    box, target, web = standing
    target.names_known = 2
    (refusal,) = refusals(box, "Made-up")
    assert "the DR box knows 1 disks already, as many as it takes (2)" in refusal
    assert target.state.owners() == (Owner("Web01", "Web01_0"),)
    assert box.send(web.outgoing()).succeeded


def test_the_names_of_a_job_that_is_running_are_not_given_back(standing: Tuple[DrBox, Target, Node]) -> None:
    box, target, _ = standing
    target.names_known = 3
    with Intruder(box) as node:
        node.announce(offer("Db01", {"Db01_0": 4096, "Db01_1": 4096}))
        assert node.refusals() == {}
        assert len(refusals(box, "Made-up", 1)) == 1
        assert Owner("Db01", "Db01_1") in target.state.owners()


# — memory —


def test_jobs_together_hold_no_more_firmware_state_than_may_be(standing: Tuple[DrBox, Target, Node]) -> None:
    box, target, _ = standing
    target._firmware_bytes = 1000
    first, second = (offer(name, firmware={"nvram": 600}) for name in ("Db01", "Mail01"))
    with Intruder(box) as holding, Intruder(box) as late:
        for node, server in ((holding, first), (late, second)):
            node.announce(server)
            node.say(ServerBegin(server.name), Firmware("nvram", 600))
            if node is holding:
                node.hear(Kind.SERVER_READY)
                node.record(Kind.FIRMWARE_DATA, b"1" * 600)
                node.send_zeros(server, end=False)
                node.hear(Kind.DISK_DONE)
        assert "as much firmware state of other jobs as it holds" in late.failure()
    with pytest.raises(ServiceError):
        target.hold_firmware("j", "Db01", 1001)


def test_what_a_job_held_is_free_again_when_it_is_done(standing: Tuple[DrBox, Target, Node]) -> None:
    box, target, _ = standing
    target._firmware_bytes = 1000
    for _ in range(3):
        server = offer("Db01", firmware={"nvram": 600})
        with Intruder(box) as node:
            node.announce(server)
            node.say(ServerBegin("Db01"), Firmware("nvram", 600))
            node.record(Kind.FIRMWARE_DATA, b"1" * 600)
            node.send_zeros(server)
            node.hear(Kind.SERVER_DONE)
            node.job_end()
            node.hear(Kind.JOB_DONE)


def firmware_of(server: str, announced_bytes: int, bytes_sent: int) -> Callable[[Intruder], None]:
    """A server with that much firmware state, from its announcement to its end."""

    def act(node: Intruder) -> None:
        announced = offer(server, firmware={"nvram": announced_bytes})
        node.announce(announced)
        node.say(ServerBegin(server), Firmware("nvram", bytes_sent))
        node.record(Kind.FIRMWARE_DATA, bytes(bytes_sent))
        node.send_zeros(announced)

    return act


def test_all_sets_together_keep_no_more_firmware_state_than_may_be(standing: Tuple[DrBox, Target, Node]) -> None:
    box, target, web = standing
    target.firmware_kept_bytes = 1000
    with Intruder(box) as node:
        firmware_of("Db01", 600, 600)(node)
        node.hear(Kind.SERVER_DONE)
    with Intruder(box) as node:
        node.announce(offer("Mail01", firmware={"nvram": 600}))
        assert "keeps 600 B of firmware state" in node.refusals()["Mail01"]
    with Intruder(box) as node:
        firmware_of("Mail01", 100, 600)(node)
        assert "over 1000 B: remove images that nobody needs" in node.failure()
    assert box.send(web.outgoing()).succeeded


def test_firmware_state_that_would_fill_the_states_file_system_is_refused(tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    with pytest.raises(StateError, match="make room there"):
        firmware.check_room(str(tmp_path), facts.f_bavail * facts.f_frsize, most_bytes=1 << 60)


# — time —


def test_zeros_without_end_are_given_up_as_soon_as_the_session_is(tmp_path: Path) -> None:
    size_bytes = 1000 * SEGMENT_BYTES
    image = FileImage(os.open(tmp_path / "image", os.O_CREAT | os.O_RDWR), "image", size_bytes)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(os.dup(ours.fileno()), os.dup(ours.fileno()), silence_seconds=30)
        receiver = DiskReceiver(
            channel, DIGESTER, Owner("Web01", "Web01_0"), size_bytes,
            image=image, recycled=KnownZeros(DIGESTER), newest=None, window=16,
        )  # fmt: skip
        channel.abandon()
        with pytest.raises(PeerGoneError):
            receiver.handle(Kind.ZEROS, memoryview(bulk.pack_run(0, 1000)))
        assert receiver.done_bytes == 0
        channel.close()
        image.close()


# — identities —


def test_a_server_with_the_uuid_of_another_is_refused_and_told_what_to_do(standing: Tuple[DrBox, Target, Node]) -> None:
    box, _, web = standing
    twin = Node(box.folder / "other", "App9", uuid_of("Web01").upper().replace("-", ""), disks={"App9_0": b"a"})
    definition = box.folder / "definitions" / "Web01.xml"
    error = str(box.send(twin.outgoing()).servers[0].error)
    assert "is that of server Web01" in error and f"remove {definition} on the DR box" in error
    assert box.send(web.outgoing()).succeeded
    definition.unlink()
    assert box.send(twin.outgoing()).succeeded


def test_of_two_servers_of_one_job_with_one_uuid_the_first_is_taken(standing: Tuple[DrBox, Target, Node]) -> None:
    box, _, _ = standing
    one, two = (Node(box.folder / name, name, uuid_of("A"), disks={f"{name}_0": b"a"}) for name in ("A", "B"))
    first, second = box.send(one.outgoing(), two.outgoing()).servers
    assert first.error is None and "is that of server A" in str(second.error)


def test_a_definition_that_is_here_already_is_the_admins_whatever_uuid_it_has(
    standing: Tuple[DrBox, Target, Node],
) -> None:
    box, _, web = standing
    (box.folder / "definitions" / "Old.xml").write_text(web.definition(["Web01_0"]).replace(">Web01<", ">Old<"))
    assert box.send(web.outgoing()).succeeded
