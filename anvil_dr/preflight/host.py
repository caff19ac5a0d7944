"""What this machine has: paths, network interfaces, devices, ports. Changes nothing.

Reads stat(2), /sys and /proc/meminfo, and binds a socket for a moment to see whether another could.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import psutil

from anvil_dr.ports import PathFacts


class LocalHost:
    """Implements ports.Host. `sys` is where sysfs is mounted."""

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._sys = sys

    def path(self, path: str) -> PathFacts:
        """What it leads to. One that may not be looked at is as good as missing."""
        try:
            facts = os.stat(path)
        except (OSError, ValueError):
            return PathFacts("missing")
        if stat.S_ISBLK(facts.st_mode):
            # Not st_dev and st_ino: a volume has several nodes and links, and all have its number.
            return PathFacts("block", f"block:{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}")
        identity = f"inode:{facts.st_dev}:{facts.st_ino}"
        if stat.S_ISREG(facts.st_mode):
            return PathFacts("file", identity)
        return PathFacts("directory" if stat.S_ISDIR(facts.st_mode) else "other", identity)

    def closed_folder(self, path: str, user: int, group: int) -> str:
        above = [parent for parent in reversed(Path(path).parents) if user != 0]
        for folder in above:
            try:
                facts = os.stat(folder)
            except OSError:
                return ""
            bit = stat.S_IXUSR if facts.st_uid == user else stat.S_IXGRP if facts.st_gid == group else stat.S_IXOTH
            if not facts.st_mode & bit and not _has_acl(folder):
                return str(folder)
        return ""

    def has_interface(self, name: str) -> bool:
        """Linux bridges and Open vSwitch's alike."""
        return self._has("class/net", name)

    def has_pci_device(self, address: str) -> bool:
        return self._has("bus/pci/devices", address)

    def has_usb_device(self, vendor: str, product: str) -> bool:
        wanted = (vendor.lower(), product.lower())
        return any(
            (_text(device / "idVendor"), _text(device / "idProduct")) == wanted
            for device in self._sys.glob("bus/usb/devices/*")
        )

    def has_iommu(self) -> bool:
        """Without one there are no groups of devices (Documentation/driver-api/vfio.rst)."""
        return any(self._sys.glob("kernel/iommu_groups/*"))

    def available_memory_bytes(self) -> int:
        return int(psutil.virtual_memory().available)

    def free_hugepages_bytes(self) -> int:
        """Of all sizes together (Documentation/admin-guide/mm/hugetlbpage.rst)."""
        free_bytes = 0
        for pool in self._sys.glob("kernel/mm/hugepages/hugepages-*kB"):
            free = _text(pool / "free_hugepages")
            free_bytes += int(pool.name[len("hugepages-") : -len("kB")]) * 1024 * (int(free) if free.isdigit() else 0)
        return free_bytes

    def listening_problem(self, address: str, port: int) -> str:
        try:
            found = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, where = found[0]
            with socket.socket(family, socket.SOCK_STREAM) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind(where)
        except OSError as error:
            # Where we may have no sockets of this kind at all, as in the service, that says nothing of the port.
            unable = error.errno in (errno.EAFNOSUPPORT, errno.EPERM)
            return "" if unable else error.strerror or str(error)
        return ""

    def _has(self, folder: str, name: str) -> bool:
        # A name with a slash is no name, and must not lead out of the folder.
        return "/" not in name and name not in ("", ".", "..") and (self._sys / folder / name).exists()


def _has_acl(folder: Path) -> bool:
    """Who may pass is then said there (acl(5)), and not worth guessing."""
    try:
        return bool(os.getxattr(folder, "system.posix_acl_access"))
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
