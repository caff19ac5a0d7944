"""A server's disks on its own node, open to be written: for a server that comes back from the DR box.

Touches the disks that it is given, by path. Nothing may use them meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Union

from anvil_dr.errors import ImageInUseError, SourceError
from anvil_dr.stores import qemu_lock
from anvil_dr.stores.open_image import BlockImage, FileImage, block_size_bytes


def open_to_write(path: str, size_bytes: int) -> Union[FileImage, BlockImage]:
    """Raise SourceError if it is not a disk of this size, ImageInUseError if anything else has it open to write."""
    try:
        # O_EXCL keeps mounts and device-mapper off a block device (open(2)); for a file it says nothing here.
        kind = os.O_EXCL if stat.S_ISBLK(os.stat(path).st_mode) else 0
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | kind)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ImageInUseError(path, "a mount, or a device on top of it") from error
        raise SourceError(f"cannot open {path}: {error.strerror}", path=path) from error
    try:
        return _open(fd, path, size_bytes)
    except OSError as error:
        os.close(fd)
        raise SourceError(f"cannot open {path}: {error.strerror}", path=path) from error
    except (SourceError, ImageInUseError):
        os.close(fd)
        raise


def _open(fd: int, path: str, size_bytes: int) -> Union[FileImage, BlockImage]:
    facts = os.fstat(fd)
    if stat.S_ISBLK(facts.st_mode):
        here_bytes = block_size_bytes(fd)
    elif stat.S_ISREG(facts.st_mode):
        here_bytes = facts.st_size
        if not qemu_lock.take(fd):
            raise ImageInUseError(path, "a QEMU, or another program that locks it")
    else:
        raise SourceError(f"{path} is neither a regular file nor a block device", path=path)
    if here_bytes < size_bytes:
        raise SourceError(
            f"{path} has {here_bytes} bytes, and the server's disk has {size_bytes} now: make it larger first",
            path=path,
        )
    if stat.S_ISBLK(facts.st_mode):
        return BlockImage(fd, path, here_bytes)
    return FileImage(fd, path, here_bytes)
