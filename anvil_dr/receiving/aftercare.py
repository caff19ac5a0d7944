"""What is done on the DR box after each job, and once a day: a look whether the servers could be booted today.

Touches a thread of its own. The work is a command of its own, so that nothing in it can hold up or end a job: neither
a libvirt that hangs nor one that is not there.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import Callable, Final, Iterator

from anvil_dr.errors import CommandError

log = logging.getLogger(__name__)

DAY_SECONDS: Final = 24 * 3600.0
_SETTLE_SECONDS: Final = 2.0
"""Jobs often come one behind the other; one look after the last of them is enough."""


class Aftercare:
    """Waits for jobs to end. `work` raises CommandError."""

    def __init__(
        self,
        work: Callable[[], object],
        *,
        day_seconds: float = DAY_SECONDS,
        settle_seconds: float = _SETTLE_SECONDS,
        first_seconds: float = 60.0,
    ) -> None:
        """`first_seconds` after the start it's done for the first time, jobs or not."""
        self._work, self._day_seconds, self._settle_seconds = work, day_seconds, settle_seconds
        self._first_seconds = first_seconds
        self._due, self._stopping = threading.Event(), threading.Event()

    def job_ended(self) -> None:
        """To be called by whoever ends a job; never waits."""
        self._due.set()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Meanwhile it is done. The end does not wait for a command that runs."""
        threading.Thread(target=self._run, name="aftercare", daemon=True).start()
        try:
            yield
        finally:
            self._stopping.set()
            self._due.set()

    def _run(self) -> None:
        seconds = self._first_seconds
        while True:
            asked = self._due.wait(seconds)
            if asked and not self._stopping.is_set():
                self._stopping.wait(self._settle_seconds)
            if self._stopping.is_set():
                return
            self._due.clear()
            began = time.monotonic()
            try:
                self._work()
                log.info("aftercare done seconds=%.1f", time.monotonic() - began)
            except CommandError as error:
                # Its exit code is 1 if a server could not be booted, which is what the status shows.
                log.info("aftercare ended seconds=%.1f said=%s", time.monotonic() - began, error)
            seconds = self._day_seconds
