"""One server that might be booted, and the host it would be booted on: what preflight judges. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import FrozenSet, Mapping, Optional, Tuple

from anvil_dr.definition import Requirements
from anvil_dr.ports import Domain, DomainCapabilities, HostFacts, PathFacts

_MISSING = PathFacts("missing")


@dataclass(frozen=True)
class HostView:
    """What this host has, as far as any of the servers asks for it."""

    facts: HostFacts
    domains: Tuple[Domain, ...] = ()
    networks: Mapping[str, bool] = field(default_factory=dict)
    """libvirt's networks, and whether each is started."""
    filters: FrozenSet[str] = frozenset()
    """libvirt's network filters; empty if it cannot say, since it starts nothing with one then either."""
    paths: Mapping[str, PathFacts] = field(default_factory=dict)
    interfaces: FrozenSet[str] = frozenset()
    devices: FrozenSet[str] = frozenset()
    """Host devices that are there, by their descriptions in the requirements."""
    free_hugepages_bytes: int = 0
    closed: Mapping[str, str] = field(default_factory=dict)
    """Paths that QEMU's user cannot come to, and the folder that it may not pass."""
    has_iommu: bool = True
    """False if no PCI device can be passed through."""

    def path(self, path: str) -> PathFacts:
        return self.paths.get(path, _MISSING)


@dataclass(frozen=True)
class Answers:
    """What the hypervisor and the store say of one server."""

    capabilities: Optional[DomainCapabilities] = None
    """None if the host has nothing like it, or cannot say."""
    platform_error: str = ""
    machines: Tuple[str, ...] = ()
    """Machine types that the host has; empty if it cannot say."""
    cpu_problem: str = ""
    dry_run_error: str = ""
    nvram_kept: bool = False
    """True if the set has UEFI variables of its own, which are put in place when it is booted."""
    defined: bool = False
    """True if a domain of its name is defined here, which never should be."""
    image_users: Mapping[str, str] = field(default_factory=dict)
    """Who has an image open, by the image's path."""
    listening_problems: Mapping[Tuple[str, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """One server that might be booted."""

    server: str
    definition_path: str
    needs: Requirements
    paths: Mapping[str, str]
    """The path that is booted, by the one that the definition has; its own images only."""
    answers: Answers = Answers()
    cached_paths: FrozenSet[str] = frozenset()
    """Of those that are booted, files on cache drives, whatever the definition has there."""

    def edit(self, what: str) -> str:
        """Where to edit: one of the lines that the requirements know."""
        return self.edit_at(self.needs.lines.get(what, 0))

    def edit_at(self, line: int) -> str:
        return f"edit {self.definition_path} line {line}" if line else f"edit {self.definition_path}"
