"""The service: listens on the unix socket, gives each session a thread, and tells systemd how it goes.

Touches the socket, signals and systemd's notifications. What a session does is session.py's business.
"""

from __future__ import annotations

import grp
import logging
import os
import select
import socket
import struct
import threading
from typing import Callable, Dict, List, Optional, Tuple

from anvil_dr import relay
from anvil_dr.channel import Channel
from anvil_dr.errors import AnvilDrError, NotAllowedError, ProtocolError, ServiceError
from anvil_dr.session import Peer, Session
from anvil_dr.target import Target

log = logging.getLogger(__name__)

MAX_SESSIONS = 64
_GREETING_SECONDS = 30.0
_STOP_SECONDS = 60.0
_GROUP = "anvil-dr"
"""Members may connect: the account that nodes log in to (etc/, README)."""

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
        listener.listen(MAX_SESSIONS)
    except OSError as error:
        listener.close()
        raise ServiceError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


class Service:
    """Accepts sessions until it is told to stop."""

    def __init__(self, target: Target, listener: socket.socket, notify: Notify) -> None:
        self._target, self._listener, self._notify = target, listener, notify
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lock = threading.Lock()
        self._sessions: Dict[threading.Thread, Optional[Channel]] = {}
        self._stopping = False

    def stop(self) -> None:
        """Make `run` return. May be called from a signal handler."""
        os.write(self._wake_write, b"x")

    def run(self) -> None:
        """Serve until `stop`; then end what runs, cleanly, and return."""
        self._listener.setblocking(False)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        self._notify("READY=1\nSTATUS=" + self._status())
        while True:
            ready = {fd for fd, _ in poll.poll(5000)}
            if self._wake_read in ready:
                break
            if self._listener.fileno() in ready:
                self._accept()
            self._notify("WATCHDOG=1\nSTATUS=" + self._status())
        self._notify("STOPPING=1\nSTATUS=Stopping: ending what runs")
        self._end_sessions()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            log.warning("a connection could not be accepted error=%s", error)
            return
        with self._lock:
            if len(self._sessions) >= MAX_SESSIONS:
                log.warning("a connection was refused: %d sessions are open", len(self._sessions))
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="session", daemon=True)
            self._sessions[thread] = None
        thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            channel: Optional[Channel] = None
            try:
                channel, peer = self._greet(connection)
                self._register(channel)
                Session(self._target, channel, peer).run()
                if peer.description != _LOCAL:
                    connection.sendall(relay.SUCCEEDED)
            except AnvilDrError as error:
                log.warning("session failed code=%s error=%s", error.code, error)
            except Exception:
                # The connection loop: one session's defect must not end the others.
                log.exception("session failed")
            finally:
                with self._lock:
                    self._sessions.pop(threading.current_thread(), None)
                if channel is not None:
                    channel.close()

    def _greet(self, connection: socket.socket) -> Tuple[Channel, Peer]:
        """Who is there: a relay with a node behind it, or a program on this machine."""
        connection.settimeout(_GREETING_SECONDS)
        try:
            first = connection.recv(1, socket.MSG_PEEK)
        except OSError as error:
            raise ProtocolError("a connection said nothing") from error
        if first == relay.MAGIC[:1]:
            introduction, in_fd, out_fd = relay.take_over(connection)
            return Channel(in_fd, out_fd), Peer(introduction.peer, introduction.allowed, may_ask_status=False)
        user = _peer_user(connection)
        if user not in (0, os.geteuid()):
            raise NotAllowedError(f"of user {user} directly; use anvil-dr-receive")
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        fd = os.dup(connection.fileno())
        return Channel(fd, fd), Peer(_LOCAL)

    def _register(self, channel: Channel) -> None:
        with self._lock:
            self._sessions[threading.current_thread()] = channel
            if self._stopping:
                channel.abandon()

    def _end_sessions(self) -> None:
        with self._lock:
            self._stopping = True
            running = list(self._sessions.items())
        for _, channel in running:
            if channel is not None:
                channel.abandon()
        for thread, _ in running:
            thread.join(_STOP_SECONDS)
            if thread.is_alive():
                log.error("a session did not end within %g seconds", _STOP_SECONDS)

    def _status(self) -> str:
        jobs = self._target.jobs()
        if not jobs:
            return "Ready, no job is running"
        parts: List[str] = []
        for job in jobs:
            share = 100 * job.bytes_done // job.bytes_total if job.bytes_total else 100
            parts.append(f"{', '.join(job.servers)} from {job.node}: {share} %")
        return "Receiving " + "; ".join(parts)


_LOCAL = "this machine"


def _peer_user(connection: socket.socket) -> int:
    """The user at the other end of a unix socket (unix(7), SO_PEERCRED)."""
    credentials = struct.Struct("iII")
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    _, user, _ = credentials.unpack(packed)
    return int(user)
