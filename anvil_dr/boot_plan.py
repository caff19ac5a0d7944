"""The plan of an activation: which servers are booted, from which sets, in which order, and which are not and why.

Pure. `--check` and `--json` print it, activate.py executes it, and neither decides anything more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterable, List, Literal, Mapping, Optional, Tuple

from anvil_dr import boot_order
from anvil_dr.findings import Finding, problem, warning
from anvil_dr.model import Activation, ImageSet
from anvil_dr.ports import HostFacts
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


@dataclass(frozen=True)
class Draft:
    """One server, looked at by itself: everything but its turn and its share of the memory."""

    server: str
    definition_path: str
    chosen: Optional[ImageSet] = None
    memory_bytes: int = 0
    cpus: int = 0
    xml: Optional[str] = None
    """What would be booted: the definition's text, or a copy with the paths of another set."""
    activated: bool = False
    """True if it is marked as activated already: it has run here before."""
    running: bool = False
    """True if this very server runs here already, on its own images."""
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


@dataclass(frozen=True)
class BootPlan:
    """Every server that was asked for, in the order of boots."""

    servers: Tuple[PlannedServer, ...]
    warnings: Tuple[str, ...] = ()
    """What is wrong with the box as a whole."""

    @property
    def ready(self) -> Tuple[PlannedServer, ...]:
        return tuple(one for one in self.servers if one.state == "ready")

    @property
    def blocked(self) -> Tuple[PlannedServer, ...]:
        return tuple(one for one in self.servers if one.state == "blocked")


@dataclass(frozen=True)
class Outcome:
    """What became of one server of the plan."""

    server: str
    error: Optional[str] = None
    """Why it does not run; None if it does."""
    advice: str = ""


def make(
    drafts: Iterable[Draft],
    *,
    start_after: Mapping[str, Tuple[str, ...]],
    delays_seconds: Mapping[str, int],
    host: HostFacts,
    force: bool = False,
    warnings: Iterable[str] = (),
) -> BootPlan:
    """Put drafts into order and share out the host's memory. Raise ConfigError for a circle in `start_after`.

    `force` turns what may be forced into warnings.
    """
    by_name = {draft.server: _forced(draft) if force else draft for draft in drafts}
    steps = boot_order.order(by_name, start_after, delays_seconds)
    free_bytes = host.available_bytes
    planned: List[PlannedServer] = []
    for step in steps:
        draft = by_name[step.server]
        found = list(draft.findings)
        if not draft.running:
            before = [one for one in planned if one.server in step.after]
            found += [_not_before(one) for one in before if one.state == "blocked"]
            if free_bytes is not None and draft.memory_bytes > free_bytes:
                found.append(_too_little_memory(draft, free_bytes, host, planned))
        one = PlannedServer(replace(draft, findings=tuple(found)), step.after, step.delay_seconds)
        if one.state == "ready" and free_bytes is not None:
            free_bytes -= draft.memory_bytes
        planned.append(one)
    return BootPlan(tuple(planned), tuple(warnings))


def _forced(draft: Draft) -> Draft:
    return replace(draft, findings=tuple(replace(one, fatal=one.fatal and not one.forceable) for one in draft.findings))


def _not_before(blocked: PlannedServer) -> Finding:
    return warning(f"it should start after {blocked.server}, which cannot be booted")


def _too_little_memory(draft: Draft, free_bytes: int, host: HostFacts, planned: Iterable[PlannedServer]) -> Finding:
    """Too many guests for the memory all start well, and then the kernel kills one of them."""
    others = [one.server for one in planned if one.state == "ready"]
    behind = f" behind {listed(others)}" if others else f" (the host has {size(host.memory_bytes)})"
    return problem(
        f"it needs {size(draft.memory_bytes)} of memory, and {size(max(0, free_bytes))} is left{behind}",
        f"lower <memory> and <currentMemory> in {draft.definition_path}, or leave others out with --server",
    )
