"""The record of a drive that was filled at a node, to be carried to the DR box: which servers lie on it, whole.

Touches `anvil-dr-job.json` in the root of the drive. It is written last and whole, so that what is half written is
never on record. On the DR box it is as untrusted as what comes over the wire: it says nothing that is not checked.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Dict, Final, Mapping, Optional, Tuple

from anvil_dr import durable, words
from anvil_dr.errors import ProtocolError
from anvil_dr.wire import typed_json
from anvil_dr.wire.protocol import MAX_DEFINITION_CHARACTERS, MAX_FIRMWARE_BYTES, MAX_SERVERS, DiskOffer, ServerOffer

FILE: Final = "anvil-dr-job.json"
DIGEST: Final = "sha256"
"""Of its images: what every DR box can check."""

_VERSION: Final = 1
_MOST_BYTES: Final = 128 << 20
_FIRMWARE_CHARACTERS: Final = 4 * MAX_FIRMWARE_BYTES // 3 + 4
_JOB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_DIGEST: Final = re.compile(rf"{DIGEST}:[0-9a-f]{{64}}")


@dataclass(frozen=True)
class CarriedDisk:
    """One image on the drive: an ordinary file, named as number 1."""

    name: str
    path: str
    """As the server's definition has it."""
    size_bytes: int
    digest: str
    data_bytes: Optional[int] = None
    """What lies outside of holes."""


@dataclass(frozen=True)
class CarriedFirmware:
    """One file of firmware state."""

    name: str
    content: str = field(metadata={"characters": _FIRMWARE_CHARACTERS})
    """In base64 (RFC 4648)."""


@dataclass(frozen=True)
class CarriedServer:
    """One complete set on the drive."""

    name: str
    job_id: str
    node: str
    received_at: str
    """When it was written to the drive; ISO 8601, UTC."""
    definition: str = field(metadata={"characters": MAX_DEFINITION_CHARACTERS})
    disks: Tuple[CarriedDisk, ...]
    left_out: Tuple[str, ...] = ()
    firmware: Tuple[CarriedFirmware, ...] = ()

    def offer(self) -> ServerOffer:
        """As a node would announce it. Raise ProtocolError."""
        disks = tuple(DiskOffer(one.name, one.size_bytes, one.path, one.data_bytes) for one in self.disks)
        sizes = {name: len(content) for name, content in self.firmware_files().items()}
        return ServerOffer(self.name, self.definition, disks, self.left_out, sizes)

    def firmware_files(self) -> Mapping[str, bytes]:
        """What came with it, by name. Raise ProtocolError."""
        files: Dict[str, bytes] = {}
        for one in self.firmware:
            if one.name in files:
                raise ProtocolError(f"server {self.name[:255]}: firmware state {one.name[:255]!r} is there twice")
            try:
                files[one.name] = base64.b64decode(one.content, validate=True)
            except (binascii.Error, ValueError):
                raise ProtocolError(f"server {self.name[:255]}: {one.name[:255]!r} is not base64") from None
        return files


@dataclass(frozen=True)
class CarriedJob:
    """Everything that is complete on the drive."""

    version: int = _VERSION
    servers: Tuple[CarriedServer, ...] = ()


def firmware_of(files: Mapping[str, bytes]) -> Tuple[CarriedFirmware, ...]:
    """Files of firmware state, for the record."""
    return tuple(CarriedFirmware(name, base64.b64encode(content).decode("ascii")) for name, content in files.items())


def read(folder: str) -> Optional[CarriedJob]:
    """What the drive that is mounted there has on record; None if it has no record. Raise ProtocolError."""
    path = os.path.join(folder, FILE)
    try:
        # A fifo would block the open, and a symlink could lead anywhere.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProtocolError(f"{path} cannot be read: {error.strerror}") from error
    with open(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_BYTES:
            raise ProtocolError(f"{path} is no record: it is not a regular file, or larger than {_MOST_BYTES} bytes")
        try:
            content = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise ProtocolError(f"{path} cannot be read: {error.strerror}") from error
    job = typed_json.read(CarriedJob, content, FILE)
    _check(job)
    return job


def in_words(folder: str) -> Tuple[str, ...]:
    """What the drive that is mounted there brings, for a person; nothing if it has no record."""
    try:
        job = read(folder)
    except ProtocolError as error:
        return (f"a record that cannot be used: {error}",)
    return tuple(
        f"{one.name} of {one.received_at} from {one.node}, {words.size(sum(disk.size_bytes for disk in one.disks))}"
        for one in (job.servers if job is not None else ())
    )


def write(folder: str, job: CarriedJob) -> None:
    """Put it on the drive, durably, in one step. Raise OSError, ProtocolError if it is too large."""
    content = typed_json.write(job)
    if len(content) > _MOST_BYTES:
        raise ProtocolError(f"the record of the drive would be larger than {_MOST_BYTES} bytes")
    durable.replace(os.path.join(folder, FILE), content, mode=0o600)


def _check(job: CarriedJob) -> None:
    if job.version != _VERSION:
        raise ProtocolError(f"{FILE} has version {job.version}, and this box reads version {_VERSION}")
    names = [server.name for server in job.servers]
    if len(names) > MAX_SERVERS or len(set(names)) < len(names):
        raise ProtocolError(f"{FILE} has a server twice, or more than {MAX_SERVERS}")
    for server in job.servers:
        if not _JOB_ID.fullmatch(server.job_id):
            raise ProtocolError(f"{FILE}: {server.job_id[:64]!r} is no name of a job")
        if not server.node.isprintable() or len(server.node) > 255 or len(server.received_at) > 64:
            raise ProtocolError(f"{FILE}: the node or the time of a server is impossible")
        for disk in server.disks:
            if not _DIGEST.fullmatch(disk.digest):
                raise ProtocolError(f"{FILE}: {disk.digest[:80]!r} is no digest")
