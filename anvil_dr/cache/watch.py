"""Follows the drives that come and go, and says so in the log with model and serial number.

Touches udev's events, in a thread of its own. What is done about a drive is the listener's business.
"""

from __future__ import annotations

import logging
import re
import threading
from typing import Callable, Dict, Optional, Protocol

import pyudev

from anvil_dr.cache import discovery
from anvil_dr.cache.cache_rules import is_volume
from anvil_dr.errors import CacheDriveError

log = logging.getLogger(__name__)

# Made by this machine itself, and used only where they are mounted. A RAID is a drive like others.
_OURS = re.compile(r"(loop|ram|zram|nbd)[0-9]")

Listener = Callable[[str], None]
"""Told the device path of each drive or partition with a file system that came."""


class Monitor(Protocol):
    """Where events come from; pyudev.Monitor is one."""

    def poll(self, timeout: float) -> Optional[pyudev.Device]:
        """The next one, or None if none came within so many seconds. Raise OSError."""


class DriveWatch:
    """A thread that waits for udev's events until it is stopped."""

    def __init__(self, came: Listener, *, monitor: Optional[Monitor] = None) -> None:
        """Events are kept from now on. `monitor`: what they are taken from, else udev. Raise CacheDriveError."""
        self._came = came
        self._known: Dict[str, Dict[str, str]] = {}
        try:
            context = pyudev.Context()
            self._monitor = monitor or _of_udev(context)
            for device in context.list_devices(subsystem="block"):
                if not _is_ours(device):
                    self._known[device.sys_name] = discovery.describe(device)
        except OSError as error:
            raise CacheDriveError("of any kind", f"udev's events cannot be followed: {error.strerror}") from error
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drives", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns once the thread has ended."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                device = self._monitor.poll(timeout=0.5)
            except OSError as error:  # ENOBUFS: more events than could be kept; the next survey sees what is there
                log.warning("events of drives were lost error=%s", error.strerror)
                continue
            if device is None:
                continue
            try:
                # One that goes may not say any more whose it was; one that was ours is not known.
                if device.action == "remove" or not _is_ours(device):
                    self._event(device)
            except Exception:
                # A drive can go at any point of this. Were the thread to end, no drive would be noticed any more, and
                # nobody would see that: one event's defect must not end it.
                log.exception("event of a drive failed device=%s action=%s", device.sys_name, device.action)

    def _event(self, device: pyudev.Device) -> None:
        name, node = device.sys_name, device.device_node or f"/dev/{device.sys_name}"
        if device.action == "remove":
            known = self._known.pop(name, None)
            if known is not None:  # else it went before this began, and its event came late
                log.info("drive went device=%s %s", node, _words(known))
            return
        if device.action not in ("add", "change"):
            return
        facts = discovery.describe(device)
        is_new, changed = name not in self._known, facts != self._known.get(name)
        self._known[name] = facts
        if is_new or changed:
            size_bytes = int(device.attributes.get("size") or 0) * 512  # None once it has gone
            log.info("drive %s device=%s size_bytes=%d %s", "came" if is_new else "changed", node, size_bytes,
                     _words(facts))  # fmt: skip
        if facts["filesystem"] and (is_new or changed):
            self._came(node)


def _is_ours(device: pyudev.Device) -> bool:
    """Each of our own volumes makes events. A LUKS drive that was opened is one that came."""
    if not device.sys_name.startswith("dm-"):
        return _OURS.match(device.sys_name) is not None
    # One without a name is only being made: the event for which it has one follows.
    return "DM_NAME" not in device.properties or is_volume(device.properties.get("DM_UUID", ""))


def _of_udev(context: pyudev.Context) -> Monitor:
    monitor = pyudev.Monitor.from_netlink(context)
    monitor.filter_by("block")
    monitor.start()
    kept: Monitor = monitor
    return kept


def _words(facts: Dict[str, str]) -> str:
    return " ".join(f"{name}={facts.get(name, '')!r}" for name in ("model", "serial", "filesystem", "label"))
