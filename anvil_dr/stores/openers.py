"""Who has a file or a block device open, in words for an error message. Reads /proc and /sys, changes nothing.

The calling process is never among them.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Callable, Collection, Dict, Final, Iterator, List, Optional, Set, Tuple, TypeVar

from anvil_dr.stores import mounts

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


File = Tuple[int, int]
"""A file as stat(2) tells it from others: st_dev, st_ino."""


def of_files(files: Collection[File]) -> Dict[File, Tuple[Opener, ...]]:
    """Other processes and loop devices that have them open, for each file. One look at /proc does for all of them."""
    asked = _files(files)
    found = (*_processes(asked), *_loops(asked))
    return {file: tuple(opener for opened, opener in found if opened == file) for file in files}


def of_block_device(device: int) -> Tuple[Opener, ...]:
    """Mounts, devices on top, loop devices and other processes that have this device (st_rdev) open."""
    asked = _block_device(device)
    opened = (opener for _, opener in (*_loops(asked), *_processes(asked)))
    return (*_mounts(device), *_holders(device), *opened)


def is_file_open_here(file: File) -> bool:
    """True if the calling process itself has this file open."""
    return bool(_opened("/proc/self/fd", _files((file,))))


def is_block_device_open_here(device: int) -> bool:
    """True if the calling process itself has this block device (st_rdev) open."""
    return bool(_opened("/proc/self/fd", _block_device(device)))


_Key = TypeVar("_Key")
_Asked = Callable[[os.stat_result], Optional[_Key]]
"""Which of those that are asked about something open is; None if it's none of them."""


def _files(files: Collection[File]) -> _Asked[File]:
    def which(facts: os.stat_result) -> Optional[File]:
        key = facts.st_dev, facts.st_ino
        return key if stat.S_ISREG(facts.st_mode) and key in files else None

    return which


def _block_device(device: int) -> _Asked[int]:
    return lambda facts: device if stat.S_ISBLK(facts.st_mode) and facts.st_rdev == device else None


def _processes(asked: _Asked[_Key]) -> Iterator[Tuple[_Key, Opener]]:
    own = str(os.getpid())
    for entry in _names("/proc"):
        if not entry.isdigit() or entry == own:
            continue
        process = os.path.join("/proc", entry)
        opened = _opened(os.path.join(process, "fd"), asked)
        if opened and not _is_being_started(process):
            name = _text(os.path.join(process, "comm")) or "?"
            opener = Opener(f"process {entry} ({name})", name in PASSING, name == VERIFIER)
            yield from ((key, opener) for key in opened)


def _is_being_started(process: str) -> bool:
    """True for a child of ours between fork and exec: until then it has open whatever we have open."""
    parent = re.search(r"^PPid:\t(\d+)$", _text(os.path.join(process, "status")), re.MULTILINE)
    if parent is None or int(parent[1]) != os.getpid():
        return False
    return _text(os.path.join(process, "cmdline")) == _text("/proc/self/cmdline")


def _opened(folder: str, asked: _Asked[_Key]) -> Set[_Key]:
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # the process has ended, or is not ours to look into
        return set()
    try:
        # Relative to the folder, because there may be thousands; and of a socket or a pipe stat(2) only says so.
        found = (_which(number, directory, asked) for number in os.listdir(directory))
        return {key for key in found if key is not None}
    except OSError:
        return set()
    finally:
        os.close(directory)


def _which(number: str, directory: int, asked: _Asked[_Key]) -> Optional[_Key]:
    try:
        return asked(os.stat(number, dir_fd=directory))
    except OSError:  # it was closed in the meantime
        return None


def _loops(asked: _Asked[_Key]) -> Iterator[Tuple[_Key, Opener]]:
    for name in _names("/sys/block"):
        if not name.startswith("loop"):
            continue
        backing = _text(os.path.join("/sys/block", name, "loop/backing_file"))
        try:
            key = asked(os.stat(backing)) if backing else None
        except OSError:  # deleted, or in another mount namespace
            continue
        if key is not None:
            yield key, Opener(f"loop device /dev/{name}")


def _holders(device: int) -> Iterator[Opener]:
    folder = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/holders"
    for name in _names(folder):
        yield Opener(f"device {_text(os.path.join(folder, name, 'dm/name')) or name} on top of it")


def _mounts(device: int) -> Iterator[Opener]:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for number, mount_point in mounts.mounted():
        if number == wanted:
            yield Opener(f"the mount at {mount_point}")


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
