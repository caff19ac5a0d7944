"""Carries out cycling plans: journaled first, then step by step, each of which may be taken twice.

Touches the store's names and the state's journal. Holds no policy: rotation.py made the plan. Images are
found by their identity, so a plan that was half carried out before a crash is finished, not begun again.
"""

from __future__ import annotations

import logging
from typing import Optional, Sequence, Tuple

from anvil_dr.cycling import rotation
from anvil_dr.errors import StateError, StoreError
from anvil_dr.model import JournalEntry, Purpose, Removal, SetRecord, Step, StoredImage
from anvil_dr.ports import Store
from anvil_dr.records.state import State

log = logging.getLogger(__name__)


def images_of(store: Store, server: str) -> Tuple[StoredImage, ...]:
    """What the store has of one server. Raise StoreError."""
    return tuple(image for image in store.images() if image.owner.server == server)


def carry_out(
    store: Store, state: State, server: str, purpose: Purpose, steps: Sequence[Step], record: Optional[SetRecord] = None
) -> Optional[JournalEntry]:
    """Journal a plan and carry it out. `record` is the set that exists once every step is taken.

    Returns the plan that follows from it, if one does. Raise StoreError or StateError; what was begun then stays in
    the journal, and `finish` completes it.
    """
    if not steps and record is None:
        return None
    return finish(store, state, state.begin(server, purpose, rotation.bind(steps, images_of(store, server)), record))


def left_of(store: Store, entry: JournalEntry) -> Tuple[Step, ...]:
    """The steps of a journaled plan that have not been taken yet. Raise StoreError."""
    return tuple(one.step for one in rotation.remaining(entry.steps, images_of(store, entry.server)))


def finish(store: Store, state: State, entry: JournalEntry) -> Optional[JournalEntry]:
    """Take the steps of a journaled plan that have not been taken yet; returns the plan that follows from it.

    Raise StoreError, StateError: the plan stays pending, with the reason.
    """
    if not entry.readable:
        raise StateError(
            f"plan {entry.id} ({entry.purpose}) of server {entry.server}: {entry.failure}; once its images are named "
            f"as they should be, drop it with: anvil-dr-target --forget {entry.id}"
        )
    try:
        _take_steps(store, entry)
    except StoreError as error:
        state.note_failure(entry, str(error))
        raise
    state.forget_images(planned.identity for planned in entry.steps if isinstance(planned.step, Removal))
    return state.finish(entry)


def settle(store: Store, state: State, server: str) -> None:
    """Finish what earlier jobs of a server began and could not finish, before anything else is done to its names.

    Raise StoreError or StateError if that is still impossible. Old sets that can't be removed yet stop nobody.
    """
    for entry in state.pending(server):
        if entry.purpose == "publish":
            continue
        log.warning("finishing what was begun server=%s purpose=%s entry=%d", server, entry.purpose, entry.id)
        try:
            finish(store, state, entry)
        except StoreError as error:
            if entry.purpose != "trim":
                raise
            log.warning("old images stay for now server=%s entry=%d error=%s", server, entry.id, error)


def _take_steps(store: Store, entry: JournalEntry) -> None:
    present = {image.identity: image for image in images_of(store, entry.server)}
    for planned in rotation.remaining(entry.steps, present.values()):
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
