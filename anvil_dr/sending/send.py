"""One job, on the node: announces the servers, sends their disks, and learns what became of them.

Touches the channel and, through ports, the source disks. What a server needs before it may be read (being
shut down) and afterwards (being started again) comes in as a context manager, so that it is undone whatever
happens here.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import List, Mapping, Optional, Tuple

from anvil_dr.errors import AnvilDrError, PeerGoneError, ProtocolError, RemoteError
from anvil_dr.sending.conversation import Conversation, Refused
from anvil_dr.sending.disk_dialogue import DiskDialogue
from anvil_dr.sending.job import (
    JobOutcome,
    Observer,
    OutgoingDisk,
    OutgoingServer,
    ServerOutcome,
    Source,
    check_unchanged,
)
from anvil_dr.sending.send_disk import DiskSender
from anvil_dr.wire import digest
from anvil_dr.wire.channel import Channel, KeepAlive
from anvil_dr.wire.compression import Compressor
from anvil_dr.wire.pace import Pace
from anvil_dr.wire.protocol import (
    MAX_DATA_BYTES,
    VERSION,
    DiskBegin,
    DiskOffer,
    Firmware,
    Hello,
    Job,
    JobDone,
    JobEnd,
    JobPlan,
    Kind,
    ServerAbort,
    ServerBegin,
    ServerDone,
    ServerEnd,
    ServerOffer,
    ServerPlan,
    ServerReady,
    Welcome,
)

log = logging.getLogger(__name__)

_STANDSTILL_SECONDS = 900.0
"""In the middle of a disk; the target waits as long for this end."""


class JobSender:
    """The node's side of one session."""

    def __init__(
        self,
        channel: Channel,
        *,
        node: str,
        observer: Observer,
        bandwidth_limit_bytes: int = 0,
        compress: bool = True,
        standstill_seconds: float = _STANDSTILL_SECONDS,
    ) -> None:
        """`bandwidth_limit_bytes` a second, 0 for none; the target's own limit counts if it is lower.

        `standstill_seconds`: how long a server is kept off for a target that says that it lives, and does nothing.
        """
        self._channel, self._node, self._observer = channel, node, observer
        self._limit_bytes, self._compress = bandwidth_limit_bytes, compress
        self._standstill_seconds = standstill_seconds
        self.target = ""
        """What the DR box calls itself, once it has said so."""
        self._conversation = Conversation(channel)

    def run(self, name: str, servers: Tuple[OutgoingServer, ...]) -> JobOutcome:
        """Send the servers one after the other. Raise ProtocolError or RemoteError if the session itself fails."""
        try:
            with KeepAlive(self._channel):
                return self._job(name, servers)
        except PeerGoneError as error:
            raise self._conversation.last_words() or error from None

    def _job(self, name: str, servers: Tuple[OutgoingServer, ...]) -> JobOutcome:
        self._greet()
        self._conversation.send(Job(name, tuple(_offer(server) for server in servers)))
        plan = self._conversation.expect(JobPlan)
        self._observer.job_planned(plan)
        plans = {planned.name: planned for planned in plan.servers}
        outcomes = tuple(self._one(server, plans.get(server.name)) for server in servers)
        self._conversation.send(JobEnd())
        self._conversation.expect(JobDone)
        return JobOutcome(plan.job_id, outcomes, self._channel.wire_bytes)

    def say_why(self, error: AnvilDrError) -> None:
        """Tell the target why this end leaves in the middle of the job, if it can still be told."""
        self._conversation.say_why(error)

    def _greet(self) -> None:
        self._conversation.send(
            Hello(
                versions=(VERSION,),
                digests=digest.available(),
                compressions=("zstd",) if self._compress else (),
                node=self._node,
                program=f"anvil-dr-send/{VERSION}",
            )
        )
        welcome = self._conversation.expect(Welcome)
        self.target = welcome.target
        self._digester = digest.digester(welcome.digest)
        self._window = max(1, welcome.window)
        self._compressor = Compressor("zstd" in welcome.compressions)
        limits = [limit for limit in (self._limit_bytes, welcome.bandwidth_limit) if limit]
        self._channel.pace = Pace(min(limits)) if limits else None
        log.info("session begun target=%s digest=%s", welcome.target, welcome.digest)

    def _one(self, server: OutgoingServer, plan: Optional[ServerPlan]) -> ServerOutcome:
        if plan is None:
            raise ProtocolError(f"the target says nothing about server {server.name}")
        if plan.refused is not None:
            outcome = ServerOutcome(server.name, RemoteError(plan.refused.code, plan.refused.message))
        else:
            outcome = self._accepted(server, plan.warnings)
        self._observer.server_ended(outcome)
        return outcome

    def _accepted(self, server: OutgoingServer, warnings: Tuple[str, ...]) -> ServerOutcome:
        self._observer.server_begun(server.name)
        try:
            with ExitStack() as off:
                warnings = self._sent(server, warnings, off)
            self._conversation.send(ServerEnd(server.name))
            done = self._conversation.expect(ServerDone)
        except Refused as refused:
            if not refused.told:
                # The target waits for this before it takes the next server.
                self._conversation.send(ServerAbort(server.name, refused.code, str(refused)))
            return ServerOutcome(server.name, refused.cause or RemoteError(refused.code, str(refused)), None, warnings)
        except (ProtocolError, RemoteError):
            raise  # the session has ended, and nobody would answer
        except AnvilDrError as error:
            self._conversation.send(ServerAbort(server.name, error.code, str(error)))
            self._conversation.drain_until_failed()
            return ServerOutcome(server.name, error, None, warnings)
        return ServerOutcome(server.name, None, done, _once(warnings + done.warnings))

    def _sent(self, server: OutgoingServer, warnings: Tuple[str, ...], off: ExitStack) -> Tuple[str, ...]:
        """Send its disks, as often as the target can take them elsewhere. Returns the warnings."""
        is_off = False
        while True:
            self._conversation.send(ServerBegin(server.name))
            try:
                ready = self._conversation.expect(ServerReady)
                warnings = _once(warnings + ready.warnings)
                if not is_off:
                    off.enter_context(server.keep_off())
                    is_off = True
                self._send_server(server, {disk.name: disk.compare for disk in ready.disks})
                return warnings
            except Refused as refused:
                if not refused.again or refused.told or refused.cause is not None:
                    raise
                self._conversation.send(ServerAbort(server.name, refused.code, str(refused)))
                log.warning("server is sent again server=%s because=%s", server.name, refused)
                warnings = _once((*warnings, f"it was sent again, to another drive: {refused}"))

    def _send_server(self, server: OutgoingServer, compare: Mapping[str, bool]) -> None:
        self._send_firmware(server)
        sources: List[Tuple[OutgoingDisk, Source]] = []
        try:
            # All are open until all are sent, so that a server that ran between two of its disks is noticed.
            for disk in server.disks:
                sources.append((disk, disk.open()))
            for disk, source in sources:
                self._send_disk(server.name, disk, source, compare[disk.name])
                check_unchanged(sources)
        finally:
            for _, source in sources:
                source.close()

    def _send_firmware(self, server: OutgoingServer) -> None:
        for name, content in server.firmware_now().items():
            self._conversation.send(Firmware(name, len(content)))
            for at in range(0, len(content), MAX_DATA_BYTES):
                self._channel.send(Kind.FIRMWARE_DATA, content[at : at + MAX_DATA_BYTES])

    def _send_disk(self, server: str, disk: OutgoingDisk, source: Source, compare: bool) -> None:
        self._observer.disk_begun(server, disk.name, disk.size_bytes)
        self._conversation.send(DiskBegin(disk.name))
        before = self._channel.wire_bytes
        sender = DiskSender(
            self._channel,
            self._digester,
            source,
            disk.size_bytes,
            compare=compare,
            window=self._window,
            compressor=self._compressor,
            looked=lambda done: self._observer.disk_advanced(
                server, disk.name, done, self._channel.wire_bytes - before
            ),
        )
        dialogue = DiskDialogue(
            self._channel,
            self._conversation,
            server,
            disk,
            source,
            standstill_seconds=self._standstill_seconds,
        )
        done = dialogue.run(sender)
        self._observer.disk_done(server, disk.name, done.written_bytes, self._channel.wire_bytes - before)


def _once(warnings: Tuple[str, ...]) -> Tuple[str, ...]:
    """Each of them, the first time only."""
    return tuple(dict.fromkeys(warnings))


def _offer(server: OutgoingServer) -> ServerOffer:
    return ServerOffer(
        server.name,
        server.definition,
        tuple(DiskOffer(disk.name, disk.size_bytes, disk.path, disk.data_bytes) for disk in server.disks),
        server.left_out,
        {name: len(content) for name, content in server.firmware.items()},
    )
