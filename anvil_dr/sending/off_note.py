"""What is known of a server that was shut down for its image and does not run again yet. Values only.

off_notes.py keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Protocol


@dataclass(frozen=True)
class OffNote:
    """One server that was shut down."""

    server: str
    since: str
    """ISO 8601, UTC."""
    transient: bool
    """libvirt knows nothing of it while it's off."""
    definition: Optional[str]
    """What makes it again. None, of one that libvirt remembers by itself only, if it was not kept."""
    definition_path: str
    """Where that text lies."""
    doubt: str = ""
    """Why it may not be off because of its image any more: it may be off on purpose by now, or run elsewhere. Completes
    "it was shut down, and"; empty if nothing has happened since."""
    held: bool = False
    """Another run, which still lives, will start it."""


class Notes(Protocol):
    """Remembers over a crash what is off for its image. off_notes.OffNotes is one."""

    def path(self, server: str) -> str: ...

    def keep(self, server: str, definition: str, *, transient: bool) -> None:
        """Raise StateError."""
        ...

    def take_over(self, server: str) -> bool:
        """This run will start it now. False if another one will, which still lives. Raise StateError."""
        ...

    def of(self, server: str) -> Optional[OffNote]: ...

    def forget(self, server: str) -> None: ...
