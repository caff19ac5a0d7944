"""What the node's end of a session owes its servers when the other end misbehaves."""

from __future__ import annotations

import os
import random
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping

import pytest

from anvil_dr.errors import PeerGoneError, PeerStandstillError, RemoteError, SourceError
from anvil_dr.sending.job import OutgoingServer
from anvil_dr.sending.send import JobSender
from anvil_dr.wire import digest
from anvil_dr.wire.channel import Channel, KeepAlive, frame_buffer
from anvil_dr.wire.protocol import (
    DiskReady,
    Error,
    Job,
    JobPlan,
    Kind,
    Message,
    ServerPlan,
    ServerReady,
    Welcome,
    decode,
)
from tests.doubles.dr_box import DrBox, Node, Quiet


def node(tmp_path: Path, **disks: bytes) -> Node:
    return Node(tmp_path / "node", disks=disks or {"Web01_0": random.Random(1).randbytes(5000)})


@contextmanager
def watched_off(events: List[str]) -> Iterator[None]:
    events.append("off")
    try:
        yield
    finally:
        events.append("on")


Script = Callable[[Channel, Callable[[Message], None]], None]


@contextmanager
def scripted_target(after_ready: Script) -> Iterator[Channel]:
    """A target that takes any job and its first server, then does as it is told; yields the node's end."""
    ends = [Channel(fd, fd, silence_seconds=30) for fd in (one.detach() for one in socket.socketpair())]
    ours, theirs = ends

    def say(message: Message) -> None:
        theirs.send(message.kind, message.encode())

    def run() -> None:
        buffer = frame_buffer()
        theirs.receive(buffer)
        say(Welcome(1, digest.available()[0], (), "dr01", 4))
        job = decode(Job, theirs.receive(buffer)[1])
        say(JobPlan("job-1", tuple(ServerPlan(server.name) for server in job.servers)))
        theirs.receive(buffer)
        first = job.servers[0]
        say(ServerReady(first.name, tuple(DiskReady(disk.name, False) for disk in first.disks)))
        after_ready(theirs, say)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ours
    finally:
        ours.abandon()
        thread.join()
        for end in ends:
            end.close()


def send(channel: Channel, server: OutgoingServer) -> None:
    JobSender(channel, node="an-a01n01", observer=Quiet()).run("nightly", (server,))


def test_the_words_of_a_target_that_ends_the_session_reach_the_admin(tmp_path: Path) -> None:
    events: List[str] = []

    def broken(theirs: Channel, say: Callable[[Message], None]) -> None:
        say(Error("State", "the state database is full"))

    with scripted_target(broken) as channel, pytest.raises(RemoteError, match="the state database is full"):
        send(channel, replace(node(tmp_path).outgoing(), keep_off=lambda: watched_off(events)))
    assert events == ["off", "on"]


@pytest.mark.parametrize("heard", [Kind.HELLO, Kind.JOB, Kind.SERVER_BEGIN, Kind.DISK_BEGIN, Kind.DATA])
def test_the_words_of_a_target_that_listens_no_more_reach_the_admin_too(tmp_path: Path, heard: Kind) -> None:
    """They lie in front of the end of the connection, while the node finds out that it cannot write."""
    web = node(tmp_path, Web01_0=random.Random(1).randbytes(4 << 20))
    answers: Dict[Kind, Message] = {
        Kind.HELLO: Welcome(1, digest.available()[0], (), "dr01", 4),
        Kind.JOB: JobPlan("job-1", (ServerPlan("Web01"),)),
        Kind.SERVER_BEGIN: ServerReady("Web01", (DiskReady("Web01_0", False),)),
    }

    def leave(from_node: int, to_node: int) -> None:
        target = Channel(from_node, to_node, silence_seconds=30)
        buffer = frame_buffer()
        kind = Kind.PING
        while kind is not heard:
            kind, _ = target.receive(buffer)
            if kind in answers:
                target.send(answers[kind].kind, answers.pop(kind).encode())
        os.close(from_node)
        for message in (*answers.values(), Error("Peer", "the DR service was stopped")):
            target.send(message.kind, message.encode())
        os.close(to_node)

    (from_node, node_out), (node_in, to_node) = os.pipe(), os.pipe()
    channel = Channel(node_in, node_out, silence_seconds=30)
    leaving = threading.Thread(target=leave, args=(from_node, to_node))
    leaving.start()
    with pytest.raises(RemoteError, match="the DR service was stopped"):
        send(channel, web.outgoing())
    leaving.join()
    channel.close()


def test_a_server_is_put_back_if_the_target_only_says_that_it_lives(tmp_path: Path) -> None:
    events: List[str] = []
    ended = threading.Event()

    def stuck(theirs: Channel, say: Callable[[Message], None]) -> None:
        with KeepAlive(theirs, every_seconds=0.01):
            ended.wait(20)

    with scripted_target(stuck) as channel:
        sender = JobSender(channel, node="an-a01n01", observer=Quiet(), standstill_seconds=0.1)
        server = replace(node(tmp_path).outgoing(), keep_off=lambda: watched_off(events))
        with pytest.raises(PeerStandstillError, match="nothing but keep-alives for 0.1 seconds"):
            sender.run("nightly", (server,))
        assert not ended.is_set() and events == ["off", "on"]
        ended.set()


@pytest.mark.slow
def test_a_server_is_put_back_even_if_the_target_takes_nothing_any_more(tmp_path: Path) -> None:
    events: List[str] = []
    web = node(tmp_path, Web01_0=random.Random(1).randbytes(64 << 20))
    stuck = threading.Event()

    def hung(theirs: Channel, say: Callable[[Message], None]) -> None:
        theirs.receive(frame_buffer())
        stuck.set()

    with scripted_target(hung) as channel:

        def interrupt() -> None:
            stuck.wait()
            channel.abandon()

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(PeerGoneError):
            send(channel, replace(web.outgoing(), keep_off=lambda: watched_off(events)))
        interrupter.join()
    assert events == ["off", "on"]


def test_firmware_state_is_read_when_the_server_is_off_even_if_it_has_grown(tmp_path: Path) -> None:
    events: List[str] = []

    def read() -> Mapping[str, bytes]:
        events.append("read")
        return {"nvram": b"after", "tpm/tpm2-00.permall": b"much longer than before"}

    outgoing = replace(
        node(tmp_path).outgoing(), keep_off=lambda: watched_off(events), read_firmware=read,
        firmware={"nvram": b"before", "tpm/tpm2-00.permall": b"short"},
    )  # fmt: skip
    box = DrBox(tmp_path)
    with box.running():
        assert box.send(outgoing).succeeded
    assert events == ["off", "read", "on"]
    assert (tmp_path / "definitions" / "nvram" / "Web01.fd").read_bytes() == b"after"
    kept = {path.name: path.read_bytes() for path in (tmp_path / "state" / "firmware").rglob("*") if path.is_file()}
    assert kept == {"nvram": b"after", "tpm2-00.permall": b"much longer than before"}


def test_firmware_state_without_bound_is_refused(tmp_path: Path) -> None:
    outgoing = replace(
        node(tmp_path).outgoing(), firmware={"nvram": b"x"}, read_firmware=lambda: {"nvram": bytes((64 << 20) + 1)}
    )
    box = DrBox(tmp_path)
    with box.running(), pytest.raises((RemoteError, PeerGoneError)):
        box.send(outgoing)
    assert not (tmp_path / "definitions" / "nvram").exists()


def test_firmware_state_that_has_gone_fails_its_server(tmp_path: Path) -> None:
    outgoing = replace(node(tmp_path).outgoing(), firmware={"nvram": b"x"}, read_firmware=dict)
    box = DrBox(tmp_path)
    with box.running():
        (outcome,) = box.send(outgoing).servers
    assert isinstance(outcome.error, SourceError) and "nvram" in str(outcome.error)


@pytest.mark.slow
def test_a_disk_that_is_written_while_another_one_is_sent_makes_the_set_fail(tmp_path: Path) -> None:
    disks: Dict[str, bytes] = {"Web01_0": b"a" * 5000, "Web01_1": random.Random(1).randbytes(40 << 20)}
    web, box = node(tmp_path, **disks), DrBox(tmp_path)
    seen = Quiet()

    def write_to_the_first() -> None:
        if ("disk", "Web01", "Web01_1", 40 << 20) in seen.told:
            with open(tmp_path / "node" / "Web01_0.img", "r+b") as file:
                file.write(b"b")

    seen.when_advanced = write_to_the_first
    with box.running():
        (outcome,) = box.send(web.outgoing(), observer=seen).servers
    assert "Web01_0.img changed while it was being imaged" in str(outcome.error)
    assert all(name.endswith("_incomplete.raw") for name in box.names())


def test_a_job_knows_what_its_target_calls_itself(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    with box.running():
        channel = box.connect()
        sender = JobSender(channel, node="an-a01n01", observer=Quiet())
        sender.run("nightly", (node(tmp_path).outgoing(),))
        channel.close()
    assert sender.target == "dr01"




@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_reading_thread_ends_the_session_and_puts_the_server_back(tmp_path: Path) -> None:
    events: List[str] = []

    def defect() -> None:
        raise ZeroDivisionError

    box = DrBox(tmp_path)
    with box.running(), pytest.raises(PeerGoneError):
        box.send(
            replace(node(tmp_path).outgoing(), keep_off=lambda: watched_off(events)),
            observer=Quiet(when_advanced=defect),
        )
    assert events == ["off", "on"]
