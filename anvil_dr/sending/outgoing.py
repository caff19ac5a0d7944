"""What is to be sent, from a job file (SPEC section 9). outgoing_domain.py does the same from libvirt.

May open the disks, the definitions and the firmware state that it is told of, read-only. Trouble with one server is
that server's outcome; the others go on.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Final, Iterable, Iterator, List, Optional, Tuple

from anvil_dr import definition
from anvil_dr.definition.reading import MAX_BYTES as _MAX_DEFINITION_BYTES
from anvil_dr.errors import AnvilDrError, DefinitionError, SourceChangedError, SourceError
from anvil_dr.firmware_files import FirmwareFiles
from anvil_dr.sending.job import OutgoingDisk, OutgoingServer, ServerOutcome
from anvil_dr.sending.job_file import DiskEntry, JobFile, ServerEntry
from anvil_dr.sending.source import SourceDisk, open_source
from anvil_dr.stores.open_image import FileImage

log = logging.getLogger(__name__)

_RAW: Final = "raw"


@dataclass(frozen=True)
class Prepared:
    """The servers that can be announced, and those of which it is known already that they can't."""

    servers: Tuple[OutgoingServer, ...]
    failed: Tuple[ServerOutcome, ...]


Refuse = Callable[[str], None]
"""Raises AnvilDrError for a server that must not be imaged now, whatever state it is in."""


def prepare(names: Iterable[str], build: Callable[[str], OutgoingServer]) -> Prepared:
    """Build each server; one that cannot be built is a failed one."""
    servers: List[OutgoingServer] = []
    failed: List[ServerOutcome] = []
    for name in names:
        try:
            servers.append(build(name))
        except AnvilDrError as error:
            log.info("server not sent server=%s code=%s error=%s", name, error.code, error)
            failed.append(ServerOutcome(name, error))
    return Prepared(tuple(servers), tuple(failed))


def from_job_file(job: JobFile, refuse: Refuse = lambda server: None) -> Prepared:
    """The servers of a job file. Nobody but the person who wrote it knows that they are off, except QEMU's locks."""
    entries = {entry.name: entry for entry in job.servers}
    return prepare(entries, lambda name: _from_entry(entries[name], refuse))


def outgoing_disk(name: str, path: str, read_path: str) -> OutgoingDisk:
    """One disk, of which `read_path` is read. Its server may still run: only its size is asked for now.

    Raise SourceError.
    """
    announced_bytes, data_bytes = _sizes(read_path)
    if announced_bytes == 0:
        raise SourceError(f"{read_path} is empty", path=read_path)

    def open_as_announced() -> SourceDisk:
        opened = open_source(read_path)
        if opened.size_bytes != announced_bytes:
            opened.close()
            raise SourceChangedError(
                read_path, f"it had {announced_bytes} bytes when the job began and has {opened.size_bytes} now"
            )
        return opened

    return OutgoingDisk(name, path, announced_bytes, open_as_announced, data_bytes)


def refuse_format(server: str, disk: definition.SourceDisk) -> None:
    """Raise SourceError for a disk whose file is not simply its bytes."""
    if disk.format != _RAW:
        raise SourceError(
            f"server {server}: {disk} is {disk.format}, and only raw disks can be imaged; "
            f"while the server is off: qemu-img convert -O raw",
            path=disk.path or "",
        )


def _from_entry(entry: ServerEntry, refuse: Refuse) -> OutgoingServer:
    refuse(entry.name)
    xml = _definition(entry.definition)
    source = definition.parse(xml)
    name = definition.server_name(source)
    if name != entry.name:
        raise DefinitionError(f"{entry.definition} is the definition of {name!r}", server=entry.name)
    by_path = {disk.path: disk for disk in definition.source_disks(source)}
    for disk in entry.disks:
        if disk.image is None and disk.path in by_path:
            refuse_format(entry.name, by_path[disk.path])
    firmware = FirmwareFiles(entry.nvram, entry.tpm)
    return OutgoingServer(
        name=entry.name,
        definition=xml,
        disks=tuple(_disk_of_entry(disk) for disk in entry.disks),
        keep_off=lambda: _not_refused(entry.name, refuse),
        left_out=entry.left_out,
        firmware=firmware.read(),
        read_firmware=firmware.read,
    )


@contextmanager
def _not_refused(name: str, refuse: Refuse) -> Iterator[None]:
    """What is true of it at the beginning of the job may have changed when its turn comes, or while it was read."""
    refuse(name)
    yield
    refuse(name)


def _disk_of_entry(disk: DiskEntry) -> OutgoingDisk:
    read_path = disk.path if disk.image is None else disk.image
    # Refuses, before anything has changed on the DR box, a file that a running server writes.
    open_source(read_path).close()
    return outgoing_disk(disk.name, disk.path, read_path)


def _definition(path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_DEFINITION_BYTES + 1)
        return content.decode("utf-8")
    except OSError as error:
        raise DefinitionError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{path} is not UTF-8 text") from error


def _sizes(path: str) -> Tuple[int, Optional[int]]:
    """How many bytes it has, and how many of a file lie outside of holes."""
    try:
        # O_NONBLOCK, or the open of a fifo would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceError(f"cannot open {path}: {error.strerror}", path=path) from error
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise SourceError(f"{path} is neither a regular file nor a block device", path=path)
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        if stat.S_ISBLK(mode):
            return size_bytes, None
        image = FileImage(fd, path, size_bytes)
        return size_bytes, sum(length for _, length in image.data_ranges(0, size_bytes))
    except OSError as error:
        raise SourceError(f"cannot tell the size of {path}: {error.strerror}", path=path) from error
    finally:
        os.close(fd)
