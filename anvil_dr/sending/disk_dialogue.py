"""One disk, on the node, as two threads: one sends, the other always reads what the target says.

Touches the channel, and through the DiskSender the source disk. Which of the two ends the dialogue, and what the
server's error is then, is decided here.
"""

from __future__ import annotations

import logging
import threading
from typing import Optional

from anvil_dr.errors import AnvilDrError, PeerGoneError, ProtocolError, SourceChangedError
from anvil_dr.sending.conversation import Conversation, Refused
from anvil_dr.sending.job import OutgoingDisk, Source
from anvil_dr.sending.send_disk import DiskSender
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.protocol import DiskDone, DiskEnd, Kind, ServerAbort, decode

log = logging.getLogger(__name__)


class DiskDialogue:
    """All that is said about one disk, between DISK_BEGIN and DISK_DONE."""

    def __init__(
        self,
        channel: Channel,
        conversation: Conversation,
        server: str,
        disk: OutgoingDisk,
        source: Source,
        *,
        standstill_seconds: float,
    ) -> None:
        """`standstill_seconds`: so long a server is kept off for a target that says that it lives, and does nothing."""
        self._channel, self._conversation, self._server = channel, conversation, server
        self._disk, self._source, self._standstill_seconds = disk, source, standstill_seconds

    def run(self, sender: DiskSender) -> DiskDone:
        """Send it.

        Raise Refused if the server has failed, at either end, and ProtocolError or RemoteError if the session has.
        """
        worker = _Worker(self._channel, self._conversation, self._server, self._disk.name, sender)
        try:
            done = self._hand_over(sender)
        except Refused as refused:
            worker.stop()
            changed = self._source.changed()
            refused.told = worker.error is not None
            refused.cause = worker.error or (SourceChangedError(self._disk.path, changed) if changed else None)
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
        return done

    def _hand_over(self, sender: DiskSender) -> DiskDone:
        """Hand the target's records to the worker until the disk is done."""
        self._channel.expect_progress(self._standstill_seconds)
        try:
            while True:
                kind, content = self._conversation.next()
                if kind is Kind.DISK_DONE:
                    return decode(DiskDone, content)
                sender.reply(kind, bytes(content))
        finally:
            self._channel.expect_progress(None)


class _Worker:
    """Runs a DiskSender in a thread of its own, so that this end always reads what the target says."""

    def __init__(
        self, channel: Channel, conversation: Conversation, server: str, disk: str, sender: DiskSender
    ) -> None:
        self._channel, self._conversation, self._server = channel, conversation, server
        self._disk, self._sender = disk, sender
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
                self._conversation.send(DiskEnd(self._disk, digest_text))
            in_order = True
        except PeerGoneError as error:
            self.error = error
            self._conversation.expect_last_words()
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
            self._conversation.send(ServerAbort(self._server, error.code, str(error)))
        except ProtocolError:
            log.debug("the target could not be told error=%s", error)
