"""The way to the DR box: what a destination may be, what ssh is told, and what is said when it fails."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import List, Optional, Tuple

import pytest

from anvil_dr import command
from anvil_dr.errors import CommandError, PeerGoneError, ServiceError, UsageError
from anvil_dr.sending.connect import (
    Destination,
    SshDestination,
    UnixDestination,
    connected,
    parse_destination,
    ssh_command,
)
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.protocol import Kind


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("ssh://dr01", SshDestination("dr01")),
        ("ssh://dr01/", SshDestination("dr01")),
        ("ssh://anvil-dr@DR01.example.com:2222", SshDestination("DR01.example.com", "anvil-dr", 2222)),
        ("ssh://[fd00::1]:22", SshDestination("fd00::1", None, 22)),
        ("ssh://10.255.4.10", SshDestination("10.255.4.10")),
        ("unix:/run/anvil-dr/target.sock", UnixDestination("/run/anvil-dr/target.sock")),
    ],
)
def test_a_destination_is_read_and_written_the_same(text: str, destination: Destination) -> None:
    assert parse_destination(text) == destination
    assert parse_destination(str(destination)) == destination


@pytest.mark.parametrize(
    "text",
    [
        "", "dr01", "dr01:/srv", "http://dr01", "ssh://", "ssh://dr01/srv", "ssh://dr01:port", "ssh://dr01:0",
        "ssh://dr01:70000", "ssh://user:secret@dr01", "ssh://-oProxyCommand=x", "ssh://-l@dr01", "ssh://dr01?x",
        "ssh://a%20b@dr01", "unix:target.sock", "unix:", "ssh://[fd00::1",
    ],
)  # fmt: skip
def test_what_cannot_be_a_destination_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a destination"):
        parse_destination(text)


def test_ssh_is_asked_for_the_receiving_command_and_never_asks_back() -> None:
    argv = ssh_command(SshDestination("dr01", "anvil-dr", 2222), identity="/root/.ssh/dr")
    assert argv[0] == "ssh" and argv[-3:] == ("--", "dr01", "anvil-dr-receive")
    for words in (("-p", "2222"), ("-l", "anvil-dr"), ("-i", "/root/.ssh/dr"), ("-o", "BatchMode=yes")):
        assert any(argv[at : at + 2] == words for at in range(len(argv)))


def spawn_instead(*argv: str) -> Tuple[List[Tuple[str, ...]], object]:
    """A spawn that starts something else than ssh, and what it was asked for."""
    asked: List[Tuple[str, ...]] = []

    def spawn(wanted: Tuple[str, ...]) -> command.Peer:
        asked.append(wanted)
        return command.spawn(argv)

    return asked, spawn


def test_frames_cross_a_peer_in_both_directions_and_it_ends_with_the_block() -> None:
    asked, spawn = spawn_instead("cat")
    buffer = frame_buffer()
    with connected(SshDestination("dr01"), spawn) as channel:  # type: ignore[arg-type]
        channel.send(Kind.STATUS, b"{}")
        kind, content = channel.receive(buffer)
        assert (kind, bytes(content)) == (Kind.STATUS, b"{}")
    assert asked == [ssh_command(SshDestination("dr01"))]


def ssh_that_says(text: str, code: int) -> object:
    return spawn_instead("sh", "-c", f"echo \"$1\" >&2; exit {code}", "sh", text)[1]


@pytest.mark.parametrize(
    ("said", "code", "complaint"),
    [
        ("ssh: connect to host dr01 port 22: Connection refused", 255, "nothing listens for ssh there"),
        ("ssh: connect to host dr01 port 22: No route to host", 255, "cannot be reached"),
        ("ssh: Could not resolve hostname dr01: Name or service not known", 255, "no host of that name"),
        ("anvil-dr@dr01: Permission denied (publickey).", 255, "does not accept this node's key"),
        ("No ED25519 host key is known.\nHost key verification failed.", 255, "host key is not known"),
        ("bash: line 1: anvil-dr-receive: command not found", 127, "is not installed there"),
        ("sh: 1: exec: /opt/anvil/receive: not found", 127, "could not be run there"),
        ("anvil-dr-receive: no service (Connection refused)", 1, "exit code 1: anvil-dr-receive: no service"),
        ("", 255, "exit code 255: it said nothing"),
    ],
)
def test_why_ssh_ended_is_said_in_one_line(said: str, code: int, complaint: str) -> None:
    with pytest.raises(ServiceError, match=complaint) as failure:
        with connected(SshDestination("dr01"), ssh_that_says(said, code)) as channel:  # type: ignore[arg-type]
            channel.receive(frame_buffer())
    assert "ssh://dr01" in str(failure.value) and "\n" not in str(failure.value)


def test_a_session_that_the_other_end_closes_quietly_is_just_that() -> None:
    with pytest.raises(PeerGoneError):
        with connected(SshDestination("dr01"), spawn_instead("true")[1]) as channel:  # type: ignore[arg-type]
            channel.receive(frame_buffer())


def test_a_flood_on_standard_error_is_kept_within_bounds() -> None:
    flood = "i=0; while [ $i -lt 20000 ]; do echo noise $i >&2; i=$((i+1)); done; echo the last words >&2; exit 3"
    peer = command.spawn(("sh", "-c", flood))
    for fd in peer.take_pipes():
        os.close(fd)
    assert peer.end(30) == 3
    assert len(peer.complaint()) <= 8192 and peer.complaint().endswith("the last words")


def test_a_peer_that_does_not_end_is_killed() -> None:
    peer = command.spawn(("sleep", "1000"))
    for fd in peer.take_pipes():
        os.close(fd)
    assert peer.end(0.1) == -9


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="no-such-ssh"):
        command.spawn(("no-such-ssh",))


def test_a_unix_socket_is_spoken_with_directly(tmp_path: Path) -> None:
    path = str(tmp_path / "target.sock")
    heard: List[Optional[Kind]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            fd = connection.detach()
            channel = Channel(fd, fd)
            heard.append(channel.receive(frame_buffer())[0])
            channel.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with connected(UnixDestination(path), command.spawn) as channel:
            channel.send(Kind.JOB_END, b"{}")
            thread.join()
    assert heard == [Kind.JOB_END]


def test_a_socket_that_nobody_listens_on_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=f"nobody listens on {tmp_path}/none; see: systemctl"):
        with connected(UnixDestination(f"{tmp_path}/none"), command.spawn):
            raise AssertionError
