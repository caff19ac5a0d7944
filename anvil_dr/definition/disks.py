"""The disks of a server as its definition has them, and the names they get. Pure.

Disk names: SPEC section 9. Which disks must be in a job: SPEC section 7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Collection, Final, Optional, Tuple

from lxml import etree

from anvil_dr.definition.reading import Definition, attribute_of, elements, line_of, shown
from anvil_dr.errors import DefinitionError

_PATH_ATTRIBUTE: Final = {"file": "file", "block": "dev", "dir": "dir"}
_KNOWN_DEVICES: Final = frozenset(("disk", "lun", "cdrom", "floppy"))
_STORAGE_HOSTDEVS: Final = frozenset(("scsi", "scsi_host"))

_DRBD: Final = "/dev/drbd/by-res/"
_MAPPER: Final = "/dev/mapper/"
_LONE_HYPHEN: Final = re.compile(r"(?<!-)(?:--)*-(?!-)")
"""device-mapper doubles the hyphens of a name, so a run of odd length holds the one that separates."""


@dataclass(frozen=True)
class SourceDisk:
    """One `<disk>`, or one passed-through SCSI device, of a server's definition."""

    target: str
    """What the guest's controller calls it (`vda`); for a passed-through device "hostdev"."""
    device: str
    """`disk`, `lun`, `cdrom`, `floppy`, or `hostdev`."""
    type: str
    """The source's type: `file`, `block`, `network`, `volume`, …; for a hostdev `scsi` or `scsi_host`."""
    path: Optional[str]
    """The path of a file or block device; else a description such as `rbd:pool/web01`. None: no medium."""
    format: str
    """The driver's format; `raw` where the definition says nothing, as libvirt takes it."""
    readonly: bool
    shareable: bool
    line: int

    @property
    def imageable(self) -> bool:
        """Whether a node can read it as one range of bytes."""
        return self.device == "disk" and self.type in ("file", "block") and self.path is not None

    @property
    def is_storage(self) -> bool:
        """Whether a job must have it or leave it out: not so for media that are ejected anyway."""
        return self.device not in ("cdrom", "floppy")

    @property
    def is_hostdev(self) -> bool:
        return self.device == "hostdev"

    def __str__(self) -> str:
        """In words, for messages: `disk vdb (/dev/vg0/web01_1)`."""
        where = "no source" if self.path is None else shown(self.path)
        if self.is_hostdev:
            return f"passed-through device {where}"
        kind = self.device if self.type in ("file", "block") else f"{self.type} {self.device}"
        return f"{shown(kind)} {shown(self.target)} ({where})"

    def is_one_of(self, names: Collection[str]) -> bool:
        """Whether a list of paths (or, for what has no path, descriptions or targets) names this disk."""
        return self.path in names or (not self.is_hostdev and self.target in names)


def source_disks(definition: Definition) -> Tuple[SourceDisk, ...]:
    """Every disk, in the order of the definition; passed-through SCSI devices after them.

    Raise DefinitionError for a disk that libvirt would not take either (no target, an unknown device).
    """
    devices = definition.root.find("devices")
    if devices is None:
        return ()
    disks = tuple(as_source_disk(element) for element in elements(devices, "disk"))
    passed_through = tuple(
        as_passed_through(element) for element in elements(devices, "hostdev") if is_storage_hostdev(element)
    )
    return disks + passed_through


def disk_name(path: str) -> str:
    """The name of the disk at `path`, as the image will have it (SPEC section 9).

    Raise DefinitionError for a path that gives none, such as `/dev/sdb`: names like that move between boots.
    """
    name = _name_of_volume(path) if path.startswith("/dev/") else _name_of_file(path)
    if not name or name in (".", ".."):
        raise DefinitionError(f"the path {shown(path)!r} gives no disk name; a job file can name it")
    return name


def as_source_disk(element: etree._Element) -> SourceDisk:
    """One `<disk>` element. Raise DefinitionError."""
    target = attribute_of(element, "target", "dev")
    if not target:
        raise DefinitionError(f"line {line_of(element)}: a disk has no target")
    device = element.get("device", "disk")
    if device not in _KNOWN_DEVICES:
        raise DefinitionError(f"line {line_of(element)}: disk {shown(target)} is of unknown device {shown(device)!r}")
    return SourceDisk(
        target=target,
        device=device,
        type=element.get("type", "file"),
        path=_source_path(element),
        format=attribute_of(element, "driver", "type") or "raw",
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        line=line_of(element),
    )


def is_storage_hostdev(element: etree._Element) -> bool:
    """Whether a `<hostdev>` is a disk in all but name: a SCSI device or a SCSI host."""
    return element.get("type") in _STORAGE_HOSTDEVS


def as_passed_through(element: etree._Element) -> SourceDisk:
    """One `<hostdev>` that is storage."""
    kind = element.get("type", "")
    return SourceDisk(
        target="hostdev",
        device="hostdev",
        type=kind,
        path=describe_hostdev(element),
        format="raw",
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        line=line_of(element),
    )


def describe_hostdev(element: etree._Element) -> str:
    """What a `<hostdev>` passes through, in a few words: `scsi:scsi_host0:0:3:0`, `pci:0000:3b:00.0`, …"""
    kind = element.get("type") or element.get("mode") or "device"
    source = element.find("source")
    if source is None:
        return kind
    address, adapter = source.find("address"), source.find("adapter")
    if source.get("protocol") or source.get("wwpn"):
        return f"{kind}:{source.get('name') or source.get('wwpn')}"
    if adapter is not None:
        where = [] if address is None else [address.get(part, "0") for part in ("bus", "target", "unit")]
        return ":".join([kind, adapter.get("name", ""), *where])
    vendor, product = attribute_of(source, "vendor", "id"), attribute_of(source, "product", "id")
    if vendor:
        return f"{kind}:{vendor}:{product}"
    if address is None:
        return kind
    if address.get("uuid"):
        return f"{kind}:{address.get('uuid')}"
    if address.get("device"):
        return f"{kind}:{address.get('bus')}.{address.get('device')}"
    return f"{kind}:{pci_address(address)}"


def pci_address(address: etree._Element) -> str:
    """`0000:3b:00.0`, as lspci writes it."""

    def hexadecimal(name: str, width: int) -> str:
        return (address.get(name) or "0").lower().replace("0x", "").rjust(width, "0")

    return (
        f"{hexadecimal('domain', 4)}:{hexadecimal('bus', 2)}:{hexadecimal('slot', 2)}.{hexadecimal('function', 1)}"
    )


def _source_path(element: etree._Element) -> Optional[str]:
    """The path of the source, or what stands for it where there is no path."""
    source, kind = element.find("source"), element.get("type", "file")
    if source is None:
        return None
    if kind in _PATH_ATTRIBUTE:
        return source.get(_PATH_ATTRIBUTE[kind]) or None
    if kind == "network":
        return f"{source.get('protocol')}:{source.get('name', '')}"
    if kind == "volume":
        return f"volume:{source.get('pool')}/{source.get('volume')}"
    address = source.find("address")
    if kind == "nvme" and address is not None:
        return f"nvme:{pci_address(address)}/{source.get('namespace')}"
    return f"{kind}:{source.get('path') or source.get('dev') or ''}"


def _name_of_volume(path: str) -> Optional[str]:
    if path.startswith(_DRBD):
        parts = path[len(_DRBD) :].split("/")
        return "_".join(parts) if len(parts) == 2 and all(parts) else None
    if path.startswith(_MAPPER):
        return _name_of_mapping(path[len(_MAPPER) :])
    parts = path.split("/")[2:]
    return parts[1] if len(parts) == 2 and all(parts) else None


def _name_of_mapping(name: str) -> Optional[str]:
    """`vg-lv` with doubled hyphens undone; None for anything else, such as the parts of a mirror (`vg-lv-real`)."""
    separators = list(_LONE_HYPHEN.finditer(name))
    if len(separators) != 1 or "/" in name:
        return None
    # No name begins with a hyphen, so the last of a longer run is the one that separates.
    cut = separators[0].end() - 1
    group, volume = name[:cut], name[cut + 1 :]
    return volume.replace("--", "-") if group and volume else None


def _name_of_file(path: str) -> Optional[str]:
    if not path.startswith("/"):
        return None
    last = path.rsplit("/", 1)[1]
    stem = last.rsplit(".", 1)[0]
    return stem if stem.strip(".") else None
