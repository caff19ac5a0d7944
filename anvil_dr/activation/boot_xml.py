"""Changes to a copy of a definition, in memory, for one boot: other disks, less memory, other firmware state.

Pure. The definition file itself is never changed (SPEC section 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import AbstractSet, Mapping

from lxml import etree

from anvil_dr import definition
from anvil_dr.errors import UsageError


@dataclass(frozen=True)
class OverlayPaths:
    """A qcow2 file, and the raw image under it."""

    path: str
    base: str
    base_kind: str
    """`file` or `block`."""


def with_disk_paths(xml: str, paths: Mapping[str, str], files: AbstractSet[str] = frozenset()) -> str:
    """The definition with other paths for some of its disks. Raise DefinitionError.

    Those of the new paths that are in `files` lead to files, whatever the definition has there.
    """
    root = definition.parse(xml).root
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        if source is None:
            continue
        for name in ("file", "dev"):
            path = source.get(name)
            if path is None or path not in paths:
                continue
            source.set(name, paths[path])
            if name == "dev" and paths[path] in files:
                disk.set("type", "file")
                source.set("file", source.attrib.pop("dev"))
    return etree.tostring(root, encoding="unicode")


def with_memory(xml: str, memory_bytes: int) -> str:
    """The definition with this much memory. Raise DefinitionError; UsageError where memory is said in parts."""
    root = definition.parse(xml).root
    if root.find("cpu/numa/cell") is not None or root.find("devices/memory") is not None:
        raise UsageError("its memory is split among NUMA cells or modules; lower those in its definition")
    for name in ("memory", "currentMemory"):
        for element in root.iterfind(name):
            element.set("unit", "KiB")
            element.text = str(memory_bytes >> 10)
    return etree.tostring(root, encoding="unicode")


def with_overlays(xml: str, overlays: Mapping[str, OverlayPaths], *, thrown_away: bool = False) -> str:
    """The definition with overlays for some of its disks, by the paths that it has for them. Raise DefinitionError.

    What is `thrown_away` in the end need not survive a power cut.
    """
    root = definition.parse(xml).root
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        if source is None:
            continue
        overlay = overlays.get(source.get("file") or source.get("dev") or "")
        if overlay is None:
            continue
        disk.set("type", "file")
        for name in ("dev", "file"):
            source.attrib.pop(name, "")
        source.set("file", overlay.path)
        driver = disk.find("driver")
        if driver is None:
            driver = etree.Element("driver", name="qemu")
            disk.insert(0, driver)
        driver.set("type", "qcow2")
        if thrown_away:
            # Nothing has to reach the disk; and O_DIRECT, which `native` needs, cannot be had everywhere.
            driver.attrib.pop("io", "")
            driver.set("cache", "unsafe")
        for old in disk.findall("backingStore"):
            disk.remove(old)
        below = etree.Element("backingStore", type=overlay.base_kind)
        etree.SubElement(below, "format", type="raw")
        etree.SubElement(below, "source").set("dev" if overlay.base_kind == "block" else "file", overlay.base)
        etree.SubElement(below, "backingStore")
        disk.insert(disk.index(source) + 1, below)
    return etree.tostring(root, encoding="unicode")


def with_nvram(xml: str, path: str) -> str:
    """The definition with its UEFI variables in another file. Raise DefinitionError."""
    root = definition.parse(xml).root
    nvram = root.find("os/nvram")
    if nvram is not None:
        for name in ("type", "template"):
            nvram.attrib.pop(name, "")
        for child in list(nvram):
            nvram.remove(child)
        nvram.text = path
    return etree.tostring(root, encoding="unicode")
