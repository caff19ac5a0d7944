"""A rehearsal as one HTML file that a manager can read: verdicts, pictures, times, and how it went before. Pure.

Nothing is loaded from anywhere: the pictures are in it. Names, and what guests said, are foreign text and escaped.
"""

from __future__ import annotations

import base64
from datetime import datetime
from html import escape
from typing import Dict, Final, Iterator, List, Optional, Sequence, Tuple

from anvil_dr.rehearsal.rehearsal_chart import Bar, svg
from anvil_dr.rehearsal.rehearsal_result import IN_WORDS, Rehearsal, RehearsalResult
from anvil_dr.words import age, count, duration, listed, moment, printable

_SHOWN: Final = 10
"""How many rehearsals the trend shows."""

_WHEN: Final = "%A, %d %B %Y, %H:%M %Z"
_DAY: Final = "%d %b %H:%M"

_STYLE: Final = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #1c2330;
  background: #f4f5f7; margin: 0; padding: 2rem 1rem }
main { max-width: 62rem; margin: 0 auto }
section, header { background: #fff; border: 1px solid #e1e4e8; border-radius: .6rem; padding: 1.2rem 1.4rem;
  margin: 0 0 1rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 } h2 { font-size: 1.1rem; margin: 0 0 .7rem }
.when, .hint, dt { color: #5c6675 } .when { margin: .2rem 0 1rem } .hint { font-size: .85rem; margin: .8rem 0 0 }
.banner { padding: .7rem 1rem; border-radius: .4rem; font-weight: 600; font-size: 1.1rem; margin: 0 }
.good { background: #e2f4e5; color: #14532d } .bad { background: #fde4e1; color: #7f1d1d }
.quiet { background: #eef0f3; color: #4b5563 }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 1rem; margin: 1.2rem 0 0 }
dl div { border-left: 3px solid #d0d5dc; padding-left: .8rem }
dt { font-size: .85rem } dd { margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.3 }
dd small { display: block; font-size: .8rem; font-weight: 400; color: #5c6675 }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .45rem .6rem;
  border-bottom: 1px solid #e7eaee; vertical-align: top } tr:last-child td { border-bottom: 0 }
th { color: #5c6675; font-weight: 600; font-size: .82rem; white-space: nowrap }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
.verdict { display: inline-block; border-radius: .3rem; padding: 0 .5rem; font-weight: 600; font-size: .9rem;
  white-space: nowrap }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  align-items: start }
.cards section { margin: 0 } .cards p { margin: .2rem 0 }
figure { margin: .7rem 0 0 } img { display: block; width: 100%; border-radius: .3rem; background: #000 }
ul { margin: .4rem 0 0; padding-left: 1.2rem; font-size: .9rem }
svg { width: 100%; display: block } svg text { text-anchor: middle; fill: #1c2330 }
.big { font-size: 12px; font-weight: 600 } .small { font-size: 10px } svg text.small { fill: #5c6675 }
.good { fill: #3f9d5c } .bad { fill: #c9453a } .quiet { fill: #9aa3af } .axis { stroke: #d0d5dc }
@media (max-width: 40rem) {
  body { padding: .6rem .5rem } section, header { padding: 1rem }
  table.stacks, .stacks tbody, .stacks tr, .stacks td { display: block } .stacks thead { display: none }
  .stacks tr { padding: .5rem 0; border-bottom: 1px solid #e7eaee } .stacks tr:last-child { border-bottom: 0 }
  .stacks td { border: 0; padding: .1rem 0 } .stacks td[data-label]::before { content: attr(data-label) ": ";
    color: #5c6675 }
}
@media print { body { background: #fff; padding: 0 } section { break-inside: avoid } .wide { overflow: visible } }
"""

_SIGNS: Final = {"passed": "✓", "failed": "✗", "not bootable": "✗", "interrupted": "…", "skipped": "–"}
_CLASSES: Final = {
    "passed": "good", "failed": "bad", "not bootable": "bad", "interrupted": "quiet", "skipped": "quiet",
}  # fmt: skip


def html(rehearsal: Rehearsal, earlier: Sequence[Rehearsal], now: datetime) -> str:
    """The file. `earlier` are oldest first; times are shown in the time zone of `now`."""
    title = f"Disaster recovery rehearsal: {rehearsal.target}"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><main>",
        f'<header><h1>{_text(title)}</h1><p class="when">{_text(_moment(rehearsal.at, now, _WHEN))}</p>',
        _banner(rehearsal),
        *_figures(rehearsal),
        "</header>",
        *_table(rehearsal),
        *_trend((*earlier, rehearsal), now),
        f'<div class="cards">{"".join(part for one in rehearsal.results for part in _server(one))}</div>',
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _banner(rehearsal: Rehearsal) -> str:
    passed, tried = _passed(rehearsal), _tried(rehearsal)
    down, unfinished = _down(rehearsal), [one.server for one in rehearsal.results if one.verdict == "interrupted"]
    text = f"{len(passed)} of {count(len(tried), 'server')} came up."
    if down:
        text += f" {listed(down)} would have been down."
    if unfinished:
        text += f" The rehearsal was ended before {listed(unfinished)} could be tried."
    return f'<p class="banner {_kind(rehearsal)}">{_text(text)}</p>'


def _kind(rehearsal: Rehearsal) -> str:
    if _down(rehearsal):
        return "bad"
    return "good" if rehearsal.passed and _passed(rehearsal) else "quiet"


def _figures(rehearsal: Rehearsal) -> Iterator[str]:
    """The two numbers that a plan for disasters is written with."""
    passed, began = _passed(rehearsal), moment(rehearsal.at)
    slowest = max(passed, key=lambda one: one.seconds or 0.0, default=None)
    received = [(one.received_at, one.server) for one in rehearsal.results if one.received_at is not None]
    oldest_at, oldest = min(received, default=("", ""))
    since = moment(oldest_at)
    yield "<dl>"
    yield _figure("Servers that came up", f"{len(passed)} of {len(_tried(rehearsal))}", "in this rehearsal")
    if slowest is not None and slowest.seconds is not None:
        yield _figure("Recovery time (RTO)", _seconds(slowest.seconds), f"the slowest: {slowest.server}")
    if began is not None and since is not None:
        lost = duration((began - since).total_seconds())
        yield _figure("Data lost at most (RPO)", lost, f"the oldest copy: {oldest}")
    yield "</dl>"


def _figure(name: str, number: str, detail: str) -> str:
    return f"<div><dt>{_text(name)}</dt><dd>{_text(number)}<small>{_text(detail)}</small></dd></div>"


def _table(rehearsal: Rehearsal) -> Iterator[str]:
    yield '<section><h2>Server by server</h2><div class="wide"><table class="stacks"><thead><tr><th>Server</th>'
    yield "<th>Verdict</th><th>Recovery time</th><th>Data from</th><th>How we know</th></tr></thead><tbody>"
    for one in rehearsal.results:
        took = _seconds(one.seconds) if one.seconds is not None else "–"
        yield (
            f"<tr><td><strong>{_text(one.server)}</strong></td><td>{_verdict(one)}</td>"
            f'<td class="number" data-label="Recovery time">{took}</td>'
            f'<td class="number" data-label="Data from">{_text(_data_from(one, rehearsal.at))}</td>'
            f"<td>{_text(one.detail)}</td></tr>"
        )
    yield "</tbody></table></div>"
    yield (
        '<p class="hint">Recovery time: from the decision to boot until the server showed a sign of life, measured '
        "in this rehearsal. Data from: everything after that would have been lost, had the site been lost at that "
        "moment. The servers ran on throw-away copies, without any network; their images were not changed.</p>"
        "</section>"
    )


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
    # One that was ended before anything came of it says nothing.
    told = [one for one in rehearsals if _passed(one) or _down(one)]
    shown = told[-_SHOWN:]
    if len(shown) < 2:
        yield '<section><p class="hint">There is no trend yet: it takes two rehearsals.</p></section>'
        return
    servers = sorted({one.server for rehearsal in shown for one in rehearsal.results})
    yield f"<section><h2>The last {len(shown)} rehearsals: the slowest server, and how many came up</h2>"
    yield svg([_bar(rehearsal, now) for rehearsal in shown])
    yield '<div class="wide"><table><thead><tr><th>Server</th>'
    yield "".join(f"<th>{_text(_moment(rehearsal.at, now, _DAY))}</th>" for rehearsal in shown) + "</tr></thead><tbody>"
    by_server: List[Dict[str, RehearsalResult]] = [{one.server: one for one in each.results} for each in shown]
    for server in servers:
        cells = "".join(_trend_cell(each.get(server)) for each in by_server)
        yield f"<tr><td>{_text(server)}</td>{cells}</tr>"
    yield "</tbody></table></div></section>"


def _bar(rehearsal: Rehearsal, now: datetime) -> Bar:
    passed, tried = _passed(rehearsal), _tried(rehearsal)
    seconds = max((one.seconds for one in passed if one.seconds is not None), default=0.0)
    day, clock = (_moment(rehearsal.at, now, form) for form in ("%d %b", "%H:%M"))
    shown = _seconds(seconds) if passed else "–"
    return Bar(day, clock, f"{len(passed)} of {len(tried)}", seconds, shown, _kind(rehearsal))


def _trend_cell(one: Optional[RehearsalResult]) -> str:
    if one is None:
        return "<td></td>"
    text = _seconds(one.seconds) if one.verdict == "passed" and one.seconds is not None else _SIGNS[one.verdict]
    return (
        f'<td class="number"><span class="verdict {_CLASSES[one.verdict]}" title="{_text(one.detail)}">'
        f"{_text(text)}</span></td>"
    )


def _server(one: RehearsalResult) -> Iterator[str]:
    yield f"<section><h2>{_text(one.server)} {_verdict(one)}</h2>"
    yield f"<p>{_text(one.detail)}</p>"
    if one.warnings:
        yield f"<ul>{''.join(f'<li>{_text(text)}</li>' for text in one.warnings)}</ul>"
    if one.screenshot is not None:
        data = base64.b64encode(one.screenshot).decode("ascii")
        name = _text(f"The screen of {one.server}")
        yield f'<figure><img src="data:image/png;base64,{data}" alt="{name}"></figure>'
    elif one.verdict in ("passed", "failed"):
        yield '<p class="hint">There is no picture of its screen.</p>'
    yield "</section>"


def _down(rehearsal: Rehearsal) -> Tuple[str, ...]:
    return tuple(one.server for one in rehearsal.results if _CLASSES[one.verdict] == "bad")


def _passed(rehearsal: Rehearsal) -> Tuple[RehearsalResult, ...]:
    return tuple(one for one in rehearsal.results if one.verdict == "passed")


def _tried(rehearsal: Rehearsal) -> Tuple[RehearsalResult, ...]:
    return tuple(one for one in rehearsal.results if one.verdict != "skipped")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else duration(seconds)


def _moment(iso: str, now: datetime, form: str) -> str:
    then = moment(iso)
    return iso if then is None else then.astimezone(now.tzinfo).strftime(form)


def _text(text: str) -> str:
    return escape(printable(text), quote=True)
