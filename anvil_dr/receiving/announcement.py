"""What a node announces, looked at by itself: what no node would send goes no further. Pure.

Whether it may be taken is admission.py's business.
"""

from __future__ import annotations

import re
from typing import Final

from anvil_dr import naming
from anvil_dr.errors import ProtocolError
from anvil_dr.wire.protocol import MAX_DISKS, MAX_FIRMWARE_BYTES, MAX_FIRMWARE_FILES, MAX_SERVERS, Job, ServerOffer

_NAME_CHARACTERS: Final = 255
_LEFT_OUT: Final = 256
MAX_DISK_BYTES: Final = 64 << 40
"""Of a disk that has nothing in it, each segment costs time here and nothing at the node."""

# swtpm's files are tpm2-00.permall and .lock; the names become names of files here.
_FIRMWARE: Final = re.compile(r"nvram|tpm/(?!\.\.?\Z)[A-Za-z0-9_.+-]{1,128}")


def check_job(job: Job) -> None:
    """Raise ProtocolError for a job that no node would send."""
    if len(job.name) > _NAME_CHARACTERS:
        raise ProtocolError(f"the job's name is too long: {len(job.name)} characters")
    names = [offer.name for offer in job.servers]
    if not names or len(names) > MAX_SERVERS:
        raise ProtocolError(f"a job has 1 to {MAX_SERVERS} servers; this one has {len(names)}")
    for number, name in enumerate(names):
        if len(name) > _NAME_CHARACTERS:
            raise ProtocolError(f"the name of server {number + 1} is too long: {len(name)} characters")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProtocolError(f"server {twice[0]!r} is in the job twice")


def check_server(offer: ServerOffer) -> None:
    """Raise ImageNameError or ProtocolError for a server that no node would send."""
    naming.check_server_name(offer.name)
    disks = [disk.name for disk in offer.disks]
    if not disks or len(disks) > MAX_DISKS:
        raise ProtocolError(f"server {offer.name}: 1 to {MAX_DISKS} disks were expected, there are {len(disks)}")
    for disk in offer.disks:
        naming.check_disk_name(disk.name)
        if disk.size_bytes < 1:
            raise ProtocolError(f"server {offer.name} disk {disk.name}: its size is {disk.size_bytes} bytes")
        if disk.size_bytes > MAX_DISK_BYTES:
            raise ProtocolError(
                f"server {offer.name} disk {disk.name}: its size is {disk.size_bytes} bytes, and a disk has at most "
                f"{MAX_DISK_BYTES >> 40} TiB"
            )
        if disk.data_bytes is not None and disk.data_bytes > disk.size_bytes:
            raise ProtocolError(f"server {offer.name} disk {disk.name}: it has more data than it has bytes")
    if len(set(disks)) < len(disks) or len({disk.path for disk in offer.disks}) < len(disks):
        raise ProtocolError(f"server {offer.name}: two of its disks have the same name or path")
    if len(offer.left_out) > _LEFT_OUT:
        raise ProtocolError(f"server {offer.name}: it leaves out {len(offer.left_out)} disks")
    if len(offer.firmware) > MAX_FIRMWARE_FILES or sum(offer.firmware.values()) > MAX_FIRMWARE_BYTES:
        raise ProtocolError(f"server {offer.name}: there is too much firmware state")
    for name in offer.firmware:
        if not _FIRMWARE.fullmatch(name):
            raise ProtocolError(f"server {offer.name}: {name[:_NAME_CHARACTERS]!r} is no firmware state")
