"""The frames of one session, on the target: what is due, what may come in its place, and what is said back.

Touches the channel. Little memory is used before a node has announced a job that is taken.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from typing import Iterator, Optional, Tuple, Type

from anvil_dr.errors import AnvilDrError, PeerGoneError, ProtocolError
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.frames_ahead import FramesAhead
from anvil_dr.wire.limits import Limits
from anvil_dr.wire.protocol import (
    MAX_CONTROL_BYTES,
    MAX_HELLO_BYTES,
    Error,
    Hello,
    Job,
    Kind,
    M,
    Message,
    ServerAbort,
    ServerFailed,
    decode,
)
from anvil_dr.words import printable

log = logging.getLogger(__name__)


class Aborted(Exception):
    """The node gave up the server that it was sending."""

    def __init__(self, message: ServerAbort) -> None:
        self.message = message
        super().__init__(message.message)


class Conversation:
    """The target's side of one session. Every method raises ProtocolError, PeerGoneError or PeerTimeoutError."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        self._channel, self._limits = channel, limits
        self._buffer = memoryview(b"")
        self._server: Optional[str] = None
        self._ahead: Optional[FramesAhead] = None

    def close(self) -> None:
        """Nobody receives from the channel any more. It can be told something yet."""
        if self._ahead is not None:
            self._channel.abandon()
            self._ahead.close()
            self._ahead = None

    def hello(self, within_seconds: float) -> Hello:
        """The greeting, from somebody of whom nothing is known."""
        return self._first(Hello, within_seconds, MAX_HELLO_BYTES)

    def job(self, within_seconds: float) -> Job:
        """The announcement. The only message that may be long."""
        return self._first(Job, within_seconds, MAX_CONTROL_BYTES)

    @contextmanager
    def about(self, server: str) -> Iterator[None]:
        """While this server is being sent the node may give it up, and then `Aborted` is raised."""
        self._server = server
        try:
            yield
        finally:
            self._server = None

    def next(self) -> Tuple[Kind, memoryview]:
        """One frame, whose content is valid until the next call. Raise Aborted."""
        if not self._buffer:
            self._buffer = frame_buffer()
        return self._received(len(self._buffer))

    def take(self, wanted: Kind) -> memoryview:
        """The content of the frame that is due. Raise Aborted."""
        return self._due(wanted, *self.next())

    def expect(self, message: Type[M]) -> M:
        """The message that is due. Raise Aborted."""
        return decode(message, self.take(message.kind))

    def send(self, message: Message) -> None:
        self._channel.send(message.kind, message.encode())

    def fail(self, server: str, error: AnvilDrError, most_bytes: int, *, again: bool = False) -> None:
        """Tell that a server failed, and whether it may begin again.

        Drop what was under way, `most_bytes` of it, until the node has understood.
        """
        self.send(ServerFailed(server, error.code, str(error), again))
        while True:
            try:
                most_bytes -= len(self.next()[1])
            except Aborted:
                return
            if most_bytes < 0:
                raise ProtocolError(f"the node goes on with server {server}, which has failed")

    def tell(self, error: AnvilDrError, within_seconds: float) -> None:
        """Say why the session ends, if the peer can still be told."""
        try:
            self._channel.farewell(Kind.ERROR, Error(error.code, str(error)).encode(), within_seconds=within_seconds)
        except ProtocolError as failed:
            log.debug("the peer could not be told: %s", failed)

    def _first(self, message: Type[M], within_seconds: float, largest_bytes: int) -> M:
        self._channel.expect_within(within_seconds, message.kind.name)
        content = self._due(message.kind, *self._received(largest_bytes))
        self._channel.expect_within(None)
        return decode(message, content)

    def _received(self, largest_bytes: int) -> Tuple[Kind, memoryview]:
        kind, content = self._frame(largest_bytes)
        if kind is Kind.ERROR:
            raise PeerGoneError(f"the node gave up: {printable(decode(Error, content).message)}")
        if kind is Kind.SERVER_ABORT:
            abort = decode(ServerAbort, content)
            if abort.server != self._server:
                raise ProtocolError(f"server {abort.server!r} was given up, which is not being sent")
            raise Aborted(replace(abort, message=printable(abort.message)))
        if kind is Kind.DISK_BEGIN:
            self._ahead = FramesAhead(self._channel, self._limits.standstill_seconds)
        return kind, content

    def _frame(self, largest_bytes: int) -> Tuple[Kind, memoryview]:
        if self._ahead is None:
            self._channel.expect_progress(self._limits.idle_seconds)
            try:
                return self._channel.receive(self._buffer, largest_bytes=largest_bytes)
            finally:
                self._channel.expect_progress(None)
        try:
            return self._ahead.receive()
        finally:
            if self._ahead.ended:
                self._ahead = None

    @staticmethod
    def _due(wanted: Kind, kind: Kind, content: memoryview) -> memoryview:
        if kind is not wanted:
            raise ProtocolError(f"{kind.name} came where {wanted.name} was due")
        return content
