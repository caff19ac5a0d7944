"""Plans, sets and lists <-> the text that the state keeps of them. Pure.

JSON, because a plan must still be readable by whoever repairs a box by hand.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple, cast, get_args

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


def encode_map(texts: Mapping[str, str]) -> str:
    """Strings by strings."""
    return json.dumps(dict(texts))


def decode_map(text: str) -> Mapping[str, str]:
    """What `encode_map` made."""
    return dict(json.loads(text))


def decode_entry(
    number: int, server: str, purpose: str, steps: str, record: Optional[str], failure: Optional[str]
) -> JournalEntry:
    """One row of the journal. One that this version does not understand has no steps, and says so."""
    kind = cast(Purpose, purpose)
    try:
        if purpose not in get_args(Purpose):
            raise ValueError(f"its purpose is {purpose!r}")
        planned = tuple(JournalStep(_step(one), str(one["identity"])) for one in json.loads(steps))
        kept = None if record is None else decode_record(json.loads(record))
        return JournalEntry(number, server, kind, planned, kept, failure)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return JournalEntry(number, server, kind, (), None, f"it cannot be read: {error!r}", readable=False)


def _step(one: Dict[str, Any]) -> Step:
    owner = Owner(one["owner"]["server"], one["owner"]["disk"])
    if one["kind"] == Rename.__name__:
        return Rename(owner, one["before"], one["after"])
    if one["kind"] == Removal.__name__:
        return Removal(owner, one["sequence"])
    raise ValueError(one["kind"])


def decode_record(one: Dict[str, Any]) -> SetRecord:
    """What `encode_record` made, parsed. Raise KeyError, TypeError, ValueError."""
    images = tuple(ImageRecord(**image) for image in one["images"])
    until = one.get("ran_here_until")
    return SetRecord(one["server"], one["received_at"], one["source"], one["job_id"], images, until)
