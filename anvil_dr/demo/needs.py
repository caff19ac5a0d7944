"""What the demo needs of this machine, and which of Debian's packages it comes in.

Looks for programs, runs `unshare` to see whether it may, and changes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Callable, Final, Optional, Tuple

from anvil_dr import command
from anvil_dr.demo import server
from anvil_dr.errors import CommandError, SourceError

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_Need = Tuple[str, Callable[[], bool]]
"""A package, and whether what is wanted of it is there."""


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=_PATH) is not None


def _module(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is not None


def _static_busybox() -> bool:
    """The package `busybox` has one too, but that one wants libraries, and the guest has none."""
    try:
        with open("/bin/busybox", "rb") as file:
            return b"/ld-linux" not in file.read(4096)
    except OSError:
        return False


def _kernel() -> bool:
    try:
        return os.access(server.find_kernel(), os.R_OK)
    except SourceError:
        return False


_TO_IMAGE: Final[Tuple[_Need, ...]] = (("e2fsprogs", lambda: _program("mke2fs")() and _program("debugfs")()),)
_TO_BE_BOOTABLE: Final[Tuple[_Need, ...]] = (
    ("linux-image-cloud-amd64", _kernel),
    ("busybox-static", _static_busybox),
    ("syslinux", _program("syslinux")),
    ("syslinux-common", Path("/usr/lib/syslinux/mbr/mbr.bin").exists),
    ("mtools", lambda: _program("mformat")() and _program("mcopy")()),
    ("kmod", _program("modprobe")),
)
_TO_BOOT: Final[Tuple[_Need, ...]] = (
    ("qemu-system-x86", _program("qemu-system-x86_64")),
    ("libvirt-daemon-system", _program("libvirtd")),
    ("libvirt-clients", _program("virsh")),
    ("python3-libvirt", _module("libvirt")),
    ("iproute2", _program("ip")),
)


def missing_to_image() -> Tuple[str, ...]:
    """Packages without which there is no server at all."""
    return _missing(_TO_IMAGE)


def missing_to_be_bootable() -> Tuple[str, ...]:
    """Packages without which the server has nothing to boot."""
    return _missing(_TO_BE_BOOTABLE)


def missing_to_boot() -> Tuple[str, ...]:
    """Packages without which nothing can be booted here."""
    return _missing(_TO_BOOT)


def obstacle_to_boot() -> Optional[str]:
    """What else is in the way of a libvirtd of our own, in words; None if nothing is."""
    if os.geteuid() != 0:
        return "it needs root, for a libvirtd of its own"
    try:
        command.run(("unshare", "--mount", "--net", "--pid", "--fork", "true"))
    except CommandError as error:
        return f"this machine does not let us make namespaces ({error})"
    return None


def _missing(needs: Tuple[_Need, ...]) -> Tuple[str, ...]:
    return tuple(package for package, is_there in needs if not is_there())
