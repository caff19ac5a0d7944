"""A node's libvirt that may end and come back in the middle of a job, as in an update of it.

Touches connections to libvirt, through ports.SourceHypervisor. What is asked, and how long it is worth waiting for an
answer, is the asker's.
"""

from __future__ import annotations

import logging
from typing import Callable, Final, TypeVar

from anvil_dr.errors import HypervisorError
from anvil_dr.ports import DomainState, SourceHypervisor

log = logging.getLogger(__name__)
T = TypeVar("T")

TRY_SECONDS: Final = 300.0
"""How long libvirt is asked again and again while a server is off: it may be in the middle of an update."""
_TRY_SECONDS_INTERRUPTED: Final = 60.0
"""The same once the command is to end: systemd kills it after 90."""
BETWEEN_TRIES_SECONDS: Final = 2.0


class LastingLibvirt:
    """A connection that is made anew when it breaks."""

    def __init__(
        self,
        connect: Callable[[], SourceHypervisor],
        *,
        interrupted: Callable[[], bool],
        tell: Callable[[str], None],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        """`connect` is called now, and again if the connection breaks. Raise HypervisorError if it can't be had.

        `tell` is told in words if an answer takes long; less long is waited once `interrupted` says so.
        """
        self.connection = connect()
        self._connect, self._interrupted, self._tell = connect, interrupted, tell
        self._clock, self._sleep = clock, sleep
        self._reconnect_first = False

    def persist(self, ask: Callable[[], T], tries_seconds: float) -> T:
        """Ask libvirt until it answers, for so long and on new connections. Raise HypervisorError, the last one."""
        began, told = self._clock(), False
        while True:
            try:
                if self._reconnect_first:
                    self._reconnect()
                return ask()
            except HypervisorError as error:
                self._reconnect_first = True
                if self._interrupted():
                    tries_seconds = min(tries_seconds, _TRY_SECONDS_INTERRUPTED)
                if self._clock() - began >= tries_seconds:
                    raise
                log.warning("libvirt is asked again error=%s", error)
                if not told:
                    self._tell(f"libvirt: {error}; tried again for up to {tries_seconds:g} seconds")
                told = True
            self._sleep(BETWEEN_TRIES_SECONDS)

    def state(self, name: str) -> DomainState:
        """Ask once more on a new connection if the old one is broken, as after an update of libvirt."""
        try:
            return self.connection.state(name)
        except HypervisorError as error:
            log.warning("connecting to libvirt again, because: %s", error)
            self._reconnect()
            return self.connection.state(name)

    def _reconnect(self) -> None:
        old, self.connection = self.connection, self._connect()
        self._reconnect_first = False
        try:
            old.close()
        except HypervisorError as error:
            log.debug("the old connection could not be closed: %s", error)
