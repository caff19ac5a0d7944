"""Which servers were shut down for their image and don't run again yet: what a node must know after a crash.

Reads and writes `<folder>/off/<server>.json`, and `<server>.xml` beside it: the definition of a transient server is
nowhere else once it is off, and that of another one may be undefined meanwhile. The run that will start the server
again has the note locked (flock) for as long as it lives.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from datetime import datetime, timezone
from typing import BinaryIO, Dict, Final, Optional

from anvil_dr import durable, naming
from anvil_dr.errors import ImageNameError, StateError
from anvil_dr.sending.off_note import OffNote
from anvil_dr.sending.start_log import StartLog

log = logging.getLogger(__name__)

FOLDER: Final = "/var/lib/anvil-dr-send"
"""The default, on every node."""
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_MAX_BYTES: Final = 4 << 20


class OffNotes:
    """`folder` is the node's; `boot_id` changes with each start of it; `starts` is its libvirt's log."""

    def __init__(
        self, folder: str = FOLDER, *, boot_id: Optional[str] = None, starts: Optional[StartLog] = None
    ) -> None:
        self._folder, self._starts = os.path.join(folder, "off"), starts or StartLog()
        self._boot_id = _read_boot_id() if boot_id is None else boot_id
        self._locks: Dict[str, BinaryIO] = {}

    def path(self, server: str) -> str:
        """Where a server's definition is kept."""
        return os.path.join(self._folder, f"{server}.xml")

    def keep(self, server: str, definition: str, *, transient: bool) -> None:
        """To be called before it is shut down. Raise StateError if it cannot be kept."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        content = json.dumps({"since": now, "boot_id": self._boot_id, "transient": transient}) + "\n"
        try:
            naming.check_server_name(server)
            durable.make_directories(self._folder, mode=0o700)
            # A definition may hold passwords.
            durable.replace(self.path(server), definition.encode("utf-8"), mode=0o600)
            durable.replace(self._note(server), content.encode("utf-8"), mode=0o600)
            # The server still runs, so nobody takes it for left off before this.
            self._hold(server, fcntl.LOCK_EX)
        except ImageNameError as error:
            raise StateError(str(error)) from error
        except OSError as error:
            raise StateError(f"{self._note(server)} cannot be written: {error.strerror}") from error
        log.info("noted as off server=%s path=%s", server, self._note(server))

    def take_over(self, server: str) -> bool:
        """This run is the one that will start it. False if another one will, which still lives. Raise StateError."""
        try:
            self._hold(server, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StateError(f"{self._note(server)} cannot be locked: {error.strerror}") from error
        return True

    def of(self, server: str) -> Optional[OffNote]:
        """None if it was not shut down here, or runs again. One that makes no sense is logged."""
        try:
            naming.check_server_name(server)
            with open(self._note(server), encoding="utf-8") as file:
                kept = json.loads(file.read(_MAX_BYTES))
                held = server not in self._locks and _is_locked(file.fileno())
            definition = self._definition(server)
            if kept["transient"] and definition is None:
                return None  # nothing is left to start it with
            since = str(kept["since"])
            doubt = self._doubt(server, since, str(kept["boot_id"]))
            return OffNote(server, since, bool(kept["transient"]), definition, self.path(server), doubt, held)
        except (FileNotFoundError, ImageNameError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("a note cannot be understood path=%s error=%r", self._note(server), error)
            return None

    def forget(self, server: str) -> None:
        """It runs again. What cannot be removed is logged: it is looked at again the next time."""
        for path in (self._note(server), self.path(server)):
            try:
                durable.remove(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("a note stays behind path=%s error=%s", path, error)
        self._let_go(server)

    def _definition(self, server: str) -> Optional[str]:
        """Raise OSError, ValueError."""
        try:
            with open(self.path(server), encoding="utf-8") as file:
                return file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None

    def _doubt(self, server: str, since: str, boot_id: str) -> str:
        """Raise ValueError."""
        if not boot_id == self._boot_id != "":
            return "this node was started since then"
        started = self._starts.started_since(server, datetime.fromisoformat(since))
        if started is None:
            return f"nobody can tell whether it was started since then (its log is not in {self._starts.folder})"
        return "it was started here since then" if started else ""

    def _hold(self, server: str, how: int) -> None:
        self._let_go(server)
        note = open(self._note(server), "rb")
        try:
            fcntl.flock(note, how)
        except OSError:
            note.close()
            raise
        self._locks[server] = note

    def _let_go(self, server: str) -> None:
        if server in self._locks:
            self._locks.pop(server).close()

    def _note(self, server: str) -> str:
        return os.path.join(self._folder, f"{server}.json")


def _is_locked(fd: int) -> bool:
    """Whether another process, or another open file, has it locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _read_boot_id() -> str:
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
