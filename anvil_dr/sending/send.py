"""One job, on the node: announces the servers, sends their disks, and learns what became of them.

Touches the channel and, through ports, the source disks. What a server needs before it may be read (being
shut down) and afterwards (being started again) comes in as a context manager, so that it is undone whatever
happens here.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Callable, ContextManager, List, Mapping, Optional, Protocol, Tuple, Type

from anvil_dr.errors import (
    AnvilDrError,
    PeerGoneError,
    ProtocolError,
    RemoteError,
    SourceChangedError,
    SourceError,
)
from anvil_dr.ports import Image
from anvil_dr.sending.send_disk import DiskSender
from anvil_dr.wire import digest
from anvil_dr.wire.channel import Channel, KeepAlive, frame_buffer
from anvil_dr.wire.compression import Compressor
from anvil_dr.wire.pace import Pace
from anvil_dr.wire.protocol import (
    MAX_DATA_BYTES,
    VERSION,
    DiskBegin,
    DiskDone,
    DiskEnd,
    DiskOffer,
    Error,
    Firmware,
    Hello,
    Job,
    JobDone,
    JobEnd,
    JobPlan,
    Kind,
    M,
    Message,
    ServerAbort,
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

_LAST_WORDS = "the reason why the target left"
_LAST_WORDS_SECONDS = 5.0
_STANDSTILL_SECONDS = 900.0
"""In the middle of a disk; the target waits as long for this end."""


class Source(Image, Protocol):
    """A disk of the node, open for reading."""

    def changed(self) -> Optional[str]:
        """What shows that somebody wrote to it since it was opened, in words; None if nothing does."""
        ...


@dataclass(frozen=True)
class OutgoingDisk:
    """One disk to be sent."""

    name: str
    path: str
    """As the definition has it."""
    size_bytes: int
    open: Callable[[], Source]
    """Opens what is really read, once the server is off. Raise SourceError."""
    data_bytes: Optional[int] = None
    """What lies outside of holes now; None where nobody can tell."""


@dataclass(frozen=True)
class OutgoingServer:
    """One server to be sent."""

    name: str
    definition: str
    disks: Tuple[OutgoingDisk, ...]
    keep_off: Callable[[], ContextManager[object]]
    """Entered before its disks are read: makes sure that it is off, and puts it back as it was."""
    left_out: Tuple[str, ...] = ()
    firmware: Mapping[str, bytes] = field(default_factory=dict)
    """Firmware state as it is when the job is announced."""
    read_firmware: Optional[Callable[[], Mapping[str, bytes]]] = None
    """Reads the same files once the server is off: a guest changes them as long as it runs. Raise SourceError."""


@dataclass(frozen=True)
class ServerOutcome:
    """What became of one server."""

    name: str
    error: Optional[AnvilDrError] = None
    done: Optional[ServerDone] = None
    warnings: Tuple[str, ...] = ()


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job."""

    job_id: str
    servers: Tuple[ServerOutcome, ...]
    wire_bytes: int

    @property
    def succeeded(self) -> bool:
        return all(server.error is None for server in self.servers)


class Observer(Protocol):
    """Told how a job goes, from the thread that sends it or from a worker of its."""

    def job_planned(self, plan: JobPlan) -> None: ...

    def server_begun(self, server: str) -> None: ...

    def disk_begun(self, server: str, disk: str, size_bytes: int) -> None: ...

    def disk_advanced(self, server: str, disk: str, done_bytes: int, wire_bytes: int) -> None:
        """`done_bytes` of the disk are sent, or right at the target already; `wire_bytes` crossed for it so far."""
        ...

    def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None: ...

    def server_ended(self, outcome: ServerOutcome) -> None: ...


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
        self._buffer = frame_buffer()

    def run(self, name: str, servers: Tuple[OutgoingServer, ...]) -> JobOutcome:
        """Send the servers one after the other. Raise ProtocolError or RemoteError if the session itself fails."""
        try:
            with KeepAlive(self._channel):
                return self._job(name, servers)
        except PeerGoneError as error:
            raise self._last_words() or error from None

    def _job(self, name: str, servers: Tuple[OutgoingServer, ...]) -> JobOutcome:
        self._greet()
        self._send(Job(name, tuple(_offer(server) for server in servers)))
        plan = self._expect(JobPlan)
        self._observer.job_planned(plan)
        plans = {planned.name: planned for planned in plan.servers}
        outcomes = tuple(self._one(server, plans.get(server.name)) for server in servers)
        self._send(JobEnd())
        self._expect(JobDone)
        return JobOutcome(plan.job_id, outcomes, self._channel.wire_bytes)

    def _last_words(self) -> Optional[RemoteError]:
        """Why the target left, if it said so before it stopped listening."""
        self._channel.expect_within(_LAST_WORDS_SECONDS, _LAST_WORDS)
        try:
            while True:
                self._next()
        except RemoteError as said:
            return said
        except (ProtocolError, _Refused):
            return None

    def say_why(self, error: AnvilDrError) -> None:
        """Tell the target why this end leaves in the middle of the job, if it can still be told."""
        try:
            self._channel.farewell(Kind.ERROR, Error(error.code, str(error)).encode())
        except ProtocolError as failed:
            log.debug("the target could not be told error=%s", failed)

    def _greet(self) -> None:
        self._send(
            Hello(
                versions=(VERSION,),
                digests=digest.available(),
                compressions=("zstd",) if self._compress else (),
                node=self._node,
                program=f"anvil-dr-send/{VERSION}",
            )
        )
        welcome = self._expect(Welcome)
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
            self._send(ServerEnd(server.name))
            done = self._expect(ServerDone)
        except _Refused as refused:
            if not refused.told:
                # The target waits for this before it takes the next server.
                self._send(ServerAbort(server.name, refused.code, str(refused)))
            return ServerOutcome(server.name, refused.cause or RemoteError(refused.code, str(refused)), None, warnings)
        except (ProtocolError, RemoteError):
            raise  # the session has ended, and nobody would answer
        except AnvilDrError as error:
            self._send(ServerAbort(server.name, error.code, str(error)))
            self._drain_until_failed()
            return ServerOutcome(server.name, error, None, warnings)
        return ServerOutcome(server.name, None, done, _once(warnings + done.warnings))

    def _sent(self, server: OutgoingServer, warnings: Tuple[str, ...], off: ExitStack) -> Tuple[str, ...]:
        """Send its disks, as often as the target can take them elsewhere. Returns the warnings."""
        is_off = False
        while True:
            self._send(ServerBegin(server.name))
            try:
                ready = self._expect(ServerReady)
                warnings = _once(warnings + ready.warnings)
                if not is_off:
                    off.enter_context(server.keep_off())
                    is_off = True
                self._send_server(server, {disk.name: disk.compare for disk in ready.disks})
                return warnings
            except _Refused as refused:
                if not refused.again or refused.told or refused.cause is not None:
                    raise
                self._send(ServerAbort(server.name, refused.code, str(refused)))
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
                for one, opened in sources:
                    changed = opened.changed()
                    if changed is not None:
                        raise SourceChangedError(one.path, changed)
        finally:
            for _, source in sources:
                source.close()

    def _send_firmware(self, server: OutgoingServer) -> None:
        now = server.firmware if server.read_firmware is None else server.read_firmware()
        for name in server.firmware:
            content = now.get(name)
            if content is None:
                raise SourceError(f"server {server.name}: its firmware state {name} has gone since the job began")
            self._send(Firmware(name, len(content)))
            for at in range(0, len(content), MAX_DATA_BYTES):
                self._channel.send(Kind.FIRMWARE_DATA, content[at : at + MAX_DATA_BYTES])

    def _send_disk(self, server: str, disk: OutgoingDisk, source: Source, compare: bool) -> None:
        self._observer.disk_begun(server, disk.name, disk.size_bytes)
        self._send(DiskBegin(disk.name))
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
        worker = _Worker(self._channel, server, disk.name, sender)
        try:
            done = self._dialogue(sender)
        except _Refused as refused:
            worker.stop()
            changed = source.changed()
            refused.told = worker.error is not None
            refused.cause = worker.error or (SourceChangedError(disk.path, changed) if changed else None)
            raise
        except BaseException as error:
            # The session is over. The worker must not go on reading a disk whose server is started again, nor hold
            # that up because the peer takes nothing any more.
            own = worker.error
            self._channel.abandon()
            worker.stop()
            if isinstance(error, PeerGoneError) and own is not None:
                raise own from None
            raise
        worker.stop()
        self._observer.disk_done(server, disk.name, done.written_bytes, self._channel.wire_bytes - before)

    def _dialogue(self, sender: DiskSender) -> DiskDone:
        """Hand the target's records to the worker until the disk is done."""
        self._channel.expect_progress(self._standstill_seconds)
        try:
            while True:
                kind, content = self._next()
                if kind is Kind.DISK_DONE:
                    return decode(DiskDone, content)
                sender.reply(kind, bytes(content))
        finally:
            self._channel.expect_progress(None)

    def _drain_until_failed(self) -> None:
        try:
            while True:
                self._next()
        except _Refused:
            return

    def _next(self) -> Tuple[Kind, memoryview]:
        kind, content = self._channel.receive(self._buffer)
        if kind is Kind.SERVER_FAILED:
            failed = decode(ServerFailed, content)
            raise _Refused(failed.code, failed.message, failed.again)
        if kind is Kind.ERROR:
            error = decode(Error, content)
            raise RemoteError(error.code, error.message)
        return kind, content

    def _expect(self, message: Type[M]) -> M:
        kind, content = self._next()
        if kind is not message.kind:
            raise ProtocolError(f"{kind.name} came where {message.kind.name} was due")
        return decode(message, content)

    def _send(self, message: Message) -> None:
        self._channel.send(message.kind, message.encode())


class _Refused(Exception):
    """The target failed the current server. `cause` is what this end knows better; `told` if it gave up first."""

    def __init__(self, code: str, message: str, again: bool = False) -> None:
        self.code, self.again = code, again
        self.cause: Optional[AnvilDrError] = None
        self.told = False
        super().__init__(message)


class _Worker:
    """Runs a DiskSender in a thread of its own, so that this end always reads what the target says."""

    def __init__(self, channel: Channel, server: str, disk: str, sender: DiskSender) -> None:
        self._channel, self._server, self._disk, self._sender = channel, server, disk, sender
        self.error: Optional[AnvilDrError] = None
        self._thread = threading.Thread(target=self._run, name=f"send-{disk}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended; at once, if it was done."""
        self._sender.stop()
        self._thread.join()

    def _run(self) -> None:
        in_order = False
        try:
            digest_text = self._sender.run()
            if digest_text is not None:
                self._channel.send(Kind.DISK_END, DiskEnd(self._disk, digest_text).encode())
            in_order = True
        except PeerGoneError as error:
            self.error = error
            # It takes nothing any more. What it said before, or the end of it, is still on its way.
            self._channel.expect_within(_LAST_WORDS_SECONDS, _LAST_WORDS)
            in_order = True
        except ProtocolError as error:
            self.error = error
        except AnvilDrError as error:
            self.error = error
            self._send_abort(error)
            in_order = True
        finally:
            if not in_order:
                # Wakes the receiving thread. After a defect of ours too: it would wait, with the server off, for ever.
                self._channel.abandon()

    def _send_abort(self, error: AnvilDrError) -> None:
        """The target answers with SERVER_FAILED, which is what the receiving thread waits for."""
        try:
            self._channel.send(Kind.SERVER_ABORT, ServerAbort(self._server, error.code, str(error)).encode())
        except ProtocolError:
            log.debug("the target could not be told error=%s", error)


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
