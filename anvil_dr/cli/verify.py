"""`anvil-dr-verify`: reads images again and says whether they are what was received.

Exit codes: 0 if no image is rotten; 1 if one is, or if of the servers that were named none could be read; 2 usage or
configuration.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from anvil_dr import config as configuration
from anvil_dr import naming, words
from anvil_dr.cli import run_command, wiring
from anvil_dr.cli.parser import Parser, add_common_options
from anvil_dr.errors import UsageError
from anvil_dr.model import ImageSet
from anvil_dr.receiving import verify
from anvil_dr.receiving.verify import Check, Verdict
from anvil_dr.stores import openers
from anvil_dr.wire.pace import Pace

PROGRAM = "anvil-dr-verify"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = Parser(
        prog=PROGRAM,
        description="Read the images of servers again and compare them with what was received. A job is never held up.",
    )
    add_common_options(parser)
    parser.add_argument("servers", nargs="*", metavar="SERVER", help="only these (default: all)")
    parser.add_argument("--sequence", metavar="N", type=int, help="only the sets with this number")
    parser.add_argument(
        "--share",
        metavar="PERCENT",
        type=int,
        default=100,
        help="only this share of the bytes, those that were not read for the longest time (default: %(default)s)",
    )
    parser.add_argument(
        "--bandwidth-limit", metavar="RATE", default="0", help="bytes a second to be read at most, such as 50M"
    )
    parser.add_argument("--no-progress", action="store_true", help="say nothing before the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args(argv)
    return run_command(PROGRAM, lambda: _verify(options), as_json=options.json)


def _verify(options: argparse.Namespace) -> int:
    if options.sequence is not None and options.sequence < 1:
        raise UsageError("--sequence: sets are numbered from 1, the newest")
    if not 1 <= options.share <= 100:
        raise UsageError("--share: from 1 to 100 percent")
    rate = configuration.parse_rate(options.bandwidth_limit)
    config = configuration.load(options.config)
    _say_who_reads()
    servers = tuple(options.servers)
    with wiring.open_state(config) as state:
        store = wiring.open_store(config, state)
        present = verify.look(store, state)
        checks = verify.plan(present, servers, options.sequence, options.share)
        unknown = verify.without_digest(present, servers)
        begun = time.monotonic()
        with _Progress(sys.stderr, silent=options.no_progress, lines=not options.json) as progress:
            verifier = verify.Verifier(store, state, progress, pace=Pace(rate) if rate else None)
            verdicts = tuple(verifier.run(checks))
        seconds = time.monotonic() - begun
    if options.json:
        json.dump(to_json(verdicts, unknown, seconds), sys.stdout, indent=2)
        print()
    else:
        print("\n".join(map(words.printable, to_lines(verdicts, unknown, seconds))))
    nothing_read = bool(servers) and not any(one.state != "skipped" for one in verdicts)
    return 1 if nothing_read or any(one.state == "rotten" for one in verdicts) else 0


def _say_who_reads() -> None:
    """The name that the kernel shows of us, so that no job takes an image for used because we read it (prctl(2))."""
    Path("/proc/self/comm").write_text(openers.VERIFIER, encoding="ascii")


def name_of(check: Check) -> str:
    return naming.image_name(check.image.owner, check.image.sequence)


def to_lines(verdicts: Sequence[Verdict], unknown: Sequence[ImageSet], seconds: float) -> List[str]:
    """What came of it, in words; what is wrong first."""
    lines = [f"ROTTEN: {name_of(one.check)}: {one.reason}" for one in verdicts if one.state == "rotten"]
    lines += [f"not read: {name_of(one.check)}: {one.reason}" for one in verdicts if one.state == "skipped"]
    lines += [f"not read: set {one.sequence} of {one.server}: nobody knows what was received" for one in unknown]
    right = [one for one in verdicts if one.state == "right"]
    read_bytes = sum(one.check.record.size_bytes for one in verdicts if one.state != "skipped")
    how_long = f"{words.size(read_bytes)} in {words.duration(seconds)}"
    rotten = sum(one.state == "rotten" for one in verdicts)
    if rotten:
        lines.append(f"{words.count(rotten, 'image')} of {rotten + len(right)} not as received ({how_long}). The next")
        lines[-1] += " successful jobs of these servers write new ones; until then other sets are booted first."
    elif right:
        lines.append(f"{words.count(len(right), 'image')} as received ({how_long}).")
    else:
        lines.append("No image was read.")
    return lines


def to_json(verdicts: Sequence[Verdict], unknown: Sequence[ImageSet], seconds: float) -> Dict[str, Any]:
    """The same for programs."""
    return {
        "images": [
            {
                "server": one.check.image.owner.server,
                "disk": one.check.image.owner.disk,
                "sequence": one.check.image.sequence,
                "image": name_of(one.check),
                "path": one.check.image.path,
                "size_bytes": one.check.record.size_bytes,
                "digest": one.check.record.digest,
                "state": one.state,
                "reason": one.reason or None,
                "at": one.at,
            }
            for one in verdicts
        ],
        "without_digest": [{"server": one.server, "sequence": one.sequence} for one in unknown],
        "seconds": round(seconds, 3),
    }


class _Progress:
    """Implements verify.Observer: a bar for each image on a terminal, a line for each elsewhere."""

    def __init__(self, stream: TextIO, *, silent: bool, lines: bool) -> None:
        self._stream, self._lines = stream, lines and not silent and not stream.isatty()
        self._bars: Optional[Progress] = None
        self._task: Optional[TaskID] = None
        if not silent and stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TimeRemainingColumn())
            self._bars = Progress(*columns, console=Console(file=stream), transient=True)

    def __enter__(self) -> _Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begun(self, check: Check) -> None:
        if self._bars is not None:
            self._task = self._bars.add_task(words.printable(name_of(check)), total=check.record.size_bytes)

    def advanced(self, check: Check, done_bytes: int) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done_bytes)

    def ended(self, verdict: Verdict) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
        if self._lines:
            print(words.printable(f"{name_of(verdict.check)}: {verdict.state}"), file=self._stream, flush=True)

