"""What start-up resolves: plans that were begun when the machine stopped, and jobs that nobody works on any more.

Touches the store's names, the state and the definitions, through cycle.py and publish.py; removes what a dead process
was about to put in place. What was received is put in place; the start of a job that will not go on is taken back. A
server that runs, or is marked as activated, is left alone. A plan that can't be finished stops the jobs of
its server only: it is named in the log and the status, and tried again before that server's next job.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import Optional, Tuple

from anvil_dr import durable
from anvil_dr.cycling import cycle, lost_sets
from anvil_dr.errors import (
    DefinitionError,
    ImageInUseError,
    NameCollisionError,
    ServerActivatedError,
    StateError,
    StoreError,
)
from anvil_dr.model import INCOMPLETE, JobRecord, JournalEntry, Owner, Removal, Step
from anvil_dr.receiving import publish
from anvil_dr.receiving.target import Target

log = logging.getLogger(__name__)

_ABANDONED = "the service stopped while this job was running"


@dataclass(frozen=True)
class Unfinished:
    """A plan that was begun."""

    entry: JournalEntry
    steps: Tuple[Step, ...] = ()
    """Those that are left to be taken."""
    problem: Optional[str] = None
    """Why it cannot be finished."""


@dataclass(frozen=True)
class Recovery:
    """What a start found, and did."""

    plans: Tuple[Unfinished, ...] = ()
    jobs: Tuple[JobRecord, ...] = ()
    """That were running, as they are now."""
    owners: Tuple[Owner, ...] = ()
    """Whose images are here, which the state did not know."""

    @property
    def problems(self) -> Tuple[str, ...]:
        """What could not be finished."""
        return tuple(f"plan {one.entry.id} cannot be finished: {one.problem}" for one in self.plans if one.problem)


def look(target: Target) -> Tuple[Unfinished, ...]:
    """What `recover` would resolve, oldest first. Changes nothing.

    Raise StoreError, StateError; also if sets are remembered and the store is empty.
    """
    lost_sets.refuse_empty(target.store, target.state)
    return tuple(_look(target, entry) for entry in target.state.pending())


def recover(target: Target) -> Recovery:
    """Resolve every plan in the journal, oldest first, and bring the state in line with what is here.

    Raise StoreError or StateError where nothing can be looked at: then nothing may be received.
    """
    owners = _claim_what_is_there(target)
    plans = tuple(_finished(target, one) for one in look(target))
    jobs = target.state.end_running_jobs(_ABANDONED)
    for job in jobs:
        log.warning("job was running job=%s server=%s state=%s", job.id, job.server, job.state)
    _sweep(target)
    return Recovery(plans, jobs, owners)


def _look(target: Target, entry: JournalEntry) -> Unfinished:
    """One of them. An image that cannot be looked at stops the plans of its own server only."""
    try:
        return Unfinished(entry, cycle.left_of(target.store, entry), None if entry.readable else entry.failure)
    except StoreError as error:
        return Unfinished(entry, problem=str(error))


def _finished(target: Target, one: Unfinished) -> Unfinished:
    entry = one.entry
    log.warning("resolving what was begun server=%s purpose=%s entry=%d", entry.server, entry.purpose, entry.id)
    try:
        if one.problem is not None and entry.readable:
            raise StoreError(one.problem)
        if one.steps and entry.purpose != "publish":
            if entry.server in target.state.activations():
                raise ServerActivatedError(entry.server)
            _refuse_use(target, entry)
        follower = entry if entry.purpose == "publish" else cycle.resolve(target.store, target.state, entry)
        if follower is not None:
            _publish(target, follower)
    except (StoreError, StateError, DefinitionError, ServerActivatedError) as error:
        log.error(
            "what was begun cannot be finished server=%s purpose=%s entry=%d error=%s",
            entry.server, entry.purpose, entry.id, error,
        )  # fmt: skip
        return replace(one, problem=str(error))
    return one


def _publish(target: Target, entry: JournalEntry) -> None:
    """Not while somebody runs the server, whose variables are its own then; it is tried again at the next start."""
    _refuse_use(target, entry)
    publish.publish(target, entry)


def _refuse_use(target: Target, entry: JournalEntry) -> None:
    for image, user in target.store.users(cycle.images_of(target.store, entry.server)).items():
        raise ImageInUseError(image.path, user)


def _claim_what_is_there(target: Target) -> Tuple[Owner, ...]:
    """A state that is new learns from the store whose images there are (SPEC section 2)."""
    known = set(target.state.owners())
    learned = []
    for owner in sorted({image.owner for image in target.store.images()} - known):
        try:
            target.state.claim(owner)
        except NameCollisionError as error:
            log.error("images that nobody can tell apart: %s", error)
        else:
            log.warning("the state did not know an image that is here server=%s disk=%s", owner.server, owner.disk)
            learned.append(owner)
    return tuple(learned)


def _sweep(target: Target) -> None:
    """Remove what a process that died was about to put in place."""
    config = target.config
    below_state = (folder for folder, _, _ in os.walk(config.state))
    for folder in (config.definitions, os.path.join(config.definitions, "nvram"), *below_state):
        try:
            for name in durable.remove_leftovers(folder):
                log.info("leftover removed path=%s", os.path.join(folder, name))
        except OSError as error:
            log.warning("leftovers cannot be removed folder=%s error=%s", folder, error)


def in_words(one: Unfinished) -> Tuple[str, ...]:
    """A plan for people: a line for what it is for, and one for each step that is left."""
    what = {
        "cycle": "take back the start of a job that does not go on",
        "promote": "make what was received the newest set",
        "publish": "put the newest set's definition and UEFI variables in place",
        "trim": "remove what is left of sets that were too many",
    }.get(one.entry.purpose, one.entry.purpose)
    return (f"plan {one.entry.id} of server {one.entry.server}: {what}", *(f"  {_step(step)}" for step in one.steps))


def _step(step: Step) -> str:
    if isinstance(step, Removal):
        return f"remove disk {step.owner.disk} of set {step.sequence}"
    before = "the incomplete set" if step.before == INCOMPLETE else f"set {step.before}"
    after = "the incomplete set" if step.after == INCOMPLETE else f"set {step.after}"
    return f"disk {step.owner.disk} of {before} goes to {after}"
