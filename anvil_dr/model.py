"""Frozen values that the whole project speaks in. No I/O, no policy; the words are the SPEC's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, Mapping, Optional, Tuple, Union

INCOMPLETE: Final = "incomplete"
"""The sequence of an image while it is being written (SPEC section 2)."""

CACHED: Final = 0
"""The number of a complete set that is still on cache drives; only activation knows of it, and it's no image's name."""

Sequence = Union[int, Literal["incomplete"]]
"""1 is the newest complete image, N the oldest; `INCOMPLETE` is the one being written."""


@dataclass(frozen=True, order=True)
class Owner:
    """The (server, disk) pair an image belongs to. Images are never told apart by splitting names."""

    server: str
    disk: str


@dataclass(frozen=True)
class Disk:
    """One virtual disk of a server, as the node describes it."""

    name: str
    size_bytes: int
    path: str
    """The path that the server's definition has for it."""


@dataclass(frozen=True)
class StoredImage:
    """One image as it lies in a store now."""

    owner: Owner
    sequence: Sequence
    location: str
    """Name of the volume group, or the directory."""
    identity: str
    """What stays the same through renames: `lv:<uuid>` or `inode:<number>.<generation>`."""
    size_bytes: int
    """What can be read from it: for a volume, rounded up to whole extents."""
    path: str
    """Where it can be opened now."""
    holes_bytes: int = field(default=0, compare=False)
    """Of its size, what takes no space yet."""


@dataclass(frozen=True)
class Location:
    """A place of a store where images can be created: a volume group, or the directory."""

    name: str
    size_bytes: int
    free_bytes: int
    extent_bytes: int
    """Images take whole extents; 1 where there is no such thing."""


@dataclass(frozen=True)
class SetOnDisk:
    """What a planner needs to know of one set: which disks it has and whether nothing is missing."""

    sequence: Sequence
    disks: Tuple[str, ...]
    complete: bool


# — steps of cycling (rotation.py plans them, recover.py can apply them twice) —


@dataclass(frozen=True)
class Rename:
    """Give one image of a server another sequence."""

    owner: Owner
    before: Sequence
    after: Sequence


@dataclass(frozen=True)
class Removal:
    """Free one image of a server."""

    owner: Owner
    sequence: Sequence


Step = Union[Rename, Removal]


# — where the bytes will go (placement.py plans them) —


@dataclass(frozen=True)
class Demand:
    """One image that a job will write, and the recycled image that it can be written into."""

    owner: Owner
    size_bytes: int
    existing_location: Optional[str] = None
    existing_bytes: int = 0
    holes_bytes: int = 0
    """Of the existing bytes, what takes no space yet."""
    data_bytes: Optional[int] = None
    """What it will take at most, where images are sparse and it is known; None if it takes all of its size."""


@dataclass(frozen=True)
class Keep:
    """The recycled image is right as it is."""

    owner: Owner
    location: str


@dataclass(frozen=True)
class Resize:
    """The recycled image is grown or shrunk where it is."""

    owner: Owner
    location: str
    size_bytes: int


@dataclass(frozen=True)
class Create:
    """A new image."""

    owner: Owner
    location: str
    size_bytes: int


@dataclass(frozen=True)
class Replace:
    """The recycled image cannot grow where it is: a new one elsewhere, then the old one goes."""

    owner: Owner
    location: str
    size_bytes: int
    old_location: str


Allocation = Union[Keep, Resize, Create, Replace]


# — jobs —


@dataclass(frozen=True)
class ServerJob:
    """One server's part of a job: what a node announces before it sends a byte."""

    name: str
    definition: str
    """libvirt domain XML as the node has it. Untrusted."""
    disks: Tuple[Disk, ...]
    left_out: Tuple[str, ...] = ()
    """Paths of disks in the definition that the node leaves out on purpose."""
    firmware: Mapping[str, int] = field(default_factory=dict)
    """Firmware state that will be sent: relative name -> bytes (`nvram`, `tpm/<file>`)."""


@dataclass(frozen=True)
class JobSpec:
    """One push of one or more servers."""

    name: str
    node: str
    servers: Tuple[ServerJob, ...]


@dataclass(frozen=True)
class ImageRecord:
    """What is remembered of one image of a received set."""

    disk: str
    identity: str
    size_bytes: int
    """Size of the source's disk, which can be less than the image's."""
    digest: str
    """`<algorithm>:<hex>` over the whole image, as digest.py builds it; empty once the server has run on it here."""
    verified_at: Optional[str] = None
    """When its bytes were last read again and were right; ISO 8601, UTC."""
    rotten: Optional[str] = None
    """What was found wrong with its bytes, in words; None if nothing was."""


@dataclass(frozen=True)
class SetRecord:
    """What is remembered of one received set. Its sequence is what the images' names say now."""

    server: str
    received_at: str
    """ISO 8601, UTC."""
    source: str
    """The node that sent it."""
    job_id: str
    images: Tuple[ImageRecord, ...]
    ran_here_until: Optional[str] = None
    """When the server was given back that had run on these images here; ISO 8601, UTC."""


@dataclass(frozen=True)
class ImageSet:
    """All the images of one server with one sequence, with what is remembered of them."""

    server: str
    sequence: Sequence
    images: Tuple[StoredImage, ...]
    complete: bool
    record: Optional[SetRecord] = None

    @property
    def rotten(self) -> Tuple[str, ...]:
        """Disks whose images are known not to be what was received any more."""
        here = {image.identity for image in self.images}
        remembered = self.record.images if self.record else ()
        return tuple(image.disk for image in remembered if image.rotten is not None and image.identity in here)


@dataclass(frozen=True)
class JobRecord:
    """One server's part of a past or running job."""

    id: str
    server: str
    node: str
    state: Literal["succeeded", "failed", "running"]
    started_at: str
    finished_at: Optional[str] = None
    error: Optional[str] = None
    wire_bytes: int = 0
    written_bytes: int = 0


# — what the state database keeps beside sets and jobs —


@dataclass(frozen=True)
class JournalStep:
    """One step of cycling, and which image it is about: names move, the identity stays."""

    step: Step
    identity: str


Purpose = Literal["cycle", "promote", "publish", "trim"]
"""What a plan is for: the start of a job; its end; putting in place what belongs to the new set; `copies` lowered."""


@dataclass(frozen=True)
class JournalEntry:
    """A plan that was begun. It is on stable storage before its first step is taken (SPEC section 3)."""

    id: int
    server: str
    purpose: Purpose
    steps: Tuple[JournalStep, ...]
    record: Optional[SetRecord] = None
    """The set that exists once every step is taken, or that is to be published."""
    failure: Optional[str] = None
    """Why it could not be finished when that was last tried."""
    readable: bool = True
    """False if nobody knows its steps: another version wrote it, or it was damaged."""


@dataclass(frozen=True)
class Activation:
    """A server that runs, or ran, on the DR box, so that its images are not a copy any more."""

    server: str
    sequence: int
    since: str
    """ISO 8601, UTC."""
    user: str


@dataclass(frozen=True)
class Overlay:
    """One disk's."""

    disk: str
    path: str
    base: str
    """The image under it, by the path that it was made with."""
    base_kind: str
    """`file` or `block`."""
    identity: str
    """The image's: its name could change, which must not happen to it now."""


@dataclass(frozen=True)
class OverlaySet:
    """All of one server."""

    server: str
    sequence: int
    made_at: str
    """ISO 8601, UTC."""
    overlays: Tuple[Overlay, ...]
    nvram: Optional[str] = None
    """A copy of the UEFI variables, that the server changes instead of the set's."""
    committing: bool = False
    """True once some of what the server wrote may be in its images: only all of it makes sense there."""
    removing: bool = False
    """True once they are not needed any more, and some may be gone: it's decided what became of what they held."""
    job_id: Optional[str] = None
    """The job whose set they were made over; None if nobody knew."""

    def lies_over(self, one: ImageSet) -> bool:
        """True if they hold differences from this very set.

        Its images alone don't say so: they are recycled, and hold what another job has sent by then. They have to where
        nobody knows of which job one is.
        """
        job_ids = {self.job_id, one.record.job_id if one.record is not None else None} - {None}
        there = {image.identity for image in one.images}
        return len(job_ids) < 2 and all(overlay.identity in there for overlay in self.overlays)

    def is_spoilt(self, one: ImageSet) -> bool:
        """True if the server ran on this set itself, of which they hold differences, since they were made."""
        until = one.record.ran_here_until if one.record is not None else None
        return not self.committing and until is not None and until > self.made_at


@dataclass(frozen=True)
class SourceDefinition:
    """The definition of a server as its node had it in the last job. Untrusted."""

    server: str
    xml: str
    left_out: Tuple[str, ...]
    """Paths of disks in it that the node left out on purpose."""
    received_at: str
    """ISO 8601, UTC."""
    disks: Mapping[str, str] = field(default_factory=dict)
    """The paths in it that were sent, and the names of their disks."""


@dataclass(frozen=True)
class RunningJob:
    """A job that the service is working on now."""

    id: str
    node: str
    servers: Tuple[str, ...]
    state: str
    bytes_done: int
    """Of the disks' bytes, those that are right here: looked at, whether or not they had to be sent."""
    bytes_total: int
    wire_bytes: int = 0
    seconds: int = 0
    """Since it began."""
    disk: str = ""
    """Which one is being sent now; empty between two."""


@dataclass(frozen=True)
class CacheDrive:
    """A file system that carries the cache signature (SPEC section 5)."""

    device: str
    mountpoint: Optional[str]
    filesystem: str
    size_bytes: int
    free_bytes: int
    identity: str = ""
    """What it is known by wherever it is plugged in: its file system's UUID, or else the device path."""
    model: str = ""
    serial: str = ""
    problem: Optional[str] = None
    """Why it is not used; None if it can be."""
    signed: bool = False
    """True if the signature was found on it."""
    largest_file_bytes: Optional[int] = None
    """How large one file can be on it; None if that is no limit."""
    contents: Tuple[str, ...] = ()
    """What of ours lies on it, in words."""
    carries: Tuple[str, ...] = ()
    """What was put on it at a node, to be imported, in words; such a drive is not used as a cache."""
