"""The way from a node to the DR box: `ssh://[user@]host[:port]`, or `unix:PATH` on the box itself (SPEC section 9).

Touches one socket, or one ssh and its pipes; commands are run through the `spawn` it is given.
"""

from __future__ import annotations

import fcntl
import logging
import re
import socket
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Final, Iterator, Optional, Protocol, Tuple, Union

from anvil_dr.errors import PeerGoneError, ServiceError, UsageError
from anvil_dr.wire.channel import Channel

log = logging.getLogger(__name__)

REMOTE_COMMAND: Final = "anvil-dr-receive"

_SSH_KIND: Final = "ssh://[user@]host[:port]"
_SOCKET_BUFFER_BYTES: Final = 4 << 20
_PIPE_BYTES: Final = 1 << 20
"""/proc/sys/fs/pipe-max-size; an unprivileged process gets no more."""
_F_SETPIPE_SZ: Final = 1031
"""linux/fcntl.h; in Python since 3.10."""

_END_SECONDS: Final = 10.0
# What could be an option, or mean something to a shell, is no name of a user or a host.
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")

_SSH: Final[Tuple[str, ...]] = (
    "ssh",
    "-T",  # no terminal: what crosses is binary
    "-x",
    "-a",
    *("-o", "BatchMode=yes"),  # nobody is there to type a password or to trust a host key
    *("-o", "ConnectTimeout=30"),
    *("-o", "ServerAliveInterval=30"),
    *("-o", "ServerAliveCountMax=6"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "Compression=no"),  # it would be done a second time, in one thread
)

# What ssh says -> what it means, and what to do. The first that fits.
_MEANINGS: Final = (
    ("Host key verification failed", "its host key is not known here, or has changed; log in once by hand to check it"),
    ("Permission denied", "it does not accept this node's key; is the key in its account's authorized_keys?"),
    ("Could not resolve hostname", "there is no host of that name"),
    ("Connection refused", "nothing listens for ssh there"),
    ("Connection timed out", "it does not answer"),
    ("No route to host", "it cannot be reached"),
    ("Network is unreachable", "it cannot be reached"),
)


@dataclass(frozen=True)
class SshDestination:
    """A DR box that is reached with ssh."""

    host: str
    user: Optional[str] = None
    port: Optional[int] = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True)
class UnixDestination:
    """The socket of a service on this machine."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class DriveDestination:
    """A drive that is mounted on this machine, and will be carried to the DR box."""

    folder: str

    def __str__(self) -> str:
        return f"drive:{self.folder}"


Destination = Union[SshDestination, UnixDestination]
"""Where a service listens."""


class Peer(Protocol):
    """A command that is spoken with over two pipes; command.Peer is the adapter."""

    def take_pipes(self) -> Tuple[int, int]:
        """Descriptors to read from and to write to, which the caller closes."""
        ...

    def end(self, timeout_seconds: float) -> int:
        """Wait for it, or else kill it; its exit code."""
        ...

    def complaint(self) -> str:
        """The last of what it wrote to its standard error."""
        ...


Spawn = Callable[[Tuple[str, ...]], Peer]
"""Raises CommandError if there is no such program."""


def parse_send_destination(text: str) -> Union[Destination, DriveDestination]:
    """As `parse_destination`; or `drive:FOLDER`, where a drive is mounted. Raise UsageError."""
    if not text.startswith("drive:"):
        return parse_destination(text, kinds=f"{_SSH_KIND}, unix:PATH or drive:FOLDER")
    folder = text[len("drive:") :]
    if not folder.startswith("/"):
        raise UsageError(f"not a destination: {text!r} (drive: wants the absolute path that a drive is mounted on)")
    return DriveDestination(folder.rstrip("/") or "/")


def parse_destination(text: str, *, kinds: str = f"{_SSH_KIND} or unix:PATH") -> Destination:
    """`ssh://[user@]host[:port]` or `unix:PATH`. Raise UsageError, naming the `kinds` that the asker takes."""
    if text.startswith("unix:"):
        path = text[len("unix:") :]
        if not path.startswith("/"):
            raise UsageError(f"not a destination: {text!r} (unix: wants an absolute path)")
        return UnixDestination(path)
    try:
        parts = urllib.parse.urlsplit(text)
        host, user, port = parts.hostname, parts.username, parts.port
    except ValueError as error:
        raise UsageError(f"not a destination: {text!r} ({error})") from error
    if parts.scheme != "ssh" or not host:
        raise UsageError(f"not a destination: {text!r} (it must be {kinds})")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.password is not None:
        raise UsageError(f"not a destination: {text!r} (nothing can follow the host but a port, and no password)")
    # urlsplit makes it lower case, and aliases in ssh's configuration are not.
    written = re.search(re.escape(host), parts.netloc.rpartition("@")[2], re.IGNORECASE)
    host = written.group() if written else host
    user = urllib.parse.unquote(user) if user else None
    if not _HOST.fullmatch(host) or (user is not None and not _USER.fullmatch(user)) or port == 0:
        raise UsageError(f"not a destination: {text!r} (impossible user, host or port)")
    return SshDestination(host, user, port)


def ssh_command(
    destination: SshDestination, *, identity: Optional[str] = None, remote_command: str = REMOTE_COMMAND
) -> Tuple[str, ...]:
    """The command line of ssh. `identity` is a file with the private key to use, and no other."""
    argv = _SSH
    if destination.port is not None:
        argv += ("-p", str(destination.port))
    if identity is not None:
        argv += ("-i", identity, "-o", "IdentitiesOnly=yes")
    if destination.user is not None:
        argv += ("-l", destination.user)
    return (*argv, "--", destination.host, remote_command)


@contextmanager
def connected(
    destination: Destination,
    spawn: Spawn,
    *,
    identity: Optional[str] = None,
    silence_seconds: float = 300.0,
    remote_command: str = REMOTE_COMMAND,
) -> Iterator[Channel]:
    """A channel to the service at the destination, or to what `remote_command` is there, closed at the end.

    Raise ServiceError if it can't be reached; also from the block, in ssh's words, where it was ssh that ended.
    """
    if isinstance(destination, UnixDestination):
        with _closing(_unix_channel(destination.path, silence_seconds)) as channel:
            yield channel
        return
    peer = spawn(ssh_command(destination, identity=identity, remote_command=remote_command))
    try:
        with _closing(_pipe_channel(peer, silence_seconds)) as channel:
            yield channel
    except PeerGoneError as error:
        code = peer.end(_END_SECONDS)
        said = _in_words(destination, code, peer.complaint(), remote_command.split()[0])
        raise (ServiceError(said) if said else error) from error
    except BaseException:
        peer.end(_END_SECONDS)
        raise
    code = peer.end(_END_SECONDS)
    if code:
        log.info("ssh ended destination=%s exit=%d said=%r", destination, code, peer.complaint())


def _unix_channel(path: str, silence_seconds: float) -> Channel:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        # A service that accepts nobody would hold us here.
        connection.settimeout(silence_seconds)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ServiceError(f"nobody listens on {path}; see: systemctl status anvil-dr-target.socket") from error
        except OSError as error:
            raise ServiceError(f"cannot connect to {path}: {error.strerror or error}") from error
        fd = connection.detach()
    return Channel(fd, fd, silence_seconds=silence_seconds)


def _pipe_channel(peer: Peer, silence_seconds: float) -> Channel:
    fds = peer.take_pipes()
    for fd in fds:
        try:
            fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError as error:
            # Only slower. EPERM: this user has used up /proc/sys/fs/pipe-user-pages-soft.
            log.debug("the pipe keeps its size: %s", error)
    return Channel(*fds, silence_seconds=silence_seconds)


@contextmanager
def _closing(channel: Channel) -> Iterator[Channel]:
    try:
        yield channel
    finally:
        channel.close()


def _in_words(destination: SshDestination, code: int, complaint: str, program: str) -> Optional[str]:
    """Why ssh ended, in one line; None if it does not know either."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    # What the command at the other end says is clear by itself, and may have the same words in it.
    of_ssh = [line for line in lines if not line.startswith(f"{program}:")]
    absent = f"{program} is not installed there, or not in the account's PATH"
    for sign, meaning in (*_MEANINGS, (f"{program}: command not found", absent), (f"{program}: not found", absent)):
        said = next((line for line in of_ssh if sign in line), None)
        if said is not None:
            return f"cannot reach {destination}: {meaning} ({said})"
    if not code and not lines:
        return None
    said = "; ".join(lines[-3:]) or "it said nothing"
    if code == 127:
        return f"cannot reach {destination}: {program} could not be run there ({said})"
    return f"the connection to {destination} ended: ssh: exit code {code}: {said}"
