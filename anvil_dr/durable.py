"""The only user of fsync, replace, link and rename on files: what it returns from is on stable storage.

A rename is durable only when the directory that holds it has been synced (fsync(2), NOTES).
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


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


def write_new(path: str, content: bytes, mode: int = 0o644) -> None:
    """Create a file with this content, whole or not at all. Raise FileExistsError if there is one, OSError."""
    directory = os.path.dirname(path)
    temporary = _write_temporary(directory, content, mode)
    try:
        os.link(temporary, path, follow_symlinks=False)
    finally:
        os.unlink(temporary)
    sync_directory(directory)


def replace(path: str, content: bytes, mode: int = 0o644) -> None:
    """Put this content in place of whatever `path` held, whole or not at all. Raise OSError."""
    directory = os.path.dirname(path)
    temporary = _write_temporary(directory, content, mode)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    sync_directory(directory)


def remove(path: str) -> None:
    """Unlink a file, durably. Raise OSError."""
    os.unlink(path)
    sync_directory(os.path.dirname(path))


def _write_temporary(directory: str, content: bytes, mode: int) -> str:
    fd, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=directory)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(temporary)
        raise
    return temporary
