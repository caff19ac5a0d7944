"""The wire, version 1: what a node and the DR box say to each other. Messages to bytes and back; no sockets.

Every frame is an 8-byte header, `type` and `length`, and that many bytes. Types below 32 carry one JSON
object; the others carry the packed records of bulk.py. N is the node, T the target.

    N HELLO           versions, digest and compression algorithms it has; `purpose` job or status
    T WELCOME         what is to be used, the window, the bandwidth limit
    N JOB             every server, its definition, its disks with their sizes, the firmware state to come
    T JOB_PLAN        for each server: accepted, or why not. Nothing has been changed yet
      for each accepted server, in the node's order:
    N SERVER_BEGIN
    T SERVER_READY    names were cycled, images exist; for each disk whether there is something to compare with
        for each firmware file: N FIRMWARE, with its bytes in FIRMWARE_DATA frames
        for each disk:
        N DISK_BEGIN
          for each segment a dialogue (below), many of them under way at once
        N DISK_END    the digest of the whole image
        T DISK_DONE   the target's own digest of it; bytes written
    N SERVER_END      all disks were sent
    T SERVER_DONE     the set is complete, on stable storage, and has sequence 1
    N JOB_END
    T JOB_DONE        servers that succeeded and failed

Either end gives up one server, not the job: T with SERVER_FAILED, N with SERVER_ABORT. Whoever hears the
one answers with the other; frames about the server's disks that were under way are dropped. T may say that the
server can begin `again`, on another cache drive; a node that doesn't know of it goes on with the next one. ERROR ends
the session. PING may come at any time and means nothing but "still here". A program on the box itself may say IMPORT
behind HELLO, for what was carried in on a drive, and hears IMPORTED at the end.

The dialogue of a segment when there is something to compare with:

    N SEGMENT (its digest)   T DONE: the recycled image has it already
                             T WANT_BLOCKS
    N BLOCKS (their digests) T DONE: what differs was found in the newest set, or is zero
                             T WANT_PAGES (of which blocks)
    N PAGES (short digests)  T WANT_DATA (of which pages), or DONE
    N DATA                   T DONE

Without anything to compare with, N sends BLOCKS and DATA unasked and SEGMENT last. ZEROS stands for whole
segments of zeros. The target answers DONE for every segment, in whatever order; the node keeps no more than
`window` segments open. Of what was asked for, or comes unasked, DATA may leave out pages that
are zeros. A target that cannot make a block's digest come right asks for the whole block once more with
WANT_DATA, then fails the server.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import ClassVar, Mapping, Optional, Tuple, Type, TypeVar

from anvil_dr.wire import typed_json

VERSION = 1
FRAME_HEADER = struct.Struct("!B3xI")
MAX_CONTROL_BYTES = 8 << 20
MAX_DATA_BYTES = 1 << 20
"""Raw bytes in one DATA frame."""
MAX_SERVERS = 256
MAX_DISKS = 64
MAX_FIRMWARE_BYTES = 64 << 20
MAX_FIRMWARE_FILES = 64
MAX_HELLO_BYTES = 16 << 10
"""Nothing is known of a peer that says HELLO, so little memory is spent on it."""
MAX_DEFINITION_CHARACTERS = 1 << 20


class Kind(enum.IntEnum):
    """Types of frames."""

    PING = 0
    HELLO = 1
    WELCOME = 2
    JOB = 3
    JOB_PLAN = 4
    SERVER_BEGIN = 5
    SERVER_READY = 6
    SERVER_END = 7
    SERVER_DONE = 8
    SERVER_FAILED = 9
    SERVER_ABORT = 10
    DISK_BEGIN = 11
    DISK_END = 12
    DISK_DONE = 13
    FIRMWARE = 14
    JOB_END = 15
    JOB_DONE = 16
    ERROR = 17
    STATUS = 18
    IMPORT = 19
    IMPORTED = 20
    # records of bulk.py
    ZEROS = 32
    SEGMENT = 33
    BLOCKS = 34
    PAGES = 35
    DATA = 36
    FIRMWARE_DATA = 37
    DONE = 40
    WANT_BLOCKS = 41
    WANT_PAGES = 42
    WANT_DATA = 43


def frame_header(kind: Kind, length_bytes: int) -> bytes:
    return FRAME_HEADER.pack(kind, length_bytes)


def frame_limit_bytes(kind: Kind) -> int:
    """How long a frame of this type may be."""
    if kind in (Kind.JOB, Kind.STATUS, Kind.JOB_PLAN, Kind.IMPORTED):
        return MAX_CONTROL_BYTES
    if kind is Kind.HELLO:
        return MAX_HELLO_BYTES
    return MAX_DATA_BYTES + (64 << 10) if kind >= Kind.ZEROS else 256 << 10


class Message:
    """A JSON message. Fields that the other end does not know are passed over, so that they can be added.

    Fields named `message` or `warnings` are words for a person; what is too long of them is cut off.
    """

    kind: ClassVar[Kind]

    def encode(self) -> bytes:
        return typed_json.write(self)


M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Hello(Message):
    kind = Kind.HELLO
    versions: Tuple[int, ...]
    digests: Tuple[str, ...]
    compressions: Tuple[str, ...] = ()
    node: str = ""
    program: str = ""
    purpose: str = "job"


@dataclass(frozen=True)
class Welcome(Message):
    kind = Kind.WELCOME
    version: int
    digest: str
    compressions: Tuple[str, ...]
    target: str
    window: int
    """Segments that may be open at once."""
    bandwidth_limit: int = 0
    """Bytes a second; 0 for none."""


@dataclass(frozen=True)
class DiskOffer(Message):
    name: str
    size_bytes: int
    path: str
    data_bytes: Optional[int] = None
    """Of those, what lies outside of holes; None where the node cannot tell."""


@dataclass(frozen=True)
class ServerOffer(Message):
    name: str
    definition: str = field(metadata={"characters": MAX_DEFINITION_CHARACTERS})
    disks: Tuple[DiskOffer, ...]
    left_out: Tuple[str, ...] = ()
    firmware: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Job(Message):
    kind = Kind.JOB
    name: str
    servers: Tuple[ServerOffer, ...]


@dataclass(frozen=True)
class Refusal(Message):
    code: str
    message: str


@dataclass(frozen=True)
class ServerPlan(Message):
    name: str
    refused: Optional[Refusal] = None
    warnings: Tuple[str, ...] = ()


@dataclass(frozen=True)
class JobPlan(Message):
    kind = Kind.JOB_PLAN
    job_id: str
    servers: Tuple[ServerPlan, ...]


@dataclass(frozen=True)
class ServerBegin(Message):
    kind = Kind.SERVER_BEGIN
    server: str


@dataclass(frozen=True)
class DiskReady(Message):
    name: str
    compare: bool
    """Whether the target has something to compare with; without, data is sent unasked."""


@dataclass(frozen=True)
class ServerReady(Message):
    kind = Kind.SERVER_READY
    server: str
    disks: Tuple[DiskReady, ...]
    warnings: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Firmware(Message):
    kind = Kind.FIRMWARE
    name: str
    size_bytes: int


@dataclass(frozen=True)
class DiskBegin(Message):
    kind = Kind.DISK_BEGIN
    disk: str


@dataclass(frozen=True)
class DiskEnd(Message):
    kind = Kind.DISK_END
    disk: str
    digest: str


@dataclass(frozen=True)
class DiskDone(Message):
    kind = Kind.DISK_DONE
    disk: str
    digest: str
    written_bytes: int


@dataclass(frozen=True)
class ServerEnd(Message):
    kind = Kind.SERVER_END
    server: str


@dataclass(frozen=True)
class ServerDone(Message):
    kind = Kind.SERVER_DONE
    server: str
    received_at: str
    wire_bytes: int
    written_bytes: int
    definition: str
    """Path of the definition file."""
    definition_made: bool
    warnings: Tuple[str, ...] = ()


@dataclass(frozen=True)
class ServerFailed(Message):
    kind = Kind.SERVER_FAILED
    server: str
    code: str
    message: str
    again: bool = False
    """True if SERVER_BEGIN may come for it once more, at once: what failed will not be used for it again."""


@dataclass(frozen=True)
class ServerAbort(Message):
    kind = Kind.SERVER_ABORT
    server: str
    code: str
    message: str


@dataclass(frozen=True)
class JobEnd(Message):
    kind = Kind.JOB_END


@dataclass(frozen=True)
class JobDone(Message):
    kind = Kind.JOB_DONE
    succeeded: Tuple[str, ...]
    failed: Tuple[str, ...]


@dataclass(frozen=True)
class Error(Message):
    kind = Kind.ERROR
    code: str
    message: str


@dataclass(frozen=True)
class RunningJobReport(Message):
    id: str
    node: str
    servers: Tuple[str, ...]
    state: str
    bytes_done: int
    bytes_total: int
    wire_bytes: int = 0
    seconds: int = 0
    disk: str = ""


@dataclass(frozen=True)
class Status(Message):
    """What a running service knows and no file says."""

    kind = Kind.STATUS
    jobs: Tuple[RunningJobReport, ...]


@dataclass(frozen=True)
class Import(Message):
    """The admin of the box wants what was carried in on a drive. Only a program on the box itself may ask for it."""

    kind = Kind.IMPORT
    device: str


@dataclass(frozen=True)
class ImportedReport(Message):
    server: str
    code: str = ""
    """Of what went wrong; empty if nothing did."""
    message: str = ""
    """What went wrong; or what else there is to know."""
    was_here: bool = False


@dataclass(frozen=True)
class ImportDone(Message):
    kind = Kind.IMPORTED
    servers: Tuple[ImportedReport, ...]


def decode(message: Type[M], content: memoryview) -> M:
    """The message that a control frame carries. Raise ProtocolError naming what is wrong with it."""
    return typed_json.read(message, bytes(content), message.kind.name)
