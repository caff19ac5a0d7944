"""How boots go, in the words of an observer: whose turn it is, what is waited for, why one does not stay up. Pure."""

from __future__ import annotations

from typing import Dict, Final, Literal, Mapping, Optional, Sequence

from anvil_dr.activation.boot_plan import PlannedServer
from anvil_dr.ports import DomainState
from anvil_dr.words import listed

OFF: Final = ("gone", "shut off")

Pending = Literal["booting", "silent", "watched"]

_PENDING: Final[Mapping[Pending, str]] = {
    "booting": "booting",
    "silent": "no answer yet from",
    "watched": "seeing whether they stay up:",
}

_IN_WORDS: Final[Dict[DomainState, str]] = {
    "paused": "it was booted and then paused: KVM does not work on this host, or a disk gave an error",
    "suspended": "it was booted and then suspended: KVM may not work on this host",
    "crashed": "it was booted and then crashed",
    "gone": "it was booted and ended at once",
    "shut off": "it was booted and ended at once",
}


def turn(planned: PlannedServer) -> str:
    """What it waits for, in the plan; empty if for nothing."""
    delay = f"{planned.delay_seconds} s" if planned.delay_seconds else ""
    if not planned.after:
        return delay
    return f"{delay} after {listed(planned.after)}" if delay else f"for {listed(planned.after)}"


def behind(missing: Sequence[str], unknown: bool) -> str:
    """Why it is left out: because of these before it. `unknown` if nobody can tell whether they run."""
    why = "and nobody knows whether that runs" if unknown else "which does not run"
    return f"it starts after {listed(missing)}, {why}"


def due(server: str, down: Sequence[str], seconds: float) -> str:
    """What it waits for at this moment: those that are `down`, and else its delay."""
    return f"{server} waits for {listed(down)}" if down else f"{server} boots in {max(0.0, seconds):.0f} s"


def pending(waiting: Sequence[str], names: Mapping[Pending, Sequence[str]]) -> str:
    """What everybody waits for; `waiting` are said by `due`. Shortest first: the line may be cut off."""
    parts = list(waiting)
    only_looking = not parts and not names["booting"] and any(names.values())
    parts += [f"{what} {', '.join(names[kind])}" for kind, what in _PENDING.items() if names[kind]]
    if only_looking:
        parts.append("Ctrl-C ends the waiting, not the servers")
    return "; ".join(parts)


def not_running(state: DomainState, ran_seconds: Optional[float]) -> str:
    """Why a server that was booted is not up. `ran_seconds` if it was seen to stay up before."""
    if state in OFF and ran_seconds is not None:
        return f"it ran for {ran_seconds:.0f} s and went off: did somebody shut it down?"
    return _IN_WORDS.get(state, f"it is {state}")


def advice(server: str) -> str:
    """Where to look for the reason."""
    return f"look at /var/log/libvirt/qemu/{server}.log and, for KVM, at: dmesg | tail"
