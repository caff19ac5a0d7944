"""The only user of fsync, replace, link and rename: what it returns from is on stable storage.

A rename is durable only when the directory that holds it has been synced (fsync(2), NOTES).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from typing import Iterator, Tuple

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_TEMPORARY = (".anvil-dr-", ".tmp")
"""How the names of files begin and end that are not whole yet."""


def sync_directory(path: str) -> None:
    """Put the names in a directory on stable storage. Raise OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_data(fd: int) -> None:
    """Put an open file's bytes, and the metadata needed to read them back, on stable storage. Raise OSError."""
    os.fdatasync(fd)


def sync_device(path: str) -> None:
    """Have a drive put on stable storage what it has taken, its own cache included. Raise OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename_exclusively(directory: str, before: str, after: str) -> None:
    """Rename one name to another in one directory, atomically and never over an existing file.

    Raise FileExistsError if `after` exists, FileNotFoundError if `before` does not, OSError otherwise.
    renameat2(2) with RENAME_NOREPLACE, because rename(2) replaces silently; Python has no wrapper for it.
    """
    source, target = os.path.join(directory, before), os.path.join(directory, after)
    result = _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if result != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), source, None, target)
        # The file system has no such flag (renameat2(2), ERRORS); callers hold the store's lock meanwhile.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        os.rename(source, target)
    sync_directory(directory)


def make_directories(path: str, mode: int = 0o755) -> None:
    """Make a directory, and those above it that are missing, durably; `mode` whatever the umask is. Raise OSError.

    The service's umask keeps everything from everybody, but QEMU's own user must come through to a server's files.
    """
    if os.path.isdir(path):
        return
    above = os.path.dirname(path) or "."
    make_directories(above, mode)
    try:
        os.mkdir(path, mode)
        os.chmod(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    sync_directory(above)


def write_new(path: str, content: bytes, mode: int = 0o644) -> None:
    """Create a file with this content, whole or not at all. Raise FileExistsError if there is one, OSError."""
    directory = os.path.dirname(path)
    with _temporary(directory, content, mode) as temporary:
        os.link(temporary, path, follow_symlinks=False)
        os.unlink(temporary)
    sync_directory(directory)


def replace(path: str, content: bytes, mode: int = 0o644) -> None:
    """Put this content in place of whatever `path` held, whole or not at all. Raise OSError."""
    directory = os.path.dirname(path)
    with _temporary(directory, content, mode) as temporary:
        os.replace(temporary, path)
    sync_directory(directory)


def remove(path: str) -> None:
    """Unlink a file, durably. Raise OSError."""
    os.unlink(path)
    sync_directory(os.path.dirname(path))


def remove_tree(path: str) -> None:
    """Remove a directory and all that is in it. Raise OSError; some of it may be gone then."""
    shutil.rmtree(path)
    sync_directory(os.path.dirname(path))


def remove_leftovers(directory: str) -> Tuple[str, ...]:
    """Remove what a process that died here was about to put in place. Returns those names. Raise OSError.

    What another process is writing at this moment is left alone.
    """
    removed = []
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        if name.startswith(_TEMPORARY[0]) and name.endswith(_TEMPORARY[1]):
            path = os.path.join(directory, name)
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
                removed.append(name)
            except BlockingIOError:
                continue
            finally:
                os.close(fd)
    return tuple(removed)


@contextmanager
def _temporary(directory: str, content: bytes, mode: int) -> Iterator[str]:
    """A file with this content, on stable storage, that goes again if the block raises OSError."""
    fd, temporary = tempfile.mkstemp(prefix=_TEMPORARY[0], suffix=_TEMPORARY[1], dir=directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # so that it does not count as left over
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.fchmod(fd, mode)
        os.fsync(fd)
        yield temporary
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
