"""What a definition needs from the host that boots it: the questions that activation's preflight asks. Pure.

Reads a definition that an admin may have edited, so nothing is taken for granted and nothing is changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Mapping, Optional, Tuple, TypeVar

from lxml import etree

from anvil_dr.definition.disks import as_source_disk, describe_hostdev
from anvil_dr.definition.memory import CELLS, memory_bytes
from anvil_dr.definition.reading import (
    Definition,
    attribute_of,
    elements,
    line_of,
    parse,
    server_name,
    shown,
    text_of,
)
from anvil_dr.errors import DefinitionError

_T = TypeVar("_T")


@dataclass(frozen=True)
class DiskRequirement:
    """One disk or drive. `path` is None for a drive without a medium."""

    target: str
    device: str
    type: str
    path: Optional[str]
    format: str
    readonly: bool
    startup_policy: Optional[str]
    line: int


@dataclass(frozen=True)
class NetworkRequirement:
    """One interface and what it is plugged into: a bridge, a libvirt network, or a host's own card (`direct`)."""

    kind: str
    name: str
    mac: Optional[str]
    filter: Optional[str]
    """The network filter that libvirt must have to start it."""
    line: int


@dataclass(frozen=True)
class HostdevRequirement:
    """One device of the host that is passed through."""

    type: str
    description: str
    """`usb:0x0529:0x0001`, `pci:0000:3b:00.0`, …"""
    optional: bool
    """Whether the guest boots without it."""
    line: int


@dataclass(frozen=True)
class GraphicsRequirement:
    """One way to see the guest's screen."""

    type: str
    port: Optional[int]
    """None where libvirt chooses it."""
    listen: Optional[str]
    """The address; None where libvirt chooses it."""
    line: int


@dataclass(frozen=True)
class CpuRequirement:
    """The CPU that the guest expects. `xml` is what libvirt compares with the host's."""

    mode: str
    model: Optional[str]
    check: Optional[str]
    xml: str
    line: int


@dataclass(frozen=True)
class TpmRequirement:
    """The guest's TPM."""

    model: Optional[str]
    backend: str
    version: Optional[str]
    persistent: bool
    line: int


@dataclass(frozen=True)
class Requirements:
    """All of it. `lines` says where in the file a value stands: `machine`, `loader`, `nvram`, `emulator`, …"""

    name: str
    uuid: Optional[str]
    virt_type: str
    arch: Optional[str]
    machine: Optional[str]
    emulator: Optional[str]
    memory_bytes: int
    vcpus: int
    cpu: Optional[CpuRequirement]
    firmware: Optional[str]
    """`efi` or `bios` where libvirt chooses the firmware."""
    loader: Optional[str]
    nvram: Optional[str]
    nvram_template: Optional[str]
    disks: Tuple[DiskRequirement, ...]
    interfaces: Tuple[NetworkRequirement, ...]
    hostdevs: Tuple[HostdevRequirement, ...]
    graphics: Tuple[GraphicsRequirement, ...]
    tpm: Optional[TpmRequirement]
    has_agent: bool
    """Whether it has a channel for a guest agent. Only the guest knows whether one listens."""
    hugepages: bool
    cpuset: Optional[str]
    """The host's CPUs that the guest is bound to."""
    lines: Mapping[str, int]

    @property
    def bridges(self) -> Tuple[str, ...]:
        """Names of the bridges, each once."""
        return self._plugged_into("bridge")

    @property
    def networks(self) -> Tuple[str, ...]:
        """Names of the libvirt networks, each once."""
        return self._plugged_into("network")

    @property
    def is_uefi(self) -> bool:
        return self.firmware == "efi" or self.nvram is not None

    def _plugged_into(self, kind: str) -> Tuple[str, ...]:
        return tuple(dict.fromkeys(each.name for each in self.interfaces if each.kind == kind and each.name))


def requirements(xml: str) -> Requirements:
    """Read a definition for what it needs. Raise DefinitionError for what libvirt would not take either."""
    definition = parse(xml)
    root = definition.root
    virt_type = root.get("type")
    if not virt_type:
        raise DefinitionError("the <domain> has no type")
    nvram = root.find("os/nvram")
    return Requirements(
        name=server_name(definition),
        uuid=_said(text_of(root, "uuid")),
        virt_type=virt_type,
        arch=attribute_of(root, "os/type", "arch"),
        machine=attribute_of(root, "os/type", "machine"),
        emulator=_said(text_of(root, "devices/emulator")),
        memory_bytes=memory_bytes(definition),
        vcpus=vcpus(definition),
        cpu=_cpu(root.find("cpu")),
        firmware=attribute_of(root, "os", "firmware"),
        loader=_said(text_of(root, "os/loader")),
        nvram=_nvram_path(nvram),
        nvram_template=None if nvram is None else nvram.get("template"),
        disks=_devices(root, "disk", _disk),
        interfaces=_devices(root, "interface", _interface),
        hostdevs=_devices(root, "hostdev", _hostdev),
        graphics=_devices(root, "graphics", _graphics),
        tpm=_tpm(root.find("devices/tpm")),
        has_agent=any(
            target.get("name") == "org.qemu.guest_agent.0" for target in root.iterfind("devices/channel/target")
        ),
        hugepages=root.find("memoryBacking/hugepages") is not None,
        cpuset=attribute_of(root, "vcpu", "cpuset"),
        lines=_lines(root),
    )


def vcpus(definition: Definition) -> int:
    """The guest's virtual CPUs, at most; 1 where it isn't said. Raise DefinitionError if it makes no sense."""
    vcpu = definition.root.find("vcpu")
    if vcpu is None:
        return 1
    said = (vcpu.text or "").strip()
    if not re.fullmatch(r"[0-9]{1,5}", said) or int(said) == 0:
        raise DefinitionError(f"line {line_of(vcpu)}: <vcpu> of {shown(said)!r} makes no sense")
    return int(said)


def _devices(root: etree._Element, name: str, read: Callable[[etree._Element], _T]) -> Tuple[_T, ...]:
    devices = root.find("devices")
    return () if devices is None else tuple(read(element) for element in elements(devices, name))


def _disk(element: etree._Element) -> DiskRequirement:
    disk = as_source_disk(element)
    return DiskRequirement(
        target=disk.target,
        device=disk.device,
        type=disk.type,
        path=disk.path,
        format=disk.format,
        readonly=disk.readonly,
        startup_policy=attribute_of(element, "source", "startupPolicy"),
        line=disk.line,
    )


def _interface(element: etree._Element) -> NetworkRequirement:
    kind = element.get("type", "")
    name = attribute_of(element, "source", "dev" if kind == "direct" else kind)
    mac, filter_name = attribute_of(element, "mac", "address"), attribute_of(element, "filterref", "filter")
    return NetworkRequirement(kind, name or "", mac, filter_name, line_of(element))


def _hostdev(element: etree._Element) -> HostdevRequirement:
    optional = attribute_of(element, "source", "startupPolicy") == "optional"
    return HostdevRequirement(element.get("type", ""), describe_hostdev(element), optional, line_of(element))


def _graphics(element: etree._Element) -> GraphicsRequirement:
    port = element.get("port") or ""
    fixed = element.get("autoport") != "yes" and re.fullmatch(r"[0-9]{1,5}", port)
    listen = element.get("listen") or attribute_of(element, "listen", "address")
    return GraphicsRequirement(
        element.get("type", ""), int(port) if fixed else None, listen or None, line_of(element)
    )


def _cpu(element: Optional[etree._Element]) -> Optional[CpuRequirement]:
    if element is None:
        return None
    mode = element.get("mode") or ("custom" if element.find("model") is not None else "")
    xml = etree.tostring(element, encoding="unicode", with_tail=False)
    return CpuRequirement(mode, _said(text_of(element, "model")), element.get("check"), xml, line_of(element))


def _tpm(element: Optional[etree._Element]) -> Optional[TpmRequirement]:
    if element is None:
        return None
    return TpmRequirement(
        element.get("model"),
        attribute_of(element, "backend", "type") or "",
        attribute_of(element, "backend", "version"),
        attribute_of(element, "backend", "persistent_state") == "yes",
        line_of(element),
    )


def _nvram_path(element: Optional[etree._Element]) -> Optional[str]:
    """Its text, or, in libvirt 8.5 and later, a source like a disk's."""
    if element is None:
        return None
    return _said(element.text) or attribute_of(element, "source", "file") or attribute_of(element, "source", "dev")


def _lines(root: etree._Element) -> Mapping[str, int]:
    places = {
        "name": "name", "uuid": "uuid", "memory": "memory", "vcpu": "vcpu", "machine": "os/type", "loader": "os/loader",
        "nvram": "os/nvram", "cpu": "cpu", "emulator": "devices/emulator", "hugepages": "memoryBacking",
    }  # fmt: skip
    if root.find(CELLS) is not None:
        places["memory"] = CELLS  # what is to be lowered there
    found = {what: root.find(path) for what, path in places.items()}
    return {what: line_of(element) for what, element in found.items() if element is not None}


def _said(text: Optional[str]) -> Optional[str]:
    return text.strip() or None if text else None
