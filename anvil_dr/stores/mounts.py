"""What is mounted, and what ought to be. Reads /proc/self/mountinfo and fstab(5), changes nothing."""

from __future__ import annotations

import os
import re
from typing import Iterator, Optional, Tuple


def mounted() -> Iterator[Tuple[str, str]]:
    """The (major:minor, mount point) of every mount."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(" ")  # proc(5): id, parent, major:minor, root, mount point
        if len(fields) > 4:
            yield fields[2], _unescape(fields[4])


def unmounted_above(folder: str, fstab: str) -> Optional[str]:
    """The mount point in fstab that a folder is, or lies below, if nothing is mounted there now. Raise OSError."""
    try:
        with open(fstab, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except FileNotFoundError:
        return None
    named = [_unescape(fields[1]) for fields in lines if len(fields) > 1 and not fields[0].startswith("#")]
    # As mount(8) takes it: with a slash at its end, or a symlink in it, it's the same place.
    wanted = {os.path.realpath(path) for path in named if path.startswith("/")}
    there = {mount_point for _, mount_point in mounted()}
    folder = os.path.realpath(folder)
    while folder != "/":
        if folder in wanted and folder not in there:
            return folder
        folder = os.path.dirname(folder)
    return None


def _unescape(field: str) -> str:
    """A path as fstab(5) and mountinfo mean it: blanks stand there as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
