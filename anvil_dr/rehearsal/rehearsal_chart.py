"""How long the slowest server took in each of the last rehearsals, as a drawing inside an HTML file. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Final, Iterator, Sequence

_WIDTH: Final = 64
"""Of each rehearsal's column, in the drawing's own units."""
_HEIGHT: Final = 120
_BAR: Final = 30
_LEAST: Final = 3
_HEAD: Final = 34
_FOOT: Final = 36


@dataclass(frozen=True)
class Bar:
    """One rehearsal."""

    day: str
    clock: str
    came_up: str
    """Such as "3 of 3"."""
    seconds: float
    """0.0 if none came up."""
    shown: str
    """The same for people."""
    kind: str
    """`good`, `bad` or `quiet`."""


def svg(bars: Sequence[Bar]) -> str:
    """The drawing; it grows with the number of bars and shrinks with the page."""
    longest = max((bar.seconds for bar in bars), default=0.0) or 1.0
    width, height = len(bars) * _WIDTH, _HEAD + _HEIGHT + _FOOT
    base = _HEAD + _HEIGHT
    said = "; ".join(f"{bar.day} {bar.clock}: {bar.came_up} came up, slowest {bar.shown}" for bar in bars)
    return "".join(
        (
            f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
            f'aria-label="{escape(said, quote=True)}">',
            *(part for place, bar in enumerate(bars) for part in _bar(bar, place * _WIDTH, base, longest)),
            f'<line x1="0" y1="{base}" x2="{width}" y2="{base}" class="axis"/></svg>',
        )
    )


def _bar(bar: Bar, left: int, base: int, longest: float) -> Iterator[str]:
    tall = max(_LEAST, round(_HEIGHT * bar.seconds / longest))
    middle, top = left + _WIDTH // 2, base - tall
    yield (
        f'<rect x="{middle - _BAR // 2}" y="{top}" width="{_BAR}" height="{tall}" rx="3" '
        f'class="{bar.kind}"/>'
    )
    for y, kind, text in (
        (top - 19, "big", bar.shown),
        (top - 6, "small", bar.came_up),
        (base + 15, "small", bar.day),
        (base + 29, "small", bar.clock),
    ):
        yield f'<text x="{middle}" y="{y}" class="{kind}">{escape(text)}</text>'
