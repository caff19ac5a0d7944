"""The plan of an activation: which servers are booted, from which sets, in which order, and which are not and why.

Pure. `--check` and `--json` print it, boot.py carries it out, and neither decides anything more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import AbstractSet, Dict, Final, FrozenSet, Iterable, Iterator, List, Literal, Mapping, Optional, Tuple

from anvil_dr.activation import boot_order
from anvil_dr.definition import Requirements
from anvil_dr.model import Activation, ImageSet, JournalEntry, OverlaySet
from anvil_dr.ports import HostFacts
from anvil_dr.preflight.findings import Finding, problem
from anvil_dr.words import listed, size


@dataclass(frozen=True)
class Found:
    """One server that has a definition or images on this box."""

    server: str
    definition_path: str
    definition_xml: str
    definition_problem: Optional[str]
    """Why there is no text: the file is missing, or cannot be read."""
    sets: Tuple[ImageSet, ...]
    activation: Optional[Activation]
    overlays: Optional[OverlaySet] = None
    """What it runs, or ran, on here, instead of the images themselves."""
    nvram_kept: FrozenSet[str] = frozenset()
    """Jobs whose sets have UEFI variables of their own."""
    drift: Tuple[str, ...] = ()
    """How the definition differs from the one that its node sent last."""
    pending: Tuple[JournalEntry, ...] = ()
    """Plans for its images that were begun and are not finished."""
    overlays_problem: Optional[str] = None
    """Why nobody can say whether it runs, or ran, on overlays."""


@dataclass(frozen=True)
class Draft:
    """One server, looked at by itself: everything but its turn and its share of the memory."""

    server: str
    definition_path: str
    chosen: Optional[ImageSet] = None
    memory_bytes: int = 0
    """What it's booted with: the definition's, or less where the admin asked for less."""
    memory_line: int = 0
    """Where the definition says it."""
    cpus: int = 0
    needs: Optional[Requirements] = None
    """What its definition asks for."""
    disk_paths: Tuple[Tuple[str, str], ...] = ()
    """The path that each of its disks is booted from, by the disk's name."""
    disk_bytes: int = 0
    networks: Tuple[str, ...] = ()
    """Bridges and networks that it is plugged into, each once."""
    hugepages: bool = False
    """True if its memory comes out of the host's huge pages."""
    has_agent: bool = False
    """True if it has a guest agent's channel; whether somebody is at its other end, only the guest knows."""
    uuid: Optional[str] = None
    screens: Tuple[Tuple[str, int], ...] = ()
    """Addresses and fixed ports of its screens; an empty address is any."""
    xml: Optional[str] = None
    """What would be booted: the definition's text, or a copy with other paths or less memory."""
    activated: bool = False
    """True if it is marked as activated already: it has run here before."""
    left: Optional[ImageSet] = None
    """The other set that it ran from until now; without images if it is gone."""
    running: bool = False
    """True if this very server runs here already, on its own images: those of the chosen set."""
    strayed: bool = False
    """True if it runs beside what it ran on here before: not from the set of its mark, or not on its overlays."""
    findings: Tuple[Finding, ...] = ()


@dataclass(frozen=True)
class PlannedServer:
    """One server's line of the plan."""

    draft: Draft
    after: Tuple[str, ...] = ()
    delay_seconds: int = 0

    @property
    def server(self) -> str:
        return self.draft.server

    @property
    def state(self) -> Literal["ready", "running", "blocked"]:
        if self.draft.running:
            return "running"
        return "blocked" if self.problems else "ready"

    @property
    def problems(self) -> Tuple[Finding, ...]:
        return tuple(one for one in self.draft.findings if one.fatal)

    @property
    def warnings(self) -> Tuple[Finding, ...]:
        return tuple(one for one in self.draft.findings if not one.fatal)

    @property
    def disks(self) -> int:
        return len(self.draft.disk_paths)

    @property
    def may_be_forced(self) -> bool:
        """True if nothing keeps it down but what the admin may decide otherwise."""
        return self.state == "blocked" and all(one.forceable for one in self.problems)


@dataclass(frozen=True)
class BootPlan:
    """Every server that was asked for, in the order of boots."""

    servers: Tuple[PlannedServer, ...]
    host: HostFacts
    warnings: Tuple[str, ...] = ()
    """What is wrong with the box as a whole."""

    @property
    def ready(self) -> Tuple[PlannedServer, ...]:
        return tuple(one for one in self.servers if one.state == "ready")

    @property
    def blocked(self) -> Tuple[PlannedServer, ...]:
        return tuple(one for one in self.servers if one.state == "blocked")

    @property
    def memory_bytes(self) -> int:
        """What the servers that will be booted take together, huge pages not counted."""
        return sum(one.draft.memory_bytes for one in self.ready if not one.draft.hugepages)

    @property
    def cpus(self) -> int:
        """What the servers that will be booted have together."""
        return sum(one.draft.cpus for one in self.ready)


@dataclass(frozen=True)
class Outcome:
    """What became of one server of the plan."""

    server: str
    error: Optional[str] = None
    """Why it does not run; None if it does."""
    advice: str = ""
    booted_seconds: Optional[float] = None
    """When it was booted, after the beginning; None if it never was."""
    answered_seconds: Optional[float] = None
    """When its guest agent answered first; None if it has not."""
    unknown: bool = False
    """True if nobody can tell whether it runs."""
    unmarked: bool = False
    """True if jobs do not know that they must keep off its images."""


def make(
    drafts: Iterable[Draft],
    *,
    start_after: Mapping[str, Tuple[str, ...]],
    delays_seconds: Mapping[str, int],
    host: HostFacts,
    free_hugepages_bytes: int = 0,
    forced: AbstractSet[str] = frozenset(),
    warnings: Iterable[str] = (),
) -> BootPlan:
    """Put drafts into order and share out the host's memory. Raise ConfigError for a circle in `start_after`.

    Of the servers in `forced`, what may be forced is a warning.
    """
    by_name = {draft.server: _forced(draft) if draft.server in forced else draft for draft in drafts}
    steps = boot_order.order(by_name, start_after, delays_seconds)
    free: Dict[bool, Optional[int]] = {False: host.available_bytes, True: free_hugepages_bytes}
    planned: List[PlannedServer] = []
    for step in steps:
        draft = by_name[step.server]
        found, free_bytes = list(draft.findings), free[draft.hugepages]
        if not draft.running:
            ready = [one.draft for one in planned if one.state == "ready"]
            found += _waits_for_blocked(draft, [one for one in planned if one.server in step.after])
            found += _collisions(draft, ready)
            if free_bytes is not None and draft.memory_bytes > free_bytes:
                found.append(_too_little_memory(draft, free_bytes, host, ready))
        one = PlannedServer(replace(draft, findings=tuple(found)), step.after, step.delay_seconds)
        if one.state == "ready" and free_bytes is not None:
            free[draft.hugepages] = free_bytes - draft.memory_bytes
        planned.append(one)
    plan = BootPlan(tuple(planned), host, tuple(warnings))
    return replace(plan, warnings=(*plan.warnings, *_tight(plan)))


def _forced(draft: Draft) -> Draft:
    return replace(draft, findings=tuple(_overruled(one) if one.forceable else one for one in draft.findings))


def _overruled(finding: Finding) -> Finding:
    return replace(finding, fatal=False, advice="booted all the same, because you said so")


def _waits_for_blocked(draft: Draft, before: Iterable[PlannedServer]) -> Iterator[Finding]:
    blocked = [one for one in before if one.state == "blocked"]
    if blocked:
        names = listed([one.server for one in blocked])
        text = f"it starts after {names}, which cannot be booted"
        advice = f"see to {names}, or boot it alone: --server {draft.server}"
        yield Finding(text, advice, forceable=all(one.may_be_forced for one in blocked))


def _collisions(draft: Draft, ready: Iterable[Draft]) -> Iterator[Finding]:
    """What two servers of one plan cannot both have."""
    for other in ready:
        if draft.uuid is not None and other.uuid is not None and draft.uuid.lower() == other.uuid.lower():
            yield problem(f"it has the same UUID as {other.server}", f"change one: edit {draft.definition_path}")
        for address, port in draft.screens:
            for its_address, its_port in other.screens:
                if port and port == its_port and (address == its_address or "" in (address, its_address)):
                    yield problem(
                        f"its screen wants port {port}, and so does that of {other.server}",
                        f"use autoport='yes': edit {draft.definition_path}",
                    )


def _too_little_memory(draft: Draft, free_bytes: int, host: HostFacts, ready: Iterable[Draft]) -> Finding:
    """Too many guests for the memory all start well, and then the kernel kills one of them."""
    left, others = max(0, free_bytes), [one.server for one in ready]
    behind = f" behind {listed(others)}" if others else f" (the host has {size(host.memory_bytes)})"
    where = f"edit {draft.definition_path}" + (f" line {draft.memory_line}" if draft.memory_line else "")
    less = f"boot it with less: --memory {draft.server}={_rounded(left)}, or {where}"
    if left < max(_LEAST_BYTES, draft.memory_bytes // _LEAST_SHARE):
        less = "free memory, or leave others out: name those to boot with --server; or boot them with less: --memory"
    what = "huge pages" if draft.hugepages else "memory"
    return problem(f"it needs {size(draft.memory_bytes)} of {what}, and {size(left)} is left{behind}", less)


def _rounded(left_bytes: int) -> str:
    """As much as there is, in whole units as a person would type it."""
    return f"{left_bytes // _GIB}G" if left_bytes >= 2 * _GIB else f"{left_bytes // _MIB}M"


def _tight(plan: BootPlan) -> Iterator[str]:
    """QEMU itself and the host's page cache need memory too."""
    available, reserve = plan.host.available_bytes, plan.host.memory_bytes // _RESERVE_SHARE
    if available is not None and plan.ready and available - plan.memory_bytes < reserve:
        yield (
            f"only {size(available - plan.memory_bytes)} of memory will be left for the host itself: "
            "better boot a large server with less (--memory)"
        )


_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_LEAST_BYTES: Final = 256 * _MIB
"""Less than this is not worth proposing."""
_LEAST_SHARE: Final = 4
_RESERVE_SHARE: Final = 20
"""Under a twentieth of the memory for the host is tight."""
