"""Whose turn a server's images are: a rehearsal's, until a job or a real activation wants them.

Touches lock files and notes below `<runtime>/rehearsals`. The locks are the kernel's, so they end with the process
that has them, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from contextlib import contextmanager
from typing import Callable, Final, Iterator, Optional

from anvil_dr.errors import HypervisorError

log = logging.getLogger(__name__)

_ALL: Final = ""
"""Stands for every server: no server has this name."""
_POLL_SECONDS: Final = 0.05
END_SECONDS: Final = 60.0
"""How long a rehearsal may take to end once it's asked to."""


class RehearsalTurns:
    """`runtime` is the configuration's: it must be the same for everybody."""

    def __init__(self, runtime: str) -> None:
        self._folder = os.path.join(runtime, "rehearsals")

    @contextmanager
    def hold(self, server: str) -> Iterator[Callable[[], bool]]:
        """Rehearse this server meanwhile; yields what tells whether somebody else wants it now.

        Raise HypervisorError if another rehearsal has it, or an activation is at work.
        """
        try:
            self._make_folders()
            everybody = self._locked(_ALL, fcntl.LOCK_SH)
        except OSError as error:
            raise HypervisorError(f"nothing can be rehearsed: {error}") from error
        if everybody is None:
            raise HypervisorError("servers are being activated at this moment, so none is rehearsed")
        try:
            try:
                os.ftruncate(everybody, 0)  # should an activation have been killed
                mine = self._locked(server, fcntl.LOCK_EX)
            except OSError as error:
                raise HypervisorError(f"nothing can be rehearsed: {error}") from error
            if mine is None:
                raise HypervisorError(f"{server} is being rehearsed already")
            try:
                self._remove_note(server)
                notes = (self._note(server), self._note(_ALL))
                yield lambda: any(os.path.exists(note) for note in notes)
            finally:
                os.close(mine)
        finally:
            os.close(everybody)

    def is_free(self, server: str) -> bool:
        """True if nobody rehearses it; False also where nobody can tell."""
        if not os.path.exists(self._path(server)):
            return True
        try:
            lock = self._locked(server, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("whether it is rehearsed is not known server=%s error=%s", server, error)
            return False
        if lock is not None:
            os.close(lock)
        return lock is not None

    def end(self, server: str, timeout_seconds: float = END_SECONDS) -> bool:
        """End a rehearsal of this server, if there is one; True if there was. It is gone when this returns.

        Raise HypervisorError if it does not end in that time.
        """
        if self.is_free(server):
            return False
        try:
            os.close(self._wait_for(server, timeout_seconds))
        except OSError as error:
            raise HypervisorError(f"the rehearsal of {server} cannot be asked to end: {error}") from error
        return True

    @contextmanager
    def forbid(self, timeout_seconds: float = END_SECONDS, *, who: str = "somebody") -> Iterator[bool]:
        """Meanwhile nothing is rehearsed. Ends what is; yields whether there was something. Raise HypervisorError.

        Nobody else can have this at the same time, and is told `who` has it.
        """
        try:
            self._make_folders()
            lock = self._locked(_ALL, fcntl.LOCK_EX)
            ended = lock is None
            if lock is None:
                self._refuse_another()
                lock = self._wait_for(_ALL, timeout_seconds)
        except OSError as error:
            # On the day nothing of this may be in the way; QEMU's own locks are still there.
            log.warning("rehearsals cannot be kept off: %s%s", error, _advice(error))
            yield False
            return
        try:
            _say_who(lock, f"{who} (pid {os.getpid()})")
            yield ended
        finally:
            _say_who(lock, "")
            os.close(lock)

    def _refuse_another(self) -> None:
        """Whoever has the lock for themselves has written who they are; a rehearsal shares it, and has not."""
        with open(self._path(_ALL), encoding="utf-8", errors="replace") as file:
            holder = file.read(200)
        if holder:
            raise HypervisorError(
                f"{holder} is at anvil-activate-dr or anvil-dr-export at this moment, on another terminal; "
                "wait for that, or end it"
            )

    def _wait_for(self, name: str, timeout_seconds: float) -> int:
        """Ask whoever has this lock to let it go, and take it. Raise HypervisorError."""
        log.info("rehearsal asked to end of=%s", name)
        os.close(os.open(self._note(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        deadline = time.monotonic() + timeout_seconds
        try:
            while True:
                lock = self._locked(name, fcntl.LOCK_EX)
                if lock is not None:
                    return lock
                if time.monotonic() > deadline:
                    what = "a rehearsal" if name == _ALL else f"the rehearsal of {name}"
                    raise HypervisorError(f"{what} does not end: kill it (pgrep -fa rehearse), and try again")
                time.sleep(_POLL_SECONDS)
        finally:
            self._remove_note(name)

    def _locked(self, name: str, kind: int) -> Optional[int]:
        """A descriptor that has the lock; None if somebody else has it."""
        try:
            lock = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            # Where nobody may write, one that is there already still keeps two apart.
            lock = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            os.close(lock)
            return None

    def _make_folders(self) -> None:
        for kind in ("locks", "notes"):
            os.makedirs(os.path.join(self._folder, kind), mode=0o755, exist_ok=True)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, "locks", name) if name else os.path.join(self._folder, "lock")

    def _note(self, name: str) -> str:
        return os.path.join(self._folder, "notes", name) if name else os.path.join(self._folder, "note")

    def _remove_note(self, name: str) -> None:
        try:
            os.unlink(self._note(name))
        except FileNotFoundError:
            pass


def _say_who(lock: int, who: str) -> None:
    """Only a name for others to read: where it cannot be written, the lock holds all the same."""
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, who.encode("utf-8", "replace"), 0)
    except OSError as error:
        log.debug("nobody is told who has the lock: %s", error)


def _advice(error: OSError) -> str:
    return "; run this as root" if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0 else ""
