"""What `anvil-activate-dr` shows: tables, lines that fit the terminal, and how the boots go. Touches the terminal only.

Where there is no terminal, nothing is folded and nothing moves: one line for each thing that happens.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from typing import Any, Dict, Final, Iterable, Mapping, Optional, Sequence, TextIO, Tuple

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from anvil_dr.activation import activation_text
from anvil_dr.activation.boot import Phase
from anvil_dr.activation.boot_plan import BootPlan, PlannedServer
from anvil_dr.cli import LEAST_COLUMNS
from anvil_dr.status.status_text import Line, Tone
from anvil_dr.words import folded, printable

_STYLES: Final[Dict[Tone, str]] = {"title": "bold", "good": "green", "bad": "bold red", "plain": "", "quiet": "dim"}
_PHASES: Final[Mapping[Phase, Tuple[str, str]]] = {
    "waiting": ("waits", "dim"),
    "booting": ("booting", ""),
    "running": ("running", "green"),
    "answers": ("its guest answers", "bold green"),
    "failed": ("FAILED", "bold red"),
    "unknown": ("NOT KNOWN", "bold red"),
    "left out": ("NOT BOOTED", "bold red"),
}
_UNFOLDED: Final = 240


def now() -> datetime:
    """In this machine's time zone."""
    return datetime.now(timezone.utc).astimezone()


def console(stream: Optional[TextIO] = None) -> Console:
    file = stream or sys.stdout
    found = Console(file=file, highlight=False, markup=False, emoji=False, width=None if file.isatty() else _UNFOLDED)
    if found.width < LEAST_COLUMNS:  # nobody reads that; COLUMNS=0 is meant for somebody else
        found.width = LEAST_COLUMNS
    return found


def show_plan(plan: BootPlan, *, on_overlays: bool = False) -> None:
    """The table, and what is wrong below it."""
    rows = zip(activation_text.plan_rows(plan, now()), map(activation_text.tone, plan.servers))
    show_table(activation_text.PLAN_HEADINGS, rows)
    show(activation_text.plan_lines(plan, on_overlays=on_overlays))


def show_table(headings: Sequence[str], rows: Iterable[Tuple[Tuple[str, ...], Tone]]) -> None:
    told = tuple(rows)
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        # Two servers must not look like one, however narrow it is.
        whole = heading in ("Server", "Set")
        least = max((len(cells[number]) for cells, _ in told), default=0) if whole else None
        table.add_column(heading, no_wrap=whole, min_width=least, overflow="fold")
    for cells, tone in told:
        table.add_row(*(Text(cell) for cell in cells), style=_STYLES[tone])
    console().print(table)


def show(lines: Iterable[Line], stream: Optional[TextIO] = None) -> None:
    """Lines, folded behind their own indent."""
    out = console(stream)
    for line in lines:
        for part in folded(line.text, out.width, line.hang):
            out.print(Text(part, style=_STYLES[line.tone]), soft_wrap=True)


def ask(question: str) -> str:
    """The answer to a question; empty where nobody is left to answer."""
    *above, last = [part for line in question.split("\n") for part in folded(line, console().width, 0)]
    for part in above:
        print(part)
    try:
        return input(last + " ").strip()
    except EOFError:
        print()
        return ""
    except KeyboardInterrupt:
        print()
        raise


def show_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()


def widths(servers: Iterable[PlannedServer]) -> int:
    """How many columns the longest name takes."""
    return max((len(printable(planned.server)) for planned in servers), default=0)


class Progress:
    """Says how the boots go: a boot.Observer. On a terminal the last line shows what is being waited for."""

    def __init__(self, name_columns: int, stream: TextIO) -> None:
        self._columns, self._console = name_columns, console(stream)
        self._status: Optional[Status] = None
        self._deaf = False
        if stream.isatty():
            self._status = self._console.status("", spinner="line", spinner_style="")

    def phase(self, server: str, phase: Phase, seconds: float, note: str = "") -> None:
        word, style = _PHASES[phase]
        text = f"{word}: {note}" if phase in ("failed", "left out", "unknown") else f"{word} {note}".rstrip()
        self._say(f"{seconds:6.1f} s  {printable(server):<{self._columns}}  {printable(text)}", style)

    def unmarked(self, server: str, reason: str) -> None:
        self._say(f"{server}: cannot be marked as activated: {printable(reason)}", "bold red")
        self._say(f"  -> keep jobs off its images: {activation_text.KEEP_JOBS_OFF}", "")

    def pending(self, words: str) -> None:
        if self._status is None or self._deaf:
            return
        room = self._console.width - 4
        text = printable(words) if len(words) <= room else printable(words)[: room - 3] + "..."
        try:
            if words:
                self._status.update(Text(text, style="dim"))
                self._status.start()
            else:
                self._status.stop()
        except OSError:
            self._deaf = True

    def _say(self, text: str, style: str) -> None:
        if self._deaf:
            return
        try:
            for part in folded(text, self._console.width):
                self._console.print(Text(part, style=style), soft_wrap=True)
        except OSError:
            # The terminal is gone, as when an ssh connection breaks. The servers are booted all the same.
            self._deaf = True
