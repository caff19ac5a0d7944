"""The ssh end: descriptors cross to the service, and whoever stands at the end of the pipe learns how it went."""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

import pytest

from anvil_dr import relay
from anvil_dr.errors import AnvilDrError, ProtocolError, RemoteError, ServiceError, UsageError
from anvil_dr.relay import Introduction
from anvil_dr.sending.job import JobOutcome, OutgoingServer
from anvil_dr.sending.send import JobSender
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.protocol import Error, Hello, Kind, Message, decode
from tests.doubles.dr_box import DrBox, Node, Quiet

pytestmark = pytest.mark.slow

RECEIVE = Path(__file__).resolve().parents[2] / "bin" / "anvil-dr-receive"
WHO = Introduction("10.20.10.1", ("Web*", "Db01"))


def node(tmp_path: Path, name: str = "Web01") -> Node:
    return Node(tmp_path / f"node-{name}", name, disks={f"{name}_0": os.urandom(100_000)})


def open_descriptors() -> List[str]:
    return sorted(os.listdir("/proc/self/fd"))


@pytest.fixture
def pair() -> Iterator[Tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


# — handing over —


def test_both_directions_work_from_the_service_and_nothing_it_runs_inherits_them(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    (node_in, to_node), (from_node, node_out) = os.pipe(), os.pipe()
    ended: List[bool] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        process = threading.Thread(target=lambda: ended.append(relay.hand_over(path, WHO, from_node, to_node)))
        process.start()
        connection, _ = listener.accept()
        introduction, in_fd, out_fd = relay.take_over(connection)
        assert introduction == WHO
        for fd in (in_fd, out_fd):
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.write(node_out, b"from the node")
        os.write(out_fd, b"from the box")
        assert (os.read(in_fd, 100), os.read(node_in, 100)) == (b"from the node", b"from the box")
        connection.sendall(relay.SUCCEEDED)
        process.join()
        connection.close()
    assert ended == [True]
    for fd in (node_in, to_node, from_node, node_out, in_fd, out_fd):
        os.close(fd)


def answered(tmp_path: Path, answer: bytes) -> bool:
    """What hand_over says to a service that answers so and goes."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener, open_pipe() as (reading, writing):
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            connection.sendall(answer)
            connection.close()  # with what the relay said unread, as a service does that turns it away

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            return relay.hand_over(path, WHO, reading, writing)
        finally:
            serving.join()


@contextmanager
def open_pipe() -> Iterator[Tuple[int, int]]:
    fds = os.pipe()
    yield fds
    for fd in fds:
        os.close(fd)


def frame(message: Message) -> bytes:
    content = message.encode()
    return bytes([message.kind, 0, 0, 0]) + len(content).to_bytes(4, "big") + content


def test_the_service_s_answer_is_the_relay_s(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert answered(tmp_path / "a", b"0") is True
    assert answered(tmp_path / "b", b"1") is False


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (frame(Error("Service", "the DR box is busy")), "^the DR box is busy$"),
        (b"", "^the DR service ended in the middle of the session$"),
        (frame(Error("Service", "the DR box is busy"))[:20], "cannot be understood"),
        (b"HTTP/1.1 400 Bad Request", "cannot be understood: frame type 72"),
        (bytes([Kind.ERROR, 0, 0, 0, 255, 255, 255, 255]), "cannot be understood"),
    ],
)
def test_a_service_that_does_not_take_the_session_is_quoted(tmp_path: Path, answer: bytes, said: str) -> None:
    with pytest.raises(ServiceError, match=said):
        answered(tmp_path, answer)


def test_a_service_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with open_pipe() as (reading, writing):
        with pytest.raises(ServiceError, match=r"does not answer at .*/none \(No such file.*systemctl status anvil-dr"):
            relay.hand_over(str(tmp_path / "none"), WHO, reading, writing)


def test_only_pipes_and_sockets_are_handed_over(tmp_path: Path) -> None:
    with open_pipe() as (reading, writing), open(tmp_path / "file", "w+b") as file:
        controller, terminal = pty.openpty()
        for in_fd, out_fd, complaint in (
            (terminal, writing, "standard input is a terminal; a node's ssh must be called without -t"),
            (reading, terminal, "standard output is a terminal"),
            (file.fileno(), writing, "standard input is no pipe"),
            (9999, writing, "standard input is closed"),
        ):
            with pytest.raises(UsageError, match=complaint):
                relay.hand_over(str(tmp_path / "sock"), WHO, in_fd, out_fd)
        assert os.get_blocking(terminal), "the user's terminal is left as it is"
        os.close(controller)
        os.close(terminal)


# — taking over —


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"RELAY 2 {}\n",
        b"RELAY 1 \n",
        b"RELAY 1 {}\n",
        b"RELAY 1 []\n",
        b"RELAY 1 " + b"[" * 50_000 + b"\n",
        b'RELAY 1 {"peer": 5, "allowed": []}\n',
        b'RELAY 1 {"peer": "n", "allowed": "*"}\n',
        b'RELAY 1 {"peer": "n", "allowed": [1]}\n',
        b'RELAY 1 {"peer": "' + b"n" * 256 + b'", "allowed": []}\n',
        b'RELAY 1 {"peer": "n", "allowed": ["*"]}',
        b"RELAY 1 " + b"x" * (64 << 10),
        b"",
    ],
)
def test_an_introduction_that_makes_no_sense_is_refused_and_its_descriptors_closed(
    pair: Tuple[socket.socket, socket.socket], line: bytes
) -> None:
    ours, theirs = pair
    with open_pipe() as fds:
        before = open_descriptors()
        if line:
            socket.send_fds(theirs, [line], list(fds))
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ProtocolError, match="the relay cannot be understood"):
            relay.take_over(ours)
        assert open_descriptors() == before


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_descriptors_are_refused(pair: Tuple[socket.socket, socket.socket], number: int) -> None:
    ours, theirs = pair
    with open_pipe() as fds:
        before = open_descriptors()
        socket.send_fds(theirs, [WHO.line()], list(fds[:number]))
        with pytest.raises(ProtocolError, match=f"it handed over {number} descriptors, not 2"):
            relay.take_over(ours)
        assert open_descriptors() == before


def test_more_descriptors_than_two_do_not_stay_open(pair: Tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with open_pipe() as fds:
        before = open_descriptors()
        socket.send_fds(theirs, [WHO.line()], list(fds) * 50)
        _, in_fd, out_fd = relay.take_over(ours)
        assert len(open_descriptors()) == len(before) + 2
        os.close(in_fd)
        os.close(out_fd)


def test_a_file_is_not_taken_over(pair: Tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    ours, theirs = pair
    with open_pipe() as (reading, _), open(tmp_path / "file", "wb") as file:
        socket.send_fds(theirs, [WHO.line()], [reading, file.fileno()])
        with pytest.raises(ProtocolError, match="neither a pipe nor a socket"):
            relay.take_over(ours)


def test_a_relay_that_says_only_half_is_given_up(pair: Tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.settimeout(0.1)
    with open_pipe() as fds:
        before = open_descriptors()
        socket.send_fds(theirs, [WHO.line()[:10]], list(fds))
        with pytest.raises(ProtocolError, match="the relay cannot be understood: timed out"):
            relay.take_over(ours)
        assert open_descriptors() == before


# — the command, with a service at the other end —


@contextmanager
def receiving(box: DrBox, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """anvil-dr-receive as sshd runs it."""
    file = box.folder / "target.yaml"
    file.write_text(f"store: fs:{box.store_folder}\nruntime: {box.config.runtime}\n")
    process = subprocess.Popen(
        [RECEIVE, "--config", file, *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"SSH_CONNECTION": "10.20.10.1 50022 10.20.4.1 22"},
    )  # fmt: skip
    with process:
        yield process


def channel_to(process: subprocess.Popen[bytes]) -> Channel:
    assert process.stdin is not None and process.stdout is not None
    channel = Channel(os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno()), silence_seconds=30)
    process.stdin.close()
    process.stdout.close()
    return channel


def send(process: subprocess.Popen[bytes], servers: Sequence[OutgoingServer]) -> JobOutcome:
    channel = channel_to(process)
    try:
        return JobSender(channel, node="an-a01n01", observer=Quiet()).run("nightly", tuple(servers))
    finally:
        channel.close()


def ended(process: subprocess.Popen[bytes]) -> Tuple[int, str]:
    assert process.stderr is not None
    said = process.stderr.read().decode()
    return process.wait(), said


def test_a_job_goes_through_the_command_and_its_exit_code_is_the_job_s(tmp_path: Path) -> None:
    box, web, other = DrBox(tmp_path), node(tmp_path), node(tmp_path, "Db01")
    with box.running() as target:
        with receiving(box) as process:
            assert send(process, [web.outgoing()]).succeeded
            assert ended(process) == (0, "")
        assert box.image("Web01_Web01_0_1") == web.disks["Web01_0"]
        assert target.state.set_records("Web01")[0].source == "an-a01n01"
        with receiving(box, "--allow", "Web*", "--allow", "Mail01") as process:
            refused, done = send(process, [other.outgoing(), web.outgoing()]).servers
            assert ended(process) == (1, ""), "what was wrong has been said in the session"
    assert isinstance(refused.error, RemoteError) and refused.error.remote_code == "NotAllowed"
    assert str(refused.error) == "this key is not allowed to send server Db01"
    assert done.error is None
    assert box.names() == ["Web01_Web01_0_1.raw", "Web01_Web01_0_2.raw"]


def test_a_node_without_a_name_is_called_by_its_address(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path)
    with box.running() as target, receiving(box) as process:
        channel = channel_to(process)
        JobSender(channel, node="", observer=Quiet()).run("nightly", (web.outgoing(),))
        channel.close()
        assert ended(process) == (0, "")
        assert target.state.set_records("Web01")[0].source == "10.20.10.1"


def test_without_a_service_there_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with receiving(DrBox(tmp_path)) as process:
        code, said = ended(process)
    assert code == 1
    assert said.startswith("anvil-dr-receive: the DR service does not answer at ") and said.count("\n") == 1


def test_a_terminal_is_refused_with_what_to_do(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    box = DrBox(tmp_path)
    (tmp_path / "target.yaml").write_text(f"store: fs:{box.store_folder}\n")
    done = subprocess.run(
        [RECEIVE, "--config", tmp_path / "target.yaml"],
        stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(controller)
    os.close(terminal)
    assert done.returncode == 2
    assert done.stderr == b"anvil-dr-receive: standard input is a terminal; a node's ssh must be called without -t\n"


def said_to(channel: Channel) -> Optional[str]:
    """The reason for which the service ends a session."""
    kind, content = channel.receive(frame_buffer())
    return decode(Error, content).message if kind is Kind.ERROR else None


def test_a_node_may_not_ask_for_the_status_of_others(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    with box.running(), receiving(box) as process:
        channel = channel_to(process)
        channel.send(Kind.HELLO, Hello((1,), ("sha256",), purpose="status").encode())
        assert said_to(channel) == "'status' is nothing this box can be asked"
        channel.close()
        assert ended(process) == (1, "")


def test_a_service_that_is_stopped_tells_the_node_and_the_relay_ends_with_1(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    with receiving(box) as process:
        with box.running():
            channel = channel_to(process)
            channel.send(Kind.HELLO, Hello((1,), ("sha256",)).encode())
            assert channel.receive(frame_buffer())[0] is Kind.WELCOME
        assert said_to(channel) == "the DR service was stopped"
        channel.close()
        assert ended(process) == (1, "")


def test_one_node_cannot_take_all_the_sessions(tmp_path: Path) -> None:
    box, web = DrBox(tmp_path), node(tmp_path)
    box.limits = replace(box.limits, sessions_of_one_node=1)
    with box.running(), receiving(box) as first:
        channel = channel_to(first)
        channel.send(Kind.HELLO, Hello((1,), ("sha256",)).encode())
        assert channel.receive(frame_buffer())[0] is Kind.WELCOME
        with receiving(box) as second:
            turned_away = channel_to(second)
            assert said_to(turned_away) == "10.20.10.1 has 1 sessions, as many as one node may have"
            turned_away.close()
            assert ended(second) == (1, "")
        assert box.send(web.outgoing()).succeeded, "others are not held up by that"
        channel.close()
        assert ended(first) == (1, "")


def test_a_full_service_turns_the_relay_away_with_a_reason(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    box.limits = replace(box.limits, sessions=1)
    with box.running():
        idle = box.connect()
        with receiving(box) as process:
            assert ended(process) == (1, "anvil-dr-receive: the DR box is busy: it has 1 sessions\n")
        idle.close()


def test_other_users_of_the_box_may_not_speak_to_the_service_directly(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    box.direct_users = frozenset({os.geteuid() + 1})
    with box.running():
        channel = box.connect()
        channel.send(Kind.HELLO, Hello((1,), ("sha256",)).encode())
        expected = f"user {os.geteuid()} cannot speak to the service directly; use anvil-dr-receive"
        assert said_to(channel) == expected
        channel.close()
        with receiving(box) as process:  # the relay is for everybody whom the socket's mode lets in
            assert send(process, [node(tmp_path).outgoing()]).succeeded
            assert ended(process) == (0, "")


def test_what_the_session_said_already_is_not_said_again_by_the_command(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    with box.running(), receiving(box) as process:
        with pytest.raises(AnvilDrError, match="a job has 1 to 256 servers; this one has 0"):
            send(process, [])
        assert ended(process) == (1, "")
