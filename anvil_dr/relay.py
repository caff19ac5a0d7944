"""The ssh end: hands this process's standard input and output to the service, and copies no data itself.

Touches the service's socket. The first line on the socket says who asks and for which servers its key is
good; the two descriptors travel with it (unix(7), SCM_RIGHTS). The service answers with one byte at the end.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import List, Tuple

from anvil_dr.errors import ProtocolError, ServiceError

MAGIC = b"RELAY 1 "
"""How a relay begins. A node that talks to the socket directly begins with a frame, whose first byte differs."""
MAX_LINE_BYTES = 64 << 10
SUCCEEDED = b"0"
_DESCRIPTORS = 2


@dataclass(frozen=True)
class Introduction:
    """What a relay says about the session that it hands over."""

    peer: str
    """Where the node's ssh connection comes from, in words."""
    allowed: Tuple[str, ...]

    def line(self) -> bytes:
        return MAGIC + json.dumps({"peer": self.peer, "allowed": self.allowed}).encode() + b"\n"


def hand_over(socket_path: str, introduction: Introduction, in_fd: int, out_fd: int) -> bool:
    """Let the service have the session; return whether it went well, once it has ended. Raise ServiceError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(socket_path)
            line = introduction.line()
            sent = socket.send_fds(connection, [line], [in_fd, out_fd])
            connection.sendall(line[sent:])
            return connection.recv(1) == SUCCEEDED
        except OSError as error:
            raise ServiceError(
                f"the DR service does not answer at {socket_path} ({error.strerror}); "
                "on the DR box: systemctl status anvil-dr-target.socket anvil-dr-target"
            ) from error


def take_over(connection: socket.socket) -> Tuple[Introduction, int, int]:
    """The service's end of `hand_over`: the introduction, and the node's input and output. Raise ProtocolError."""
    descriptors: List[int] = []
    line = b""
    try:
        line, descriptors, _, _ = socket.recv_fds(connection, MAX_LINE_BYTES, _DESCRIPTORS)
        while not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
            more = connection.recv(MAX_LINE_BYTES - len(line))
            if not more:
                break
            line += more
        introduction = _parse(line)
        if len(descriptors) != _DESCRIPTORS:
            raise ProtocolError("the relay handed over no descriptors")
    except (OSError, ProtocolError) as error:
        for fd in descriptors:
            socket.close(fd)
        raise ProtocolError(f"the relay cannot be understood: {error}") from error
    return introduction, descriptors[0], descriptors[1]


def _parse(line: bytes) -> Introduction:
    if not line.startswith(MAGIC) or not line.endswith(b"\n"):
        raise ProtocolError("its first line is not a relay's")
    try:
        said = json.loads(line[len(MAGIC) :])
        peer, allowed = said["peer"], said["allowed"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProtocolError("its first line is not a relay's") from None
    if not isinstance(peer, str) or not isinstance(allowed, list) or not all(isinstance(p, str) for p in allowed):
        raise ProtocolError("its first line is not a relay's")
    return Introduction(peer, tuple(allowed))
