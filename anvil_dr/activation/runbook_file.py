"""Puts the paper runbook beside the definitions, as it is true at this moment. runbook.py writes it.

Reads what lies on the box; writes one file.
"""

from __future__ import annotations

import logging
import os
from typing import Dict, Final, Tuple

from anvil_dr import durable
from anvil_dr.activation import nodes
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.runbook import Kept, Runbook, Setting
from anvil_dr.activation.survey import Survey
from anvil_dr.config import Config
from anvil_dr.definition import requirements
from anvil_dr.errors import DefinitionError
from anvil_dr.ports import Store

log = logging.getLogger(__name__)

NAME: Final = "RUNBOOK.txt"


def write(config: Config, seen: Survey, store: Store, places: FirmwarePlaces, now: str) -> str:
    """Its path; or empty if it cannot be written, which is logged."""
    known = nodes.known(config.state)
    book = Runbook(setting(config), seen.servers, seen.images, store.path, known, _kept(seen, places))
    path = os.path.join(config.definitions, NAME)
    try:
        durable.make_directories(config.definitions)
        # Whoever types on that day may not be root yet; there is no secret in it.
        durable.replace(path, book.text(now).encode("utf-8"), mode=0o644)
    except OSError as error:
        log.warning("the runbook cannot be written: %s", error)
        return ""
    log.info("runbook written path=%s", path)
    return path


def setting(config: Config) -> Setting:
    """What of the configuration is in a runbook."""
    rules = config.activation.servers
    return Setting(
        config.name,
        config.definitions,
        config.activation.connect,
        config.store.locations if config.store.kind == "lvm" else (),
        {server: rule.start_after for server, rule in rules.items()},
        {server: rule.start_delay for server, rule in rules.items()},
        {server: rule.addresses for server, rule in rules.items()},
    )


def _kept(seen: Survey, places: FirmwarePlaces) -> Dict[Tuple[str, str], Kept]:
    found: Dict[Tuple[str, str], Kept] = {}
    for server in seen.servers:
        for one in server.sets:
            if one.record is None:
                continue
            where = os.path.join(places.state, "firmware", server.server, one.record.job_id)
            nvram, tpm = os.path.join(where, "nvram"), os.path.join(where, "tpm")
            try:
                target = places.tpm_of(requirements(server.definition_xml))
            except DefinitionError:
                target = None
            found[server.server, one.record.job_id] = Kept(
                nvram if os.path.exists(nvram) else None, tpm if os.path.isdir(tpm) else None, target
            )
    return found
