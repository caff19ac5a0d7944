"""The mark of a server that is about to be booted: from then on its images are live disks, and jobs keep off them.

Touches the marks of activated servers. On the worst day a mark that cannot be set is told of, and stops nothing.
"""

from __future__ import annotations

import logging
from typing import Callable, Iterable, Optional, Protocol, Set

from anvil_dr.activation.boot_plan import PlannedServer
from anvil_dr.errors import StateError

log = logging.getLogger(__name__)


class Marks(Protocol):
    """Remembers which servers are activated. state.State is one."""

    def activate(self, server: str, sequence: int, user: str, *, leaves: Iterable[str] = ()) -> object:
        """`leaves`: identities of images that it ran on until now, and doesn't any more. Raise StateError."""
        ...

    def release(self, server: str) -> bool:
        """Raise StateError."""
        ...


class Marker:
    """Marks servers as activated, and goes on where that is impossible."""

    def __init__(self, marks: Optional[Marks], user: str, unmarked: Callable[[str, str], None]) -> None:
        """`marks` is None where the state cannot be written; `unmarked` is told which server is not, and why."""
        self._marks, self._user, self._unmarked = marks, user, unmarked
        self.failed: Set[str] = set()
        """Servers that could not be marked."""

    def mark(self, planned: PlannedServer) -> None:
        draft = planned.draft
        sequence = draft.chosen.sequence if draft.chosen is not None else None
        leaves = tuple(image.identity for image in draft.left.images) if draft.left is not None else ()
        try:
            if self._marks is None:
                raise StateError("the state cannot be written")
            if isinstance(sequence, int):
                self._marks.activate(planned.server, sequence, self._user, leaves=leaves)
        except StateError as error:
            self.failed.add(planned.server)
            self._unmarked(planned.server, str(error))

    def undo(self, planned: PlannedServer) -> None:
        """It was never booted. One that was marked before has run before, and its images stay its own."""
        try:
            if self._marks is not None and not planned.draft.activated:
                self._marks.release(planned.server)
        except StateError as error:
            log.warning("mark stays server=%s error=%s", planned.server, error)
