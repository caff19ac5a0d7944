"""How much RAM a definition gives its guest. Pure."""

from __future__ import annotations

import re
from typing import Final, Optional

from lxml import etree

from anvil_dr.definition.reading import Definition, line_of, shown, tag_of
from anvil_dr.errors import DefinitionError

CELLS: Final = "cpu/numa/cell"

_MODULES: Final = ("dimm", "virtio-mem")
"""Those that are RAM of the host, too; the others are files, and no DR definition has one."""
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_MAX_BYTES: Final = 1 << 63


def memory_bytes(definition: Definition) -> int:
    """The guest's RAM when it is booted. Raise DefinitionError if it isn't said, or not so that libvirt understands it.

    Where there are NUMA cells, libvirt puts their sum, with the modules, in the place of `<memory>` whenever a domain
    is created (virDomainDefPostParseMemory), so whatever is written there has no effect.
    """
    root = definition.root
    memory = root.find("memory")
    total_bytes = 0 if memory is None else _bytes(memory, memory.text)
    cells_bytes = sum(_bytes(cell, cell.get("memory")) for cell in root.iterfind(CELLS))
    if cells_bytes:
        modules = (module for module in root.iterfind("devices/memory") if module.get("model", "") in _MODULES)
        sizes = (size for module in modules for size in module.iterfind("target/size"))
        total_bytes = cells_bytes + sum(_bytes(size, size.text) for size in sizes)
    if memory is None and not total_bytes:
        raise DefinitionError("it has no <memory>")
    if not 0 < total_bytes < _MAX_BYTES:
        raise DefinitionError(f"its memory of {total_bytes} bytes makes no sense")
    return total_bytes


def _bytes(element: etree._Element, text: Optional[str]) -> int:
    """A size and its unit, which is KiB where there is none. A cell may have no memory at all."""
    said, unit = (text or "").strip(), element.get("unit", "KiB")
    scale = _scale(unit)
    least = 0 if element.tag == "cell" else 1
    if not re.fullmatch(r"[0-9]{1,19}", said) or scale is None or not least <= int(said) * scale < _MAX_BYTES:
        what = f"<{tag_of(element)}> of {shown(said)!r} {shown(unit)!r}"
        raise DefinitionError(f"line {line_of(element)}: {what} makes no sense")
    return int(said) * scale


def _scale(unit: str) -> Optional[int]:
    """What a unit stands for, as libvirt's virScaleInteger() has it: k and KiB are 1024, KB is 1000."""
    lower = unit.lower()
    if lower in ("b", "byte", "bytes"):
        return 1
    matched = re.fullmatch(r"([kmgtpe])(ib|b)?", lower)
    if matched is None:
        return None
    base = 1000 if matched.group(2) == "b" else 1024
    return int(base ** _POWERS[matched.group(1)])
