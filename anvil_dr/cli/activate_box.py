"""What `anvil-activate-dr` works on, how it was told to do it, and how rehearsals are kept off meanwhile.

Touches the paper runbook and what is left of rehearsals; everything else is only passed on.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, Optional, Tuple

from anvil_dr import command
from anvil_dr.activation import runbook_file, survey
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.overlays import Overlays
from anvil_dr.activation.survey import Survey
from anvil_dr.cli import activate_record
from anvil_dr.config import Config
from anvil_dr.errors import AnvilDrError
from anvil_dr.model import SetRecord
from anvil_dr.ports import Store
from anvil_dr.receiving.target import utc_now
from anvil_dr.records.state import State
from anvil_dr.rehearsal import rehearsal_stage
from anvil_dr.rehearsal.rehearsal_turns import RehearsalTurns
from anvil_dr.words import listed

log = logging.getLogger(__name__)


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

    def survey(self, *, without_store: bool = False) -> Survey:
        config = self.config
        return survey.survey(
            self.store, self.state, config.definitions, overlays=self.overlays, kept=config.state, cached=self.cached,
            without_store=without_store,
        )  # fmt: skip


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


def nothing_here(config: Config) -> str:
    """Why there is an empty table."""
    places = listed(config.store.locations)
    return (
        f"There is nothing to boot: no definition in {config.definitions}, and no image in {places}.\n"
        "Is the store mounted, and is this the right configuration?"
    )
