"""Who has a file or a block device open, in words for an error message. Reads /proc and /sys, changes nothing.

The calling process is never among them.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Callable, Final, FrozenSet, Iterator, List, Tuple

PASSING: Final = frozenset({"systemd-udevd", "(udev-worker)", "udevd", "blkid", "lvm", "multipathd"})
"""Programs that look at every block device when it appears and are gone in a moment."""

VERIFIER: Final = "anvil-dr-verify"
"""What the kernel calls the process of that command (it says so itself): it only reads, and lets go of an image as
soon as a job of its server runs. So nobody need wait for it."""


@dataclass(frozen=True)
class Opener:
    """Somebody who has it open."""

    words: str
    passing: bool = False
    """True if it will let go of it by itself very soon."""
    harmless: bool = False
    """True if it stops nobody."""


def of_file(device: int, inode: int) -> Tuple[Opener, ...]:
    """Other processes and loop devices that have this file (st_dev, st_ino) open."""
    same = _same_file(device, inode)
    return (*_processes(same), *_loops(same))


def of_block_device(device: int) -> Tuple[Opener, ...]:
    """Mounts, devices on top, loop devices and other processes that have this device (st_rdev) open."""
    same = _same_device(device)
    return (*_mounts(device), *_holders(device), *_loops(same), *_processes(same))


def is_file_open_here(device: int, inode: int, *, besides: int) -> bool:
    """True if the calling process itself has this file open, by another descriptor than `besides`."""
    return _has_open("/proc/self/fd", _same_file(device, inode), str(besides))


def is_block_device_open_here(device: int) -> bool:
    """True if the calling process itself has this block device (st_rdev) open."""
    return _has_open("/proc/self/fd", _same_device(device))


_Match = Callable[[os.stat_result], bool]


def _same_file(device: int, inode: int) -> _Match:
    return lambda facts: stat.S_ISREG(facts.st_mode) and (facts.st_dev, facts.st_ino) == (device, inode)


def _same_device(device: int) -> _Match:
    return lambda facts: stat.S_ISBLK(facts.st_mode) and facts.st_rdev == device


def _processes(match: _Match) -> Iterator[Opener]:
    own = str(os.getpid())
    for entry in _names("/proc"):
        if not entry.isdigit() or entry == own:
            continue
        process = os.path.join("/proc", entry)
        if _has_open(os.path.join(process, "fd"), match) and not _is_being_started(process):
            name = _text(os.path.join(process, "comm")) or "?"
            yield Opener(f"process {entry} ({name})", name in PASSING, name == VERIFIER)


def _is_being_started(process: str) -> bool:
    """True for a child of ours between fork and exec: until then it has open whatever we have open."""
    parent = re.search(r"^PPid:\t(\d+)$", _text(os.path.join(process, "status")), re.MULTILINE)
    if parent is None or int(parent[1]) != os.getpid():
        return False
    return _text(os.path.join(process, "cmdline")) == _text("/proc/self/cmdline")


def _has_open(folder: str, match: _Match, besides: str = "") -> bool:
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # the process has ended, or is not ours to look into
        return False
    try:
        # Relative to the folder, because there may be thousands; and of a socket or a pipe stat(2) only says so.
        return any(_matches(number, directory, match) for number in os.listdir(directory) if number != besides)
    except OSError:
        return False
    finally:
        os.close(directory)


def _matches(number: str, directory: int, match: _Match) -> bool:
    try:
        return match(os.stat(number, dir_fd=directory))
    except OSError:  # it was closed in the meantime
        return False


def _loops(match: _Match) -> Iterator[Opener]:
    for name in _names("/sys/block"):
        if not name.startswith("loop"):
            continue
        backing = _text(os.path.join("/sys/block", name, "loop/backing_file"))
        try:
            if backing and match(os.stat(backing)):
                yield Opener(f"loop device /dev/{name}")
        except OSError:  # deleted, or in another mount namespace
            continue


def _holders(device: int) -> Iterator[Opener]:
    folder = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/holders"
    for name in _names(folder):
        yield Opener(f"device {_text(os.path.join(folder, name, 'dm/name')) or name} on top of it")


def _mounts(device: int) -> Iterator[Opener]:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for number, mount_point in _mounted():
        if number == wanted:
            yield Opener(f"the mount at {mount_point}")


def mount_points() -> FrozenSet[str]:
    """Where anything is mounted now."""
    return frozenset(mount_point for _, mount_point in _mounted())


def _mounted() -> Iterator[Tuple[str, str]]:
    """The (major:minor, mount point) of every mount."""
    for line in _text("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")  # proc(5): id, parent, major:minor, root, mount point
        if len(fields) > 4:
            yield fields[2], unescape(fields[4])


def unescape(field: str) -> str:
    """A path as fstab(5) and /proc/self/mountinfo mean it: blanks stand there as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _names(folder: str) -> List[str]:
    try:
        return os.listdir(folder)
    except OSError:  # no such device, or a process that has ended or is not ours to look into
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
