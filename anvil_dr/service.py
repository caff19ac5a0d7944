"""The service: listens on the unix socket, gives each session a thread, and tells systemd how it goes.

Touches the socket, systemd's notifications, and its own limit of descriptors. What a session does is session.py's
business.
"""

from __future__ import annotations

import grp
import logging
import os
import resource
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Callable, Dict, FrozenSet, Optional, Tuple

from anvil_dr import relay
from anvil_dr.errors import AnvilDrError, ProtocolError, ServiceError
from anvil_dr.receiving.failure_rate import FailureRate
from anvil_dr.receiving.session import Peer, Session
from anvil_dr.receiving.target import Target
from anvil_dr.status.jobs_line import jobs_line
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.limits import Limits
from anvil_dr.wire.pace import Pace
from anvil_dr.wire.protocol import Error, Kind, frame_header

log = logging.getLogger(__name__)

_GROUP = "anvil-dr"
"""Members may connect: the account that nodes log in to (etc/, README)."""

_BACKLOG = 64
_BUFFER_BYTES = 4 << 20

Notify = Callable[[str], None]


def listen(path: str) -> socket.socket:
    """A socket of our own, for when systemd hands none over. Raise ServiceError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if os.path.exists(path):
            os.unlink(path)  # left over: state.lock_service has made sure that no other service lives
        listener.bind(path)
        os.chmod(path, 0o660)
        if os.geteuid() == 0:
            try:
                os.chown(path, 0, grp.getgrnam(_GROUP).gr_gid)
            except KeyError:
                log.info("no group %s: only root can connect", _GROUP)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServiceError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


@dataclass
class _Open:
    """One connection that is being served. `channel` and `peer` are known once it has introduced itself."""

    connection: socket.socket
    channel: Optional[Channel] = None
    peer: Optional[Peer] = None


class Service:
    """Accepts sessions until it is told to stop."""

    def __init__(
        self,
        target: Target,
        listener: socket.socket,
        notify: Notify,
        *,
        limits: Optional[Limits] = None,
        direct_users: Optional[FrozenSet[int]] = None,
        pace: Optional[Pace] = None,
    ) -> None:
        """`direct_users` may speak without a relay, which would say what the other end may do; else root and ours."""
        self._target, self._listener, self._notify = target, listener, notify
        self._limits = limits or Limits()
        limit_bytes = target.config.bandwidth_limit
        self._pace = pace or (Pace(limit_bytes) if limit_bytes else None)
        """One for all sessions: the limit is of all jobs together, and no node has to be trusted to keep it."""
        self._direct_users = frozenset((0, os.geteuid())) if direct_users is None else direct_users
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._failures = FailureRate(self._limits.failures_of_one_node)
        self._lock = threading.Lock()
        self._sessions: Dict[threading.Thread, _Open] = {}
        self._stopping = False

    def stop(self) -> None:
        """Make `run` return. May be called from a signal handler."""
        os.write(self._wake_write, b"x")

    def run(self) -> None:
        """Serve until `stop`; then end what runs, cleanly, and return."""
        _allow_many_descriptors()
        self._listener.setblocking(False)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        self._notify("READY=1\nSTATUS=" + jobs_line(self._target.jobs()))
        while True:
            ready = {fd for fd, _ in poll.poll(5000)}
            if self._wake_read in ready:
                break
            if self._listener.fileno() in ready:
                self._accept()
            # By itself: whatever became of the other message, the service is alive.
            self._notify("WATCHDOG=1")
            self._notify("STATUS=" + jobs_line(self._target.jobs()))
        self._notify("STOPPING=1\nSTATUS=Stopping: ending what runs")
        self._end_sessions()

    # — one connection —

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return  # it has gone again
        except OSError as error:
            # No descriptors or no memory. Whoever waits still waits, so at once would mean without end.
            log.warning("a connection could not be accepted error=%s", error)
            self._pause()
            return
        thread = threading.Thread(target=self._serve, args=(connection,), name="session", daemon=True)
        with self._lock:
            number = len(self._sessions)
            if number < self._limits.sessions:
                self._sessions[thread] = _Open(connection)
        if number >= self._limits.sessions:
            self._turn_away(connection, ServiceError(f"the DR box is busy: it has {number} sessions"))
            return
        try:
            thread.start()
        except RuntimeError as error:
            self._forget(thread)
            self._turn_away(connection, ServiceError(f"the DR box is out of threads: {error}"))

    def _serve(self, connection: socket.socket) -> None:
        thread = threading.current_thread()
        channel: Optional[Channel] = None
        try:
            channel, peer = self._greet(connection)
            session = Session(self._target, channel, peer, self._limits)
            answer = relay.FAILED
            try:
                self._register(thread, channel, peer, session)
                answer = relay.SUCCEEDED if self._run(session, peer) else relay.FAILED
            except AnvilDrError as error:
                log.warning("session failed peer=%r code=%s error=%s", peer.description, error.code, error)
            except Exception:
                # The connection loop: one session's defect must not end the others.
                log.exception("session failed peer=%r", peer.description)
                session.tell(ServiceError("the DR service failed in a way nobody foresaw; its log says more"))
            if peer.description != _LOCAL:
                _answer(connection, answer)
        except AnvilDrError as error:
            self._turn_away(connection, error)
        finally:
            connection.close()
            self._forget(thread)
            if channel is not None:
                channel.close()

    def _run(self, session: Session, peer: Peer) -> bool:
        succeeded = False
        try:
            succeeded = session.run()
        finally:
            if not succeeded:
                self._failures.note(peer.description)
        return succeeded

    def _greet(self, connection: socket.socket) -> Tuple[Channel, Peer]:
        """Who is there: a relay with a node behind it, or a program on this machine. Raise ProtocolError."""
        connection.settimeout(self._limits.greeting_seconds)
        try:
            if not connection.recv(1, socket.MSG_PEEK):
                raise ProtocolError(_STOPPED if self._stopping else "a connection ended before it said anything")
            if connection.recv(1, socket.MSG_PEEK) == relay.MAGIC[:1]:
                introduction, in_fd, out_fd = relay.take_over(connection)
                peer = Peer(introduction.peer, introduction.allowed, may_ask_status=False)
                return self._channel(in_fd, out_fd), peer
            user = _peer_user(connection)
            if user not in self._direct_users:
                raise ProtocolError(f"user {user} cannot speak to the service directly; use anvil-dr-receive")
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            fd = os.dup(connection.fileno())
            return self._channel(fd, fd), Peer(_LOCAL)
        except OSError as error:
            raise ProtocolError(f"a connection did not come to a greeting: {error}") from error

    def _channel(self, in_fd: int, out_fd: int) -> Channel:
        channel = Channel(in_fd, out_fd, silence_seconds=self._limits.silence_seconds)
        channel.pace_in = self._pace
        return channel

    def _register(self, thread: threading.Thread, channel: Channel, peer: Peer, session: Session) -> None:
        """Raise ServiceError if this node has as many sessions as one node may have, or too many of them failed."""
        with self._lock:
            of_node = sum(1 for one in self._sessions.values() if one.peer and one.peer.may_be(peer))
            opened = self._sessions[thread]
            opened.channel, opened.peer = channel, peer
            if self._stopping:
                channel.abandon(_STOPPED)
        if peer.description == _LOCAL:
            return
        reason = ""
        if of_node >= self._limits.sessions_of_one_node:
            reason = f"{peer.description} has {of_node} sessions, as many as one node may have"
        elif self._failures.is_too_high(peer.description):
            most = self._limits.failures_of_one_node
            reason = f"{most} sessions of {peer.description} have failed within a minute; wait one, and try again"
        if reason:
            error = ServiceError(reason)
            session.tell(error)
            raise error

    def _turn_away(self, connection: socket.socket, error: AnvilDrError) -> None:
        """Say why to whoever connected, which a relay passes on, and close the connection."""
        log.warning("a connection was turned away code=%s error=%s", error.code, error)
        content = Error(error.code, str(error)).encode()
        _answer(connection, frame_header(Kind.ERROR, len(content)) + content)
        connection.close()

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self._sessions.pop(thread, None)

    # — the end —

    def _pause(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.poll(self._limits.pause_seconds * 1000)

    def _end_sessions(self) -> None:
        with self._lock:
            self._stopping = True
            running = list(self._sessions.items())
            for _, opened in running:
                if opened.channel is not None:
                    opened.channel.abandon(_STOPPED)
                else:
                    _shut(opened.connection)
        deadline = time.monotonic() + self._limits.stop_seconds
        for thread, _ in running:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.error("a session did not end within %g seconds", self._limits.stop_seconds)


_LOCAL = "this machine"
_STOPPED = "the DR service was stopped"


def _allow_many_descriptors() -> None:
    """As many as the system lets us have: a server of 64 disks takes 128, and the usual 1024 are for select(2)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _answer(connection: socket.socket, content: bytes) -> None:
    """A few bytes on a fresh connection, which never have to wait for room. Whoever has gone is not missed."""
    try:
        connection.setblocking(False)
        connection.send(content, socket.MSG_NOSIGNAL)
    except OSError as error:
        log.debug("nobody was there to be answered error=%s", error)


def _shut(connection: socket.socket) -> None:
    """Wake whoever waits for it to say something."""
    try:
        connection.shutdown(socket.SHUT_RD)
    except OSError as error:
        log.debug("a connection had ended already error=%s", error)


def _peer_user(connection: socket.socket) -> int:
    """The user at the other end of a unix socket (unix(7), SO_PEERCRED)."""
    credentials = struct.Struct("iII")
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    _, user, _ = credentials.unpack(packed)
    return int(user)
