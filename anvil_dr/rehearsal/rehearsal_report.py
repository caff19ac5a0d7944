"""A rehearsal as one HTML file that a manager can read: verdicts, pictures, times, and how it went before. Pure.

Nothing is loaded from anywhere: the pictures are in it. Names, and what guests said, are foreign text and escaped.
"""

from __future__ import annotations

import base64
from datetime import datetime
from html import escape
from typing import Dict, Final, Iterator, List, Optional, Sequence, Tuple

from anvil_dr.rehearsal.rehearsal_result import IN_WORDS, Rehearsal, RehearsalResult
from anvil_dr.words import age, count, duration, moment, printable

_SHOWN: Final = 10
"""How many rehearsals the trend shows."""

_STYLE: Final = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
.when, .hint { color: #5c6675 } .hint { font-size: .9rem }
.banner { padding: .8rem 1rem; border-radius: .4rem; font-weight: 600; margin: 1rem 0 }
.good { background: #e2f4e5; color: #14532d } .bad { background: #fde4e1; color: #7f1d1d }
.quiet { background: #eef0f3; color: #4b5563 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .35rem .6rem;
  border-bottom: 1px solid #dfe3e8; vertical-align: top } th { color: #5c6675; font-weight: 600; font-size: .85rem }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
.verdict { display: inline-block; border-radius: .3rem; padding: 0 .5rem; font-weight: 600; white-space: nowrap }
figure { margin: .4rem 0 } img { max-width: 100%; border: 1px solid #c9ced6; border-radius: .3rem; background: #000 }
ul { margin: .3rem 0; padding-left: 1.2rem }
@media print { h2, figure { break-inside: avoid } body { margin: 0 } }
"""

_SIGNS: Final = {"passed": "✓", "failed": "✗", "not bootable": "✗", "interrupted": "…", "skipped": "–"}
_CLASSES: Final = {
    "passed": "good", "failed": "bad", "not bootable": "bad", "interrupted": "quiet", "skipped": "quiet",
}  # fmt: skip


def html(rehearsal: Rehearsal, earlier: Sequence[Rehearsal], now: datetime) -> str:
    """The file. `earlier` are oldest first; times are shown in the time zone of `now`."""
    results = rehearsal.results
    title = f"Disaster recovery rehearsal: {rehearsal.target}"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        f'<p class="when">{_when(rehearsal.at, now)}</p>',
        _banner(rehearsal),
        "<table><thead><tr><th>Server</th><th>Verdict</th><th>Recovery time</th><th>Data from</th><th>How we know</th>"
        "</tr></thead><tbody>",
        *(_row(one, rehearsal.at) for one in results),
        "</tbody></table>",
        '<p class="hint">Recovery time: from the decision to boot until the server showed a sign of life, measured '
        "in this rehearsal (RTO). Data from: what would have been lost had the site been lost at that moment (RPO). "
        "The servers ran on throw-away copies, without any network; their images were not changed.</p>",
        *_trend((*earlier, rehearsal), now),
        *(part for one in results for part in _server(one)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _banner(rehearsal: Rehearsal) -> str:
    passed = [one for one in rehearsal.results if one.verdict == "passed"]
    tried = [one for one in rehearsal.results if one.verdict != "skipped"]
    times = [one.seconds for one in passed if one.seconds is not None]
    slowest = f" The slowest took {_seconds(max(times))}." if times else ""
    text = f"{len(passed)} of {count(len(tried), 'server')} came up.{slowest}"
    return f'<p class="banner {"good" if rehearsal.passed else "bad"}">{_text(text)}</p>'


def _row(one: RehearsalResult, at: str) -> str:
    cells = (
        f"<td>{_text(one.server)}</td>",
        f"<td>{_verdict(one)}</td>",
        f'<td class="number">{_seconds(one.seconds) if one.seconds is not None else "–"}</td>',
        f'<td class="number">{_text(_data_from(one, at))}</td>',
        f"<td>{_text(one.detail)}</td>",
    )
    return f"<tr>{''.join(cells)}</tr>"


def _verdict(one: RehearsalResult) -> str:
    return f'<span class="verdict {_CLASSES[one.verdict]}">{_SIGNS[one.verdict]} {_text(IN_WORDS[one.verdict])}</span>'


def _data_from(one: RehearsalResult, at: str) -> str:
    if one.sequence is None:
        return "–"
    began = moment(at)
    known = one.received_at is not None and began is not None
    when = age(one.received_at, began) if known and one.received_at is not None and began is not None else "unknown"
    return f"{when} (set {one.sequence})"


def _trend(rehearsals: Tuple[Rehearsal, ...], now: datetime) -> Iterator[str]:
    shown = rehearsals[-_SHOWN:]
    if len(shown) < 2:
        yield '<p class="hint">This is the first rehearsal, so there is no trend yet.</p>'
        return
    servers = sorted({one.server for rehearsal in shown for one in rehearsal.results})
    yield f"<h2>The last {len(shown)} rehearsals</h2><table><thead><tr><th>Server</th>"
    yield "".join(f"<th>{_day(rehearsal.at, now)}</th>" for rehearsal in shown) + "</tr></thead><tbody>"
    by_server: List[Dict[str, RehearsalResult]] = [{one.server: one for one in each.results} for each in shown]
    for server in servers:
        cells = "".join(_trend_cell(each.get(server)) for each in by_server)
        yield f"<tr><td>{_text(server)}</td>{cells}</tr>"
    yield "</tbody></table>"


def _trend_cell(one: Optional[RehearsalResult]) -> str:
    if one is None:
        return "<td></td>"
    text = _seconds(one.seconds) if one.verdict == "passed" and one.seconds is not None else _SIGNS[one.verdict]
    return (
        f'<td class="number"><span class="verdict {_CLASSES[one.verdict]}" title="{_text(one.detail)}">'
        f"{_text(text)}</span></td>"
    )


def _server(one: RehearsalResult) -> Iterator[str]:
    yield f"<h2>{_text(one.server)} {_verdict(one)}</h2>"
    yield f"<p>{_text(one.detail)}</p>"
    if one.warnings:
        yield f"<ul>{''.join(f'<li>{_text(text)}</li>' for text in one.warnings)}</ul>"
    if one.screenshot is not None:
        data = base64.b64encode(one.screenshot).decode("ascii")
        name = _text(f"The screen of {one.server}")
        yield f'<figure><img src="data:image/png;base64,{data}" alt="{name}"></figure>'
    elif one.verdict in ("passed", "failed"):
        yield '<p class="hint">There is no picture of its screen.</p>'


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else duration(seconds)


def _when(iso: str, now: datetime) -> str:
    then = moment(iso)
    return _text(iso if then is None else f"{then.astimezone(now.tzinfo):%A, %d %B %Y, %H:%M %Z}")


def _day(iso: str, now: datetime) -> str:
    then = moment(iso)
    return _text(iso if then is None else f"{then.astimezone(now.tzinfo):%d %b %H:%M}")


def _text(text: str) -> str:
    return escape(printable(text), quote=True)
