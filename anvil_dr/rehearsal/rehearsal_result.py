"""What a rehearsal of one server came to. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Mapping, Optional, Tuple

Verdict = Literal["passed", "failed", "not bootable", "interrupted", "skipped"]

IN_WORDS: Final[Mapping[Verdict, str]] = {
    "passed": "came up",
    "failed": "did not come up",
    "not bootable": "could not be booted",
    "interrupted": "was not finished",
    "skipped": "was left alone",
}


@dataclass(frozen=True)
class RehearsalResult:
    """One server, one time."""

    server: str
    verdict: Verdict
    detail: str
    """The sign of life, or what was wrong, in words."""
    seconds: Optional[float] = None
    """From the beginning to the sign of life: what an activation would take for it."""
    sequence: Optional[int] = None
    received_at: Optional[str] = None
    """When its set was received; ISO 8601, UTC. None if nobody knows."""
    warnings: Tuple[str, ...] = ()
    screenshot: Optional[bytes] = None
    """PNG."""


@dataclass(frozen=True)
class Rehearsed:
    """The last time that a server was rehearsed."""

    at: str
    """ISO 8601, UTC."""
    result: RehearsalResult


@dataclass(frozen=True)
class Rehearsal:
    """One time, all servers."""

    target: str
    at: str
    """When it began; ISO 8601, UTC."""
    results: Tuple[RehearsalResult, ...]

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(one.verdict in ("passed", "skipped") for one in self.results)
