"""Sets that are remembered and of which the store has no image: lost, or the store is not there at all.

Reads the store and the state; `forget` changes the state.
"""

from __future__ import annotations

import logging
from typing import Iterable, Tuple

from anvil_dr import words
from anvil_dr.errors import StoreError
from anvil_dr.model import SetRecord, StoredImage
from anvil_dr.ports import Store
from anvil_dr.records.state import State

log = logging.getLogger(__name__)


def refuse_empty(store: Store, state: State) -> None:
    """Raise StoreError if sets are remembered and the store has no image at all, whosever they are.

    Then it is hardly the store that they are in: its file system is not mounted, whatever fstab says. A job would
    fill the one below it, and have the state forget every set.
    """
    if store.images():
        return
    lost = _remembered(state)
    if lost:
        where = words.listed([place.name for place in store.locations()])
        sets = words.count(len(lost), "set")
        servers = words.count(len({one.server for one in lost}), "server")
        question = "Is its file system mounted?" if store.kind == "fs" else "Are these the right volume groups?"
        raise StoreError(
            f"store {where}: there is no image at all, and {sets} of {servers} should be there. {question} If they are "
            "lost, and all of it may begin anew: anvil-dr-target --forget-lost-sets"
        )


def forget(store: Store, state: State) -> Tuple[SetRecord, ...]:
    """Forget every set of which no image is there, and the plans for it; those sets. Raise StoreError, StateError.

    Their firmware state stays for as long as nobody needs its room: should they turn up again after all, they can be
    booted.
    """
    remembered = _remembered(state)
    images = [image for server in sorted({one.server for one in remembered}) for image in store.images(server)]
    lost = without_images(remembered, images)
    names = {(one.server, one.job_id) for one in lost}
    for entry in state.pending():
        if entry.record is not None and (entry.server, entry.record.job_id) in names:
            state.drop(entry)
    state.forget_images(image.identity for one in lost for image in one.images)
    for one in lost:
        log.info("lost set forgotten server=%s job=%s received_at=%s", one.server, one.job_id, one.received_at)
    return lost


def without_images(records: Iterable[SetRecord], images: Iterable[StoredImage]) -> Tuple[SetRecord, ...]:
    """Those of which no image is there. Pure."""
    present = {image.identity for image in images}
    return tuple(one for one in records if not present & {image.identity for image in one.images})


def _remembered(state: State) -> Tuple[SetRecord, ...]:
    """Every set that is complete, or was about to become so when the machine stopped."""
    records = {(one.server, one.job_id): one for one in state.set_records()}
    for entry in state.pending():
        if entry.purpose == "promote" and entry.record is not None:
            records.setdefault((entry.server, entry.record.job_id), entry.record)
    return tuple(records.values())
