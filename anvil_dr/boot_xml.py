"""Changes to a copy of a definition, in memory, for one boot: other disks, less memory, other firmware state.

Pure. The definition file itself is never changed (SPEC section 7).
"""

from __future__ import annotations

from typing import Mapping

from lxml import etree

from anvil_dr import definition
from anvil_dr.errors import UsageError


def with_disk_paths(xml: str, paths: Mapping[str, str]) -> str:
    """The definition with other paths for some of its disks. Raise DefinitionError."""
    root = definition.parse(xml).root
    for source in root.iterfind("devices/disk/source"):
        for name in ("file", "dev"):
            path = source.get(name)
            if path is not None and path in paths:
                source.set(name, paths[path])
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
