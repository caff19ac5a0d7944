"""A hypervisor and a host that have what a test says, and a clock that only moves when somebody sleeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, FrozenSet, List, Mapping, Optional, Set, Tuple

from lxml import etree

from anvil_dr.errors import HypervisorError
from anvil_dr.ports import (
    Domain,
    DomainCapabilities,
    DomainState,
    HostFacts,
    Network,
    PathFacts,
    Platform,
)

GIB = 1 << 30
CAPABLE = DomainCapabilities(
    machine="pc-q35-7.2",
    max_cpus=288,
    cpu_modes=("host-model", "maximum", "custom"),
    cpu_models=("qemu64", "EPYC"),
    usable_cpu_models=("qemu64",),
    loaders=("/usr/share/OVMF/OVMF_CODE_4M.fd",),
    tpm_backends=("emulator",),
    tpm_versions=("2.0",),
)


@dataclass
class Clock:
    """Time that passes by sleeping."""

    time: float = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class FakeHypervisor:
    """Implements ports.Hypervisor. Every boot is written down, with the time on `clock`."""

    facts: HostFacts = HostFacts(cpus=8, memory_bytes=64 * GIB, available_bytes=48 * GIB)
    domains: Tuple[Domain, ...] = ()
    defined: Set[str] = field(default_factory=set)
    known_networks: Tuple[Network, ...] = ()
    capable: Optional[DomainCapabilities] = CAPABLE
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why a server cannot be booted, by name."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """What is said of a server that comes up all the same, by name, as when the connection breaks."""
    unreachable: bool = False
    """True if nobody can tell any state."""
    platform_error: str = ""
    dry_run_error: str = ""
    missing_features: str = ""
    states: Mapping[str, DomainState] = field(default_factory=dict)
    """What a server does after its boot; it runs if it isn't here."""
    clock: Clock = field(default_factory=Clock)
    booted: List[Tuple[str, float]] = field(default_factory=list)
    booted_xml: Dict[str, str] = field(default_factory=dict)
    closed: bool = False

    def active(self) -> Tuple[Domain, ...]:
        return self.domains

    def state(self, name: str) -> DomainState:
        if self.unreachable:
            raise HypervisorError("libvirtd does not answer")
        if name in self.booted_xml:
            return self.states.get(name, "running")
        return "shut off" if name in self.defined else "gone"

    def definition(self, name: str) -> str:
        return self.booted_xml[name]

    def shutdown(self, name: str, *, timeout_seconds: float) -> None:
        self.destroy(name)

    def start(self, name: str) -> None:
        raise HypervisorError(f"cannot start {name}")

    def boot(self, xml: str, *, paused: bool = False, autodestroy: bool = False) -> Domain:
        name = etree.fromstring(xml).findtext("name") or ""
        if name in self.refused:
            raise HypervisorError(self.refused[name])
        self.booted.append((name, self.clock.now()))
        self.booted_xml[name] = xml
        if name in self.lost:
            raise HypervisorError(self.lost[name])
        return Domain(name, "", "running", False, ())

    def resume(self, name: str) -> None:
        raise HypervisorError(f"cannot resume {name}")

    def destroy(self, name: str) -> None:
        self.booted_xml.pop(name, None)

    def host(self) -> HostFacts:
        return self.facts

    def networks(self) -> Tuple[Network, ...]:
        return self.known_networks

    def network_filters(self) -> FrozenSet[str]:
        return frozenset({"clean-traffic"})

    def machines(self, arch: Optional[str]) -> Tuple[str, ...]:
        return ("pc-i440fx-7.2", "pc-q35-5.2", "pc-q35-7.2", "q35") if self.capable is not None else ()

    def capabilities(self, platform: Platform) -> Optional[DomainCapabilities]:
        if self.platform_error:
            raise HypervisorError(self.platform_error)
        return self.capable

    def cpu_problem(self, cpu_xml: str, platform: Platform) -> str:
        return self.missing_features

    def dry_run(self, xml: str) -> None:
        if self.dry_run_error:
            raise HypervisorError(self.dry_run_error)

    def agent_answers(self, name: str, *, timeout_seconds: int) -> bool:
        return False

    def screenshot(self, name: str) -> bytes:
        return b"P6\n2 1\n255\n" + bytes((255, 0, 0, 0, 255, 0))

    def console_text(self, name: str, until: str, *, timeout_seconds: float) -> str:
        raise HypervisorError(f"{name} says nothing")

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeHost:
    """Implements ports.Host. Everything is a file of its own, but for what a test says."""

    kinds: Dict[str, PathFacts] = field(default_factory=dict)
    interfaces: FrozenSet[str] = frozenset()
    devices: FrozenSet[str] = frozenset()
    hugepages_bytes: int = 0
    iommu: bool = True
    available_bytes: int = 48 * GIB
    taken: Mapping[Tuple[str, int], str] = field(default_factory=dict)

    def path(self, path: str) -> PathFacts:
        return self.kinds.get(path, PathFacts("file", f"inode:{path}"))

    def closed_folder(self, path: str, user: int, group: int) -> str:
        return ""

    def has_interface(self, name: str) -> bool:
        return name in self.interfaces

    def has_pci_device(self, address: str) -> bool:
        return address in self.devices

    def has_usb_device(self, vendor: str, product: str) -> bool:
        return f"{vendor}:{product}" in self.devices

    def has_iommu(self) -> bool:
        return self.iommu

    def available_memory_bytes(self) -> int:
        return self.available_bytes

    def free_hugepages_bytes(self) -> int:
        return self.hugepages_bytes

    def listening_problem(self, address: str, port: int) -> str:
        return self.taken.get((address, port), "")
