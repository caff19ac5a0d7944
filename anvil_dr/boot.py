"""Carries out a boot plan: one transient domain after the other, and a look at whether they stay up.

Touches the hypervisor and the marks of activated servers. Holds no policy: what is booted, and when, is in the plan.
"""

from __future__ import annotations

import logging
import time
from typing import Callable, Dict, Final, Optional, Protocol, Tuple

from anvil_dr.boot_plan import BootPlan, Outcome, PlannedServer
from anvil_dr.errors import HypervisorError, StateError
from anvil_dr.ports import DomainState, Hypervisor

log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 7.0
"""Where KVM is broken, a guest is started, seen running, and suspended within five seconds."""

_POLL_SECONDS: Final = 0.5


class Marks(Protocol):
    """Remembers which servers are activated. state.State is one."""

    def activate(self, server: str, sequence: int, user: str) -> object:
        """Raise StateError."""
        ...

    def release(self, server: str) -> bool:
        """Raise StateError."""
        ...


class Observer(Protocol):
    """Told how it goes."""

    def waiting(self, server: str, seconds: float) -> None:
        """It is this server's turn in so many seconds."""
        ...

    def booted(self, server: str, seconds: float) -> None: ...

    def failed(self, outcome: Outcome) -> None: ...

    def unmarked(self, server: str, reason: str) -> None:
        """It is booted, but jobs don't know that they must keep off its images."""
        ...

    def watching(self, seconds: float) -> None:
        """All are booted; now it takes so long to see whether they stay up."""
        ...


def execute(
    plan: BootPlan,
    hypervisor: Hypervisor,
    marks: Optional[Marks],
    user: str,
    observer: Observer,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Tuple[Outcome, ...]:
    """Boot every server that is ready, in the order of the plan; what became of each, in the same order.

    One that fails does not stop the others, and nothing of ours is raised. `marks` is None where the state cannot
    be written.
    """
    run = _Run(hypervisor, observer, now, sleep)
    marker = _Marker(marks, user, observer)
    began = now()
    for planned in plan.ready:
        # One that did not come up is not waited for: better out of order than not at all.
        awaited = [run.booted[server] for server in planned.after if server in run.booted]
        due = (max(awaited) if awaited else began) + planned.delay_seconds
        if due > now():
            observer.waiting(planned.server, due - now())
            run.watch_until(due)
        run.boot(planned, marker)
    if run.booted:
        observer.watching(WATCH_SECONDS)
        run.watch_until(max(run.booted.values()) + WATCH_SECONDS)
    return tuple(run.failed.get(planned.server, Outcome(planned.server)) for planned in plan.ready)


class _Marker:
    """Marks servers as activated, and goes on where that is impossible."""

    def __init__(self, marks: Optional[Marks], user: str, observer: Observer) -> None:
        self._marks, self._user, self._observer = marks, user, observer

    def mark(self, planned: PlannedServer) -> None:
        sequence = planned.draft.chosen.sequence if planned.draft.chosen is not None else None
        try:
            if self._marks is None:
                raise StateError("the state cannot be written")
            if isinstance(sequence, int):
                self._marks.activate(planned.server, sequence, self._user)
        except StateError as error:
            self._observer.unmarked(planned.server, str(error))

    def undo(self, planned: PlannedServer) -> None:
        """It was never booted. One that was marked before has run before, and its images stay its own."""
        try:
            if self._marks is not None and not planned.draft.activated:
                self._marks.release(planned.server)
        except StateError as error:
            log.warning("mark stays server=%s error=%s", planned.server, error)


class _Run:
    """The servers that were booted so far, and those of them that did not stay up."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        observer: Observer,
        now: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._hypervisor, self._observer, self._now, self._sleep = hypervisor, observer, now, sleep
        self.booted: Dict[str, float] = {}
        self.failed: Dict[str, Outcome] = {}

    def boot(self, planned: PlannedServer, marker: _Marker) -> None:
        began = self._now()
        # Marked before it is booted: in between, no job may begin to write the images.
        marker.mark(planned)
        try:
            self._hypervisor.boot(planned.draft.xml or "")
        except HypervisorError as error:
            marker.undo(planned)
            self._fail(Outcome(planned.server, str(error)))
            return
        self.booted[planned.server] = self._now()
        self._observer.booted(planned.server, self._now() - began)

    def watch_until(self, end: float) -> None:
        """Sleep, with an eye on those that were booted a moment ago."""
        while True:
            for server, since in self.booted.items():
                if server not in self.failed and self._now() < since + WATCH_SECONDS + _POLL_SECONDS:
                    self._look(server)
            if self._now() >= end:
                return
            self._sleep(min(_POLL_SECONDS, end - self._now()))

    def _look(self, server: str) -> None:
        try:
            state = self._hypervisor.state(server)
        except HypervisorError as error:
            self._fail(Outcome(server, str(error), f"look for yourself: virsh domstate {server}"))
            return
        if state != "running":
            self._fail(Outcome(server, _IN_WORDS.get(state, f"it is {state}"), _ADVICE.format(server=server)))

    def _fail(self, outcome: Outcome) -> None:
        log.info("server failed server=%s error=%s", outcome.server, outcome.error)
        self.failed[outcome.server] = outcome
        self._observer.failed(outcome)


_ADVICE: Final = "look at /var/log/libvirt/qemu/{server}.log and, for KVM, at: dmesg | tail"

_IN_WORDS: Final[Dict[DomainState, str]] = {
    "paused": "it was booted and then paused: KVM does not work on this host, or a disk gave an error",
    "suspended": "it was booted and then suspended: KVM may not work on this host",
    "crashed": "it was booted and then crashed",
    "gone": "it was booted and ended at once",
    "shut off": "it was booted and ended at once",
}
