"""One job on the target: each of its servers that is taken, seen through.

Touches the session's conversation; job_admission.py says which are taken, receive.py does the work. An error of one
server ends that server only.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

from anvil_dr.activation import nodes
from anvil_dr.activation.life_signs import Node
from anvil_dr.caching import cached_copy, caching
from anvil_dr.caching.cached_receive import CachedReceiver
from anvil_dr.caching.cached_sets import CachedSet
from anvil_dr.errors import AnvilDrError, CacheDriveError, ProtocolError
from anvil_dr.model import JobRecord
from anvil_dr.receiving import admission, announcement
from anvil_dr.receiving.conversation import Aborted, Conversation
from anvil_dr.receiving.job_admission import JobAdmission
from anvil_dr.receiving.receive import ServerReceiver
from anvil_dr.receiving.target import JobProgress, Target
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.digest import SEGMENT_BYTES, Digester
from anvil_dr.wire.protocol import (
    MAX_FIRMWARE_BYTES,
    DiskBegin,
    DiskEnd,
    DiskReady,
    Firmware,
    Job,
    JobDone,
    JobPlan,
    Kind,
    ServerBegin,
    ServerDone,
    ServerEnd,
    ServerFailed,
    ServerOffer,
    ServerReady,
    decode,
)
from anvil_dr.words import printable

log = logging.getLogger(__name__)

_MOST_ATTEMPTS = 4
"""At one server, on as many cache drives; its node keeps it off meanwhile."""


@dataclass
class _Attempt:
    """How it went, the last time; and what was written in all."""

    error: str = ""
    written_bytes: int = 0
    number: int = 0


class IncomingJob:
    """A job that was announced, until its end."""

    def __init__(
        self,
        target: Target,
        channel: Channel,
        conversation: Conversation,
        digester: Digester,
        node: str,
        allowed: Sequence[str],
        address: str = "",
    ) -> None:
        self._target, self._channel, self._conversation = target, channel, conversation
        self._digester, self._node, self._address = digester, node, address
        self._cached: Dict[str, CachedSet] = {}
        """Servers whose sets are complete on cache drives, and have to be copied to the store."""
        self._begun: Optional[str] = None
        """What the node has begun already, though nobody has waited for it yet."""
        self._id = f"{target.now()[:19].replace(':', '').replace('-', '')}-{uuid.uuid4().hex[:8]}"
        self._admission = JobAdmission(target, self._id, node, allowed)

    def run(self, job: Job) -> bool:
        """See it through. False if a server of it failed or was refused. Raise ProtocolError."""
        announcement.check_job(job)
        log.info("job begun job=%s name=%r node=%r", self._id, job.name, self._node)
        accepted = self._admission.accepted
        try:
            plans = self._admission.admit(job)
            self._conversation.send(JobPlan(self._id, tuple(plans)))
            total = sum(disk.size_bytes for offer in accepted for disk in offer.disks)
            progress = JobProgress(self._id, self._node, tuple(offer.name for offer in accepted), total)
            before = self._channel.wire_bytes
            progress.wire_bytes = lambda: self._channel.wire_bytes - before
            done: List[str] = []
            with self._target.running(progress):
                for offer in accepted:
                    if self._server(offer, progress):
                        done.append(offer.name)
                    progress.current_bytes = lambda: 0
                    progress.finished_bytes += sum(disk.size_bytes for disk in offer.disks)
                    if offer.name in self._cached and not self._admission.cache.together:
                        self._copy_now(offer.name)
                    if offer.name not in self._cached:
                        self._target.vacate(offer.name, self._id)
            if self._next_begun():
                raise ProtocolError(f"{Kind.SERVER_BEGIN.name} came where {Kind.JOB_END.name} was due")
            failed = tuple(offer.name for offer in job.servers if offer.name not in done)
            self._conversation.send(JobDone(tuple(done), failed))
            log.info("job ended job=%s succeeded=%s failed=%s", self._id, ",".join(done), ",".join(failed))
            return not failed
        finally:
            # Only now: the copies would slow down what was still arriving.
            for server in self._cached:
                cached_copy.copy_later(self._target, server, self._id)
            for offer in accepted:
                if offer.name not in self._cached:
                    self._target.vacate(offer.name, self._id)
            self._copy_what_waited()

    def _copy_what_waited(self) -> None:
        """Sets of earlier jobs, whose drives may have come back while these servers were busy."""
        try:
            cached_copy.resume(self._target)
        except AnvilDrError as error:
            log.error("sets on cache drives cannot be looked at error=%s", error)

    def _copy_now(self, server: str) -> None:
        """There is no room for the next one before this one is in the store; the node waits meanwhile."""
        try:
            cached_copy.copy(self._target, self._cached[server])
        except AnvilDrError as error:
            # Its set is complete, and it's tried again at the end of the job.
            log.error("set stays on its cache drive server=%s code=%s error=%s", server, error.code, error)
        else:
            del self._cached[server]

    # — one server —

    def _server(self, offer: ServerOffer, progress: JobProgress) -> bool:
        begun = self._next_begun()
        if not begun:
            raise ProtocolError(f"{Kind.JOB_END.name} came where {Kind.SERVER_BEGIN.name} was due")
        if begun != offer.name:
            raise ProtocolError(f"server {begun!r} began where {offer.name!r} was due")
        started_at = self._target.now()
        self._target.state.job_started(JobRecord(self._id, offer.name, self._node, "running", started_at))
        nodes.remember(self._target.config.state, offer.name, Node(self._node, self._address, started_at))
        before, attempt = self._channel.wire_bytes, _Attempt()
        try:
            while self._attempt(offer, before, progress, attempt):
                log.info("server may begin again job=%s server=%s because=%s", self._id, offer.name, attempt.error)
                if not self._begins_again(offer.name):
                    break
        finally:
            wire_bytes, error = self._channel.wire_bytes - before, attempt.error
            self._target.state.job_finished(
                JobRecord(
                    self._id, offer.name, self._node, "failed" if error else "succeeded", started_at,
                    self._target.now(), error or None, wire_bytes, attempt.written_bytes,
                )
            )  # fmt: skip
            log.info(
                "server ended job=%s server=%s state=%s wire_bytes=%d written_bytes=%d error=%r",
                self._id, offer.name, "failed" if error else "succeeded", wire_bytes, attempt.written_bytes, error,
            )  # fmt: skip
        return not attempt.error

    def _attempt(self, offer: ServerOffer, before: int, progress: JobProgress, attempt: _Attempt) -> bool:
        """Receive it once. True if it failed, and the node knows that it may begin again."""
        kind = CachedReceiver if offer.name in self._admission.cache.servers else ServerReceiver
        receiver = kind(self._target, self._channel, self._digester, self._id, self._node, offer)
        progress.current_bytes = receiver.done_bytes
        attempt.number += 1
        attempt.error = "the service failed in a way nobody foresaw; its log says more"
        try:
            with self._conversation.about(offer.name):
                done = self._receive(receiver, offer, before, progress)
            attempt.error = ""
            self._conversation.send(done)
        except Aborted as aborted:
            attempt.error = f"the node gave up: {aborted.message.message}"
            self._conversation.send(ServerFailed(offer.name, aborted.message.code, aborted.message.message))
        except ProtocolError as broken:
            # Once its set is complete it has succeeded, whether or not the node could be told.
            attempt.error = attempt.error and str(broken)
            raise
        except AnvilDrError as failed:
            attempt.error = str(failed)
            on_cache = isinstance(failed, CacheDriveError) and attempt.number < _MOST_ATTEMPTS
            again = on_cache and self._fits_elsewhere(offer)
            self._give_up(offer, failed, again)
            return again
        finally:
            receiver.close()
            self._target.drop_firmware(self._id, offer.name)
            attempt.written_bytes += receiver.written_bytes
            if isinstance(receiver, CachedReceiver) and receiver.cached is not None:
                self._cached[offer.name] = receiver.cached
        return False

    def _fits_elsewhere(self, offer: ServerOffer) -> bool:
        """True if there are drives with room for it that have not failed."""
        try:
            return bool(caching.places(self._target, offer, self._target.failing_drives))
        except AnvilDrError as error:
            log.info("server fits on no other drive server=%s reason=%s", offer.name, error)
            return False

    def _next_begun(self) -> str:
        """The server that begins now; empty if none does any more."""
        if self._begun is not None:
            begun, self._begun = self._begun, None
            return begun
        kind, content = self._conversation.next()
        if kind is Kind.JOB_END:
            return ""
        if kind is not Kind.SERVER_BEGIN:
            raise ProtocolError(f"{kind.name} came where {Kind.SERVER_BEGIN.name} was due")
        return decode(ServerBegin, content).server

    def _begins_again(self, server: str) -> bool:
        """True if that is what the node does; otherwise it goes on, and what it said is kept."""
        begun = self._next_begun()
        if begun != server:
            self._begun = begun
        return begun == server

    def _receive(
        self, receiver: ServerReceiver, offer: ServerOffer, before: int, progress: JobProgress
    ) -> ServerDone:
        compare = receiver.begin()
        self._conversation.send(
            ServerReady(
                offer.name, tuple(DiskReady(disk.name, compare[disk.name]) for disk in offer.disks), receiver.warnings
            )
        )
        for name in offer.firmware:
            self._firmware(receiver, offer.name, name)
        for _ in offer.disks:
            self._disk(receiver, self._conversation.expect(DiskBegin).disk, progress)
        if self._conversation.expect(ServerEnd).server != offer.name:
            raise ProtocolError(f"a server other than {offer.name!r} was ended")
        received_at, path, made, warnings = receiver.complete()
        wire_bytes = self._channel.wire_bytes - before
        return ServerDone(offer.name, received_at, wire_bytes, receiver.written_bytes, path, made, warnings)

    def _disk(self, receiver: ServerReceiver, name: str, progress: JobProgress) -> None:
        disk = receiver.disk(name, self._target.window)
        progress.disk = name
        while True:
            kind, content = self._conversation.next()
            if kind is Kind.DISK_END:
                end = decode(DiskEnd, content)
                self._conversation.send(receiver.disk_done(end.disk, printable(end.digest)))
                progress.disk = ""
                return
            disk.handle(kind, content)

    def _firmware(self, receiver: ServerReceiver, server: str, name: str) -> None:
        # Its size may be another than the one in the job: a TPM's state grows until its server is off.
        announced = self._conversation.expect(Firmware)
        if announced.name != name:
            raise ProtocolError(f"firmware state {announced.name!r} is not due")
        size_bytes = announced.size_bytes
        if size_bytes > MAX_FIRMWARE_BYTES - receiver.firmware_bytes:
            raise ProtocolError(f"there is too much firmware state: {name!r} has {size_bytes} bytes")
        admission.check_firmware(self._target, size_bytes)
        self._target.hold_firmware(self._id, server, size_bytes)
        content = bytearray()
        while len(content) < size_bytes:
            part = self._conversation.take(Kind.FIRMWARE_DATA)
            if not part or len(content) + len(part) > size_bytes:
                raise ProtocolError(f"firmware state {name!r} has the wrong length")
            content += part
        receiver.firmware(name, bytes(content))

    def _give_up(self, offer: ServerOffer, error: AnvilDrError, again: bool) -> None:
        log.warning("server failed job=%s server=%s code=%s error=%s", self._id, offer.name, error.code, error)
        # What a node may have sent before it hears of this: its firmware state, and the segments of the window.
        firmware_bytes = MAX_FIRMWARE_BYTES if offer.firmware else 0
        under_way_bytes = firmware_bytes + (self._target.window + 2) * SEGMENT_BYTES
        with self._conversation.about(offer.name):
            self._conversation.fail(offer.name, error, under_way_bytes, again=again)
