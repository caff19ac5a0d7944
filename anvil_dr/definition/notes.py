"""What is said about a definition while it is made: warnings, each once, not without end. Pure."""

from __future__ import annotations

from typing import Dict, Final, Tuple

MAX_WARNINGS: Final = 100
"""A definition that gives rise to more is not a real one."""


class Notes:
    """Collects the warnings of one definition."""

    def __init__(self) -> None:
        self._warnings: Dict[str, None] = {}

    def warn(self, text: str) -> None:
        self._warnings[text] = None

    def removed(self, what: str, why: str) -> None:
        self.warn(f"{what} removed: {why}")

    def warnings(self) -> Tuple[str, ...]:
        """In the order they came up."""
        every = tuple(self._warnings)
        more = len(every) - MAX_WARNINGS
        return every if more <= 0 else (*every[:MAX_WARNINGS], f"and {more} more of this kind")
