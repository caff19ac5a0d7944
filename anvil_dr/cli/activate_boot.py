"""The main way of `anvil-activate-dr`: shows the plan, asks (activate_decide.py), boots, and says how it ended.

Touches what the other modules touch for it, the terminal, and this process's signal handlers while it boots.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, Callable, Dict, Final, FrozenSet, Iterator, List, Optional, Tuple

from anvil_dr.activation import activation_json, activation_text, boot, check_record, check_result
from anvil_dr.activation.activate import Request
from anvil_dr.activation.boot_plan import BootPlan, Outcome
from anvil_dr.activation.footing import Ground
from anvil_dr.activation.survey import Survey
from anvil_dr.cli import activate_decide, activate_record, activate_view
from anvil_dr.cli.activate_box import Box, Manner
from anvil_dr.errors import StateError
from anvil_dr.ports import Hypervisor
from anvil_dr.receiving.target import utc_now
from anvil_dr.words import listed

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 60.0
"""How long somebody at a terminal is shown guests that have not answered yet."""


def run(
    box: Box, request: Request, manner: Manner, hypervisor: Hypervisor, again: Callable[[], Hypervisor]
) -> int:
    """Show, ask, boot. The exit code: 0 if every server that was asked for runs, or could be booted.

    `again` connects to the hypervisor anew, should libvirt restart meanwhile.
    """
    seen = box.survey(without_store=True)
    box = replace(box, warnings=(*box.warnings, *no_images(box, seen)))
    planner = activate_decide.Planner(box, seen, hypervisor, request, manner)
    if not manner.check:
        planner.look_for_life()
    plan = planner.plan()
    if not (manner.as_json or manner.quiet):
        planner.show(plan)
    if manner.check:
        if not request.is_special:
            check_record.write(box.config.state, check_result.of_plan(plan, utc_now()))
        if manner.as_json:
            activate_view.show_json(activation_json.plan_to_json(plan, None))
        elif plan.servers and not manner.quiet:
            activate_view.show([activation_text.verdict(plan)])
        return 0 if _is_sound(plan) else 1
    typed: FrozenSet[str] = frozenset()
    if not manner.yes:
        try:
            decided = activate_decide.decide(planner, plan)
        except KeyboardInterrupt:
            print("Nothing was booted.")
            raise
        if decided is None:
            print("Nothing was booted.")
            return 1
        plan, typed = decided
    forced = activate_record.tell_of_forced(plan, typed)
    began = time.monotonic()
    outcomes = _boot(box, plan, manner, hypervisor, again) if plan.ready else ()
    unmarked = _mark_running(box, plan)
    seconds = time.monotonic() - began
    record = activate_record.keep(box.config, plan, outcomes, request, forced)
    _end(plan, outcomes, seconds, record, manner, unmarked)
    failed = any(outcome.error is not None for outcome in outcomes)
    return 1 if failed or not _is_sound(plan) else 0


def _is_sound(plan: BootPlan) -> bool:
    """True if nothing is wrong with any server, nor with one that runs already."""
    return bool(plan.servers) and not any(planned.problems for planned in plan.servers)


def no_images(box: Box, seen: Survey) -> Iterator[str]:
    """What is wrong with a store that has nothing for servers that have definitions."""
    if seen.store_problem is not None and seen.store_problem not in box.warnings:
        yield seen.store_problem
    if seen.servers and not seen.images:
        yield f"there is no image at all in {listed(box.config.store.locations)}: is the store mounted?"


def _boot(
    box: Box, plan: BootPlan, manner: Manner, hypervisor: Hypervisor, again: Callable[[], Hypervisor]
) -> Tuple[Outcome, ...]:
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
            again=again,
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


def _mark_running(box: Box, plan: BootPlan) -> Tuple[str, ...]:
    """Servers that somebody started by hand: when they are shut down, no job may write over what they wrote.

    One that is marked with another set, or has overlays, keeps that: there is what it should go on with. Returns
    those that could not be marked.
    """
    failed: List[str] = []
    for planned in plan.servers:
        chosen, draft = planned.draft.chosen, planned.draft
        if planned.state != "running" or chosen is None:
            continue
        try:
            if box.state is None:
                raise StateError("the state cannot be written")
            if draft.strayed:
                box.state.ran_here((image.identity for image in chosen.images), utc_now())
            elif not draft.activated and isinstance(chosen.sequence, int):
                box.state.activate(planned.server, chosen.sequence, activate_record.user())
        except StateError as error:
            log.warning("%s cannot be marked as activated: %s", planned.server, error)
            failed.append(planned.server)
    return tuple(failed)


def _end(
    plan: BootPlan,
    outcomes: Tuple[Outcome, ...],
    seconds: float,
    record: Optional[str],
    manner: Manner,
    unmarked: Tuple[str, ...],
) -> None:
    if manner.as_json:
        activate_view.show_json({**activation_json.plan_to_json(plan, outcomes), "record": record})
        return
    try:
        told = activation_text.end_lines(
            plan, outcomes, seconds, on_overlays=manner.on_overlays, unmarked=unmarked
        )
        activate_view.show(told)
        print(f"Record: {record}" if record else "No record could be kept: keep what stands above.")
    except OSError:
        log.warning("the terminal is gone; record=%s", record)
