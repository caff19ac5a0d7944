"""Frames over real descriptors: what arrives, what is refused, and that nobody waits for ever."""

from __future__ import annotations

import os
import socket
import threading
from typing import Iterator, List, Tuple

import pytest

from anvil_dr.errors import PeerGoneError, PeerStandstillError, PeerTimeoutError, ProtocolError
from anvil_dr.wire.channel import Channel, KeepAlive, frame_buffer
from anvil_dr.wire.pace import Pace
from anvil_dr.wire.protocol import FRAME_HEADER, Kind


@pytest.fixture
def ends() -> Iterator[Tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    fd = ours.detach()
    channel = Channel(fd, fd, silence_seconds=0.2)
    yield channel, theirs
    channel.close()
    theirs.close()


def test_a_frame_arrives_in_whatever_pieces_it_was_written(ends: Tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    frame = FRAME_HEADER.pack(Kind.DONE, 8) + b"abcdefgh"

    def dribble() -> None:
        for at in range(len(frame)):
            peer.sendall(frame[at : at + 1])

    writer = threading.Thread(target=dribble)
    writer.start()
    kind, content = channel.receive(frame_buffer())
    writer.join()
    assert (kind, bytes(content)) == (Kind.DONE, b"abcdefgh")
    assert channel.received_bytes == len(frame) == channel.wire_bytes


def test_pipes_do_as_well_as_a_socket_and_large_frames_do_not_deadlock() -> None:
    (in_a, out_b), (in_b, out_a) = os.pipe(), os.pipe()
    a, b = Channel(in_a, out_a), Channel(in_b, out_b)
    parts = [os.urandom(300_000) for _ in range(3)]
    sender = threading.Thread(target=lambda: a.send(Kind.DATA, *parts))
    sender.start()
    kind, content = b.receive(frame_buffer())
    sender.join()
    assert kind is Kind.DATA and bytes(content) == b"".join(parts)
    a.close()
    b.close()


def test_a_silent_peer_is_given_up(ends: Tuple[Channel, socket.socket]) -> None:
    with pytest.raises(PeerTimeoutError, match="silent for 0.2 seconds"):
        ends[0].receive(frame_buffer())


def test_a_peer_that_does_not_read_is_given_up(ends: Tuple[Channel, socket.socket]) -> None:
    with pytest.raises(PeerTimeoutError):
        for _ in range(100):
            ends[0].send(Kind.DATA, bytes(1 << 20))


def test_the_end_of_the_stream_in_the_middle_of_a_frame_is_noticed(ends: Tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    peer.sendall(FRAME_HEADER.pack(Kind.DONE, 8) + b"abc")
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerGoneError):
        channel.receive(frame_buffer())


@pytest.mark.parametrize(
    "header",
    [b"GET / HT", b"SSH-2.0-", FRAME_HEADER.pack(99, 0), FRAME_HEADER.pack(Kind.DATA, 2**32 - 1),
     FRAME_HEADER.pack(Kind.JOB, 9 << 20), FRAME_HEADER.pack(Kind.HELLO, 1 << 20)],
)  # fmt: skip
def test_garbage_and_frames_that_are_too_large_are_refused(
    ends: Tuple[Channel, socket.socket], header: bytes
) -> None:
    ends[1].sendall(header)
    with pytest.raises(ProtocolError, match="does not speak this protocol|too large"):
        ends[0].receive(frame_buffer())


def test_a_keep_alive_is_sent_in_silence_and_passed_over() -> None:
    one, other = socket.socketpair()
    fd, peer_fd = one.detach(), other.detach()
    channel, peer = Channel(fd, fd), Channel(peer_fd, peer_fd, silence_seconds=2)
    with KeepAlive(channel, every_seconds=0.01):
        with pytest.raises(PeerTimeoutError):
            Channel.receive(Impatient(peer), frame_buffer())
        assert peer.received_bytes >= 2 * FRAME_HEADER.size
    channel.close()
    peer.close()


class Impatient(Channel):
    """The same descriptors; loses patience with a peer that only says that it lives."""

    def __init__(self, channel: Channel) -> None:
        self.__dict__.update(channel.__dict__)
        self._channel, self._reads = channel, 0

    def _read(self, into: memoryview) -> None:
        self._reads += 1
        if self._reads > 4:
            raise PeerTimeoutError(0)
        super()._read(into)
        self._channel.received_bytes = self.received_bytes


def test_a_thread_that_waits_is_woken_when_the_session_is_abandoned() -> None:
    one, other = socket.socketpair()
    fd = one.detach()
    channel = Channel(fd, fd, silence_seconds=60)
    raised: List[BaseException] = []

    def wait() -> None:
        try:
            channel.receive(frame_buffer())
        except PeerGoneError as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    channel.abandon()
    waiting.join(10)
    assert raised and not waiting.is_alive()
    channel.close()
    other.close()


@pytest.mark.slow
def test_a_peer_that_dribbles_is_given_up_though_it_is_never_silent(ends: Tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    done = threading.Event()

    def dribble() -> None:
        for byte in FRAME_HEADER.pack(Kind.HELLO, 4000) + bytes(4000):
            if done.wait(0.02):
                return
            peer.sendall(bytes([byte]))

    dribbler = threading.Thread(target=dribble)
    dribbler.start()
    channel.expect_within(0.3, "HELLO")
    with pytest.raises(ProtocolError, match="HELLO did not come within 0.3 seconds"):
        channel.receive(frame_buffer())
    done.set()
    dribbler.join()
    channel.expect_within(None)
    with pytest.raises(PeerTimeoutError):
        channel.receive(frame_buffer())


@pytest.mark.slow
def test_a_peer_that_only_says_that_it_lives_is_waited_for_as_long_as_something_is_sent_to_it(
    ends: Tuple[Channel, socket.socket],
) -> None:
    channel, peer = ends
    sent: List[int] = []
    done = threading.Event()

    def talk() -> None:
        while not done.wait(0.01):
            peer.sendall(FRAME_HEADER.pack(Kind.PING, 0))
            if len(sent) < 30:
                sent.append(len(sent))
                channel.send(Kind.DONE, b"12345678")

    channel.expect_progress(0.2)
    talker = threading.Thread(target=talk)
    talker.start()
    with pytest.raises(PeerStandstillError):
        channel.receive(frame_buffer())
    done.set()
    talker.join()
    assert len(sent) == 30


def test_a_frame_larger_than_what_is_due_costs_no_memory(ends: Tuple[Channel, socket.socket]) -> None:
    ends[1].sendall(FRAME_HEADER.pack(Kind.JOB, 8 << 20))
    with pytest.raises(ProtocolError, match="a JOB frame of 8388608 bytes is too large here"):
        ends[0].receive(memoryview(b""), largest_bytes=4096)


def fill(channel: Channel) -> None:
    """Send until the peer, which does not read, takes no more; a frame is left broken off."""
    with pytest.raises(PeerTimeoutError):
        while True:
            channel.send(Kind.DATA, bytes(1 << 20))


def test_a_keep_alive_does_not_wait_for_a_peer_that_does_not_read() -> None:
    one, other = socket.socketpair()
    fd = one.detach()
    os.set_blocking(fd, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(fd, bytes(64 << 10))
    patient = Channel(fd, fd, silence_seconds=3600)
    with KeepAlive(patient, every_seconds=0.001):
        threading.Event().wait(0.05)
    assert patient.sent_bytes == 0
    other.close()
    patient.close()


def test_the_last_word_reaches_a_peer_also_after_the_session_was_abandoned(
    ends: Tuple[Channel, socket.socket],
) -> None:
    channel, peer = ends
    channel.abandon("the DR service was stopped")
    with pytest.raises(PeerGoneError, match="the DR service was stopped"):
        channel.send(Kind.DONE, b"12345678")
    channel.farewell(Kind.ERROR, b"why")
    assert peer.recv(100) == FRAME_HEADER.pack(Kind.ERROR, 3) + b"why"


def test_the_last_word_is_not_put_into_the_middle_of_a_frame(ends: Tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    fill(channel)
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            peer.recv(1 << 20)
    with pytest.raises(PeerGoneError, match="broken off"):
        channel.farewell(Kind.ERROR, b"why")
    channel.ping()
    with pytest.raises(BlockingIOError):
        peer.recv(1)


def test_the_last_word_to_a_peer_that_does_not_read_is_given_up_soon() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.write(writing, bytes(1 << 20))
    channel = Channel(os.dup(reading), writing, silence_seconds=3600)
    with pytest.raises(PeerTimeoutError):
        channel.farewell(Kind.ERROR, b"why", within_seconds=0.05)
    os.close(reading)
    channel.close()


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("record_bytes", [100, 4096, 1 << 20])
@pytest.mark.slow
def test_a_bandwidth_limit_holds_within_five_percent(record_bytes: int) -> None:
    clock, rate_bytes = Clock(), 10 << 20
    pace = Pace(rate_bytes, clock=clock, sleep=clock.sleep)
    sent = 0
    while clock.now < 5:
        pace.wait(record_bytes)
        sent += record_bytes
    assert sent / clock.now == pytest.approx(rate_bytes, rel=0.05)


@pytest.mark.parametrize("rate_bytes", [300_000, 2 << 20, 20 << 20])
@pytest.mark.slow
def test_a_limit_holds_over_any_few_seconds_however_long_the_frames_are(
    ends: Tuple[Channel, socket.socket], rate_bytes: int
) -> None:
    channel, peer = ends
    clock = Clock()
    seen: List[Tuple[float, int]] = []

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        seen.append((clock.now, channel.sent_bytes))

    channel.pace = Pace(rate_bytes, clock=clock, sleep=sleep)
    frames = 6 * rate_bytes // (1 << 20) + 1
    reader = threading.Thread(target=lambda: [peer.recv(1 << 20, socket.MSG_WAITALL) for _ in range(frames)])
    reader.start()
    for _ in range(frames):
        channel.send(Kind.DATA, bytes((1 << 20) - FRAME_HEADER.size))
    reader.join()
    for at, sent in seen:
        window = next(((later - at, then - sent) for later, then in seen if later >= at + 4), None)
        if window is not None:
            assert window[1] / window[0] == pytest.approx(rate_bytes, rel=0.05)
    assert clock.now > 5
    assert channel.waited_seconds >= clock.now * 0.95


def test_what_is_received_can_be_limited_whatever_the_peer_does(ends: Tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    clock = Clock()
    channel.pace_in = Pace(1 << 20, clock=clock, sleep=clock.sleep)
    sender = threading.Thread(target=lambda: peer.sendall((FRAME_HEADER.pack(Kind.DATA, 1 << 20) + bytes(1 << 20)) * 5))
    sender.start()
    for _ in range(5):
        channel.receive(frame_buffer())
    sender.join()
    assert clock.now == pytest.approx(5, rel=0.05)


def test_a_pause_is_not_made_up_for_later() -> None:
    clock = Clock()
    pace = Pace(1000, clock=clock, sleep=clock.sleep)
    pace.wait(1000)
    clock.now += 3600
    start, sent = clock.now, 0
    while clock.now < start + 10:
        pace.wait(100)
        sent += 100
    assert sent <= 1000 * 10 * 1.05


@pytest.mark.parametrize("direction", ["out", "in"])
def test_whoever_waits_for_a_low_limit_notices_within_a_second_that_the_session_is_over(
    ends: Tuple[Channel, socket.socket], direction: str
) -> None:
    channel, peer = ends
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        channel.abandon()

    pace = Pace(10, clock=clock, sleep=sleep)
    pace.wait(64 << 10)
    channel.pace = channel.pace_in = pace
    peer.sendall(FRAME_HEADER.pack(Kind.HELLO, 0))
    with pytest.raises(PeerGoneError):
        channel.send(Kind.PING) if direction == "out" else channel.receive(frame_buffer())
    assert clock.now <= 1
