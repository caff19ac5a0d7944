"""A disk of the node, open to be imaged: reads it and notices if somebody writes to it meanwhile.

Touches only the disk's descriptor, read-only, and reads /sys/dev/block.
"""

from __future__ import annotations

import logging
import os
import stat
from typing import Callable, Final, Iterator, Optional, Tuple, Union

from anvil_dr.errors import SourceError
from anvil_dr.stores import qemu_lock
from anvil_dr.stores.open_image import BlockImage, FileImage, block_size_bytes

log = logging.getLogger(__name__)

_Mark = Tuple[int, ...]

# Documentation/block/stat.rst: completed writes and sectors written, completed discards and sectors discarded.
_WRITE_COUNTERS: Final = (4, 6, 11, 13)


class SourceDisk:
    """Implements ports.Image, read-only. `open_source` makes it."""

    def __init__(self, image: Union[FileImage, BlockImage], mark: Callable[[], _Mark], what: str) -> None:
        self._image, self._mark, self._what = image, mark, what
        self._at_open = mark()

    @property
    def size_bytes(self) -> int:
        return self._image.size_bytes

    @property
    def path(self) -> str:
        return self._image.path

    def changed(self) -> Optional[str]:
        """What shows that the disk was written to since it was opened, in words; None if nothing does.

        Raise SourceError if it cannot be told any more.
        """
        try:
            now = self._mark()
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}", path=self.path) from error
        return None if now == self._at_open else self._what

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer`; past the end it is filled with zeros. Raise ImageIOError."""
        self._image.read_into(offset_bytes, buffer)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Raise ImageIOError: a source is open read-only."""
        self._image.write(offset_bytes, data)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Raise ImageIOError: a source is open read-only."""
        self._image.zero(offset_bytes, length_bytes)

    def data_ranges(self, offset_bytes: int, length_bytes: int) -> Iterator[Tuple[int, int]]:
        """The (offset, length) parts of a range that may hold other than zeros, in order. Raise ImageIOError."""
        return self._image.data_ranges(offset_bytes, length_bytes)

    def flush(self) -> None:
        """Nothing to do: nothing is ever written."""

    def forget_cached(self) -> None:
        """Have what is on stable storage read from there the next time, and not from memory. Raise ImageIOError."""
        self._image.forget_cached()

    def close(self) -> None:
        """Close it, once or more."""
        self._image.close()


def open_source(path: str) -> SourceDisk:
    """Open a regular file or a block device, through symlinks as DRBD and LVM make them.

    Raise SourceError if it is neither, cannot be opened, or a QEMU writes to the file at this moment.
    """
    try:
        # O_NONBLOCK, or the open of a fifo would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceError(f"cannot open {path}: {error.strerror}", path=path) from error
    try:
        disk = _open(fd, path)
        # What was cached may be older than what another node of a shared or replicated disk wrote.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return disk
    except OSError as error:
        os.close(fd)
        raise SourceError(f"cannot open {path}: {error.strerror}", path=path) from error
    except SourceError:
        os.close(fd)
        raise


def _open(fd: int, path: str) -> SourceDisk:
    facts = os.fstat(fd)
    if stat.S_ISREG(facts.st_mode):
        if qemu_lock.writes(fd):
            raise SourceError(f"{path} is being written by a running server", path=path)
        return SourceDisk(FileImage(fd, path, facts.st_size), lambda: _file_mark(fd), "the file was modified")
    if stat.S_ISBLK(facts.st_mode):
        device = f"/sys/dev/block/{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"
        if not _counts_writes(device):
            log.warning("writes during imaging will not be noticed: path=%s reason=%r", path, "queue/iostats is 0")
        image = BlockImage(fd, path, block_size_bytes(fd))
        return SourceDisk(image, lambda: _device_mark(device), "the device was written to")
    raise SourceError(f"{path} is neither a regular file nor a block device", path=path)


def _file_mark(fd: int) -> _Mark:
    """Changes with every write. The second time, of the metadata, is the one that nobody can set back."""
    facts = os.fstat(fd)
    return facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size


def _device_mark(device: str) -> _Mark:
    """The kernel's counts of what was written to this device. Raise OSError."""
    with open(os.path.join(device, "stat"), encoding="ascii") as file:
        counters = [int(word) for word in file.read().split()]
    return tuple(counters[index] for index in _WRITE_COUNTERS if index < len(counters))


def _counts_writes(device: str) -> bool:
    """False if the administrator has switched the counters off. A partition has its disk's switch."""
    for queue in ("queue/iostats", "../queue/iostats"):
        try:
            with open(os.path.join(device, queue), encoding="ascii") as file:
                return file.read().strip() != "0"
        except OSError:
            continue
    return True
