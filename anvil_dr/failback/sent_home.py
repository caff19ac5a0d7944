"""Which servers have been sent back to their nodes, whole. Reads and writes `<state>/sent-home/<server>.json`.

Once a server runs at home again, what this machine has is the older one: sent again, it would be written over what the
server has done there since.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Final, Optional

from anvil_dr import durable
from anvil_dr.model import Activation

log = logging.getLogger(__name__)

_FOLDER: Final = "sent-home"
_MAX_BYTES: Final = 64 << 10


def note(state_directory: str, activation: Activation, at: str) -> Optional[str]:
    """Remember it. Why that was not possible; None if it was: the server is home all the same."""
    folder = os.path.join(state_directory, _FOLDER)
    content = {"server": activation.server, "ran_since": activation.since, "at": at}
    try:
        durable.make_directories(folder, 0o700)
        durable.replace(_path(folder, activation.server), (json.dumps(content) + "\n").encode(), mode=0o600)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    log.info("server sent home server=%s at=%s", activation.server, at)
    return None


def when(state_directory: str, activation: Activation) -> Optional[str]:
    """When it was sent home, whole, since it was booted here; None if it was not, or nobody can tell."""
    try:
        with open(_path(os.path.join(state_directory, _FOLDER), activation.server), encoding="utf-8") as file:
            kept = json.loads(file.read(_MAX_BYTES))
        return str(kept["at"]) if kept["ran_since"] == activation.since else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("whether it was sent home is not known server=%s error=%r", activation.server, error)
        return None


def _path(folder: str, server: str) -> str:
    return os.path.join(folder, f"{server}.json")
