"""Which block devices may be cache drives, how each is looked at, and in which order they are used (SPEC section 5).

Pure: facts in, verdicts out. cache/ gathers the facts and mounts what it is told to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Final, FrozenSet, Iterable, List, Mapping, Optional, Tuple

from anvil_dr.model import CacheDrive

PROBE_OPTIONS: Final[Mapping[str, str]] = {
    # ext4(5), xfs(5), btrfs(5): read-only alone still replays a journal that was not closed.
    "ext2": "ro",
    "ext3": "ro,noload",
    "ext4": "ro,noload",
    "xfs": "ro,norecovery,nouuid",
    "btrfs": "ro,rescue=nologreplay",
    "vfat": "ro",
    "exfat": "ro",
}
"""How a file system is mounted so that not one byte of its drive changes."""

_USE_OPTIONS: Final[Mapping[str, str]] = {"xfs": ",nouuid", "vfat": ",umask=0077", "exfat": ",umask=0077"}
_LARGEST_FILE_BYTES: Final[Mapping[str, int]] = {"vfat": (1 << 32) - 1}
_USAGE: Final[Mapping[str, str]] = {
    "raid": "it is a member of a RAID, a volume group or a multipath",
    "crypto": "it is a LUKS container",
}


@dataclass(frozen=True)
class Mount:
    """One place where a block device is mounted now."""

    path: str
    writable: bool
    reachable: bool
    """False if something else is mounted over it."""
    whole: bool
    """False if only a folder of the file system shows there (a bind mount)."""


@dataclass(frozen=True)
class BlockDevice:
    """What udev, sysfs and the kernel's tables say of one block device."""

    device: str
    number: Tuple[int, int]
    size_bytes: int
    usage: str = ""
    """ID_FS_USAGE: `filesystem`, `raid`, `crypto`, `other`."""
    filesystem: str = ""
    uuid: str = ""
    serial: str = ""
    partition: str = ""
    """Its number on the drive; empty for a whole one."""
    model: str = ""
    mapping: str = ""
    """DM_UUID, which says who made a mapped device."""
    has_partitions: bool = False
    holders: Tuple[str, ...] = ()
    is_swap: bool = False
    read_only: bool = False
    groups: FrozenSet[str] = frozenset()
    """Volume groups that it, or anything that it lies on, belongs to as a logical volume."""
    files: FrozenSet[str] = frozenset()
    """Files that a loop device beneath it has as its content."""
    mounts: Tuple[Mount, ...] = ()


@dataclass(frozen=True)
class StorePlaces:
    """What belongs to the store."""

    groups: FrozenSet[str] = frozenset()
    directory: Optional[str] = None
    device: Optional[Tuple[int, int]] = None
    """The block device that the directory's file system lies on."""


def refusal(device: BlockDevice, store: StorePlaces) -> Optional[str]:
    """Why this device is never touched; None if it can be looked at. The mounts are not judged here."""
    if device.groups & store.groups:
        return "it is a volume of the store, or lies in one"
    if store.directory is not None and any(is_below(file, store.directory) for file in device.files):
        return "it lies in an image of the store"
    if device.number == store.device:
        return "the store itself is on it"
    if device.is_swap or device.filesystem == "swap":
        return "it is swap space"
    if device.usage in _USAGE:
        return _USAGE[device.usage]
    if device.holders:
        return f"it is held by {', '.join(device.holders)}"
    if device.has_partitions:
        return "it has partitions"
    if device.usage != "filesystem":
        return "it has no file system"
    if device.read_only:
        return "the device is read-only"
    if device.mounts:
        return None
    # Nobody can tell from here whether the content of a volume, or of a network disk, is a guest's.
    if is_volume(device.mapping) or device.groups:
        return "a logical volume is used only where it is mounted"
    if device.files or device.device.startswith("/dev/nbd"):
        return "an image is used only where it is mounted"
    if device.filesystem not in PROBE_OPTIONS:
        return f"a {device.filesystem or 'nameless'} file system cannot be looked at without changing it"
    return None


def is_volume(mapping: str) -> bool:
    """Whether a DM_UUID is that of a logical volume, of a part of one, or of something that lies on one."""
    return mapping.startswith("LVM-") or "-LVM-" in mapping


def usable_mount(mounts: Iterable[Mount]) -> Tuple[Optional[str], str]:
    """Where a mounted file system can be used: the path, or None and why not."""
    reason = "it is not mounted"
    for mount in sorted(mounts, key=lambda one: one.path):
        if not mount.whole:
            reason = f"only a part of it is mounted, on {mount.path}"
        elif not mount.reachable:
            reason = f"something else is mounted over {mount.path}"
        elif not mount.writable:
            reason = f"it is mounted read-only on {mount.path}"
        else:
            return mount.path, ""
    return None, reason


def use_options(filesystem: str) -> str:
    """The mount options for writing to it."""
    return "rw,nosuid,nodev,noexec" + _USE_OPTIONS.get(filesystem, "")


def largest_file_bytes(filesystem: str) -> Optional[int]:
    """How large one file can be there; None if that is no limit."""
    return _LARGEST_FILE_BYTES.get(filesystem)


def twins(devices: Iterable[BlockDevice]) -> Mapping[str, str]:
    """Devices that are the same drive as another one, by another path: which one stands for it.

    Two paths to one drive have one serial number. Without one, the same file system twice is taken for one drive:
    to mount it through both would destroy it. A mounted path stands for the others, else the first by name.
    """
    first: Dict[Tuple[str, str], List[BlockDevice]] = {}
    same: Dict[str, str] = {}
    for device in sorted(devices, key=lambda one: (not one.mounts, one.device)):
        if not device.uuid:
            continue
        known = first.setdefault((device.uuid, device.filesystem), [])
        for other in known:
            if not (device.serial and other.serial) or (device.serial, device.partition) == (
                other.serial,
                other.partition,
            ):
                same[device.device] = other.device
                break
        else:
            known.append(device)
    return same


def ranked(drives: Iterable[CacheDrive]) -> Tuple[CacheDrive, ...]:
    """Those that can be used first: the largest, then by device path; then the others by device path."""
    return tuple(
        sorted(
            drives,
            key=lambda one: (one.problem is not None, 0 if one.problem is not None else -one.size_bytes, one.device),
        )
    )


def usable(drives: Iterable[CacheDrive]) -> Tuple[CacheDrive, ...]:
    """Those that can be used, in the order in which they are."""
    return tuple(one for one in ranked(drives) if one.problem is None)


def is_below(path: str, folder: str) -> bool:
    """True for the folder itself too."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
