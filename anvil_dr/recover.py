"""What start-up finishes: plans that were begun when the machine stopped, and jobs that nobody works on any more.

Touches the store's names and the state, through cycle.py. Steps that were taken are not taken again.
"""

from __future__ import annotations

import logging
from typing import Tuple

from anvil_dr import cycle
from anvil_dr.model import JournalEntry
from anvil_dr.ports import Store
from anvil_dr.state import State

log = logging.getLogger(__name__)


def recover(store: Store, state: State) -> Tuple[JournalEntry, ...]:
    """Finish every plan in the journal, oldest first. The plans that were finished.

    Raise StoreError or StateError: then nothing may be received, because names could be half changed.
    """
    entries = state.pending()
    for entry in entries:
        log.warning("finishing what was begun server=%s purpose=%s entry=%d", entry.server, entry.purpose, entry.id)
        cycle.finish(store, state, entry)
    for job in state.abandon_running_jobs("the service stopped while this job was running"):
        log.warning("job abandoned job=%s server=%s", job.id, job.server)
    return entries
