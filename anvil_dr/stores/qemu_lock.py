"""QEMU's own locks on raw image files: sees them, and takes them to keep QEMU off. Touches only open descriptors.

QEMU marks what it does with a file by open file description locks on single bytes (docs/devel and
block/file-posix.c in QEMU: RAW_LOCK_PERM_BASE is 100, RAW_LOCK_SHARED_BASE is 200, bit 1 is "write").
Whoever read-locks byte 101 writes the image, whoever read-locks 201 lets nobody else write it.
Block devices are not guarded like this.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

_WRITES: Final = 101
_DENIES_WRITING: Final = 201

# struct flock of fcntl(2): l_type, l_whence, l_start, l_len, l_pid; `0q` pads it to the size C gives it.
_FLOCK: Final = "hhqqi0q"


def writes(fd: int) -> bool:
    """True if a QEMU writes to this file, or anyone who takes its lock. Raise OSError."""
    return _is_locked(fd, _WRITES)


def denies_writing(fd: int) -> bool:
    """True if a QEMU reads this file and relies on it staying as it is, as under an overlay. Raise OSError."""
    return _is_locked(fd, _DENIES_WRITING)


def take(fd: int) -> bool:
    """Keep QEMU off this file until `fd` is closed; False if one has it already. `fd` must be readable. Raise OSError.

    First lock, then look, as QEMU does: of two that come at once, at most one goes on.
    """
    for byte in (_WRITES, _DENIES_WRITING):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _pack(fcntl.F_RDLCK, byte))
    return not (writes(fd) or denies_writing(fd))


def _is_locked(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _pack(fcntl.F_WRLCK, byte))
    lock_type: int = struct.unpack(_FLOCK, answer)[0]
    return lock_type != fcntl.F_UNLCK


def _pack(lock_type: int, byte: int) -> bytes:
    # l_pid must be zero for these commands (fcntl(2), "Open file description locks").
    return struct.pack(_FLOCK, lock_type, os.SEEK_SET, byte, 1, 0)
