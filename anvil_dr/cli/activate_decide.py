"""What is booted, as the admin decides it: the plan is shown, made anew with each answer, and when time has passed.

Touches the terminal, and looks for signs of life of the original site.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, FrozenSet, Iterator, Mapping, Optional, Tuple

from anvil_dr import command
from anvil_dr.activation import activate, activation_text, life_signs, nodes, prober
from anvil_dr.activation.activate import Request
from anvil_dr.activation.boot_plan import BootPlan
from anvil_dr.activation.survey import Survey
from anvil_dr.cli import activate_box, activate_view
from anvil_dr.cli.activate_box import Box, Manner
from anvil_dr.ports import Hypervisor
from anvil_dr.preflight.findings import Finding
from anvil_dr.preflight.host import LocalHost
from anvil_dr.words import count, listed

log = logging.getLogger(__name__)

FRESH_SECONDS: Final = 60.0
"""So long after it was shown, a plan is carried out without another look for signs of life."""


class Planner:
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
            self._say(f"Looking for signs of life of the original site ({count(len(asked), 'address')}) ...")
            if not prober.can_ping():
                self._say("Nobody is pinged: there is no ping here (apt install iputils-ping).")
        nowhere = life_signs.unknown(servers, known, addresses)
        said = f"no address is known to ask for signs of life of {listed(nowhere)}: look for yourself"
        self._nowhere = (said,) if nowhere else ()
        self._alive = life_signs.judge(servers, known, addresses, prober.Prober(command.run).answers(asked))

    def show(self, plan: BootPlan) -> None:
        with self._to_whoever_listens():
            if plan.servers:
                activate_view.show_plan(plan, on_overlays=self._manner.on_overlays)
            else:
                print(activate_box.nothing_here(self._box.config))

    def _say(self, text: str) -> None:
        with self._to_whoever_listens():
            print(text, flush=True)

    @contextmanager
    def _to_whoever_listens(self) -> Iterator[None]:
        """Whoever needs no answer boots also where nothing can be said: a full disk, a terminal that is gone."""
        try:
            yield
        except OSError as error:
            if not self._manner.yes:
                raise
            log.warning("nobody sees what is said: %s", error)


def decide(planner: Planner, plan: BootPlan) -> Optional[Tuple[BootPlan, FrozenSet[str]]]:
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


def _ask_for_force(plan: BootPlan) -> FrozenSet[str]:
    """Servers whose names were typed in, of those that nothing keeps down but what may be overruled."""
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
