"""What the last `anvil-activate-dr --check` found, for anvil-dr-status. Reads and writes `<state>/check.json`."""

from __future__ import annotations

import json
import logging
import os
from typing import Any, Dict, Final, Optional

from anvil_dr import durable
from anvil_dr.activation.check_result import CheckResult

log = logging.getLogger(__name__)

_NAME: Final = "check.json"
_MAX_BYTES: Final = 4 << 20


def write(state_directory: str, record: CheckResult) -> None:
    """Keep it. What cannot be written is logged: a check is worth doing all the same."""
    content: Dict[str, Any] = {
        "at": record.at,
        "problem": record.problem,
        "problems": {server: list(texts) for server, texts in record.problems.items()},
        "by_hand": list(record.by_hand),
    }
    try:
        os.makedirs(state_directory, mode=0o700, exist_ok=True)
        data = (json.dumps(content, indent=1) + "\n").encode("utf-8")
        durable.replace(os.path.join(state_directory, _NAME), data, mode=0o600)
    except OSError as error:
        log.info("what the check found cannot be kept: %s", error)


def read(state_directory: str) -> Optional[CheckResult]:
    """None if there was no check yet, or nobody can read what it found."""
    try:
        with open(os.path.join(state_directory, _NAME), encoding="utf-8") as file:
            kept = json.loads(file.read(_MAX_BYTES))
        return CheckResult(
            str(kept["at"]),
            None if kept["problem"] is None else str(kept["problem"]),
            {str(server): tuple(map(str, texts)) for server, texts in kept["problems"].items()},
            tuple(map(str, kept["by_hand"])),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.info("what the last check found cannot be read: %r", error)
        return None
