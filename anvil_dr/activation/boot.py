"""Carries out a boot plan: transient domains, each in its turn and several at once, and a look at whether they stay up.

Touches the hypervisor, the marks (boot_mark.py), and what the footing puts in place. Holds no policy: what is
booted, and behind what, is in the plan.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Callable, Dict, Final, List, Literal, Optional, Protocol, Sequence, Tuple

from anvil_dr.activation import boot_words
from anvil_dr.activation.boot_connection import PATIENCE_SECONDS, BootConnection
from anvil_dr.activation.boot_mark import Marker, Marks
from anvil_dr.activation.boot_plan import BootPlan, Outcome, PlannedServer
from anvil_dr.errors import AnvilDrError, HypervisorError
from anvil_dr.ports import Hypervisor

log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 10.0
"""Where KVM is broken, a guest is started, seen running, and suspended five seconds later; on a busy host, more."""
AT_ONCE: Final = 8
"""More boots at the same time would only share the disks' speed."""

_POLL_SECONDS: Final = 0.1
_ASK_AGAIN_SECONDS: Final = 1.0
_AGENT_SECONDS: Final = 2

Phase = Literal["waiting", "booting", "running", "answers", "failed", "left out", "unknown"]


class Footing(Protocol):
    """What has to be in place under a server before it is booted."""

    def prepare(self, planned: PlannedServer) -> str:
        """Put it in place; return the XML to boot. Called once the server is marked. Raise AnvilDrError."""
        ...

    def undo(self, planned: PlannedServer) -> None:
        """It was never booted: take away what would be taken for something that it wrote. Raise AnvilDrError."""
        ...


class AsPlanned:
    """A footing for servers that need nothing but their images."""

    def prepare(self, planned: PlannedServer) -> str:
        return planned.draft.xml or ""

    def undo(self, planned: PlannedServer) -> None:
        pass


class Observer(Protocol):
    """Told how it goes. Nothing that it does may raise."""

    def phase(self, server: str, phase: Phase, seconds: float, note: str = "") -> None:
        """A server has come to this point, so many seconds after the beginning."""
        ...

    def unmarked(self, server: str, reason: str) -> None:
        """It is about to be booted, but jobs don't know that they must keep off its images."""
        ...

    def pending(self, words: str) -> None:
        """What everybody waits for at this moment; empty at the end."""
        ...


def execute(
    plan: BootPlan,
    hypervisor: Hypervisor,
    marks: Optional[Marks],
    user: str,
    observer: Observer,
    *,
    footing: Optional[Footing] = None,
    answer_seconds: float = 0.0,
    stopped: Callable[[], bool] = lambda: False,
    workers: Optional[Executor] = None,
    again: Optional[Callable[[], Hypervisor]] = None,
    now: Callable[[], float] = time.monotonic,
    sleep: Optional[Callable[[float], None]] = None,
) -> Tuple[Outcome, ...]:
    """Boot every server that is ready, in the order of the plan; what became of each, in the same order.

    One that fails stops only those that start after it, and nothing of ours is raised. `marks` is None where the
    state cannot be written. Guests with an agent are waited for until they answer, for `answer_seconds` at most.
    Once `stopped` says so nothing more is started, and what runs is left running. `again` connects to libvirt anew,
    should it restart meanwhile.
    """
    own = None if workers else ThreadPoolExecutor(AT_ONCE, thread_name_prefix="boot")
    connection = BootConnection(hypervisor, again, now, sleep or time.sleep)
    try:
        boots = _Boots(plan, connection, Marker(marks, user, observer.unmarked), footing or AsPlanned(), observer, now)
        boots.workers = workers or own
        boots.answer_seconds = answer_seconds
        while not boots.are_done(stopped()):
            (sleep or boots.pause)(_POLL_SECONDS)
        boots.look_once_more()
        observer.pending("")
        return boots.outcomes()
    finally:
        if own is not None:
            own.shutdown(wait=False)
        connection.close()


class _Boot:
    """One server on its way."""

    def __init__(self, planned: PlannedServer) -> None:
        self.planned, self.server = planned, planned.server
        self.phase: Phase = "waiting"
        self.work: Optional[Future[None]] = None
        self.question: Optional[Future[bool]] = None
        self.asked_at = 0.0
        self.booted_at = 0.0
        self.looked_at = 0.0
        self.silent_since: Optional[float] = None
        """Since when nobody can tell its state."""
        self.outcome = Outcome(planned.server)

    @property
    def is_up(self) -> bool:
        return self.phase in ("running", "answers")


class _Boots:
    """All of them; one thread decides, and the workers wait for libvirt."""

    workers: Optional[Executor] = None
    answer_seconds = 0.0

    def __init__(
        self,
        plan: BootPlan,
        connection: BootConnection,
        marker: Marker,
        footing: Footing,
        observer: Observer,
        now: Callable[[], float],
    ) -> None:
        self._connection, self._marker, self._footing = connection, marker, footing
        self._observer, self._now, self._began = observer, now, now()
        self._news = threading.Event()
        self._boots: Dict[str, _Boot] = {planned.server: _Boot(planned) for planned in plan.ready}
        for boot in self._boots.values():
            if boot.planned.after or boot.planned.delay_seconds:
                self._say(boot, "waiting", boot_words.turn(boot.planned))

    def outcomes(self) -> Tuple[Outcome, ...]:
        failed = self._marker.failed
        return tuple(replace(boot.outcome, unmarked=boot.server in failed) for boot in self._boots.values())

    def are_done(self, stopped: bool) -> bool:
        """Do what can be done at this moment; True if there is nothing left to do or to wait for."""
        for boot in self._boots.values():
            if boot.phase == "waiting":
                self._start_if_due(boot, stopped)
            if boot.phase == "booting":
                self._look_at_work(boot)
            if boot.is_up:
                self._look_at_guest(boot)
        self._observer.pending(self._pending())
        if any(boot.phase in ("waiting", "booting") for boot in self._boots.values()):
            return False
        return stopped or not any(self._is_waited_for(boot) for boot in self._boots.values())

    def pause(self, seconds: float) -> None:
        """At most so long: a boot that has come to its end is looked at now."""
        self._news.wait(seconds)
        self._news.clear()

    def look_once_more(self) -> None:
        """What was booted early may have gone since: nobody is told that it runs because it did once."""
        for boot in self._boots.values():
            if boot.is_up:
                self._look_at_state(boot, last=True)

    def _start_if_due(self, boot: _Boot, stopped: bool) -> None:
        before = self._before(boot)
        missing = [one for one in before if one.phase in ("failed", "left out", "unknown")]
        if stopped:
            self._end(boot, "left out", "it was not its turn yet when you stopped", "type the same again")
        elif missing:
            advice = f"boot it all the same: anvil-activate-dr --server {boot.server}"
            unknown = all(one.phase == "unknown" for one in missing)
            self._end(boot, "left out", boot_words.behind([one.server for one in missing], unknown), advice)
        elif all(one.is_up and one.silent_since is None for one in before):
            if self._now() >= self._due_at(boot, before) and self.workers is not None:
                # Marked before it is booted: in between, no job may begin to write the images. One that changes sets
                # is marked already; its mark says the other set once all that belongs to that one is in place.
                if boot.planned.draft.left is None:
                    self._marker.mark(boot.planned)
                self._say(boot, "booting")
                boot.work = self.workers.submit(self._boot, boot.planned)
                boot.work.add_done_callback(lambda _: self._news.set())

    def _boot(self, planned: PlannedServer) -> None:
        xml = self._footing.prepare(planned)
        if planned.draft.left is not None:
            self._marker.mark(planned)
        self._connection.boot(planned.server, xml)

    def _look_at_work(self, boot: _Boot) -> None:
        if boot.work is None or not boot.work.done():
            return
        try:
            boot.work.result()
        except AnvilDrError as error:
            if self._is_off(boot.server):
                said = f"{error}{self._undo(boot.planned)}"
                self._end(boot, "failed", said, f"correct it, then: anvil-activate-dr --server {boot.server}")
            else:
                advice = f"look for yourself: virsh domstate {boot.server}; it stays marked as activated"
                self._end(boot, "unknown", f"{error}; and yet it may be running", advice)
            return
        boot.booted_at = self._now()
        boot.outcome = Outcome(boot.server, booted_seconds=self._seconds())
        self._say(boot, "running")

    def _undo(self, planned: PlannedServer) -> str:
        """Leave it as if nobody had tried; what to add to the error where that is impossible."""
        try:
            self._footing.undo(planned)
        except AnvilDrError as error:
            # It stays marked: what is left of it is given back as if it had run.
            return f"; and {error}; no job writes over it until: anvil-activate-dr --release {planned.server} --discard"
        self._marker.undo(planned)
        return ""

    def _is_off(self, server: str) -> bool:
        """True if it certainly does not run: a connection that breaks in a boot does not take the guest with it."""
        try:
            return self._connection.state(server) in boot_words.OFF
        except HypervisorError:
            return False

    def _look_at_guest(self, boot: _Boot) -> None:
        """Whether it stays up, and whether its agent answers by now. Whoever stayed up is looked at less often."""
        watched = self._is_watched(boot) and boot.silent_since is None
        if watched or self._now() >= boot.looked_at + _ASK_AGAIN_SECONDS:
            self._look_at_state(boot)
        if self._is_asked(boot) and self.workers is not None:
            if boot.question is None and self._now() >= boot.asked_at + _ASK_AGAIN_SECONDS:
                boot.asked_at = self._now()
                boot.question = self.workers.submit(self._ask, boot.server)
            if boot.question is not None and boot.question.done():
                if boot.question.result():
                    boot.outcome = Outcome(boot.server, None, "", boot.outcome.booted_seconds, self._seconds())
                    self._say(boot, "answers")
                boot.question = None

    def _look_at_state(self, boot: _Boot, *, last: bool = False) -> None:
        """`last`: there is no time to ask again."""
        boot.looked_at = self._now()
        try:
            state = self._connection.state(boot.server)
        except HypervisorError as error:
            # Servers run on while libvirt restarts.
            if boot.silent_since is None:
                boot.silent_since = self._now()
                log.warning("its state is not known server=%s error=%s", boot.server, error)
            if last or self._now() >= boot.silent_since + PATIENCE_SECONDS:
                self._end(boot, "unknown", str(error), f"look for yourself: virsh domstate {boot.server}")
            return
        boot.silent_since = None
        if state != "running":
            stayed_up = not self._is_watched(boot)
            said = boot_words.not_running(state, self._now() - boot.booted_at if stayed_up else None)
            self._end(boot, "failed", said, boot_words.advice(boot.server))

    def _ask(self, server: str) -> bool:
        try:
            return self._connection.agent_answers(server, timeout_seconds=_AGENT_SECONDS)
        except HypervisorError:
            # It ended meanwhile, which the next look at its state tells.
            return False

    def _is_watched(self, boot: _Boot) -> bool:
        return boot.is_up and self._now() < boot.booted_at + WATCH_SECONDS

    def _is_waited_for(self, boot: _Boot) -> bool:
        silent = boot.is_up and boot.silent_since is not None
        return silent or self._is_watched(boot) or self._is_asked(boot)

    def _is_asked(self, boot: _Boot) -> bool:
        waits = self._now() < boot.booted_at + self.answer_seconds
        return boot.phase == "running" and boot.planned.draft.has_agent and waits

    def _pending(self) -> str:
        waiting: List[str] = []
        names: Dict[boot_words.Pending, List[str]] = {"booting": [], "silent": [], "watched": []}
        for boot in self._boots.values():
            if boot.phase == "booting":
                names["booting"].append(boot.server)
            elif self._is_asked(boot):
                names["silent"].append(boot.server)
            elif self._is_watched(boot):
                names["watched"].append(boot.server)
            elif boot.phase == "waiting":
                waiting.append(self._due(boot))
        return boot_words.pending(waiting, names)

    def _due(self, boot: _Boot) -> str:
        before = self._before(boot)
        down = [one.server for one in before if not one.is_up]
        return boot_words.due(boot.server, down, self._due_at(boot, before) - self._now())

    def _before(self, boot: _Boot) -> List[_Boot]:
        """Those that it starts after."""
        return [self._boots[server] for server in boot.planned.after if server in self._boots]

    def _due_at(self, boot: _Boot, before: Sequence[_Boot]) -> float:
        """When its delay is over, if all before it run."""
        return max((one.booted_at for one in before), default=self._began) + boot.planned.delay_seconds

    def _end(self, boot: _Boot, phase: Phase, error: str, advice: str) -> None:
        log.info("server %s server=%s error=%s", phase, boot.server, error)
        boot.outcome = Outcome(boot.server, error, advice, boot.outcome.booted_seconds, None, phase == "unknown")
        self._say(boot, phase, error)

    def _say(self, boot: _Boot, phase: Phase, note: str = "") -> None:
        boot.phase = phase
        self._observer.phase(boot.server, phase, self._seconds(), note)

    def _seconds(self) -> float:
        return self._now() - self._began
