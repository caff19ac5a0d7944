"""Keeps a big job from pushing everything else out of the page cache, and its writes from piling up in it.

Touches nothing but one descriptor's pages. posix_fadvise(2) with POSIX_FADV_DONTNEED drops what is clean and begins to
write what is dirty (mm/fadvise.c). So a stretch of a file is given up when enough others have been touched since; one
that was written to is waited for some stretches later, and then dropped. That makes writeback steady, at the speed of
the disk, instead of one storm at the final fdatasync.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections import OrderedDict
from typing import Callable, Final, Set

STRETCH_BYTES: Final = 16 << 20
"""What is given up at a time: one segment of a comparison (SPEC section 6)."""
KEPT_STRETCHES: Final = 22
"""How many recent stretches stay cached. A segment that differs is read again in finer steps, until it is done: as many
as the window has, and those that are read ahead."""
WRITING_STRETCHES: Final = 8
"""How many are being written to the disk at a time, at most."""

# linux/fs.h: wait for what is being written already, write the rest, wait for that.
_WRITE_AND_WAIT: Final = 1 | 2 | 4

_libc = ctypes.CDLL(None, use_errno=True)

Advise = Callable[[int, int, int, int], None]
Write = Callable[[int, int, int], None]


def write_and_wait(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """sync_file_range(2), for which Python has nothing. Raise OSError: what was to be written may be lost.

    The kernel tells such an error once only, so fdatasync(2) would not tell it again.
    """
    while True:
        result = _libc.sync_file_range(fd, ctypes.c_int64(offset_bytes), ctypes.c_int64(length_bytes), _WRITE_AND_WAIT)
        if result == 0:
            return
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


class GiveUp:
    """Remembers which stretches of an open file were touched last and gives up the older ones."""

    def __init__(self, fd: int, advise: Advise = os.posix_fadvise, write: Write = write_and_wait) -> None:
        self._fd, self._advise, self._write = fd, advise, write
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._written: Set[int] = set()
        self._leaving: OrderedDict[int, None] = OrderedDict()
        self._last_read = self._last_written = -1
        self._lock = threading.Lock()

    def read(self, offset_bytes: int, length_bytes: int) -> None:
        """Say that these bytes were read. Costs nothing while a stretch is worked on."""
        first, last = offset_bytes // STRETCH_BYTES, (offset_bytes + length_bytes - 1) // STRETCH_BYTES
        if length_bytes <= 0 or first == last == self._last_read:
            return
        with self._lock:
            self._last_read = last
            for stretch in range(first, last + 1):
                self._touch(stretch)

    def wrote(self, offset_bytes: int, length_bytes: int) -> None:
        """Say that these bytes were written. Raise OSError if the disk did not take what was written before."""
        first, last = offset_bytes // STRETCH_BYTES, (offset_bytes + length_bytes - 1) // STRETCH_BYTES
        if length_bytes <= 0 or first == last == self._last_written:
            return
        with self._lock:
            self._last_written = last
            for stretch in range(first, last + 1):
                self._touch(stretch)
                self._written.add(stretch)
            finishing = [self._leaving.popitem(last=False)[0] for _ in range(len(self._leaving) - WRITING_STRETCHES)]
            self._written.difference_update(finishing)
        for stretch in finishing:
            # Not under the lock: who reads ahead need not wait for the disk that is written.
            self._write(self._fd, stretch * STRETCH_BYTES, STRETCH_BYTES)
            self._drop(stretch)

    def everything(self) -> None:
        """Give up the whole file; to be called once what was written is on stable storage."""
        with self._lock:
            self._recent.clear()
            self._written.clear()
            self._leaving.clear()
            self._advise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _touch(self, stretch: int) -> None:
        self._recent[stretch] = None
        self._recent.move_to_end(stretch)
        self._leaving.pop(stretch, None)
        while len(self._recent) > KEPT_STRETCHES:
            oldest = self._recent.popitem(last=False)[0]
            self._drop(oldest)
            if oldest in self._written:
                self._leaving[oldest] = None
            if oldest == self._last_read:
                self._last_read = -1
            if oldest == self._last_written:
                self._last_written = -1

    def _drop(self, stretch: int) -> None:
        self._advise(self._fd, stretch * STRETCH_BYTES, STRETCH_BYTES, os.POSIX_FADV_DONTNEED)
