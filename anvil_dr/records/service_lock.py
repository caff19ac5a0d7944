"""One service at a time on a state directory: its lock, which the kernel takes back with the process.

Touches `<state>/lock`, which says who holds it.
"""

from __future__ import annotations

import fcntl
import os

from anvil_dr.errors import ServiceError, StateError


def take(directory: str) -> int:
    """The lock's descriptor: it is held until that is closed.

    Raise ServiceError naming the pid of the one that holds it, StateError if the file cannot be had.
    """
    path = os.path.join(directory, "lock")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise ServiceError(f"another anvil-dr-target is at work on {directory}: pid {holder}") from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
    return fd
