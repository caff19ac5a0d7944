"""Frozen dataclasses to JSON and back, from a peer that may send anything. Pure.

What keeps a hostile document from costing more than it is worth: its number of values, the length of each
text, and the range of each number are bounded; a text can be written wherever a text is written.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from typing import Any, Dict, Final, Type, TypeVar

from anvil_dr.errors import ProtocolError

MAX_TEXT_CHARACTERS: Final = 4096
"""Of a name, a path, a message; a field with `characters` in its metadata has its own."""
MAX_VALUES: Final = 250_000
"""In one document: eight megabytes of `[[],[],...` would be two hundred megabytes of objects."""
MAX_NUMBER: Final = (1 << 56) - 1

T = TypeVar("T")


def write(value: Any) -> bytes:
    """The JSON of a dataclass. What is too long in fields named `message` and `warnings` is cut off."""
    return json.dumps(_shortened(dataclasses.asdict(value)), separators=(",", ":")).encode()


def read(wanted: Type[T], content: bytes, where: str) -> T:
    """The dataclass that a document describes; fields that it does not have are passed over.

    Raise ProtocolError naming what is wrong, and where.
    """
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ProtocolError(f"{where} has more than {MAX_VALUES} values")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise ProtocolError(f"{where} is not valid JSON") from None
    return typing.cast(T, _typed(value, wanted, where, MAX_TEXT_CHARACTERS))


def _typed(value: Any, wanted: Any, where: str, most_characters: int) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Union:  # Optional
        return None if value is None else _typed(value, arguments[0], where, most_characters)
    if origin is tuple:
        if not isinstance(value, list):
            raise ProtocolError(f"{where}: a list was expected")
        return tuple(_typed(item, arguments[0], f"{where}[{at}]", most_characters) for at, item in enumerate(value))
    if dataclasses.is_dataclass(wanted):
        return _object(value, typing.cast(Any, wanted), where)
    if origin is not None:  # Mapping[str, X]
        if not isinstance(value, dict):
            raise ProtocolError(f"{where}: an object was expected")
        return {
            _text(key, f"a name in {where}", most_characters): _typed(
                item, arguments[1], f"{where}.{key}", most_characters
            )
            for key, item in value.items()
        }
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ProtocolError(f"{where}: {wanted.__name__} was expected")
    if wanted is str:
        return _text(value, where, most_characters)
    if wanted is int and not 0 <= value <= MAX_NUMBER:
        raise ProtocolError(f"{where}: {value} is out of range")
    return value


def _object(value: Any, wanted: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ProtocolError(f"{where}: an object was expected")
    hints = _hints(wanted)
    known: Dict[str, Any] = {}
    for item in dataclasses.fields(wanted):
        if item.name in value:
            most_characters = item.metadata.get("characters", MAX_TEXT_CHARACTERS)
            known[item.name] = _typed(value[item.name], hints[item.name], f"{where}.{item.name}", most_characters)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ProtocolError(f"{where}: {item.name} is missing")
    return wanted(**known)


@functools.cache
def _hints(wanted: Any) -> Dict[str, Any]:
    return typing.get_type_hints(wanted)


def _text(value: str, where: str, most_characters: int) -> str:
    if len(value) > most_characters:
        raise ProtocolError(f"{where}: it is longer than {most_characters} characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can say half a surrogate pair, which no file name, database or log can take.
        raise ProtocolError(f"{where}: it is not valid Unicode") from None
    return value


def _shortened(value: Any, words: bool = False) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(inner, name in ("message", "warnings")) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shortened(inner, words) for inner in value]
    if words and isinstance(value, str) and len(value) > MAX_TEXT_CHARACTERS:
        return value[: MAX_TEXT_CHARACTERS - 1] + "…"
    return value
