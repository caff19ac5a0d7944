"""A job turned round, on the node: a server's disks are written from what the DR box sends.

Touches the disks of one server that is off, its firmware state, and the channel. Speaks the target's side of the
protocol. What is right on a disk already is neither sent nor written. If it ends in the middle, the disks are part old
and part new, which half_back.py remembers, and the next try goes on.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Tuple, Union

from anvil_dr.errors import AnvilDrError, DigestMismatchError, NotAllowedError, ProtocolError, SourceError
from anvil_dr.failback.half_back import HalfBack
from anvil_dr.failback.node_disks import open_to_write
from anvil_dr.model import Owner
from anvil_dr.receiving import announcement
from anvil_dr.receiving.conversation import Aborted, Conversation
from anvil_dr.receiving.receive_disk import DiskReceiver
from anvil_dr.receiving.recycled import Content
from anvil_dr.receiving.target import utc_now
from anvil_dr.stores.open_image import BlockImage, FileImage
from anvil_dr.wire import digest
from anvil_dr.wire.channel import Channel, KeepAlive
from anvil_dr.wire.digest import SEGMENT_BYTES, Digester
from anvil_dr.wire.limits import Limits
from anvil_dr.wire.protocol import (
    MAX_FIRMWARE_BYTES,
    VERSION,
    DiskBegin,
    DiskDone,
    DiskEnd,
    DiskReady,
    Firmware,
    JobDone,
    JobPlan,
    Kind,
    Refusal,
    ServerBegin,
    ServerDone,
    ServerEnd,
    ServerFailed,
    ServerOffer,
    ServerPlan,
    ServerReady,
    Welcome,
    decode,
)

log = logging.getLogger(__name__)

_WINDOW = 16

Disk = Union[FileImage, BlockImage]


@dataclass(frozen=True)
class Home:
    """Where one server's disks are on this node."""

    server: str
    paths: Mapping[str, str]
    """By disk name."""
    put_firmware: Callable[[Mapping[str, bytes]], None]
    """Raise StateError."""
    check_off: Callable[[], None]
    """Raise AnvilDrError if the server is not off."""
    half_back: HalfBack


class TakeBack:
    """One session with a DR box."""

    def __init__(self, home: Home, channel: Channel, node: str, limits: Limits) -> None:
        self._home, self._channel, self._node, self._limits = home, channel, node, limits
        self._conversation = Conversation(channel, limits)
        self._id = uuid.uuid4().hex[:8]
        self._written_bytes = 0

    def run(self) -> bool:
        """See it through; False if the server was refused or failed, which the DR box then knows.

        Raise AnvilDrError after having told the DR box, if it can still be told.
        """
        try:
            return self._converse()
        except AnvilDrError as error:
            self._conversation.tell(error, self._limits.farewell_seconds)
            raise
        finally:
            self._conversation.close()

    def _converse(self) -> bool:
        hello = self._conversation.hello(self._limits.greeting_seconds)
        algorithm = next((name for name in digest.available() if name in hello.digests), None)
        if VERSION not in hello.versions or hello.purpose != "job" or algorithm is None:
            raise ProtocolError("the DR box is of another version: install the same one on both machines")
        compressions = ("zstd",) if "zstd" in hello.compressions else ()
        self._conversation.send(Welcome(VERSION, algorithm, compressions, self._node, _WINDOW))
        with KeepAlive(self._channel):
            job = self._conversation.job(self._limits.announcement_seconds)
            announcement.check_job(job)
            digester = digest.digester(algorithm)
            done = [offer.name for offer in self._admitted(job.servers) if self._server(offer, digester)]
            self._conversation.take(Kind.JOB_END)
            failed = tuple(offer.name for offer in job.servers if offer.name not in done)
            self._conversation.send(JobDone(tuple(done), failed))
        return not failed

    def _admitted(self, offers: Tuple[ServerOffer, ...]) -> List[ServerOffer]:
        plans, accepted = [], []
        for offer in offers:
            try:
                announcement.check_server(offer)
                self._check(offer)
            except AnvilDrError as error:
                log.warning("server refused server=%r error=%s", offer.name, error)
                plans.append(ServerPlan(offer.name, Refusal(error.code, str(error))))
            else:
                accepted.append(offer)
                plans.append(ServerPlan(offer.name, None, ()))
        self._conversation.send(JobPlan(self._id, tuple(plans)))
        return accepted

    def _check(self, offer: ServerOffer) -> None:
        if offer.name != self._home.server:
            raise NotAllowedError(offer.name)
        self._home.check_off()
        missing = [disk.name for disk in offer.disks if disk.name not in self._home.paths]
        if missing:
            raise SourceError(f"server {offer.name} has no disk {missing[0]} on this node: make it, and name it so")
        for disk in offer.disks:
            open_to_write(self._home.paths[disk.name], disk.size_bytes).close()

    def _server(self, offer: ServerOffer, digester: Digester) -> bool:
        if self._conversation.expect(ServerBegin).server != offer.name:
            raise ProtocolError(f"another server than {offer.name!r} began")
        before = self._channel.wire_bytes
        try:
            with self._conversation.about(offer.name):
                self._receive(offer, digester)
        except Aborted as aborted:
            self._conversation.send(ServerFailed(offer.name, aborted.message.code, aborted.message.message))
            return False
        except ProtocolError:
            raise
        except AnvilDrError as error:
            log.warning("server failed server=%s error=%s", offer.name, error)
            with self._conversation.about(offer.name):
                self._conversation.fail(offer.name, error, MAX_FIRMWARE_BYTES + (_WINDOW + 2) * SEGMENT_BYTES)
            return False
        wire_bytes = self._channel.wire_bytes - before
        log.info("server is back server=%s wire_bytes=%d written_bytes=%d", offer.name, wire_bytes, self._written_bytes)
        self._conversation.send(ServerDone(offer.name, utc_now(), wire_bytes, self._written_bytes, "", False, ()))
        return True

    def _receive(self, offer: ServerOffer, digester: Digester) -> None:
        with ExitStack() as opened:
            disks: Dict[str, Disk] = {}
            self._home.check_off()
            for disk in offer.disks:
                disks[disk.name] = open_to_write(self._home.paths[disk.name], disk.size_bytes)
                opened.callback(disks[disk.name].close)
            self._home.half_back.begin(offer.name)
            ready = tuple(DiskReady(disk.name, True) for disk in offer.disks)
            self._conversation.send(ServerReady(offer.name, ready))
            firmware = {name: self._firmware(name) for name in offer.firmware}
            for disk in offer.disks:
                begin = self._conversation.expect(DiskBegin)
                if begin.disk != disk.name:
                    raise ProtocolError(f"disk {begin.disk!r} is not due")
                self._disk(Owner(offer.name, disk.name), disk.size_bytes, disks[disk.name], digester)
            if self._conversation.expect(ServerEnd).server != offer.name:
                raise ProtocolError(f"a server other than {offer.name!r} was ended")
            self._home.put_firmware(firmware)
            # Nothing keeps a server from being started on block devices meanwhile.
            self._home.check_off()
            self._home.half_back.end(offer.name)

    def _disk(self, owner: Owner, size_bytes: int, image: Disk, digester: Digester) -> None:
        recycled = Content(digester, image, size_bytes)
        try:
            receiver = DiskReceiver(
                self._channel, digester, owner, size_bytes, image=image, recycled=recycled, newest=None, window=_WINDOW
            )
            while True:
                kind, content = self._conversation.next()
                if kind is Kind.DISK_END:
                    end = decode(DiskEnd, content)
                    break
                receiver.handle(kind, content)
            ours = receiver.finish()
            if ours != end.digest:
                raise DigestMismatchError(owner.server, owner.disk, None, f"it has digest {ours} here")
            image.flush()
        finally:
            recycled.close()
        self._written_bytes += receiver.written_bytes
        self._conversation.send(DiskDone(owner.disk, ours, receiver.written_bytes))

    def _firmware(self, name: str) -> bytes:
        announced = self._conversation.expect(Firmware)
        if announced.name != name or announced.size_bytes > MAX_FIRMWARE_BYTES:
            raise ProtocolError(f"firmware state {announced.name!r} is not due")
        content = bytearray()
        while len(content) < announced.size_bytes:
            part = self._conversation.take(Kind.FIRMWARE_DATA)
            if not part or len(content) + len(part) > announced.size_bytes:
                raise ProtocolError(f"firmware state {name!r} has the wrong length")
            content += part
        return bytes(content)
