"""Keeps what rehearsals came to, for the trend, the status and whoever asks. Touches `<state>/rehearsals`."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, replace
from typing import Any, Final, Mapping, Optional, Tuple

from anvil_dr import durable
from anvil_dr.rehearsal.rehearsal_result import Rehearsal, RehearsalResult, Rehearsed

log = logging.getLogger(__name__)

_KEPT: Final = 100
_REPORTS_KEPT: Final = 10
"""With their pictures they are large."""
_MAX_BYTES: Final = 4 << 20


def folder(state_directory: str) -> str:
    return os.path.join(state_directory, "rehearsals")


def keep(state_directory: str, rehearsal: Rehearsal, report: str) -> Optional[str]:
    """Keep it, and its report; the report's path, or None if it could not be kept. Forgets the oldest."""
    where = folder(state_directory)
    base = os.path.join(where, rehearsal.at[:19].replace("-", "").replace(":", "") + "Z")
    content = asdict(replace(rehearsal, results=tuple(replace(one, screenshot=None) for one in rehearsal.results)))
    try:
        os.makedirs(where, mode=0o700, exist_ok=True)
        durable.replace(f"{base}.json", (json.dumps(content, indent=1) + "\n").encode("utf-8"), mode=0o600)
        durable.replace(f"{base}.html", report.encode("utf-8"), mode=0o600)
        _prune(where, ".json", _KEPT)
        _prune(where, ".html", _REPORTS_KEPT)
    except OSError as error:
        log.warning("the rehearsal cannot be kept: %s", error)
        return None
    return f"{base}.html"


def load(state_directory: str) -> Tuple[Rehearsal, ...]:
    """Those that are kept, oldest first, without their pictures. One that makes no sense is left out."""
    where, found = folder(state_directory), []
    try:
        names = sorted(name for name in os.listdir(where) if name.endswith(".json") and not name.startswith("."))
    except OSError:
        return ()
    for name in names:
        try:
            with open(os.path.join(where, name), encoding="utf-8") as file:
                found.append(_parse(json.loads(file.read(_MAX_BYTES))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("a rehearsal's record cannot be read name=%s error=%r", name, error)
    return tuple(found)


def last_of_each(state_directory: str) -> Mapping[str, Rehearsed]:
    """By server, its last rehearsal that came to something."""
    return {
        one.server: Rehearsed(rehearsal.at, one)
        for rehearsal in load(state_directory)
        for one in rehearsal.results
        if one.verdict not in ("interrupted", "skipped")
    }


def _parse(kept: Mapping[str, Any]) -> Rehearsal:
    results = tuple(
        RehearsalResult(**{**one, "warnings": tuple(one["warnings"]), "screenshot": None}) for one in kept["results"]
    )
    return Rehearsal(str(kept["target"]), str(kept["at"]), results)


def _prune(where: str, suffix: str, kept: int) -> None:
    names = sorted(name for name in os.listdir(where) if name.endswith(suffix) and not name.startswith("."))
    for name in names[:-kept]:
        os.unlink(os.path.join(where, name))
