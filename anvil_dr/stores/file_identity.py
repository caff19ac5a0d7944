"""What tells one image file from all others, for as long as it lives. Touches only the descriptor it is given."""

from __future__ import annotations

import fcntl
import os
import sys
from typing import Final

_FS_IOC_GETVERSION: Final = 0x80087601  # linux/fs.h


def of(fd: int) -> str:
    """Its inode, and which of the files that had that number it is, where the file system keeps that.

    In a store that was copied file by file the numbers are given away anew, and one image may have another's.
    """
    number, generation = os.fstat(fd).st_ino, bytearray(8)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETVERSION, generation)
    except OSError:  # tmpfs and vfat have none
        return f"inode:{number}"
    return f"inode:{number}.{int.from_bytes(generation[:4], sys.byteorder)}"
