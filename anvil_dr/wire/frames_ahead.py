"""The frames about one disk, taken from the channel in a thread of its own while the ones before are worked on.

Touches the channel, which nobody else may receive from until the last of these frames has been handed out.
"""

from __future__ import annotations

import queue
import threading
from typing import Optional, Tuple, Union

from anvil_dr.errors import AnvilDrError, PeerStandstillError
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.protocol import Kind

_BUFFERS = 3
"""One is worked on, one is complete, one is being filled."""


class FramesAhead:
    """Receives up to and including the first frame that is not a record of the disk's dialogue."""

    def __init__(self, channel: Channel, standstill_seconds: float) -> None:
        """`standstill_seconds`: how long `receive` waits for a peer that only says that it lives."""
        self._channel, self._standstill_seconds = channel, standstill_seconds
        self._free: queue.SimpleQueue[Optional[memoryview]] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(frame_buffer())
        self._frames: queue.SimpleQueue[Union[Tuple[Kind, memoryview, memoryview], AnvilDrError]] = queue.SimpleQueue()
        self._in_use: Optional[memoryview] = None
        self.ended = False
        """Whether the last frame, or what ended the channel, has been handed out."""
        self._thread = threading.Thread(target=self._run, name="receive", daemon=True)
        self._thread.start()

    def receive(self) -> Tuple[Kind, memoryview]:
        """The next frame; its content is good until the next call. Raise what Channel.receive raises.

        Keep-alives are no frames, so a peer that sends nothing else for too long is a PeerStandstillError here.
        """
        if self._in_use is not None:
            self._free.put(self._in_use)
            self._in_use = None
        try:
            frame = self._frames.get(timeout=self._standstill_seconds)
        except queue.Empty:
            raise PeerStandstillError(self._standstill_seconds) from None
        if isinstance(frame, AnvilDrError):
            self._end()
            raise frame
        kind, content, self._in_use = frame
        if kind < Kind.ZEROS:
            self._end()
        return kind, content

    def close(self) -> None:
        """Return once the thread has ended. If it waits for the peer, the channel must have been abandoned before."""
        self._free.put(None)
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._thread.join()

    def _run(self) -> None:
        last: Optional[AnvilDrError] = AnvilDrError("receiving ended as nobody foresaw; see what was said")
        try:
            while True:
                buffer = self._free.get()
                if buffer is None:
                    last = None
                    return
                kind, content = self._channel.receive(buffer, largest_bytes=len(buffer))
                self._frames.put((kind, content, buffer))
                if kind < Kind.ZEROS:
                    last = None
                    return
        except AnvilDrError as error:
            last = error
        finally:
            if last is not None:
                self._frames.put(last)
