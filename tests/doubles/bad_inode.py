"""A file that is there and cannot be opened, as one whose inode lies on a bad sector."""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import contextmanager
from typing import Iterator, Union


@contextmanager
def unopenable(path: Union[str, os.PathLike[str]]) -> Iterator[None]:
    """Meanwhile whoever opens it without waiting gets an error: somebody has a lease on it (fcntl(2))."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the kernel asks for it back
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)
