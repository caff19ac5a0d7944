"""The block devices of this machine, as facts for cache_rules.py. The only importer of pyudev beside watch.py.

Reads udev's database, /sys, /proc/swaps and /proc/self/mountinfo; opens no device and changes nothing.
"""

from __future__ import annotations

import os
import re
from typing import Dict, FrozenSet, Iterator, List, Optional, Set, Tuple

import pyudev

from anvil_dr.cache.cache_rules import BlockDevice, Mount
from anvil_dr.errors import CacheDriveError

_SECTOR_BYTES = 512
"""What /sys/class/block/*/size counts in, whatever the drive's own sectors are."""

Number = Tuple[int, int]


def block_devices() -> Tuple[BlockDevice, ...]:
    """Every disk, partition and mapped device, by device path. Raise CacheDriveError."""
    try:
        found = list(pyudev.Context().list_devices(subsystem="block"))
    except OSError as error:
        raise CacheDriveError("of any kind", f"udev cannot be asked: {error.strerror}") from error
    swaps, mounts = _swaps(), mounts_by_device()
    devices = []
    for one in found:
        try:
            devices.append(_facts(one, swaps, mounts))
        except (KeyError, ValueError, OSError):  # it went in the meantime
            continue
    return tuple(sorted((one for one in devices if one.size_bytes), key=lambda one: one.device))


def device_of_folder(path: str) -> Optional[Number]:
    """The block device whose file system this folder is on; None where there is none (a network's, a tmpfs)."""
    try:
        folder = os.path.realpath(path)
        while not os.path.ismount(folder):
            folder = os.path.dirname(folder)
    except OSError:
        return None
    for number, mounts in mounts_by_device().items():
        if any(mount.path == folder and mount.reachable for mount in mounts):
            return number
    return None


def mounts_by_device() -> Dict[Number, List[Mount]]:
    """Where each block device is mounted, by its number."""
    found: Dict[Number, List[Mount]] = {}
    for number, filesystem, mount in _mount_table():
        found.setdefault(number, []).append(mount)
        del filesystem
    return found


def mount_points_below(folder: str) -> Tuple[str, ...]:
    """What is mounted below a folder, the innermost first."""
    below = {mount.path for _, _, mount in _mount_table() if mount.path.startswith(folder.rstrip("/") + "/")}
    return tuple(sorted(below, reverse=True))


def describe(device: pyudev.Device) -> Dict[str, str]:
    """Model, serial number and file system of a device, for a log."""
    properties = device.properties
    wanted = {
        "model": _decoded(properties.get("ID_MODEL_ENC", "")) or properties.get("ID_MODEL", ""),
        "serial": properties.get("ID_SERIAL_SHORT", "") or properties.get("ID_SERIAL", ""),
        "filesystem": properties.get("ID_FS_TYPE", ""),
        "label": properties.get("ID_FS_LABEL", ""),
        "uuid": properties.get("ID_FS_UUID", ""),
    }
    return {name: value.strip() for name, value in wanted.items()}


def _facts(device: pyudev.Device, swaps: FrozenSet[Number], mounts: Dict[Number, List[Mount]]) -> BlockDevice:
    properties, sys_path = device.properties, device.sys_path
    number = (int(properties["MAJOR"]), int(properties["MINOR"]))
    said = describe(device)
    groups: Set[str] = set()
    files: Set[str] = set()
    _beneath(sys_path, groups, files, set())
    return BlockDevice(
        device=properties["DEVNAME"],
        number=number,
        size_bytes=int(_text(sys_path, "size") or 0) * _SECTOR_BYTES,
        usage=properties.get("ID_FS_USAGE", ""),
        filesystem=said["filesystem"],
        uuid=said["uuid"],
        serial=properties.get("ID_WWN_WITH_EXTENSION", "") or properties.get("ID_SERIAL", ""),
        partition=_text(sys_path, "partition"),
        model=said["model"],
        mapping=_text(sys_path, "dm/uuid"),
        has_partitions=any(os.path.exists(os.path.join(sys_path, name, "partition")) for name in _names(sys_path)),
        holders=tuple(_held_by(sys_path)),
        is_swap=number in swaps,
        read_only=_text(sys_path, "ro") == "1",
        groups=frozenset(groups),
        files=frozenset(files),
        mounts=tuple(mounts.get(number, ())),
    )


def _held_by(sys_path: str) -> Iterator[str]:
    for name in _names(os.path.join(sys_path, "holders")):
        yield _text(sys_path, "holders", name, "dm/name") or name


def _beneath(sys_path: str, groups: Set[str], files: Set[str], seen: Set[str]) -> None:
    """What a device, the drive that it is a partition of, and everything under them are: volumes, loop devices."""
    real = os.path.realpath(sys_path)
    if real in seen or not os.path.exists(os.path.join(real, "dev")):
        return
    seen.add(real)
    if _text(real, "dm/uuid").startswith("LVM-"):
        groups.add(_group_of(_text(real, "dm/name")))
    backing = _text(real, "loop/backing_file")
    if backing:
        files.add(backing)
        beneath = _block_device(backing)
        if beneath:
            _beneath(beneath, groups, files, seen)
    if os.path.exists(os.path.join(real, "partition")):
        _beneath(os.path.dirname(real), groups, files, seen)
    for name in _names(os.path.join(real, "slaves")):
        _beneath(os.path.join(real, "slaves", name), groups, files, seen)


def _block_device(path: str) -> Optional[str]:
    try:
        number = os.stat(path).st_rdev
    except OSError:
        return None
    return f"/sys/dev/block/{os.major(number)}:{os.minor(number)}" if number else None


def _group_of(mapped_name: str) -> str:
    """`<group>-<volume>`, in which each hyphen of either is written twice (lvm2, dm names)."""
    return re.split(r"(?<!-)-(?:--)*(?!-)", mapped_name, maxsplit=1)[0].replace("--", "-")


def _swaps() -> FrozenSet[Number]:
    numbers = set()
    for line in _text("/proc", "swaps").splitlines()[1:]:
        try:
            facts = os.stat(_unescape(line.split()[0]))
        except (OSError, IndexError):
            continue
        numbers.add((os.major(facts.st_rdev), os.minor(facts.st_rdev)))
    return frozenset(numbers)


def _mount_table() -> Iterator[Tuple[Number, str, Mount]]:
    """Every mount of a block device (proc_pid_mountinfo(5))."""
    for line in _text("/proc/self", "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(tail) < 3:
            continue
        major, _, minor = fields[2].partition(":")
        device, number = os.makedev(int(major), int(minor)), (int(major), int(minor))
        filesystem, source = tail[0], _unescape(tail[1])
        if number[0] == 0:  # btrfs has a number of its own; what it lies on is named as its source
            try:
                behind = os.stat(source).st_rdev if source.startswith("/") else 0
            except OSError:
                continue
            number = (os.major(behind), os.minor(behind))
            if not behind:
                continue
        path = _unescape(fields[4])
        try:
            reachable = os.stat(path).st_dev == device
        except OSError:
            reachable = False
        writable = "ro" not in fields[5].split(",") and "ro" not in tail[2].split(",")
        yield number, filesystem, Mount(path, writable, reachable, whole=fields[3] == "/")


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _decoded(text: str) -> str:
    """udev writes blanks and the like as \\x20 in its *_ENC properties."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)


def _names(folder: str) -> List[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(*path: str) -> str:
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return ""
