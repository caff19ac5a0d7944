"""libvirt as boots see it: one that restarts in the middle of them, as in an update, is connected to again.

Touches connections to the hypervisor. Any number of threads may use one of these.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Final, List, Optional

from anvil_dr.activation.boot_words import OFF
from anvil_dr.errors import HypervisorError
from anvil_dr.ports import DomainState, Hypervisor

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 60.0
"""How long a libvirt that does not answer is asked again. Servers run on meanwhile."""
_POLL_SECONDS: Final = 1.0


class BootConnection:
    """`again` makes a new connection, or raises HypervisorError; None where there is no other."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        again: Optional[Callable[[], Hypervisor]],
        now: Callable[[], float],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._current, self._again, self._now, self._sleep = hypervisor, again, now, sleep
        self._own: List[Hypervisor] = []
        self._lock = threading.Lock()

    def state(self, server: str) -> DomainState:
        """Raise HypervisorError if a new connection does not know either."""
        used = self._current
        try:
            return used.state(server)
        except HypervisorError as error:
            return self._renewed(used, error).state(server)

    def agent_answers(self, server: str, *, timeout_seconds: int) -> bool:
        """Raise HypervisorError if the server is not there."""
        return self._current.agent_answers(server, timeout_seconds=timeout_seconds)

    def boot(self, server: str, xml: str) -> None:
        """Boot it; on a new connection, if the old one broke before that. Raise HypervisorError."""
        used = self._current
        try:
            used.boot(xml)
            return
        except HypervisorError as error:
            try:
                used.state(server)
            except HypervisorError:
                refused = error
            else:
                raise  # libvirt is there, and has said so
        log.warning("libvirt went away in a boot server=%s error=%s", server, refused)
        if self._state_in_time(server, refused) in OFF:
            self._current.boot(xml)

    def close(self) -> None:
        """The connections that were made here; the first one is somebody else's."""
        for connection in self._own:
            try:
                connection.close()
            except HypervisorError as error:
                log.debug("a connection could not be closed: %s", error)

    def _state_in_time(self, server: str, error: HypervisorError) -> DomainState:
        until = self._now() + PATIENCE_SECONDS
        while True:
            try:
                return self.state(server)
            except HypervisorError as silent:
                if self._now() >= until:
                    raise error from silent
                self._sleep(_POLL_SECONDS)

    def _renewed(self, used: Hypervisor, error: HypervisorError) -> Hypervisor:
        """The connection after this one, which failed. Raise HypervisorError."""
        with self._lock:
            if self._current is used:
                if self._again is None:
                    raise error
                self._current = self._again()
                self._own.append(self._current)
                log.info("connected to libvirt again, because: %s", error)
            return self._current
