"""What a look at whether the servers could be booted today came to. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple

from anvil_dr.activation.boot_plan import BootPlan


@dataclass(frozen=True)
class CheckResult:
    """Which servers could have been booted at that time, and what kept the others."""

    at: str
    """ISO 8601, UTC."""
    problem: Optional[str] = None
    """Why no server could be looked at, such as a libvirt that is not there."""
    problems: Mapping[str, Tuple[str, ...]] = field(default_factory=dict)
    """By server: what keeps it from being booted, and what to do about it. Nothing for one that could be."""
    by_hand: Tuple[str, ...] = ()
    """Servers that run here without having been marked."""


def of_plan(plan: BootPlan, at: str) -> CheckResult:
    """What is kept of a plan."""
    return CheckResult(
        at,
        problems={
            planned.server: tuple(f"{one.text} ({one.advice})" for one in planned.problems)
            for planned in plan.blocked
        },
        by_hand=tuple(one.server for one in plan.servers if one.state == "running" and not one.draft.activated),
    )
