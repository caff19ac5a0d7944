"""One session with a node, on the target: greets, takes the job, and sees every server of it through.

Touches the channel; receive.py does the work. An error of one server ends that server only; an error of
the peer, or of the protocol, ends the session only.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import List, Sequence, Tuple, Type

from anvil_dr import admission, digest
from anvil_dr.channel import Channel, KeepAlive, frame_buffer
from anvil_dr.errors import AnvilDrError, PeerGoneError, ProtocolError
from anvil_dr.model import JobRecord
from anvil_dr.protocol import (
    MAX_FIRMWARE_BYTES,
    VERSION,
    DiskBegin,
    DiskEnd,
    DiskReady,
    Error,
    Firmware,
    Hello,
    Job,
    JobDone,
    JobPlan,
    Kind,
    M,
    Message,
    Refusal,
    RunningJobReport,
    ServerAbort,
    ServerBegin,
    ServerDone,
    ServerEnd,
    ServerFailed,
    ServerOffer,
    ServerPlan,
    ServerReady,
    Status,
    Welcome,
    decode,
)
from anvil_dr.receive import ServerReceiver
from anvil_dr.target import JobProgress, Target

log = logging.getLogger(__name__)

_NAME_CHARACTERS = 255


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as far as this machine knows by itself."""

    description: str
    allowed: Tuple[str, ...] = ("*",)
    """Patterns of the servers that it may send (`anvil-dr-receive --allow`)."""
    may_ask_status: bool = True


class Aborted(Exception):
    """The node gave up the current server."""

    def __init__(self, message: ServerAbort) -> None:
        self.message = message
        super().__init__(message.message)


class Session:
    """One connection, from the greeting to its end."""

    def __init__(self, target: Target, channel: Channel, peer: Peer) -> None:
        self._target, self._channel, self._peer = target, channel, peer
        self._buffer = frame_buffer()

    def run(self) -> None:
        """See the session through. Raise AnvilDrError after having told the peer, if it can still be told."""
        try:
            with KeepAlive(self._channel):
                self._converse()
        except AnvilDrError as error:
            self._tell(error)
            raise

    def _converse(self) -> None:
        hello = self._expect(Hello)
        if len(hello.node) > _NAME_CHARACTERS:
            raise ProtocolError("the node's name is too long")
        if VERSION not in hello.versions:
            raise ProtocolError(
                f"the node speaks protocol version {', '.join(map(str, hello.versions))}, this box version {VERSION}"
            )
        if hello.purpose == "status" and self._peer.may_ask_status:
            self._send(Status(tuple(RunningJobReport(**vars(job)) for job in self._target.jobs())))
            return
        if hello.purpose != "job":
            raise ProtocolError(f"{hello.purpose!r} is nothing this box can be asked")
        algorithm = next((name for name in digest.available() if name in hello.digests), None)
        if algorithm is None:
            raise ProtocolError("no digest algorithm is common to both ends")
        self._digester = digest.digester(algorithm)
        self._send(
            Welcome(
                version=VERSION,
                digest=algorithm,
                compressions=("zstd",) if "zstd" in hello.compressions else (),
                target=self._target.config.name,
                window=self._target.window,
                bandwidth_limit=self._target.config.bandwidth_limit,
            )
        )
        self._job(hello, self._expect(Job))

    # — the job —

    def _job(self, hello: Hello, job: Job) -> None:
        admission.check_job(job)
        job_id = f"{self._target.now()[:19].replace(':', '').replace('-', '')}-{uuid.uuid4().hex[:8]}"
        node = hello.node or self._peer.description
        log.info("job begun job=%s name=%r node=%r peer=%r", job_id, job.name, node, self._peer.description)
        accepted: List[ServerOffer] = []
        try:
            plans = self._admit(job, job_id, node, accepted)
            self._send(JobPlan(job_id, tuple(plans)))
            total = sum(disk.size_bytes for offer in accepted for disk in offer.disks)
            progress = JobProgress(job_id, node, tuple(offer.name for offer in accepted), total)
            done: List[str] = []
            with self._target.running(progress):
                for offer in accepted:
                    if self._server(offer, job_id, node, progress):
                        done.append(offer.name)
                    progress.current_bytes = lambda: 0
                    progress.finished_bytes += sum(disk.size_bytes for disk in offer.disks)
                    self._target.vacate(offer.name, job_id)
            self._take(Kind.JOB_END)
            failed = tuple(offer.name for offer in job.servers if offer.name not in done)
            self._send(JobDone(tuple(done), failed))
            log.info("job ended job=%s succeeded=%s failed=%s", job_id, ",".join(done), ",".join(failed))
        finally:
            for offer in accepted:
                self._target.vacate(offer.name, job_id)

    def _admit(self, job: Job, job_id: str, node: str, accepted: List[ServerOffer]) -> List[ServerPlan]:
        """Say for each server whether it is taken. Those that are belong to this job from now on."""
        plans: List[ServerPlan] = []
        for offer in job.servers:
            try:
                warnings = self._admit_one(offer, job_id)
            except AnvilDrError as error:
                plans.append(self._refuse(offer, job_id, node, error))
            else:
                accepted.append(offer)
                plans.append(ServerPlan(offer.name, None, warnings))
        try:
            self._promise(accepted, job_id)
        except AnvilDrError as error:
            # SPEC section 4: what does not fit as a whole is refused as a whole.
            for offer in accepted:
                self._target.vacate(offer.name, job_id)
                plans = [p for p in plans if p.name != offer.name] + [self._refuse(offer, job_id, node, error)]
            accepted.clear()
        return plans

    def _admit_one(self, offer: ServerOffer, job_id: str) -> Tuple[str, ...]:
        warnings = admission.check_server(self._target, offer, self._peer.allowed)
        self._target.occupy(offer.name, job_id)
        try:
            # Alone first, so that what is wrong with one server does not refuse the others.
            with self._target.names:
                plan = admission.plan_servers(self._target, job_id, [offer])[offer.name]
        except AnvilDrError:
            self._target.vacate(offer.name, job_id)
            raise
        return warnings + plan.warnings

    def _promise(self, accepted: Sequence[ServerOffer], job_id: str) -> None:
        if not accepted:
            return
        with self._target.names:
            for server, plan in admission.plan_servers(self._target, job_id, accepted).items():
                self._target.promise(job_id, server, admission.space_taken(plan))

    def _refuse(self, offer: ServerOffer, job_id: str, node: str, error: AnvilDrError) -> ServerPlan:
        log.warning("server refused job=%s server=%r code=%s error=%s", job_id, offer.name, error.code, error)
        if error.code in ("ServerActivated", "StoreFull", "ImageInUse", "Store", "Definition"):
            now = self._target.now()
            self._target.state.job_finished(JobRecord(job_id, offer.name, node, "failed", now, now, str(error)))
        return ServerPlan(offer.name, Refusal(error.code, str(error)))

    # — one server —

    def _server(self, offer: ServerOffer, job_id: str, node: str, progress: JobProgress) -> bool:
        begin = self._expect(ServerBegin)
        if begin.server != offer.name:
            raise ProtocolError(f"server {begin.server!r} began where {offer.name!r} was due")
        record = JobRecord(job_id, offer.name, node, "running", self._target.now())
        self._target.state.job_started(record)
        before = self._channel.wire_bytes
        receiver = ServerReceiver(self._target, self._channel, self._digester, job_id, node, offer)
        progress.current_bytes = receiver.done_bytes
        error = "the service was stopped"
        state = "failed"
        try:
            try:
                self._receive(receiver, offer, before)
                state, error = "succeeded", ""
            except Aborted as aborted:
                error = f"the node gave up: {aborted.message.message}"
                self._send(ServerFailed(offer.name, aborted.message.code, aborted.message.message))
            except ProtocolError as broken:
                error = str(broken)
                raise
            except AnvilDrError as failed:
                error = str(failed)
                self._give_up(offer.name, failed)
        finally:
            receiver.close()
            wire_bytes = self._channel.wire_bytes - before
            self._target.state.job_finished(
                JobRecord(
                    job_id, offer.name, node, "succeeded" if state == "succeeded" else "failed", record.started_at,
                    self._target.now(), error or None, wire_bytes, receiver.written_bytes,
                )
            )  # fmt: skip
            log.info(
                "server ended job=%s server=%s state=%s wire_bytes=%d written_bytes=%d error=%r",
                job_id, offer.name, state, wire_bytes, receiver.written_bytes, error,
            )  # fmt: skip
        return state == "succeeded"

    def _receive(self, receiver: ServerReceiver, offer: ServerOffer, before: int) -> None:
        compare = receiver.begin()
        self._send(
            ServerReady(
                offer.name, tuple(DiskReady(disk.name, compare[disk.name]) for disk in offer.disks), receiver.warnings
            )
        )
        for name in offer.firmware:
            self._firmware(receiver, name)
        for _ in offer.disks:
            self._disk(receiver, self._expect(DiskBegin).disk)
        if self._expect(ServerEnd).server != offer.name:
            raise ProtocolError(f"a server other than {offer.name!r} was ended")
        received_at, path, made, warnings = receiver.complete()
        self._send(
            ServerDone(
                offer.name,
                received_at,
                self._channel.wire_bytes - before,
                receiver.written_bytes,
                path,
                made,
                warnings,
            )
        )

    def _disk(self, receiver: ServerReceiver, name: str) -> None:
        disk = receiver.disk(name, self._target.window)
        while True:
            kind, content = self._next()
            if kind is Kind.DISK_END:
                end = decode(DiskEnd, content)
                self._send(receiver.disk_done(end.disk, end.digest))
                return
            disk.handle(kind, content)

    def _firmware(self, receiver: ServerReceiver, name: str) -> None:
        # Its size may be another than the one in the job: a TPM's state grows until its server is off.
        announced = self._expect(Firmware)
        if announced.name != name:
            raise ProtocolError(f"firmware state {announced.name!r} is not due")
        size_bytes = announced.size_bytes
        if size_bytes > MAX_FIRMWARE_BYTES - receiver.firmware_bytes:
            raise ProtocolError(f"there is too much firmware state: {name!r} has {size_bytes} bytes")
        content = bytearray()
        while len(content) < size_bytes:
            part = self._take(Kind.FIRMWARE_DATA)
            if not part or len(content) + len(part) > size_bytes:
                raise ProtocolError(f"firmware state {name!r} has the wrong length")
            content += part
        receiver.firmware(name, bytes(content))

    def _give_up(self, server: str, error: AnvilDrError) -> None:
        """Tell the node, then drop what was under way until it has understood."""
        log.warning("server failed server=%s code=%s error=%s", server, error.code, error)
        self._send(ServerFailed(server, error.code, str(error)))
        while self._channel.receive(self._buffer)[0] is not Kind.SERVER_ABORT:
            pass

    # — frames —

    def _next(self) -> Tuple[Kind, memoryview]:
        kind, content = self._channel.receive(self._buffer)
        if kind is Kind.SERVER_ABORT:
            raise Aborted(decode(ServerAbort, content))
        if kind is Kind.ERROR:
            error = decode(Error, content)
            raise PeerGoneError(f"the node gave up: {error.message}")
        return kind, content

    def _take(self, wanted: Kind) -> memoryview:
        kind, content = self._next()
        if kind is not wanted:
            raise ProtocolError(f"{kind.name} came where {wanted.name} was due")
        return content

    def _expect(self, message: Type[M]) -> M:
        return decode(message, self._take(message.kind))

    def _send(self, message: Message) -> None:
        self._channel.send(message.kind, message.encode())

    def _tell(self, error: AnvilDrError) -> None:
        try:
            self._send(Error(error.code, str(error)))
        except ProtocolError:
            log.debug("the peer could not be told error=%s", error)

