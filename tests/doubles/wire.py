"""Two ends of one wire in one process: a node's DiskSender against a target's DiskReceiver, over a real socket pair."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import zstandard

from anvil_dr.model import Owner
from anvil_dr.receiving.receive_disk import DiskReceiver
from anvil_dr.receiving.recycled import Recycled
from anvil_dr.sending.send_disk import DiskSender
from anvil_dr.wire.bulk import RAW, ZSTD
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.compression import Buffer, Compressor
from anvil_dr.wire.digest import Digester
from anvil_dr.wire.protocol import Kind


class Bytes:
    """Implements ports.Image over a bytearray; refuses what a device of that size would refuse."""

    def __init__(self, content: bytes, *, holes: bool = False) -> None:
        self.content = bytearray(content)
        self._holes = holes
        self.written: List[Tuple[int, int]] = []

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    @property
    def path(self) -> str:
        return "memory"

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        data = self.content[offset_bytes : offset_bytes + len(buffer)]
        buffer[: len(data)] = data
        buffer[len(data) :] = bytes(len(buffer) - len(data))

    def write(self, offset_bytes: int, data: memoryview) -> None:
        assert offset_bytes + len(data) <= len(self.content), "written past the end"
        self.content[offset_bytes : offset_bytes + len(data)] = data
        self.written.append((offset_bytes, len(data)))

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        assert length_bytes >= 0 and offset_bytes + length_bytes <= len(self.content), "zeroed past the end"
        self.content[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)

    def data_ranges(self, offset_bytes: int, length_bytes: int) -> Iterator[Tuple[int, int]]:
        end = min(offset_bytes + length_bytes, len(self.content))
        if not self._holes:
            if end > offset_bytes:
                yield offset_bytes, end - offset_bytes
            return
        for at in range(offset_bytes, end, 4096):
            if any(self.content[at : min(at + 4096, end)]):
                yield at, min(4096, end - at)

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Squeezing(Compressor):
    """Compresses every record, as on a line that is slow all the time."""

    def __init__(self) -> None:
        super().__init__(True)

    def encode(self, parts: Sequence[Buffer]) -> Tuple[int, Sequence[Buffer]]:
        raw = b"".join(parts)
        packed = zstandard.ZstdCompressor().compress(raw)
        return (ZSTD, [packed]) if len(packed) < len(raw) else (RAW, parts)


@dataclass(frozen=True)
class Crossing:
    """What one disk cost."""

    wire_bytes: int
    written_bytes: int
    digest: str


def cross(
    digester: Digester,
    source: Bytes,
    image: Bytes,
    recycled: Recycled,
    newest: Optional[Bytes],
    *,
    compress: bool = False,
    window: int = 4,
    disturb: Optional[Callable[[Kind, memoryview], None]] = None,
) -> Crossing:
    """Send `source` into `image`; raise what either end raised. `disturb` may change what arrives at the target."""
    node_end, target_end = (Channel(fd, fd, silence_seconds=20) for fd in _pair())
    receiver = DiskReceiver(
        target_end, digester, Owner("Web01", "Web01_0"), source.size_bytes,
        image=image, recycled=recycled, newest=newest, window=window,
    )  # fmt: skip
    sender = DiskSender(
        node_end, digester, source, source.size_bytes,
        compare=receiver.compare, window=window, looked=lambda done_bytes: None,
        compressor=Squeezing() if compress else Compressor(False),
    )  # fmt: skip
    errors: List[BaseException] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - carried over to the test's own thread
                errors.append(error)
                node_end.abandon()
                target_end.abandon()
                sender.stop()

        return run

    def target() -> None:
        buffer = frame_buffer()
        while True:
            kind, content = target_end.receive(buffer)
            if disturb is not None:
                disturb(kind, content)
            if kind is Kind.DISK_END:
                target_end.send(Kind.DISK_DONE)
                return
            receiver.handle(kind, content)

    def replies() -> None:
        buffer = frame_buffer()
        while True:
            kind, content = node_end.receive(buffer)
            if kind is Kind.DISK_DONE:
                return
            sender.reply(kind, bytes(content))

    threads = [threading.Thread(target=guarded(work)) for work in (target, replies)]
    for thread in threads:
        thread.start()
    digest: List[Optional[str]] = []

    def send() -> None:
        digest.append(sender.run())
        if digest[0] is not None:
            node_end.send(Kind.DISK_END)

    guarded(send)()
    for thread in threads:
        thread.join()
    wire_bytes = node_end.wire_bytes
    recycled.close()
    node_end.close()
    target_end.close()
    if errors:
        raise errors[0]
    assert digest[0] == receiver.finish(), "both ends took the same digest of the whole image"
    return Crossing(wire_bytes, receiver.written_bytes, receiver.finish())


def _pair() -> Tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()
