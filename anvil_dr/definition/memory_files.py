"""What has a host write a guest's memory to files: dumps of a crash, and memory that is a file. Pure.

A guest can crash as often as it likes, so that this fills the disk of whoever runs it.
"""

from __future__ import annotations

from typing import Final, Iterator, Tuple

from lxml import etree

from anvil_dr.definition import scrub
from anvil_dr.definition.reading import elements, shown

_DUMP: Final = "coredump-"
_WHERE: Final = "/var/lib/libvirt/qemu"


def avoid(root: etree._Element) -> Tuple[str, ...]:
    """Change whatever would do so to what comes nearest. Returns what was changed, in words.

    libvirt's QEMU driver makes memory a file below its `memory_backing_dir` if its source is "file", or if its access
    is said and its source is not "memfd" (qemu_command.c, qemuBuildMemoryBackendProps).
    """
    changed = (*_dumps(root), *_backing(root))
    # These mean a file too; nothing is left here that the memory could be shared with.
    for cell in root.iterfind("cpu/numa/cell"):
        cell.attrib.pop("memAccess", "")
    for memory in root.iterfind("devices/memory"):
        memory.attrib.pop("access", "")
    return changed


def _dumps(root: etree._Element) -> Iterator[str]:
    for name in ("on_poweroff", "on_reboot", "on_crash"):
        for element in elements(root, name):
            action = (element.text or "").strip()
            if action.startswith(_DUMP):
                element.text = "restart" if action == f"{_DUMP}restart" else "destroy"
                yield f"<{name}> {shown(action)} became {element.text}: dumps in {_WHERE} could fill this host's disk"
    for watchdog in root.iterfind("devices/watchdog"):
        if watchdog.get("action") == "dump":
            watchdog.set("action", "reset")
            yield f"<watchdog> dump became reset: dumps in {_WHERE} could fill this host's disk"


def _backing(root: etree._Element) -> Iterator[str]:
    for source in root.findall("memoryBacking/source"):
        if source.get("type") == "file":
            scrub.remove(source)
            yield f"<memoryBacking> in a file removed: memory in {_WHERE} could fill this host's disk"
    if root.find("memoryBacking/source[@type='memfd']") is None:
        for access in root.findall("memoryBacking/access"):
            scrub.remove(access)
    for backing in elements(root, "memoryBacking"):
        if len(backing) == 0:
            scrub.remove(backing)
