"""Carries out cycling plans: journaled first, then step by step, each of which may be taken twice.

Touches the store's names and the state's journal. Holds no policy: rotation.py made the plan. Images are
found by their identity, so it is known how far a plan came before a crash.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Callable, Optional, Sequence, Tuple

from anvil_dr.cycling import rotation
from anvil_dr.errors import AnvilDrError, StateError, StoreError
from anvil_dr.model import JournalEntry, JournalStep, Purpose, Removal, SetRecord, Step, StoredImage
from anvil_dr.ports import Store
from anvil_dr.records.state import State

log = logging.getLogger(__name__)


def images_of(store: Store, server: str) -> Tuple[StoredImage, ...]:
    """What the store has of one server. Raise StoreError."""
    return store.images(server)


def carry_out(
    store: Store,
    state: State,
    server: str,
    purpose: Purpose,
    steps: Sequence[Step],
    record: Optional[SetRecord] = None,
    *,
    still_may: Callable[[], None] = lambda: None,
) -> Optional[JournalEntry]:
    """Journal a plan and carry it out. `record` is the set that exists once every step is taken.

    `still_may` raises what speaks against it, and is asked once the plan can be seen in the journal: so whoever makes
    a mark and then looks at the journal, as activation does, and a job cannot both go on. Returns the plan that
    follows from it, if one does. Raise StoreError or StateError; what was begun then stays in the journal if it
    cannot be resolved at once, and `resolve` does that later.
    """
    if not steps and record is None:
        return None
    images = images_of(store, server)
    entry = state.begin(server, purpose, rotation.bind(steps, images), record)
    try:
        still_may()
    except AnvilDrError:
        state.drop(entry)
        raise
    try:
        return _finish(store, state, entry, images)
    except StoreError:
        if purpose != "promote":
            with suppress(StoreError):
                resolve(store, state, entry)
        raise


def left_of(store: Store, entry: JournalEntry) -> Tuple[Step, ...]:
    """The steps that `resolve` would take. Raise StoreError."""
    images = images_of(store, entry.server)
    steps = _way_out(entry, images)
    if steps is None:
        steps = rotation.remaining(entry.steps, images)
    return tuple(one.step for one in steps)


def resolve(store: Store, state: State, entry: JournalEntry) -> Optional[JournalEntry]:
    """Bring a plan that was begun to an end after whoever began it has gone; returns the plan that follows from it.

    A promotion is finished: its bytes are on stable storage. The start of a job is taken back, because nobody will
    write the bytes that it made room for: no byte is written before it is finished, so every set is what it was.
    Where an image had to be removed already it is finished. The removal of sets that are too many goes on for those
    that lack an image already; the next job lists the others again, by what is true then. Raise StoreError, StateError:
    the plan stays pending, with the reason.
    """
    _refuse_unreadable(entry)
    images = images_of(store, entry.server)
    steps = _way_out(entry, images)
    if steps is None:
        return _finish(store, state, entry, images)
    _take(store, state, entry, steps, images)
    present = {image.identity for image in images_of(store, entry.server)}
    gone = {one.identity for one in entry.steps if isinstance(one.step, Removal)} - present
    state.forget_images(gone)
    state.drop(entry)
    return None


def settle(store: Store, state: State, server: str) -> None:
    """Resolve what earlier jobs of a server began, before anything else is done to its names.

    Raise StoreError or StateError if that is still impossible.
    """
    for entry in state.pending(server):
        if entry.purpose != "publish":
            log.warning("resolving what was begun server=%s purpose=%s entry=%d", server, entry.purpose, entry.id)
            resolve(store, state, entry)


def _finish(
    store: Store, state: State, entry: JournalEntry, images: Sequence[StoredImage]
) -> Optional[JournalEntry]:
    """Take the steps of a journaled plan that have not been taken yet; returns the plan that follows from it.

    Raise StoreError, StateError: the plan stays pending, with the reason.
    """
    _refuse_unreadable(entry)
    _take(store, state, entry, rotation.remaining(entry.steps, images), images)
    state.forget_images(planned.identity for planned in entry.steps if isinstance(planned.step, Removal))
    return state.finish(entry)


def _way_out(entry: JournalEntry, images: Sequence[StoredImage]) -> Optional[Sequence[JournalStep]]:
    """What ends a plan without finishing it; None if it is to be finished."""
    if entry.purpose == "cycle":
        return rotation.withdrawal(entry.steps, images)
    return rotation.begun_removals(entry.steps, images) if entry.purpose == "trim" else None


def _refuse_unreadable(entry: JournalEntry) -> None:
    if not entry.readable:
        raise StateError(
            f"plan {entry.id} ({entry.purpose}) of server {entry.server}: {entry.failure}; once its images are named "
            f"as they should be, drop it with: anvil-dr-target --forget {entry.id}"
        )


def _take(
    store: Store, state: State, entry: JournalEntry, steps: Sequence[JournalStep], images: Sequence[StoredImage]
) -> None:
    try:
        _take_steps(store, steps, images)
    except StoreError as error:
        state.note_failure(entry, str(error))
        raise


def _take_steps(store: Store, steps: Sequence[JournalStep], images: Sequence[StoredImage]) -> None:
    present = {image.identity: image for image in images}
    for planned in steps:
        step, image = planned.step, present[planned.identity]
        if isinstance(step, Removal):
            store.remove(image)
            del present[planned.identity]
            log.info(
                "image removed server=%s disk=%s sequence=%s", step.owner.server, step.owner.disk, step.sequence
            )
        else:
            present[planned.identity] = store.rename(image, step.after)
            log.info(
                "image renamed server=%s disk=%s sequence=%s was=%s",
                step.owner.server, step.owner.disk, step.after, step.before,
            )  # fmt: skip
