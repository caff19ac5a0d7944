"""Frames over a pair of file descriptors: a socket, or the two pipes of an ssh session.

Touches the descriptors it was given and nothing else. It knows headers, lengths, silence and counts;
what is in a frame is protocol.py's business. One thread may receive while others send.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import List, Optional, Tuple, Union

from anvil_dr.errors import PeerGoneError, PeerStandstillError, PeerTimeoutError, ProtocolError
from anvil_dr.wire.pace import Pace
from anvil_dr.wire.protocol import FRAME_HEADER, Kind, frame_header, frame_limit_bytes

Buffer = Union[bytes, bytearray, memoryview]

# One system call takes this many buffers at most (IOV_MAX is 1024 on Linux).
_BUFFERS_PER_CALL = 512

_PACED_BYTES = 64 << 10
"""Taken at once where the rate is limited, so that no wait is long."""

_LOOK_SECONDS = 1.0
"""How often a thread that waits looks whether another one has set a deadline."""


class Channel:
    """Both directions of one session. Whoever made it calls `close`, once nobody uses it any more."""

    def __init__(self, in_fd: int, out_fd: int, *, silence_seconds: float = 300.0, pace: Optional[Pace] = None) -> None:
        self._in, self._out = in_fd, out_fd
        self._silence_seconds = silence_seconds
        self._send_lock = threading.Lock()
        self._abandoned = threading.Event()
        self._abandoned_because = ""
        # Once there is a byte in it, nobody waits here any more; it is never read.
        self._waker: Optional[Tuple[int, int]] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._waker_lock = threading.Lock()
        self._deadline: Optional[Tuple[float, str]] = None
        self._standstill_seconds: Optional[float] = None
        self._moved_at = 0.0
        self._torn = False
        self._header = bytearray(FRAME_HEADER.size)
        self._last_sent = time.monotonic()
        self.pace = pace
        self.pace_in: Optional[Pace] = None
        """Limits what is received. Bytes that have to wait fill the pipe, and then the peer waits too."""
        self.received_bytes = 0
        self.sent_bytes = 0
        self.waited_seconds = 0.0
        """How long sending had to wait, for the peer or for the limit."""
        # Without this a peer that stops reading would hold a thread in write(2) for ever.
        os.set_blocking(in_fd, False)
        os.set_blocking(out_fd, False)

    @property
    def wire_bytes(self) -> int:
        """Everything that crossed, both directions, headers included."""
        return self.received_bytes + self.sent_bytes

    @property
    def idle_seconds(self) -> float:
        """How long this end has sent nothing."""
        return time.monotonic() - self._last_sent

    def send(self, kind: Kind, *parts: Buffer) -> None:
        """Send one frame made of `parts`. Raise PeerGoneError, PeerTimeoutError."""
        length = sum(len(part) for part in parts)
        if length > frame_limit_bytes(kind):
            raise ProtocolError(f"a {kind.name} frame of {length} bytes is more than the protocol allows")
        with self._send_lock:
            views = [memoryview(part).cast("B") for part in parts if part]
            before = self.sent_bytes
            try:
                self._write([memoryview(frame_header(kind, length)), *views])
            finally:
                self._torn = 0 < self.sent_bytes - before < FRAME_HEADER.size + length
            self._last_sent = time.monotonic()

    def ping(self) -> None:
        """Say that this end lives, unless that had to wait: a peer with unread frames knows. Raise PeerGoneError."""
        if not self._send_lock.acquire(blocking=False):
            return
        try:
            if not self._torn and _ready(self._out, select.POLLOUT, 0):
                # A pipe takes so few bytes whole or not at all, and so does a socket (pipe(7), unix(7)).
                os.write(self._out, frame_header(Kind.PING, 0))
                self.sent_bytes += FRAME_HEADER.size
                self._last_sent = time.monotonic()
        except BlockingIOError:
            pass
        except OSError as error:
            raise PeerGoneError(f"the connection broke: {error.strerror}") from error
        finally:
            self._send_lock.release()

    def farewell(self, kind: Kind, content: bytes, *, within_seconds: float = 5.0) -> None:
        """A last frame for a peer that may not listen any more, sent also on a channel that was abandoned.

        Raise PeerGoneError, PeerTimeoutError. Nothing is sent where a frame was broken off: it would be taken for
        the rest of that one.
        """
        if not self._send_lock.acquire(timeout=within_seconds):
            raise PeerTimeoutError(within_seconds)
        try:
            if self._torn:
                raise PeerGoneError("a frame to the peer was broken off")
            left = memoryview(frame_header(kind, len(content)) + content)
            end = time.monotonic() + within_seconds
            while left:
                try:
                    left = left[os.write(self._out, left) :]
                except BlockingIOError:
                    if not _ready(self._out, select.POLLOUT, end - time.monotonic()):
                        raise PeerTimeoutError(within_seconds) from None
        except OSError as error:
            raise PeerGoneError(f"the connection broke: {error.strerror}") from error
        finally:
            self._send_lock.release()

    def expect_within(self, seconds: Optional[float], what: str = "") -> None:
        """Until this is called again, everything together takes no longer than this; None: as long as it likes.

        After that, whoever waits gets a ProtocolError that names `what`. Silence alone is no measure of a peer that
        sends one byte a minute.
        """
        self._deadline = None
        if seconds is not None:
            self._deadline = time.monotonic() + seconds, f"{what} did not come within {seconds:g} seconds"

    def expect_progress(self, seconds: Optional[float]) -> None:
        """Until this is called again, a peer that sends nothing but keep-alives, while nothing can be sent to it
        either, is waited for no longer than this, and then `receive` raises PeerStandstillError; None: for ever.
        """
        self._moved_at = time.monotonic()
        self._standstill_seconds = seconds

    def receive(self, buffer: memoryview, *, largest_bytes: Optional[int] = None) -> Tuple[Kind, memoryview]:
        """Wait for one frame; its content may lie in `buffer`, until the next call.

        Keep-alive frames are passed over. Raise PeerGoneError at the end of the stream, PeerTimeoutError after
        `silence_seconds` without a byte, PeerStandstillError as `expect_progress` says, ProtocolError for a header
        that makes no sense or a frame that is larger than its type allows, or than `largest_bytes`.
        """
        while True:
            self._read(memoryview(self._header))
            code, length = FRAME_HEADER.unpack(self._header)
            try:
                kind = Kind(code)
            except ValueError:
                raise ProtocolError(f"the peer does not speak this protocol (frame type {code})") from None
            if length > frame_limit_bytes(kind):
                raise ProtocolError(f"a {kind.name} frame of {length} bytes is too large")
            if largest_bytes is not None and length > largest_bytes:
                raise ProtocolError(f"a {kind.name} frame of {length} bytes is too large here")
            content = buffer[:length] if length <= len(buffer) else memoryview(bytearray(length))
            self._read(content)
            if kind is not Kind.PING:
                self._moved_at = time.monotonic()
                return kind, content

    def abandon(self, because: str = "the session was ended from this side") -> None:
        """Make every thread that waits here get PeerGoneError. The descriptors stay open.

        Closing them under a thread that uses them would hand their numbers to the next session's.
        """
        with self._waker_lock:
            self._abandoned_because = self._abandoned_because or because
            if self._waker is not None and not self._abandoned.is_set():
                os.write(self._waker[1], b"!")
            self._abandoned.set()

    def check(self) -> None:
        """For whoever works for long without a frame. Raise PeerGoneError once it was abandoned, ProtocolError."""
        if self._abandoned.is_set():
            raise PeerGoneError(self._abandoned_because)
        if self._deadline is not None and time.monotonic() >= self._deadline[0]:
            raise ProtocolError(self._deadline[1])
        standstill_seconds = self._standstill_seconds
        if standstill_seconds is not None and time.monotonic() >= self._moved_at + standstill_seconds:
            raise PeerStandstillError(standstill_seconds)

    def close(self) -> None:
        """Close both descriptors. No thread may use the channel any more, but to abandon it."""
        with self._waker_lock:
            waker, self._waker = self._waker or (), None
        for fd in {self._in, self._out, *waker}:
            os.close(fd)

    def _write(self, parts: List[memoryview]) -> None:
        pace = self.pace
        while parts:
            self.check()
            try:
                written = os.writev(self._out, parts[:_BUFFERS_PER_CALL] if pace is None else [parts[0][:_PACED_BYTES]])
            except BlockingIOError:
                began = time.monotonic()
                self._wait(self._out, select.POLLOUT)
                self.waited_seconds += time.monotonic() - began
                continue
            except OSError as error:
                raise PeerGoneError(f"the connection broke: {error.strerror}") from error
            self.sent_bytes += written
            self._moved_at = time.monotonic()
            if pace is not None:
                self.waited_seconds += pace.wait(written, self.check)
            while parts and written >= len(parts[0]):
                written -= len(parts.pop(0))
            if written:
                parts[0] = parts[0][written:]

    def _read(self, into: memoryview) -> None:
        while into:
            self.check()
            try:
                count = os.readv(self._in, [into if self.pace_in is None else into[:_PACED_BYTES]])
            except BlockingIOError:
                self._wait(self._in, select.POLLIN)
                continue
            except OSError as error:
                raise PeerGoneError(f"the connection broke: {error.strerror}") from error
            if count == 0:
                raise PeerGoneError()
            self.received_bytes += count
            if self.pace_in is not None:
                self.pace_in.wait(count, self.check)
            into = into[count:]

    def _wait(self, fd: int, event: int) -> None:
        silent_at = time.monotonic() + self._silence_seconds
        while True:
            self.check()
            ends_at = silent_at if self._deadline is None else min(silent_at, self._deadline[0])
            if _ready(fd, event, min(ends_at - time.monotonic(), _LOOK_SECONDS), self._waker):
                return
            if time.monotonic() >= silent_at:
                raise PeerTimeoutError(self._silence_seconds)


def _ready(fd: int, event: int, seconds: float, waker: Optional[Tuple[int, int]] = None) -> bool:
    """Whether a descriptor is ready, or broken, within that time; the waker ends the wait earlier."""
    poll = select.poll()
    poll.register(fd, event)
    if waker is not None:
        poll.register(waker[0], select.POLLIN)
    return any(one == fd for one, _ in poll.poll(max(0.0, seconds) * 1000))


class KeepAlive:
    """Sends a PING when this end has been silent for a while, so that slow work is not taken for death."""

    def __init__(self, channel: Channel, *, every_seconds: float = 15.0) -> None:
        self._channel, self._every = channel, every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keep-alive", daemon=True)

    def __enter__(self) -> KeepAlive:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every / 3):
            if self._channel.idle_seconds < self._every:
                continue
            try:
                self._channel.ping()
            except ProtocolError:
                return  # the thread that works on the session finds out by itself


def frame_buffer() -> memoryview:
    """A buffer that takes any frame of the dialogue."""
    return memoryview(bytearray(frame_limit_bytes(Kind.DATA)))
