"""Carries out cycling plans: journaled first, then step by step, each of which may be taken twice.

Touches the store's names and the state's journal. Holds no policy: rotation.py made the plan. Images are
found by their identity, so a plan that was half carried out before a crash is finished, not begun again.
"""

from __future__ import annotations

import logging
from typing import Optional, Sequence, Tuple

from anvil_dr import rotation
from anvil_dr.model import JournalEntry, Purpose, Removal, SetRecord, Step, StoredImage
from anvil_dr.ports import Store
from anvil_dr.state import State

log = logging.getLogger(__name__)


def images_of(store: Store, server: str) -> Tuple[StoredImage, ...]:
    """What the store has of one server. Raise StoreError."""
    return tuple(image for image in store.images() if image.owner.server == server)


def carry_out(
    store: Store, state: State, server: str, purpose: Purpose, steps: Sequence[Step], record: Optional[SetRecord] = None
) -> None:
    """Journal a plan and carry it out. `record` is the set that exists once every step is taken.

    Raise StoreError or StateError; what was begun then stays in the journal, and `finish` completes it.
    """
    if not steps and record is None:
        return
    finish(store, state, state.begin(server, purpose, rotation.bind(steps, images_of(store, server)), record))


def finish(store: Store, state: State, entry: JournalEntry) -> None:
    """Take the steps of a journaled plan that have not been taken yet. Raise StoreError, StateError."""
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
    state.forget_images(planned.identity for planned in entry.steps if isinstance(planned.step, Removal))
    state.finish(entry)
