"""Tells the demo: chapters, sentences, command lines, tables. Touches standard output only."""

from __future__ import annotations

import textwrap
from typing import Final, Iterable, Sequence, Tuple

from rich.console import Console
from rich.text import Text

from anvil_dr import words

_WIDEST: Final = 100
_STYLES: Final = {"-": "red", "+": "green"}


class Narrator:
    """Writes at once: what the commands say themselves comes in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width = min(_WIDEST, console.width) if console.is_terminal else _WIDEST
        self._chapters = 0

    def chapter(self, title: str) -> None:
        self._chapters += 1
        self._line("")
        self._line(f"{self._chapters}. {title}", "bold")

    def say(self, text: str, style: str = "") -> None:
        """A paragraph, folded between its words."""
        for line in textwrap.wrap(text, self._width, break_long_words=False, break_on_hyphens=False):
            self._line(line, style)

    def typed(self, line: str) -> None:
        """A command line that could be typed, before it runs."""
        self._line(f"$ {line}", "bold cyan")

    def shown(self, text: str) -> None:
        """What a file or a machine says."""
        for line in text.splitlines():
            self._line(f"    {words.printable(line)}")

    def difference(self, lines: Iterable[str]) -> None:
        """Lines of a file, each after `-`, `+` or a blank."""
        for line in lines:
            self._line(f"  {words.printable(line.rstrip())}", _STYLES.get(line[:1], ""))

    def table(self, headings: Sequence[str], rows: Sequence[Tuple[str, ...]]) -> None:
        widths = [max(map(len, column)) for column in zip(headings, *rows)]
        for row, style in ((headings, "dim"), *((row, "") for row in rows)):
            self._line("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip(), style)

    def gap(self) -> None:
        self._line("")

    def remark(self, text: str) -> None:
        """One line, however long: what is missing is looked for in logs too."""
        self._line(text, "yellow")

    def verdict(self, text: str, *, good: bool) -> None:
        self.say(text, "bold green" if good else "bold red")

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)
        self._console.file.flush()
