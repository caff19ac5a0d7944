"""The main way of `anvil-activate-dr`: shows the plan, asks, boots, and says how it ended.

Touches what the other modules touch for it, the terminal, and this process's signal handlers while it boots.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Callable, Dict, Final, FrozenSet, Iterator, List, Mapping, Optional, Tuple

from anvil_dr import command
from anvil_dr.activation import (
    activate,
    activation_json,
    activation_text,
    boot,
    check_record,
    check_result,
    life_signs,
    nodes,
    prober,
    runbook_file,
    survey,
)
from anvil_dr.activation.activate import Request
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.boot_plan import BootPlan, Outcome
from anvil_dr.activation.footing import Ground
from anvil_dr.activation.overlays import Overlays
from anvil_dr.activation.survey import Survey
from anvil_dr.cli import activate_record, activate_view
from anvil_dr.config import Config
from anvil_dr.errors import AnvilDrError, StateError
from anvil_dr.model import SetRecord
from anvil_dr.ports import Hypervisor, Store
from anvil_dr.preflight.findings import Finding
from anvil_dr.preflight.host import LocalHost
from anvil_dr.receiving.target import utc_now
from anvil_dr.records.state import State
from anvil_dr.rehearsal import rehearsal_stage
from anvil_dr.rehearsal.rehearsal_turns import RehearsalTurns
from anvil_dr.words import count, listed

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 60.0
"""How long somebody at a terminal is shown guests that have not answered yet."""

FRESH_SECONDS: Final = 60.0
"""So long after it was shown, a plan is carried out without another look for signs of life."""


@dataclass(frozen=True)
class Box:
    """What this command works on."""

    config: Config
    store: Store
    state: Optional[State]
    overlays: Overlays
    warnings: Tuple[str, ...]
    cached: Tuple[SetRecord, ...] = ()
    """Sets on cache drives, whose images the store has beside its own."""

    @property
    def places(self) -> FirmwarePlaces:
        return FirmwarePlaces(self.config.state, self.config.definitions)

    @property
    def rehearsal_overlays(self) -> Overlays:
        """Never those that a server runs on for real."""
        return Overlays(os.path.join(self.config.overlays, "rehearsals"), command.run)

    def survey(self) -> Survey:
        config = self.config
        return survey.survey(
            self.store, self.state, config.definitions, overlays=self.overlays, kept=config.state, cached=self.cached
        )


@dataclass(frozen=True)
class Manner:
    """How it is to be done."""

    check: bool
    yes: bool
    as_json: bool
    answer_seconds: Optional[float]
    on_overlays: bool = False
    quiet: bool = False
    """A check that only its record and its exit code tell of."""


@contextmanager
def alone(config: Config, *, keeps_rehearsals_off: bool) -> Iterator[None]:
    """Meanwhile nothing is rehearsed: what is at this moment, is ended. Raise HypervisorError if it doesn't end."""
    if not keeps_rehearsals_off:
        yield
        return
    with RehearsalTurns(config.runtime).forbid(who=activate_record.user()) as ended:
        if ended:
            print("A rehearsal was running; it has been ended.", file=sys.stderr)
        yield


def tidy_up(box: Box) -> None:
    """What needs no hypervisor: the paper runbook as it is true now, and no rests of rehearsals that were killed."""
    try:
        runbook_file.write(box.config, box.survey(), box.store, box.places, utc_now())
    except AnvilDrError as error:
        log.warning("the runbook cannot be written: %s", error)
    rehearsal_stage.sweep(box.rehearsal_overlays, box.places, RehearsalTurns(box.config.runtime))


def run(box: Box, request: Request, manner: Manner, hypervisor: Hypervisor) -> int:
    """Show, ask, boot. The exit code: 0 if every server that was asked for runs, or could be booted."""
    seen = box.survey()
    box = replace(box, warnings=(*box.warnings, *_no_images(box, seen)))
    planner = _Planner(box, seen, hypervisor, request, manner)
    if not manner.check:
        planner.look_for_life()
    plan = planner.plan()
    if not (manner.as_json or manner.quiet):
        _show(plan, box.config, manner)
    if manner.check:
        if not request.is_special:
            check_record.write(box.config.state, check_result.of_plan(plan, utc_now()))
        if manner.as_json:
            activate_view.show_json(activation_json.plan_to_json(plan, None))
        elif plan.servers and not manner.quiet:
            activate_view.show([activation_text.verdict(plan)])
        return 1 if plan.blocked or not plan.servers else 0
    typed: FrozenSet[str] = frozenset()
    if not manner.yes:
        try:
            decided = _decide(planner, plan)
        except KeyboardInterrupt:
            print("Nothing was booted.")
            raise
        if decided is None:
            print("Nothing was booted.")
            return 1
        plan, typed = decided
    forced = activate_record.tell_of_forced(plan, typed)
    began = time.monotonic()
    outcomes = _boot(box, plan, manner, hypervisor) if plan.ready else ()
    _mark_running(box, plan)
    seconds = time.monotonic() - began
    record = activate_record.keep(box.config, plan, outcomes, request, forced)
    _end(plan, outcomes, seconds, record, manner)
    failed = any(outcome.error is not None for outcome in outcomes)
    return 1 if failed or plan.blocked or not plan.servers else 0


class _Planner:
    """Makes the plan anew when the admin decides something, or when time has passed."""

    def __init__(self, box: Box, seen: Survey, hypervisor: Hypervisor, request: Request, manner: Manner) -> None:
        self._box, self._seen, self._hypervisor, self._request, self._manner = box, seen, hypervisor, request, manner
        self._alive: Mapping[str, Finding] = {}
        self._nowhere: Tuple[str, ...] = ()

    def plan(self, forced: FrozenSet[str] = frozenset()) -> BootPlan:
        box = self._box
        return activate.plan(
            self._seen,
            replace(self._request, forced=forced),
            box.config.activation,
            box.store,
            self._hypervisor,
            LocalHost(),
            alive=self._alive,
            warnings=(*box.warnings, *self._nowhere),
        )

    def look_for_life(self) -> None:
        """Ask why originals may still run."""
        config = self._box.config
        servers = [found.server for found in activate.selected(self._seen, self._request.servers)]
        known = nodes.known(config.state)
        addresses = {server: rule.addresses for server, rule in config.activation.servers.items()}
        asked = life_signs.to_probe(servers, known, addresses)
        if asked and not self._manner.as_json:
            print(f"Looking for signs of life of the original site ({count(len(asked), 'address')}) ...", flush=True)
            if not prober.can_ping():
                print("Nobody is pinged: there is no ping here (apt install iputils-ping).", flush=True)
        nowhere = life_signs.unknown(servers, known, addresses)
        said = f"no address is known to ask for signs of life of {listed(nowhere)}: look for yourself"
        self._nowhere = (said,) if nowhere else ()
        self._alive = life_signs.judge(servers, known, addresses, prober.Prober(command.run).answers(asked))

    def show(self, plan: BootPlan) -> None:
        _show(plan, self._box.config, self._manner)


def _decide(planner: _Planner, plan: BootPlan) -> Optional[Tuple[BootPlan, FrozenSet[str]]]:
    """The plan that the admin says yes to, and the servers whose names were typed in; None if it was no.

    Whoever thinks about it for long is asked again if something else would be booted by then.
    """
    typed: FrozenSet[str] = frozenset()
    while True:
        began = time.monotonic()
        more = _ask_for_force(plan)
        if more:
            typed |= more
            plan = planner.plan(typed)
            planner.show(plan)
        if plan.ready and not _says_yes(activation_text.question(plan)):
            return None
        if not plan.ready or time.monotonic() < began + FRESH_SECONDS:
            return plan, typed
        planner.look_for_life()
        again = planner.plan(typed)
        if [one.server for one in again.ready] == [one.server for one in plan.ready]:
            return again, typed
        print("While you decided, something changed:")
        plan = again
        planner.show(plan)


def _no_images(box: Box, seen: Survey) -> Iterator[str]:
    if seen.servers and not seen.images:
        yield f"there is no image at all in {listed(box.config.store.locations)}: is the store mounted?"


def _show(plan: BootPlan, config: Config, manner: Manner) -> None:
    if plan.servers:
        activate_view.show_plan(plan, on_overlays=manner.on_overlays)
    else:
        print(nothing_here(config))


def nothing_here(config: Config) -> str:
    """Why there is an empty table."""
    places = listed(config.store.locations)
    return (
        f"There is nothing to boot: no definition in {config.definitions}, and no image in {places}.\n"
        "Is the store mounted, and is this the right configuration?"
    )


def _ask_for_force(plan: BootPlan) -> FrozenSet[str]:
    """Servers whose names were typed in, of those that only a sign of life keeps down."""
    candidates = [planned.server for planned in plan.blocked if planned.may_be_forced]
    while candidates:
        typed = activate_view.ask(activation_text.force_question(candidates)).replace(",", " ").split()
        unknown = sorted(set(typed) - set(candidates))
        if not unknown:
            return frozenset(typed)
        print(f"{listed(unknown)}: not one of them.")
    return frozenset()


def _says_yes(question: str) -> bool:
    return activate_view.ask(question).lower() in ("y", "yes")


def _boot(box: Box, plan: BootPlan, manner: Manner, hypervisor: Hypervisor) -> Tuple[Outcome, ...]:
    stream = sys.stderr if manner.as_json else sys.stdout
    answer_seconds = manner.answer_seconds
    if answer_seconds is None:
        answer_seconds = ANSWER_SECONDS if stream.isatty() else 0.0
    progress = activate_view.Progress(activate_view.widths(plan.servers), stream)
    ground = Ground(box.store, box.state, box.overlays, box.places, utc_now, on_overlays=manner.on_overlays)
    with until_stopped() as stopped:
        return boot.execute(
            plan,
            hypervisor,
            box.state,
            activate_record.user(),
            progress,
            footing=ground,
            answer_seconds=answer_seconds,
            stopped=stopped,
        )


@contextmanager
def until_stopped() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends the waiting, not the servers; and a terminal that is lost ends nothing."""
    came: List[int] = []

    def handle(number: int, frame: Optional[FrameType]) -> None:
        came.append(number)

    before: Dict[signal.Signals, Any] = {}
    for one in (signal.SIGINT, signal.SIGTERM):
        before[one] = signal.signal(one, handle)
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield lambda: bool(came)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _mark_running(box: Box, plan: BootPlan) -> None:
    """Servers that somebody started by hand: when they are shut down, no job may write over what they wrote."""
    for planned in plan.servers:
        chosen = planned.draft.chosen
        if planned.state != "running" or planned.draft.activated or chosen is None or box.state is None:
            continue
        try:
            if isinstance(chosen.sequence, int):
                box.state.activate(planned.server, chosen.sequence, activate_record.user())
        except StateError as error:
            log.warning("%s cannot be marked as activated: %s", planned.server, error)


def _end(plan: BootPlan, outcomes: Tuple[Outcome, ...], seconds: float, record: Optional[str], manner: Manner) -> None:
    if manner.as_json:
        activate_view.show_json({**activation_json.plan_to_json(plan, outcomes), "record": record})
        return
    try:
        activate_view.show(activation_text.end_lines(plan, outcomes, seconds, on_overlays=manner.on_overlays))
        print(f"Record: {record}" if record else "No record could be kept: keep what stands above.")
    except OSError:
        log.warning("the terminal is gone; record=%s", record)
