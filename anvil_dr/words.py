"""Ages, sizes and foreign text, as a person reads them. Pure."""

from __future__ import annotations

import difflib
import textwrap
from datetime import datetime, timezone
from typing import Final, Optional, Sequence

_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_WEEK: Final = 7 * _DAY
_YEAR: Final = 365 * _DAY

# (from this many seconds on, count in this unit). A larger unit only where at least two of it have passed: "1 week"
# hides whether it was 7 or 13 days, and that difference decides whether a set is what the admin thinks it is.
_UNITS: Final = (
    (2 * _YEAR, _YEAR, "year"),
    (10 * _WEEK, _YEAR // 12, "month"),
    (2 * _WEEK, _WEEK, "week"),
    (2 * _DAY, _DAY, "day"),
    (_HOUR, _HOUR, "hour"),
    (_MINUTE, _MINUTE, "minute"),
    (0, 1, "second"),
)


def moment(iso: str) -> Optional[datetime]:
    """An ISO 8601 time; None if it is not one. UTC where it says no zone."""
    try:
        # datetime.fromisoformat takes the letter only since Python 3.11.
        found = datetime.fromisoformat(iso[:-1] + "+00:00" if iso.endswith("Z") else iso)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def age(iso: str, now: datetime) -> str:
    """How long ago a time was: "3 hours ago"."""
    then = moment(iso)
    if then is None:
        return "at an unknown time"
    seconds = (now - then).total_seconds()
    if seconds < -_MINUTE:
        return "in the future (is the clock right?)"
    return "just now" if seconds < _MINUTE else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """A length of time, in its largest fitting unit, rounded down: "3 hours"."""
    whole = max(0, int(seconds))
    for least, unit, name in _UNITS:
        if whole >= least:
            return count(whole // unit, name)
    raise AssertionError("the last unit fits everything")


def count(number: int, noun: str) -> str:
    """ "1 server", "2 servers", "2 addresses"."""
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {noun}es" if noun.endswith("s") else f"{number} {noun}s"


def size(size_bytes: int) -> str:
    """A number of bytes in powers of 1024: "40.0 GiB"."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        # 1023.95 would be shown as 1024.0.
        if value < 1023.95 or unit == "PiB":
            break
    return f"{value:.1f} {unit}"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def nearest(typed: str, known: Sequence[str]) -> str:
    """ " (did you mean Web01?)" for web1, or nothing if it is like none of them."""
    by_lower = {one.lower(): one for one in known}
    found = difflib.get_close_matches(typed.lower(), list(by_lower), n=1)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def folded(text: str, columns: int, hang: Optional[int] = None) -> Sequence[str]:
    """A line in parts that fit, never broken inside a word that fits: paths and commands can be copied.

    `hang` is where the second part begins; without it, two columns behind the first.
    """
    if len(text) <= columns:
        return (text,)
    indent = " " * (len(text) - len(text.lstrip()) + 2 if hang is None else hang)
    return textwrap.wrap(
        text, columns, subsequent_indent=indent, break_on_hyphens=False, drop_whitespace=True, replace_whitespace=False
    )


def printable(text: str) -> str:
    """Text that a node or a file brought, in one line that cannot command the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
