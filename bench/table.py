"""The table, as Markdown that lines up in a terminal too. Pure: values in, text out."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import List, Sequence

from bench.measure import ENDS, Cost

_HEAD = ("", "seconds", "MB/s", "ratio", "wire MB", "CPU s", "node MiB", "target MiB")


@dataclass(frozen=True)
class Row:
    """One contender's runs, in order."""

    title: str
    costs: Sequence[Cost]


def render(title: str, size_bytes: int, data_bytes: int, rows: Sequence[Row]) -> str:
    """One case. The first row is ours: the ratio says how many times as long the others took, run by run."""
    lines = [_HEAD, *(_cells(row, rows[0], size_bytes) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(_HEAD))]
    text = [_line(lines[0], widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    text += [_line(line, widths) for line in lines[1:]]
    heading = f"**{title}**: {_size(size_bytes)}, of which {_size(data_bytes)} to be moved"
    return "\n".join([heading, "", *text, ""])


def _cells(row: Row, ours: Row, size_bytes: int) -> List[str]:
    seconds = [cost.seconds for cost in row.costs]
    ratios = [theirs.seconds / mine.seconds for theirs, mine in zip(row.costs, ours.costs)]
    wires = [cost.wire_bytes for cost in row.costs if cost.wire_bytes is not None]
    memory = [max(cost.memory_bytes[end] for cost in row.costs) for end in ENDS]
    return [
        row.title,
        f"{median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})",
        f"{size_bytes / median(seconds) / 1e6:.0f}",
        "1" if row is ours else f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        f"{median(wires) / 1e6:.2f}" if wires else "–",
        f"{median(sum(cost.cpu_seconds.values()) for cost in row.costs):.2f}",
        *(_memory(used) for used in memory),
    ]


def _memory(used: int) -> str:
    return f"{used / (1 << 20):.0f}" if used else "–"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = f"| {cells[0]:<{widths[0]}} |"
    return first + "".join(f" {cell:>{width}} |" for cell, width in zip(cells[1:], widths[1:]))


def _size(size_bytes: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.4g} {name}"
    return "nothing" if size_bytes == 0 else f"{size_bytes} bytes"


def left_out(title: str, packages: Sequence[str]) -> str:
    return f"left out: {title} (not installed: {', '.join(packages)})"
