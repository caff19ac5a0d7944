"""Keeps what was done on the day: who booted what, when, from which set, and what became of it.

Writes one JSON file for each time below a folder; where that cannot be written, below the next one. A full disk on
the worst day costs the record, never the boot.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any, Iterable, Mapping, Optional

from anvil_dr import durable

log = logging.getLogger(__name__)


def write(folders: Iterable[str], kind: str, at: str, record: Mapping[str, Any]) -> Optional[str]:
    """Keep a record; the path, or None if it could not be kept anywhere. `at` is ISO 8601 in UTC."""
    name = f"{kind}-{at[:19].replace('-', '').replace(':', '')}Z-{os.getpid()}.json"
    content = (json.dumps({"at": at, **record}, indent=1) + "\n").encode("utf-8")
    for folder in folders:
        path = os.path.join(folder, name)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            durable.replace(path, content, mode=0o600)
            return path
        except OSError as error:
            log.info("record not kept path=%s error=%s", path, error)
    return None
