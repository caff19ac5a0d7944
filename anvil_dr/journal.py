"""Plans and lists <-> the text that the state database keeps of them. Pure.

JSON, because a plan must still be readable by whoever repairs a box by hand.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Dict, Iterable, Optional, Tuple

from anvil_dr.errors import StateError
from anvil_dr.model import (
    ImageRecord,
    JournalEntry,
    JournalStep,
    Owner,
    Purpose,
    Removal,
    Rename,
    SetRecord,
    Step,
)


def encode_steps(steps: Iterable[JournalStep]) -> str:
    """A plan's steps, in order."""
    return json.dumps(
        [{"kind": type(one.step).__name__, **asdict(one.step), "identity": one.identity} for one in steps]
    )


def encode_record(record: Optional[SetRecord]) -> Optional[str]:
    """The set that a plan ends in, if it has one."""
    return None if record is None else json.dumps(asdict(record))


def encode_texts(texts: Iterable[str]) -> str:
    """A list of strings, in order."""
    return json.dumps(list(texts))


def decode_texts(text: str) -> Tuple[str, ...]:
    """What `encode_texts` made."""
    return tuple(json.loads(text))


def decode_entry(number: int, server: str, purpose: Purpose, steps: str, record: Optional[str]) -> JournalEntry:
    """One row of the journal. Raise StateError if it is not one that this version understands."""
    try:
        planned = tuple(JournalStep(_step(one), one["identity"]) for one in json.loads(steps))
        return JournalEntry(number, server, purpose, planned, None if record is None else _record(json.loads(record)))
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"journal entry {number} of server {server} cannot be read: {error!r}") from error


def _step(one: Dict[str, Any]) -> Step:
    owner = Owner(one["owner"]["server"], one["owner"]["disk"])
    if one["kind"] == Rename.__name__:
        return Rename(owner, one["before"], one["after"])
    if one["kind"] == Removal.__name__:
        return Removal(owner, one["sequence"])
    raise ValueError(one["kind"])


def _record(one: Dict[str, Any]) -> SetRecord:
    images = tuple(ImageRecord(**image) for image in one["images"])
    return SetRecord(one["server"], one["received_at"], one["source"], one["job_id"], images)
