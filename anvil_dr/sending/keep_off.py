"""Keeps servers off while their disks are read, and starts them again whatever became of the image (SPEC section 9).

Talks to libvirt through lasting_libvirt.py, and notes what it shuts down; off_rules.py says what must not be. A server
that was off already is left off. Being off for longer than needed is the worst this program can do to a server, so:
nothing here is interrupted half way (signals end the session, not this), starting is tried again, one that goes off
later than it was given time for is started too, and what a run that was killed has left off is started by the next,
unless it was started by somebody since.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, Iterable, Iterator, List, Optional

from anvil_dr.definition import TpmRequirement
from anvil_dr.errors import (
    AnvilDrError,
    HypervisorError,
    NotStartedError,
    ShutdownRefusedError,
    SourceChangedError,
    SourceError,
    StateError,
)
from anvil_dr.ports import DomainState, SourceHypervisor
from anvil_dr.sending import off_rules
from anvil_dr.sending.lasting_libvirt import BETWEEN_TRIES_SECONDS, TRY_SECONDS, LastingLibvirt
from anvil_dr.sending.off_note import Notes, OffNote

log = logging.getLogger(__name__)


@dataclass
class _Stopped:
    """A server that was to be shut down."""

    name: str
    made_from: Optional[str]
    """Its definition, if libvirt knows nothing of it while it is off."""
    asked_at: Optional[float]
    """None if it was another run that asked, and this one has not even read its disks."""
    asked: bool = True
    """False if libvirt did not take the order to shut it down."""
    went_off: bool = False
    """Until then one that runs is only slow to shut down."""


class Keeper:
    """Keeps the servers of one job off, one at a time. Afterwards it knows for how long, and whether they run again."""

    def __init__(
        self,
        connect: Callable[[], SourceHypervisor],
        *,
        shut_down: bool,
        notes: Notes,
        refuse: Callable[[str], None] = lambda server: None,
        timeout_seconds: float = 300.0,
        interrupted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`connect` is called now, and again if the connection breaks. Raise HypervisorError if it can't be had.

        Without `shut_down` a running server is refused. `refuse` raises SourceError for one that must neither be imaged
        nor started, whatever state it is in: it's asked before each of the two.
        """
        self._libvirt = LastingLibvirt(
            connect, interrupted=interrupted, tell=lambda text: self.tell(text), clock=clock, sleep=sleep
        )
        self._shut_down, self._timeout_seconds, self._refuse_use = shut_down, timeout_seconds, refuse
        self._notes, self._interrupted, self._clock, self._sleep = notes, interrupted, clock, sleep
        self.tell: Callable[[str], None] = lambda text: None
        """Is told in words what takes long. To be replaced."""
        self._behind: List[_Stopped] = []
        """Those that do not run again, or have not gone off yet."""
        self.downtime_seconds: Dict[str, float] = {}
        """From the order to shut down until it was started again; only of servers that were shut down here."""
        self.not_started: Dict[str, NotStartedError] = {}
        """Servers that were shut down here and could not be started again, or may yet go off."""

    @property
    def hypervisor(self) -> SourceHypervisor:
        """The connection of this moment."""
        return self._libvirt.connection

    def check(self, name: str) -> None:
        """Raise SourceError if this server could not be kept off now. Nothing is changed."""
        self._refuse_use(name)
        state, left = self._libvirt.state(name), self._notes.of(name)
        if state == "gone" and left is None:
            raise SourceError(f"there is no server {name} on this machine; see: virsh list --all")
        self._refuse(name, state, left)
        if left is not None and state not in off_rules.OFF:
            self._notes.forget(name)

    def definition(self, name: str) -> str:
        """Its XML: libvirt's, or what a run that was killed has kept of a transient server. Raise HypervisorError."""
        left = self._notes.of(name)
        if left is not None and left.definition is not None and self._libvirt.state(name) == "gone":
            return left.definition
        return self.hypervisor.definition(name)

    def check_survives_shutdown(self, name: str, tpm: Optional[TpmRequirement]) -> None:
        """Raise SourceError if shutting this server down would destroy a part of it.

        libvirt removes the TPM's state of a transient domain when it ends, unless it's told to keep it.
        """
        lost = tpm is not None and tpm.backend == "emulator" and not tpm.persistent
        if lost and any(domain.name == name and not domain.persistent for domain in self.hypervisor.active()):
            raise SourceError(
                f"{name} is transient and its TPM's state would be lost in a shutdown; "
                "its definition needs persistent_state='yes' at the TPM's <backend>"
            )

    @contextmanager
    def off(self, name: str) -> Iterator[None]:
        """The server is off in this block.

        Raise SourceError or HypervisorError if it can't be had, SourceChangedError if somebody started it meanwhile.
        Whether it could be started again is in `not_started`: that is no reason to give up a good image.
        """
        self._refuse_use(name)
        state, left = self._libvirt.state(name), self._notes.of(name)
        if state == "gone" and left is None:
            raise SourceError(f"{name} has gone since the job began: it has ended, or moved to another node")
        self._refuse(name, state, left)
        if state in off_rules.OFF:
            yield from self._off_already(name, left)
            return
        if self._interrupted():
            raise SourceError(f"{name} was not shut down, because the job was interrupted")
        asked_at = self._clock()
        stopped = _Stopped(name, self._noted(name), asked_at)
        try:
            self.tell(f"{name}: shutting down (it has {self._timeout_seconds:g} seconds)")
            try:
                self.hypervisor.shutdown(name, timeout_seconds=self._timeout_seconds)
            except ShutdownRefusedError:
                stopped.asked = False
                raise
            stopped.went_off = True
            state = self._libvirt.state(name)
            if state not in off_rules.OFF:
                raise SourceError(f"{name} was shut down and is {state} all the same; does a cluster watch over it?")
            log.info("server off server=%s seconds=%.1f", name, self._clock() - asked_at)
            self.tell(f"{name}: off")
            yield
            self._check_still_off(name)
        finally:
            self._put_back(stopped)

    def start_late(self) -> None:
        """Start servers that were too slow to shut down but go off after all; they get the same time once more.

        Those that could not be started are tried again. For the end of a job. Returns at once if all is well, and soon
        after an interruption.
        """
        late = self._late()
        if late:
            names = ", ".join(stopped.name for stopped in late)
            self.tell(f"{names}: still shutting down; started again if off within {self._timeout_seconds:g} seconds")
        until = self._clock() + self._timeout_seconds
        while self._behind:
            behind, self._behind = self._behind, []
            for stopped in behind:
                self._put_back(stopped, tries_seconds=0)
            late = self._late()
            if not late or self._clock() >= until or self._interrupted():
                break
            self._sleep(BETWEEN_TRIES_SECONDS)
        for stopped in late:
            reason = f"did not shut down within {self._timeout_seconds:g} seconds, nor since then"
            log.warning("server may go off yet server=%s", stopped.name)
            by_hand = off_rules.by_hand(stopped.name, self._notes.of(stopped.name), None)
            self.not_started[stopped.name] = NotStartedError(stopped.name, reason, by_hand, is_off=False)

    def start_left_off(self, names: Iterable[str]) -> None:
        """Start those that a run which was killed has left off, and that this job did not come to.

        For the end of a job, whatever became of it.
        """
        handled = {stopped.name for stopped in self._behind}
        for name in names:
            left = self._notes.of(name)
            if name in handled or left is None or left.doubt or left.held:
                continue
            try:
                self._refuse_use(name)
                if self._libvirt.persist(partial(self._stays_off, left), TRY_SECONDS):
                    continue
                if not self._notes.take_over(name):
                    continue  # somebody has started it since
            except AnvilDrError as error:
                log.error("server left off server=%s error=%s", name, error)
                self.tell(f"{name}: off since {left.since}, when a run was broken off, and left off: {error}")
                continue
            self.tell(f"{name}: off since {left.since}, when a run was broken off; it is started now")
            self._put_back(_Stopped(name, _made_from(left), None, went_off=True))

    # — inner parts —

    def _refuse(self, name: str, state: DomainState, left: Optional[OffNote]) -> None:
        off_rules.refuse(
            name,
            state,
            left,
            saved=lambda: self.hypervisor.is_saved(name),
            shut_down=self._shut_down,
        )

    def _stays_off(self, left: OffNote) -> bool:
        """Somebody has saved it with its memory, or undefined it, since."""
        state = self.hypervisor.state(left.server)
        return self.hypervisor.is_saved(left.server) if state == "shut off" else state == "gone" and not left.transient

    def _off_already(self, name: str, left: Optional[OffNote]) -> Iterator[None]:
        """One that a run has shut down that was killed, is started; any other stays off."""
        if left is None or left.doubt:
            if left is not None:
                start = off_rules.by_hand(name, left, "shut off")
                self.tell(f"{name}: shut down for its image at {left.since}, and left off, because {left.doubt}; "
                          f"if it is to run: {start}")  # fmt: skip
            yield
            self._check_still_off(name)
            return
        if not self._notes.take_over(name):
            raise SourceError(off_rules.held_by_another(name))
        self.tell(f"{name}: off since {left.since}, when a run was broken off; it is started after its image")
        stopped = _Stopped(name, _made_from(left), self._clock(), went_off=True)
        try:
            yield
            self._check_still_off(name)
        finally:
            self._put_back(stopped)

    def _noted(self, name: str) -> Optional[str]:
        """Note that it will be off. Returns what it is made from again, if its definition ends with it."""
        transient = any(domain.name == name and not domain.persistent for domain in self.hypervisor.active())
        xml = self.hypervisor.definition(name)
        try:
            self._notes.keep(name, xml, transient=transient)
            if transient:
                self.tell(f"{name}: until it runs again, its definition is in {self._notes.path(name)}")
        except StateError as error:
            # An image is worth more than the note, which only a crash makes use of.
            log.warning("not noted that it is off server=%s error=%s", name, error)
        return xml if transient else None

    def _check_still_off(self, name: str) -> None:
        self._refuse_use(name)
        state = self._libvirt.persist(lambda: self.hypervisor.state(name), TRY_SECONDS)
        if state not in off_rules.OFF:
            raise SourceChangedError(name, f"somebody started it: it is {state}")

    def _late(self) -> List[_Stopped]:
        return [stopped for stopped in self._behind if not stopped.went_off]

    def _put_back(self, stopped: _Stopped, *, tries_seconds: float = TRY_SECONDS) -> None:
        """Start it, unless it runs or must not be. Never raises what libvirt says: `not_started` has it."""
        name = stopped.name
        if not stopped.asked:
            self._notes.forget(name)  # or the next run would start it if somebody shuts it down on purpose
            return
        state: Optional[DomainState] = None
        try:
            state = self._libvirt.persist(lambda: self._start_if_off(stopped), tries_seconds)
            if state in off_rules.CANNOT_BE_STARTED:
                raise HypervisorError(off_rules.CANNOT_BE_STARTED[state])
        except HypervisorError as error:
            log.error("server not started server=%s error=%s", name, error)
            self._behind.append(stopped)
            by_hand = off_rules.by_hand(name, self._notes.of(name), state)
            self.not_started[name] = NotStartedError(name, str(error), by_hand, libvirt_code=error.libvirt_code)
            return
        except SourceError as refused:
            log.error("server not started server=%s error=%s", name, refused)
            self.not_started[name] = NotStartedError(name, str(refused), "")
            return
        if not stopped.went_off:
            self._behind.append(stopped)
            return
        self._notes.forget(name)
        self.not_started.pop(name, None)
        if stopped.asked_at is None:
            log.info("server runs again server=%s", name)
            self.tell(f"{name}: runs again")
            return
        self.downtime_seconds[name] = self._clock() - stopped.asked_at
        log.info("server runs again server=%s downtime_seconds=%.1f", name, self.downtime_seconds[name])
        self.tell(f"{name}: runs again, after {self.downtime_seconds[name]:.0f} seconds")

    def _start_if_off(self, stopped: _Stopped) -> DomainState:
        """One try. Its state, as it was if it was not off: whoever watches over it, such as a cluster's resource
        manager, may have been faster. Raise HypervisorError; SourceError if it must not be started."""
        state = self.hypervisor.state(stopped.name)
        if state not in off_rules.OFF:
            stopped.went_off = stopped.went_off or state == "crashed"
            return state
        stopped.went_off = True
        self._refuse_use(stopped.name)
        if stopped.made_from is not None:
            self.hypervisor.boot(stopped.made_from)
        elif state == "gone":
            return state
        else:
            self.hypervisor.start(stopped.name)
        return "running"


def _made_from(left: OffNote) -> Optional[str]:
    return left.definition if left.transient else None
