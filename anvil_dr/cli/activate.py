"""`anvil-activate-dr`: boots the servers that this DR box keeps, on the day on which their own site is lost.

Exit codes: 0 if every server that was asked for runs (or, with --check, could be booted); 1 if one doesn't, or the
admin said no; 2 usage or configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, Iterable, List, Optional, Sequence, TextIO, Tuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anvil_dr import activate, activation_text, boot, hypervisor, release, survey, words
from anvil_dr import config as configuration
from anvil_dr.boot_plan import BootPlan, Outcome
from anvil_dr.cli import add_common_options, run_command, wiring
from anvil_dr.config import Config
from anvil_dr.errors import StateError, StoreError, UsageError
from anvil_dr.host import LocalHost
from anvil_dr.ports import Store
from anvil_dr.state import State
from anvil_dr.status_text import Line, Tone

PROGRAM = "anvil-activate-dr"

_STYLES: Dict[Tone, str] = {"title": "bold", "good": "green", "bad": "bold red", "plain": "", "quiet": "dim"}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Boot the servers that this DR box keeps. Shows what it is going to do and asks before it does it.",
    )
    add_common_options(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="only show the servers and their sets")
    what.add_argument("--check", action="store_true", help="only show what would be booted, and what is in the way")
    what.add_argument(
        "--release", metavar="SERVER", action="append", help="jobs may write this server's images again; boot nothing"
    )
    parser.add_argument(
        "--server", metavar="SERVER", action="append", default=[], help="only this one; may be repeated (default: all)"
    )
    parser.add_argument("--sequence", metavar="N", type=int, help="that set's images instead of the newest complete")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--force", action="store_true", help="boot although a node seems to be alive")
    parser.add_argument("--connect", metavar="URI", help="the hypervisor (default: activation.connect)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args(argv)
    return run_command(PROGRAM, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.sequence is not None and options.sequence < 1:
        raise UsageError("--sequence: sets are numbered from 1, the newest")
    config = configuration.load(options.config)
    if options.release:
        return _release(config, options.release)
    asks = not (options.list or options.check or options.yes)
    if asks and options.json:
        raise UsageError("--json cannot ask; add --yes, or --check to boot nothing")
    if asks and not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on; add --yes, or --check to boot nothing")
    with ExitStack() as opened:
        box = _open(config, opened, readonly=options.list or options.check)
        return _list(box, options) if options.list else _boot(box, options)


@dataclass(frozen=True)
class _Box:
    """What this command works on."""

    config: Config
    store: Store
    state: Optional[State]
    warnings: Tuple[str, ...]


def _open(config: Config, opened: ExitStack, *, readonly: bool) -> _Box:
    """The store, and the state if it can be had at all: on this day nothing is taken for granted."""
    warnings: List[str] = []
    state: Optional[State] = None
    for attempt in (True,) if readonly else (False, True):
        try:
            state = opened.enter_context(wiring.open_state(config, readonly=attempt))
            state.owners()
            break
        except StateError as error:
            state, warnings = None, [f"the state cannot be used, so the age of a set is not known: {error}"]
    return _Box(config, wiring.open_store(config, state), state, tuple(warnings))


def _boot(box: _Box, options: argparse.Namespace) -> int:
    warnings = list(box.warnings)
    try:
        box.store.check()
    except StoreError as error:
        warnings.append(str(error))
    seen = survey.survey(box.store, box.state, box.config.definitions)
    request = activate.Request(tuple(options.server), options.sequence, options.force)
    with hypervisor.connect(options.connect or box.config.activation.connect) as connected:
        plan = activate.plan(seen, request, box.config.activation, box.store, connected, LocalHost(), warnings)
        outcomes: Optional[Tuple[Outcome, ...]] = None
        if not options.json:
            _show_plan(plan, box.config)
        if plan.ready and not options.check:
            if not options.yes and not _confirmed(plan):
                print("Nothing was booted.")
                return 1
            reporter = _Reporter(sys.stderr if options.json else sys.stdout)
            outcomes = boot.execute(plan, connected, box.state, _user(), reporter)
    if options.json:
        _print_json(activation_text.to_json(plan, outcomes))
    elif outcomes is not None:
        _print(activation_text.end_lines(plan, outcomes))
    failed = any(outcome.error is not None for outcome in outcomes or ())
    return 1 if failed or plan.blocked or not plan.servers else 0


def _list(box: _Box, options: argparse.Namespace) -> int:
    seen = survey.survey(box.store, box.state, box.config.definitions)
    chosen = activate.selected(seen, tuple(options.server))
    for text in box.warnings:
        print(f"{PROGRAM}: {words.printable(text)}", file=sys.stderr)
    if options.json:
        _print_json(activation_text.list_to_json(chosen))
    elif chosen:
        rows = activation_text.list_rows(chosen, _now())
        _print_table(activation_text.LIST_HEADINGS, ((row, "plain") for row in rows))
    else:
        print(_nothing_here(box.config))
    return 0


def _release(config: Config, servers: Sequence[str]) -> int:
    with wiring.open_state(config) as state:
        store = wiring.open_store(config, state)
        for server in servers:
            release.release(server, store, state)
            print(f"{words.printable(server)}: jobs may write its images again, over what it wrote here.")
    return 0


def _confirmed(plan: BootPlan) -> bool:
    try:
        return input(activation_text.question(plan)).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _user() -> str:
    """Who types: root is nobody in particular."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def _now() -> datetime:
    return datetime.now(timezone.utc).astimezone()


# — what is shown —


class _Reporter:
    """A line for each thing that happens, when it happens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def waiting(self, server: str, seconds: float) -> None:
        self._say(f"{server}: waits {seconds:.0f} s for its turn")

    def booted(self, server: str, seconds: float) -> None:
        self._say(f"{server}: booted ({seconds:.1f} s)")

    def failed(self, outcome: Outcome) -> None:
        self._say(f"{outcome.server}: FAILED: {outcome.error}")
        if outcome.advice:
            self._say(f"  {outcome.advice}")

    def unmarked(self, server: str, reason: str) -> None:
        self._say(f"{server}: cannot be marked as activated: {reason}")
        self._say("  keep jobs off its images: systemctl stop anvil-dr-target.socket anvil-dr-target")

    def watching(self, seconds: float) -> None:
        self._say(f"watching for {seconds:.0f} s whether they stay up ...")

    def _say(self, text: str) -> None:
        print(words.printable(text), file=self._stream, flush=True)


def _show_plan(plan: BootPlan, config: Config) -> None:
    if plan.servers:
        turns = activation_text.plan_rows(plan, _now())
        rows = zip(turns, map(activation_text.tone, plan.servers))
        _print_table(activation_text.PLAN_HEADINGS, rows)
    else:
        print(_nothing_here(config))
    _print(activation_text.plan_lines(plan))


def _nothing_here(config: Config) -> str:
    places = words.listed(config.store.locations)
    return f"There is nothing to boot: no definition in {config.definitions}, and no image in {places}."


def _console() -> Console:
    # Where there is no terminal, nothing has to be folded.
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 240)


def _print_table(headings: Sequence[str], rows: Iterable[Tuple[Tuple[str, ...], Tone]]) -> None:
    table = Table(*headings, box=None, pad_edge=False)
    for cells, tone in rows:
        table.add_row(*(Text(cell) for cell in cells), style=_STYLES[tone])
    _console().print(table)


def _print(lines: Iterable[Line]) -> None:
    console = _console()
    for line in lines:
        console.print(Text(line.text, style=_STYLES[line.tone]), soft_wrap=True)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()
