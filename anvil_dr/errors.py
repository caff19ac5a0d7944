"""The error tree: one class per thing that can go wrong, with typed fields, one message and an exit code.

Imports nothing. Adapters turn third-party errors into these; `cli` turns these into exit codes
(SPEC section 9: 1 = the work failed, 2 = usage or configuration).
"""

from __future__ import annotations

from typing import Optional, Tuple


class AnvilDrError(Exception):
    """Anything this project reports to a person. `str()` is one clear line."""

    exit_code = 1

    @property
    def code(self) -> str:
        """A stable name for the wire and for `--json`: the class name without `Error`."""
        name = type(self).__name__
        return name[: -len("Error")] if name.endswith("Error") else name


class ConfigError(AnvilDrError):
    """The configuration cannot be used. Names the key and, where known, the line."""

    exit_code = 2

    def __init__(self, message: str, *, path: str = "", key: str = "", line: Optional[int] = None) -> None:
        self.path, self.key, self.line = path, key, line
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(f"{where}{key + ': ' if key else ''}{message}")


class UsageError(AnvilDrError):
    """The command line or a job file asks for something that makes no sense."""

    exit_code = 2


class ImageNameError(AnvilDrError):
    """A server's or disk's name that cannot become an image name (SPEC section 2)."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"the name {name!r} {reason}")


class NameCollisionError(AnvilDrError):
    """Two different (server, disk) pairs build the same image name."""

    def __init__(self, base: str, server: str, disk: str, holder_server: str, holder_disk: str) -> None:
        self.base, self.server, self.disk = base, server, disk
        self.holder_server, self.holder_disk = holder_server, holder_disk
        super().__init__(
            f"server {server!r} disk {disk!r} would use the image name {base!r}, "
            f"which belongs to server {holder_server!r} disk {holder_disk!r}"
        )


class CommandError(AnvilDrError):
    """A command of the system failed. Carries everything it said."""

    def __init__(
        self, argv: Tuple[str, ...], returncode: Optional[int], stdout: bytes, stderr: bytes, reason: str = ""
    ) -> None:
        self.argv, self.returncode, self.stdout, self.stderr = argv, returncode, stdout, stderr
        said = stderr.decode("utf-8", "replace").strip().replace("\n", "; ")
        how = reason or f"exit code {returncode}"
        super().__init__(f"{' '.join(argv)}: {how}{': ' + said if said else ''}")


class StoreError(AnvilDrError):
    """The store, or one image in it, cannot be used."""

    def __init__(self, message: str, *, store: str = "", image: str = "") -> None:
        self.store, self.image = store, image
        super().__init__(message)


class StoreFullError(StoreError):
    """What must be created does not fit. Nothing has been changed."""

    def __init__(self, needed_bytes: int, available_bytes: int, detail: str = "") -> None:
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes
        super().__init__(
            f"the store is too small: {needed_bytes} bytes needed, {available_bytes} available"
            + (f" ({detail})" if detail else "")
        )


class ImageInUseError(StoreError):
    """An image is open in a running domain, a rehearsal or another program."""

    def __init__(self, image: str, user: str) -> None:
        self.user = user
        super().__init__(f"image {image} is in use by {user}", image=image)


class CacheDriveError(StoreError):
    """A cache drive cannot be used, failed or is gone. Names it."""

    def __init__(self, drive: str, reason: str) -> None:
        self.drive = drive
        super().__init__(f"cache drive {drive}: {reason}")


class DriveRefusedError(StoreError):
    """What `--to drive:` names must not be filled. Says what to do about it."""


class ServerBusyError(AnvilDrError):
    """Another job works on this server."""

    def __init__(self, server: str, job_id: str) -> None:
        self.server, self.job_id = server, job_id
        super().__init__(f"server {server} is busy: job {job_id} is working on it")


class ServerActivatedError(AnvilDrError):
    """The server runs on the DR box, so its images are live disks. Or it ran on overlays over them."""

    def __init__(self, server: str, *, on_overlays: bool = False) -> None:
        self.server = server
        state, decide = "is activated", ""
        if on_overlays:
            state, decide = "ran on overlays", ", and --keep or --discard"
        super().__init__(
            f"server {server} {state} on the DR box; "
            f"give it back first with: anvil-activate-dr --release {server}{decide}"
        )


class RanHereError(AnvilDrError):
    """A set that came before the server ran here would go over what it wrote."""

    def __init__(self, server: str, sequence: object, until: str, received_at: str, devices: str) -> None:
        self.server, self.sequence, self.until = server, sequence, until
        super().__init__(
            f"set {sequence} of server {server} holds what it wrote here until {until}, after what is on {devices} was "
            f"made ({received_at}); so it is not written over by that, but only by a new job from its node"
        )


class NotAllowedError(AnvilDrError):
    """The key that opened this session is not for this server."""

    def __init__(self, server: str) -> None:
        self.server = server
        super().__init__(f"this key is not allowed to send server {server}")


class DefinitionError(AnvilDrError):
    """A libvirt definition that cannot be used, or must not be."""

    def __init__(self, message: str, *, server: str = "") -> None:
        self.server = server
        super().__init__(f"definition of {server}: {message}" if server else message)


class ProtocolError(AnvilDrError):
    """The peer said something that the protocol does not allow."""


class PeerTimeoutError(ProtocolError):
    """The peer has been silent for too long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the peer has been silent for {seconds:g} seconds")


class PeerStandstillError(ProtocolError):
    """The peer says that it lives, and does nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the peer has sent nothing but keep-alives for {seconds:g} seconds")


class PeerGoneError(ProtocolError):
    """The connection ended in the middle of something."""

    def __init__(self, detail: str = "the connection was closed before the job ended") -> None:
        super().__init__(detail)


class RemoteError(AnvilDrError):
    """The other end refused or failed; its own words and code."""

    def __init__(self, code: str, message: str) -> None:
        self.remote_code = code
        super().__init__(message)


class DigestMismatchError(AnvilDrError):
    """Bytes that arrived, or lie on disk, are not those that were digested."""

    def __init__(self, server: str, disk: str, offset_bytes: Optional[int], detail: str) -> None:
        self.server, self.disk, self.offset_bytes = server, disk, offset_bytes
        at = "" if offset_bytes is None else f" at byte {offset_bytes}"
        super().__init__(f"server {server} disk {disk}{at}: {detail}")


class SourceChangedError(AnvilDrError):
    """The disk was written to while it was being imaged, so the image would be torn."""

    def __init__(self, path: str, detail: str) -> None:
        self.path = path
        super().__init__(f"{path} changed while it was being imaged ({detail}); is the server really off?")


class SourceError(AnvilDrError):
    """A disk of the source cannot be read, or the server is in no state to be imaged."""

    def __init__(self, message: str, *, path: str = "") -> None:
        self.path = path
        super().__init__(message)


class JobInterruptedError(AnvilDrError):
    """Somebody ended the command that sends the job."""

    def __init__(self, signal_name: str) -> None:
        self.signal_name = signal_name
        super().__init__(f"interrupted by {signal_name}")


class ImageIOError(AnvilDrError):
    """Reading or writing an image failed; names the image and the byte."""

    def __init__(self, path: str, offset_bytes: int, action: str, reason: str) -> None:
        self.path, self.offset_bytes, self.action, self.reason = path, offset_bytes, action, reason
        super().__init__(f"{path}: cannot {action} at byte {offset_bytes}: {reason}")


class StateError(AnvilDrError):
    """The state database cannot be used."""


class HypervisorError(AnvilDrError):
    """libvirt said no. `libvirt_code` is its VIR_ERR_* number, where there is one."""

    def __init__(self, message: str, *, libvirt_code: Optional[int] = None) -> None:
        self.libvirt_code = libvirt_code
        super().__init__(message)


class ShutdownRefusedError(HypervisorError):
    """libvirt did not take the order to shut a server down: it runs on as if nobody had asked."""


class NotStartedError(HypervisorError):
    """A server was asked to shut down for its image, and does not run again, or may be off soon (`is_off` False)."""

    def __init__(
        self, server: str, reason: str, by_hand: str, *, is_off: bool = True, libvirt_code: Optional[int] = None
    ) -> None:
        """`by_hand` is the command that starts it; empty where the reason says itself what is to be done."""
        self.server, self.reason, self.by_hand, self.is_off = server, reason, by_hand, is_off
        advice = f"; try: {by_hand}" if by_hand else ""
        message = (
            f"{server} was shut down for its image and could not be started again: {reason}{advice}"
            if is_off
            else f"{server} {reason}; it may go off yet, and nobody starts it then: look with virsh domstate {server}, "
            f"and when it is off: {by_hand}"
        )
        super().__init__(message, libvirt_code=libvirt_code)


class ServiceError(AnvilDrError):
    """The service cannot start, or cannot be reached."""
