"""Forgets sets whose every image somebody removed, and the firmware state of sets that are gone.

Touches the state, and the kept firmware state. Done for a server whenever its newest set is published; for all of them
when there is no room for another one, because that is when an admin removes images.
"""

from __future__ import annotations

import logging
import uuid

from anvil_dr import firmware
from anvil_dr.cycling import cycle, sets
from anvil_dr.cycling.lost_sets import without_images
from anvil_dr.errors import ServerBusyError, StateError, StoreError
from anvil_dr.receiving.target import Target

log = logging.getLogger(__name__)


def forget(target: Target, server: str) -> None:
    """Forget those of a server that the caller has to itself. Raise StoreError, StateError."""
    state = target.state
    images = cycle.images_of(target.store, server)
    gone = without_images(state.set_records(server), images)
    if gone:
        state.forget_images(image.identity for record in gone for image in record.images)
        log.info("sets without images forgotten server=%s jobs=%s", server, ",".join(one.job_id for one in gone))
    pending = state.pending(server)
    # A set whose promotion was begun is remembered once it is finished; its firmware state is kept already.
    records = (*state.set_records(server), *(entry.record for entry in pending if entry.record is not None))
    remembered = all(one.record is not None for one in sets.assemble(images, records) if one.complete)
    if remembered and all(entry.readable for entry in pending):
        # Otherwise the state was lost, and nobody knows which of the kept ones belongs to the sets that are here.
        firmware.prune(target.config.state, server, records)


def forget_all(target: Target) -> None:
    """Forget those of all servers, but for the ones that are at work, have a plan pending or are activated.

    Nothing is forgotten where the store has no image at all: then something is wrong with it, and nobody removed them.
    Raise StoreError, StateError.
    """
    state = target.state
    images, records = target.store.images(), state.set_records()
    if not images:
        return
    kept = firmware.kept(target.config.state)
    others = {entry.server for entry in state.pending()} | set(state.activations())
    holder = f"{uuid.uuid4().hex[:8]} (forgetting what was removed)"
    for server in sorted({record.server for record in records}.union(kept) - others):
        own = [record for record in records if record.server == server]
        if not without_images(own, images) and kept.get(server, frozenset()) <= {record.job_id for record in own}:
            continue
        try:
            target.occupy(server, holder)
        except ServerBusyError:
            continue
        try:
            forget(target, server)
        except (StoreError, StateError) as error:
            log.warning("what was removed cannot be forgotten server=%s error=%s", server, error)
        finally:
            target.vacate(server, holder)
