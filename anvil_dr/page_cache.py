"""Keeps a big job from pushing everything else out of the page cache. Touches nothing but one descriptor's advice.

posix_fadvise(2) with POSIX_FADV_DONTNEED starts writeback of what is dirty and drops what is clean (mm/fadvise.c).
So each stretch of a file is given up twice: once to get it written, once more, a little later, to get it dropped.
That also makes writeback steady, instead of one storm at the final fdatasync.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Callable, Final

STRETCH_BYTES: Final = 16 << 20
"""What is given up at a time: one segment of a comparison (SPEC section 6)."""
KEPT_STRETCHES: Final = 4
"""How many recent stretches stay cached: a segment that differs is soon read again, in finer steps."""


class GiveUp:
    """Remembers which stretches of an open file were touched last and gives up the older ones."""

    def __init__(self, fd: int, advise: Callable[[int, int, int, int], None] = os.posix_fadvise) -> None:
        self._fd, self._advise = fd, advise
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._leaving: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()

    def touched(self, offset_bytes: int, length_bytes: int) -> None:
        """Say that these bytes were read or written. Costs nothing while a stretch is worked on."""
        if length_bytes <= 0:
            return
        first, last = offset_bytes // STRETCH_BYTES, (offset_bytes + length_bytes - 1) // STRETCH_BYTES
        with self._lock:
            for stretch in range(first, last + 1):
                self._recent[stretch] = None
                self._recent.move_to_end(stretch)
                self._leaving.pop(stretch, None)
                while len(self._recent) > KEPT_STRETCHES:
                    self._leave(self._recent.popitem(last=False)[0])

    def _leave(self, stretch: int) -> None:
        self._drop(stretch)
        self._leaving[stretch] = None
        if len(self._leaving) > KEPT_STRETCHES:
            self._drop(self._leaving.popitem(last=False)[0])

    def everything(self) -> None:
        """Give up the whole file; to be called once what was written is on stable storage."""
        with self._lock:
            self._recent.clear()
            self._leaving.clear()
            self._advise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _drop(self, stretch: int) -> None:
        self._advise(self._fd, stretch * STRETCH_BYTES, STRETCH_BYTES, os.POSIX_FADV_DONTNEED)
