"""The ssh end: hands this process's standard input and output to the service, and copies no data itself.

Touches the service's socket. The first line on the socket says who asks and for which servers its key is
good; the two descriptors travel with it (unix(7), SCM_RIGHTS). The service answers with one byte at the end,
or with an ERROR frame where it can't or won't begin.

The descriptors are shared, not copied: what the service sets on them, O_NONBLOCK above all, is set for this
process too. sshd has the other ends of two pipes, so it does not notice. A terminal would be the user's own,
and shared with the shell; that is one reason why only pipes and sockets are taken.
"""

from __future__ import annotations

import array
import json
import os
import socket
import stat
from dataclasses import dataclass
from typing import List, Tuple

from anvil_dr.errors import ProtocolError, ServiceError, UsageError
from anvil_dr.wire.protocol import FRAME_HEADER, Error, Kind, decode, frame_limit_bytes

MAGIC = b"RELAY 1 "
"""How a relay begins. A node that talks to the socket directly begins with a frame, whose first byte differs."""
MAX_LINE_BYTES = 64 << 10
SUCCEEDED = b"0"
FAILED = b"1"
"""The node knows why: it was told in the session."""
_DESCRIPTORS = 2
_PEER_CHARACTERS = 255


@dataclass(frozen=True)
class Introduction:
    """What a relay says about the session that it hands over."""

    peer: str
    """Where the node's ssh connection comes from, in words."""
    allowed: Tuple[str, ...]

    def line(self) -> bytes:
        return MAGIC + json.dumps({"peer": self.peer, "allowed": self.allowed}).encode() + b"\n"


# — this process's end —


def hand_over(socket_path: str, introduction: Introduction, in_fd: int, out_fd: int) -> bool:
    """Let the service have the session; return once it has ended. False if some of its work failed.

    Raise UsageError for descriptors that no ssh gives, ServiceError if the service can't or won't have them.
    """
    _check_streams(in_fd, out_fd)
    line = introduction.line()
    if len(line) > MAX_LINE_BYTES:
        raise UsageError("there are too many --allow patterns")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(socket_path)
        except OSError as error:
            raise ServiceError(
                f"the DR service does not answer at {socket_path} ({error.strerror}); "
                "on the DR box: systemctl status anvil-dr-target.socket anvil-dr-target"
            ) from error
        try:
            sent = socket.send_fds(connection, [line], [in_fd, out_fd])
            connection.sendall(line[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has turned us away already, and said why
        except OSError as error:
            raise ServiceError(f"the session cannot be handed over at {socket_path}: {error.strerror}") from error
        answer = _read(connection, 1)
        if answer in (SUCCEEDED, FAILED):
            return answer == SUCCEEDED
        raise ServiceError(_refusal(connection, answer))


def _check_streams(in_fd: int, out_fd: int) -> None:
    for fd, name in ((in_fd, "input"), (out_fd, "output")):
        try:
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
        except OSError:
            raise UsageError(f"standard {name} is closed; this is for the end of a node's ssh connection") from None
        if os.isatty(fd):
            raise UsageError(f"standard {name} is a terminal; a node's ssh must be called without -t")
        if kind not in _STREAMS:
            raise UsageError(f"standard {name} is no pipe; this is for the end of a node's ssh connection")


def _refusal(connection: socket.socket, begin: bytes) -> str:
    """Why the service would not begin: an ERROR frame, of which the first byte has been read."""
    header = begin + _read(connection, FRAME_HEADER.size - len(begin))
    if len(header) < FRAME_HEADER.size:
        return "the DR service ended in the middle of the session"
    code, length = FRAME_HEADER.unpack(header)
    try:
        if code != Kind.ERROR or length > frame_limit_bytes(Kind.ERROR):
            raise ProtocolError(f"frame type {code} of {length} bytes")
        return decode(Error, memoryview(_read(connection, length))).message
    except ProtocolError as error:
        return f"the DR service cannot be understood: {error}"


def _read(connection: socket.socket, length_bytes: int) -> bytes:
    """So many bytes; fewer if the connection ends before."""
    content = b""
    try:
        while len(content) < length_bytes:
            more = connection.recv(length_bytes - len(content))
            if not more:
                break
            content += more
    except ConnectionResetError:
        pass  # it ended without having read all we sent
    return content


# — the service's end —


def take_over(connection: socket.socket) -> Tuple[Introduction, int, int]:
    """The introduction, and the node's input and output, which are the caller's to close. Raise ProtocolError."""
    descriptors: List[int] = []
    try:
        line = _receive_line(connection, descriptors)
        introduction = _parse(line)
        if len(descriptors) != _DESCRIPTORS:
            raise ProtocolError(f"it handed over {len(descriptors)} descriptors, not {_DESCRIPTORS}")
        for fd in descriptors:
            if stat.S_IFMT(os.fstat(fd).st_mode) not in _STREAMS:
                raise ProtocolError("it handed over something that is neither a pipe nor a socket")
    except (OSError, ProtocolError) as error:
        for fd in descriptors:
            os.close(fd)
        raise ProtocolError(f"the relay cannot be understood: {error}") from error
    return introduction, descriptors[0], descriptors[1]


_STREAMS = (stat.S_IFIFO, stat.S_IFSOCK)
"""Only these can be waited for with a time limit: a read from a file on a network may never return."""


def _receive_line(connection: socket.socket, descriptors: List[int]) -> bytes:
    """The first line; `descriptors` get those that came with it, even if this raises."""
    # Not socket.recv_fds: it knows no MSG_CMSG_CLOEXEC, and commands that the service runs would inherit them.
    room = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
    line, ancillary, _, _ = connection.recvmsg(MAX_LINE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds = array.array("i")
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            descriptors.extend(fds)
    while not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
        more = connection.recv(MAX_LINE_BYTES - len(line))
        if not more:
            break
        line += more
    return line


def _parse(line: bytes) -> Introduction:
    if not line.startswith(MAGIC) or not line.endswith(b"\n"):
        raise ProtocolError("its first line is not a relay's")
    try:
        said = json.loads(line[len(MAGIC) :])
        peer, allowed = said["peer"], said["allowed"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProtocolError("its first line is not a relay's") from None
    if not isinstance(peer, str) or len(peer) > _PEER_CHARACTERS:
        raise ProtocolError("it says nothing sensible about where the session comes from")
    if not isinstance(allowed, list) or not all(isinstance(pattern, str) for pattern in allowed):
        raise ProtocolError("it says nothing sensible about which servers are allowed")
    return Introduction(peer, tuple(allowed))
