"""The bytes of one raw image or one source disk: ports.Image over an open descriptor.

Touches only the descriptor it is given. Every OSError becomes an ImageIOError that names the path and the byte.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final, Iterator, Tuple

from anvil_dr import durable
from anvil_dr.errors import ImageIOError
from anvil_dr.stores.page_cache import GiveUp

_libc = ctypes.CDLL(None, use_errno=True)

# linux/falloc.h
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10

# linux/fs.h
_BLKZEROOUT: Final = 0x127F
_BLKSSZGET: Final = 0x1268

_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY)

_ZEROS: Final = memoryview(bytes(1 << 20))

_PAGE_BYTES: Final = 4096
_ZEROOUT_BYTES: Final = 128 << 20
"""At most this much in one ioctl, which cannot be interrupted."""


class _OpenImage:
    """What files and block devices have in common. Owns the descriptor; safe to use from several threads."""

    def __init__(self, fd: int, path: str, size_bytes: int) -> None:
        self._fd, self._path, self._size_bytes = fd, path, size_bytes
        self._cache = GiveUp(fd)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def path(self) -> str:
        return self._path

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer`; past the end it is filled with zeros. Raise ImageIOError."""
        wanted = max(0, min(len(buffer), self._size_bytes - offset_bytes))
        done = 0
        while done < wanted:
            try:
                count = os.preadv(self._fd, [buffer[done:wanted]], offset_bytes + done)
            except OSError as error:
                raise self._failure("read", offset_bytes + done, error) from error
            if count == 0:
                raise ImageIOError(self._path, offset_bytes + done, "read", f"it should have {self._size_bytes} bytes")
            done += count
        if wanted < len(buffer):
            buffer[wanted:] = bytes(len(buffer) - wanted)
        self._cache.read(offset_bytes, wanted)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Write all of `data`. Raise ImageIOError, also where it would go past the end."""
        self._check_range("write", offset_bytes, len(data))
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._fd, data[done:], offset_bytes + done)
            except OSError as error:
                raise self._failure("write", offset_bytes + done, error) from error
        try:
            self._cache.wrote(offset_bytes, len(data))
        except OSError as error:
            raise self._failure("write to the disk what came before", offset_bytes, error) from error

    def flush(self) -> None:
        """Put everything written on stable storage. Raise ImageIOError; what was written is then lost, for good."""
        try:
            durable.sync_data(self._fd)
        except OSError as error:
            raise self._failure("flush", 0, error) from error

    def forget_cached(self) -> None:
        """Drop its clean pages. Raise ImageIOError."""
        try:
            self._cache.everything()
        except OSError as error:
            raise self._failure("drop the cached pages", 0, error) from error

    def close(self) -> None:
        """Close it, once or more."""
        if self._fd < 0:
            return
        self._cache.everything()
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _write_zeros(self, offset_bytes: int, length_bytes: int) -> None:
        end = offset_bytes + length_bytes
        while offset_bytes < end:
            length = min(end - offset_bytes, len(_ZEROS))
            self.write(offset_bytes, _ZEROS[:length])
            offset_bytes += length

    def _check_range(self, action: str, offset_bytes: int, length_bytes: int) -> None:
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > self._size_bytes:
            reason = f"{length_bytes} bytes there would be outside of its {self._size_bytes} bytes"
            raise ImageIOError(self._path, offset_bytes, action, reason)

    def _failure(self, action: str, offset_bytes: int, error: OSError) -> ImageIOError:
        return ImageIOError(self._path, offset_bytes, action, error.strerror or str(error))


class FileImage(_OpenImage):
    """A regular file. Zeros become holes."""

    _known_data: Tuple[int, int] = (0, 0)
    """Where the last stretch of data that was looked for begins and ends."""

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        self._check_range("zero", offset_bytes, length_bytes)
        if length_bytes == 0:
            return
        for mode in (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE | _KEEP_SIZE):
            code = _fallocate(self._fd, mode, offset_bytes, length_bytes)
            if code == 0:
                return
            if code not in _UNSUPPORTED:
                raise ImageIOError(self._path, offset_bytes, "zero", os.strerror(code))
        self._write_zeros(offset_bytes, length_bytes)

    def data_ranges(self, offset_bytes: int, length_bytes: int) -> Iterator[Tuple[int, int]]:
        position, end = offset_bytes, min(offset_bytes + length_bytes, self._size_bytes)
        while position < end:
            first, last = self._known_data
            try:
                if first <= position < last:
                    start = position
                else:
                    start = os.lseek(self._fd, position, os.SEEK_DATA)
                    if start >= end:
                        return
                    # Some file systems look at every page up to the hole: once for each stretch is enough. If part
                    # of it becomes a hole meanwhile, it still may be read as data.
                    last = os.lseek(self._fd, start, os.SEEK_HOLE)
                    self._known_data = start, last
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end (lseek(2))
                    return
                raise self._failure("find the data", position, error) from error
            position = min(last, end)
            yield start, position - start


class BlockImage(_OpenImage):
    """A block device. Nobody can tell where it holds zeros."""

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        self._check_range("zero", offset_bytes, length_bytes)
        # Whole pages as well as whole sectors, so that the kernel need not split a cached page.
        step = max(self._sector_bytes(), _PAGE_BYTES)
        end = offset_bytes + length_bytes
        first, last = -(-offset_bytes // step) * step, end // step * step
        if first >= last:
            self._write_zeros(offset_bytes, length_bytes)
            return
        self._write_zeros(offset_bytes, first - offset_bytes)
        self._zero_sectors(first, last)
        self._write_zeros(last, end - last)

    def data_ranges(self, offset_bytes: int, length_bytes: int) -> Iterator[Tuple[int, int]]:
        end = min(offset_bytes + length_bytes, self._size_bytes)
        if offset_bytes < end:
            yield offset_bytes, end - offset_bytes

    def _zero_sectors(self, first: int, last: int) -> None:
        for offset in range(first, last, _ZEROOUT_BYTES):
            length = min(_ZEROOUT_BYTES, last - offset)
            try:
                fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise self._failure("zero", offset, error) from error
                self._write_zeros(offset, length)

    def _sector_bytes(self) -> int:
        try:
            answer = fcntl.ioctl(self._fd, _BLKSSZGET, struct.pack("i", 0))
        except OSError as error:
            raise self._failure("zero", 0, error) from error
        size: int = struct.unpack("i", answer)[0]
        return size


def block_size_bytes(fd: int) -> int:
    """How much a block device, open as `fd`, holds. Raise OSError."""
    return os.lseek(fd, 0, os.SEEK_END)


def _fallocate(fd: int, mode: int, offset_bytes: int, length_bytes: int) -> int:
    """fallocate(2), for which Python has no modes; 0 or an errno."""
    while True:
        if _libc.fallocate(fd, mode, ctypes.c_int64(offset_bytes), ctypes.c_int64(length_bytes)) == 0:
            return 0
        code = ctypes.get_errno()
        if code != errno.EINTR:
            return code
