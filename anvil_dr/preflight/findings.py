"""What an admin should know before a server is booted: problems and warnings. Values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing, in short words, and what to do about it."""

    text: str
    advice: str = ""
    fatal: bool = True
    """True if the server must not be booted like this."""
    forceable: bool = False
    """True if `--force` boots it all the same."""


def problem(text: str, advice: str) -> Finding:
    """Something that keeps a server from being booted. There is always something to do about it."""
    return Finding(text, advice)


def warning(text: str, advice: str = "") -> Finding:
    """Something to know that keeps nothing."""
    return Finding(text, advice, fatal=False)
