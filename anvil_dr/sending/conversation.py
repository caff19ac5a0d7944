"""The frames of one session, on the node: what is due, what may come in its place, and what is said to the target.

Touches the channel. What of a disk goes to and fro is send_disk.py's.
"""

from __future__ import annotations

import logging
from typing import Final, Optional, Tuple, Type

from anvil_dr.errors import AnvilDrError, ProtocolError, RemoteError
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.protocol import Error, Kind, M, Message, ServerFailed, decode

log = logging.getLogger(__name__)

_LAST_WORDS: Final = "the reason why the target left"
_LAST_WORDS_SECONDS: Final = 5.0


class Refused(Exception):
    """The target failed the current server. `cause` is what this end knows better; `told` if it gave up first."""

    def __init__(self, code: str, message: str, again: bool = False) -> None:
        self.code, self.again = code, again
        self.cause: Optional[AnvilDrError] = None
        self.told = False
        super().__init__(message)


class Conversation:
    """The node's side of one session. Every method that receives raises ProtocolError, RemoteError or Refused."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = frame_buffer()

    def next(self) -> Tuple[Kind, memoryview]:
        """One frame, whose content is valid until the next call."""
        kind, content = self._channel.receive(self._buffer)
        if kind is Kind.SERVER_FAILED:
            failed = decode(ServerFailed, content)
            raise Refused(failed.code, failed.message, failed.again)
        if kind is Kind.ERROR:
            error = decode(Error, content)
            raise RemoteError(error.code, error.message)
        return kind, content

    def expect(self, message: Type[M]) -> M:
        """The message that is due."""
        kind, content = self.next()
        if kind is not message.kind:
            raise ProtocolError(f"{kind.name} came where {message.kind.name} was due")
        return decode(message, content)

    def send(self, message: Message) -> None:
        """Raise ProtocolError."""
        self._channel.send(message.kind, message.encode())

    def drain_until_failed(self) -> None:
        """Drop what is under way, until the target has understood that the server is given up."""
        try:
            while True:
                self.next()
        except Refused:
            return

    def expect_last_words(self) -> None:
        """The target takes nothing any more. What it said before, or the end of it, is still on its way."""
        self._channel.expect_within(_LAST_WORDS_SECONDS, _LAST_WORDS)

    def last_words(self) -> Optional[RemoteError]:
        """Why the target left, if it said so before it stopped listening."""
        self.expect_last_words()
        try:
            while True:
                self.next()
        except RemoteError as said:
            return said
        except (ProtocolError, Refused):
            return None

    def say_why(self, error: AnvilDrError) -> None:
        """Tell the target why this end leaves in the middle of the job, if it can still be told."""
        try:
            self._channel.farewell(Kind.ERROR, Error(error.code, str(error)).encode())
        except ProtocolError as failed:
            log.debug("the target could not be told error=%s", failed)
