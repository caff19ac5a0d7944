"""Puts in place what belongs to a server's newest set beside its images: its definition, and its UEFI variables.

Touches the folder of definitions, the kept firmware state, and the state. Done after every promotion; journaled, so
that what a crash or an error prevents is done by the next start, or the server's next job.
"""

from __future__ import annotations

import logging
import os
from typing import Tuple

from anvil_dr import durable, firmware
from anvil_dr.errors import DefinitionError, StateError, StoreError
from anvil_dr.model import JournalEntry
from anvil_dr.receiving import admission, removed_sets
from anvil_dr.receiving.target import Target

log = logging.getLogger(__name__)


def publish(target: Target, entry: JournalEntry) -> Tuple[str, bool, Tuple[str, ...]]:
    """Do it, and forget the plan to. Returns the definition's path, whether it was made now, warnings about it.

    Raise StoreError, StateError, DefinitionError: the plan stays pending, with the reason.
    """
    server, state = entry.server, target.state
    try:
        if entry.record is not None and server not in state.activations():
            firmware.publish_nvram(target.config.state, entry.record, admission.nvram_path(target, server))
        made = _definition(target, server)
    except (StoreError, StateError) as error:
        state.note_failure(entry, str(error))
        raise
    state.finish(entry)
    removed_sets.forget(target, server)
    return made


def publish_what_waits(target: Target, server: str) -> None:
    """Publish what an earlier job of a server promoted and left to others. The server is this job's, and not running.

    Where that is still impossible it's logged, and tried again later. Raise StateError if the state can't be used.
    """
    for entry in (one for one in target.state.pending(server) if one.purpose == "publish"):
        try:
            publish(target, entry)
        except (StoreError, StateError, DefinitionError) as error:
            log.warning("what is complete cannot be published yet server=%s error=%s", server, error)
        else:
            log.info("published what an earlier job left server=%s entry=%d", server, entry.id)


def _definition(target: Target, server: str) -> Tuple[str, bool, Tuple[str, ...]]:
    """Make it if there is none: it is the admin's from then on (SPEC section 7)."""
    folder = target.config.definitions
    path = os.path.join(folder, f"{server}.xml")
    source = target.state.source_definition(server)
    if os.path.lexists(path) or source is None:
        return path, False, ()
    made = admission.make_definition(target, server, source.xml, source.disks, source.left_out)
    try:
        durable.make_directories(folder)
        try:
            # Readable for root only: a console's password is in it, as it was at the node.
            durable.write_new(path, made.xml.encode("utf-8"), mode=0o600)
        except FileExistsError:
            return path, False, ()
    except OSError as error:
        raise StoreError(
            f"the set is complete, but its definition {path} cannot be written: {error.strerror}"
        ) from error
    log.info("definition made server=%s path=%s", server, path)
    return path, True, made.warnings
