"""A node that says what it likes: every frame of the protocol, right or wrong, over a real connection."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Mapping, Optional, Sequence, Tuple, Type

from anvil_dr import relay
from anvil_dr.errors import PeerGoneError, ProtocolError
from anvil_dr.wire import bulk, digest
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.digest import ImageDigest, segment_count
from anvil_dr.wire.protocol import (
    FRAME_HEADER,
    DiskBegin,
    DiskEnd,
    DiskOffer,
    Error,
    Hello,
    Job,
    JobEnd,
    JobPlan,
    Kind,
    Message,
    ServerBegin,
    ServerEnd,
    ServerFailed,
    ServerOffer,
    decode,
)
from tests.doubles.dr_box import DOMAIN, DrBox, uuid_of

DIGESTER = digest.digester(digest.available()[0])
_F_SETPIPE_SZ = 1031


def definition(server: str, disks: Sequence[str]) -> str:
    rows = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/node/{disk}.img'/>"
        f"<target dev='vd{chr(97 + number % 26)}{number // 26 or ''}' bus='virtio'/></disk>"
        for number, disk in enumerate(disks)
    )
    return DOMAIN.format(name=server, uuid=uuid_of(server), disks=rows)


def offer(
    server: str = "Web01",
    disks: Optional[Mapping[str, int]] = None,
    *,
    firmware: Optional[Mapping[str, int]] = None,
    left_out: Tuple[str, ...] = (),
    xml: Optional[str] = None,
) -> ServerOffer:
    """A server as a node announces it; `disks` are names and sizes."""
    sizes = {f"{server}_0": 100_000} if disks is None else disks
    offers = tuple(DiskOffer(name, size, f"/node/{name}.img") for name, size in sizes.items())
    text = definition(server, tuple(sizes)) if xml is None else xml
    return ServerOffer(server, text, offers, left_out, firmware or {})


def zero_digest(size_bytes: int) -> str:
    """Of a disk with nothing in it, as DISK_END says it."""
    whole = ImageDigest(DIGESTER, size_bytes)
    for segment in range(segment_count(size_bytes)):
        whole.add(DIGESTER.zero_segment(digest.block_count(size_bytes, segment)))
    return whole.text()


class Intruder:
    """One connection to a box: straight to its socket, or handed over as anvil-dr-receive does it."""

    def __init__(self, box: DrBox) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(30)
        _connect(self.connection, box.config.socket)
        self._out = os.dup(self.connection.fileno())
        self.channel = Channel(self._out, self._out, silence_seconds=30)
        self._buffer = frame_buffer()

    @classmethod
    def by_relay(
        cls, box: DrBox, allowed: Tuple[str, ...] = ("*",), peer: str = "10.0.0.1", pipe_bytes: int = 65536
    ) -> Intruder:
        """With two pipes of that size between it and the service."""
        intruder = cls.__new__(cls)
        intruder.connection = socket.socket(socket.AF_UNIX)
        intruder.connection.settimeout(30)
        intruder.connection.connect(box.config.socket)
        (box_in, to_box), (from_box, box_out) = os.pipe(), os.pipe()
        for fd in (to_box, from_box):
            fcntl.fcntl(fd, _F_SETPIPE_SZ, pipe_bytes)
        line = relay.Introduction(peer, allowed).line()
        socket.send_fds(intruder.connection, [line], [box_in, box_out])
        os.close(box_in)
        os.close(box_out)
        intruder._out = to_box
        intruder.channel = Channel(from_box, to_box, silence_seconds=30)
        intruder._buffer = frame_buffer()
        return intruder

    def __enter__(self) -> Intruder:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.channel.close()
        self.connection.close()

    # — saying —

    def raw(self, content: bytes) -> None:
        """Bytes as they are, where frames go."""
        left = memoryview(content)
        while left:
            try:
                left = left[os.write(self._out, left) :]
            except BlockingIOError:
                select.select([], [self._out], [], 30)
            except (BrokenPipeError, ConnectionResetError):
                return  # it has heard enough

    def frame(self, kind: int, content: bytes = b"", length: Optional[int] = None) -> None:
        """A frame whose header may say another length than its content has."""
        self.raw(FRAME_HEADER.pack(kind, len(content) if length is None else length) + content)

    def say(self, *messages: Message) -> None:
        for message in messages:
            self.record(message.kind, message.encode())

    def record(self, kind: Kind, content: bytes) -> None:
        try:
            self.channel.send(kind, content)
        except PeerGoneError:
            pass  # it has heard enough

    def hello(self) -> None:
        self.say(Hello((1,), digest.available(), ("zstd",), "an-a01n01"))

    def announce(self, *servers: ServerOffer) -> None:
        """Greet, and announce a job."""
        self.hello()
        self.say(Job("nightly", servers))

    def begin(self, server: ServerOffer) -> None:
        """All that comes before the first disk's records."""
        self.announce(server)
        self.say(ServerBegin(server.name), DiskBegin(server.disks[0].name))

    def send_zeros(self, server: ServerOffer, *, end: bool = True) -> None:
        """Every disk of a server, with nothing in it, and the end of the server."""
        for disk in server.disks:
            self.say(DiskBegin(disk.name))
            self.record(Kind.ZEROS, bulk.pack_run(0, segment_count(disk.size_bytes)))
            self.say(DiskEnd(disk.name, zero_digest(disk.size_bytes)))
        if end:
            self.say(ServerEnd(server.name))

    def job_end(self) -> None:
        self.say(JobEnd())

    # — hearing —

    def hear(self, wanted: Kind) -> bytes:
        """Pass over what comes before a frame of this type. Raise PeerGoneError."""
        while True:
            kind, content = self.channel.receive(self._buffer)
            if kind is wanted:
                return bytes(content)

    def error(self) -> str:
        """The reason for which the service ended the session; empty if it ended without a word."""
        try:
            return decode(Error, memoryview(self.hear(Kind.ERROR))).message
        except PeerGoneError:
            return ""
        except ProtocolError as error:
            return f"nothing that could be understood: {error}"

    def failure(self) -> str:
        """The reason for which a server failed."""
        return decode(ServerFailed, memoryview(self.hear(Kind.SERVER_FAILED))).message

    def refusals(self) -> Mapping[str, str]:
        """The servers that the job was refused, with the reasons."""
        plan = decode(JobPlan, memoryview(self.hear(Kind.JOB_PLAN)))
        return {server.name: server.refused.message for server in plan.servers if server.refused}

    def hang_up(self) -> None:
        """Say nothing more; still hear."""
        self.connection.shutdown(socket.SHUT_WR)


def state_of(folder: Path) -> Mapping[str, bytes]:
    """Every image that is not incomplete, with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if "_incomplete" not in path.name}


def _connect(connection: socket.socket, path: str) -> None:
    """A full backlog answers EAGAIN to a socket that has a timeout (unix(7)), where a blocking one would wait."""
    while True:
        try:
            connection.connect(path)
            return
        except BlockingIOError:
            time.sleep(0.01)
