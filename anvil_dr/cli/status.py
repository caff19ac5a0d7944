"""`anvil-dr-status`: servers, sets, jobs and space, in words or as JSON. Changes nothing.

Exit codes: 0 if everything could be looked at, whatever was found; 1 if something could not be read, so that what
is shown is not the whole truth; 2 usage or configuration. With --check 0 means that all is well, and 1 that it isn't.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from rich.console import Console
from rich.text import Text

from anvil_dr import config as configuration
from anvil_dr import words
from anvil_dr.caching import cached_sets
from anvil_dr.cli import LEAST_COLUMNS, run_command, wiring
from anvil_dr.cli.parser import Parser, add_common_options
from anvil_dr.cycling import lost_sets
from anvil_dr.errors import AnvilDrError, StateError
from anvil_dr.model import CacheDrive
from anvil_dr.ports import Store
from anvil_dr.records.state import State
from anvil_dr.status import inquiry, status, status_json, status_text
from anvil_dr.status.observation import observe

PROGRAM = "anvil-dr-status"

_STYLES: Dict[status_text.Tone, str] = {
    "title": "bold",
    "good": "bold green",
    "bad": "bold red",
    "plain": "",
    "quiet": "dim",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = Parser(
        prog=PROGRAM, description="Show the servers that this DR box keeps, their sets, their last jobs, and its space."
    )
    add_common_options(parser)
    parser.add_argument(
        "--check", action="store_true", help="for a monitoring system: only whether all is well, also as exit code"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args(argv)
    show = partial(_show, options.config, as_json=options.json, check=options.check)
    return run_command(PROGRAM, show, as_json=options.json)


def _show(path: str, *, as_json: bool, check: bool) -> int:
    config = configuration.load(path)
    state, problems = _open_state(config)
    store = wiring.open_store(config, state)
    with suppress(AnvilDrError):  # what is wrong with the whole store is found again
        problems += wiring.damaged_images(store)
    seen = observe(
        config,
        store,
        state,
        running_jobs=lambda: inquiry.running_jobs(config.socket),
        cache_drives=lambda: _cache_drives(config, state),
        waiting=lambda drives: _waiting(config, drives),
        check=lambda: _check(store, state),
        problems=problems,
    )
    now = datetime.now(timezone.utc).astimezone()
    assessed = status.assess(seen, now)
    if as_json:
        json.dump(status_json.to_json(assessed), sys.stdout, indent=2)
        print()
        for problem in (*assessed.problems, *filter(None, [assessed.service_problem])):
            print(f"{PROGRAM}: {words.printable(problem)}", file=sys.stderr)
    else:
        _print(status_text.verdict(assessed, now) if check else status_text.lines(assessed, now))
    if seen.problems and os.geteuid() != 0:
        print(f"{PROGRAM}: some of it only root can read", file=sys.stderr)
    if check:
        return 0 if assessed.all_is_well else 1
    return 1 if assessed.problems else 0


def _check(store: Store, state: Optional[State]) -> None:
    """Raise StoreError if what the store says of its images is worth nothing."""
    # An LVM store's check activates volumes, and for a directory's one must be allowed to write there.
    if store.kind == "fs" and os.geteuid() == 0:
        store.check()
    if state is not None:
        lost_sets.refuse_empty(store, state)


def _open_state(config: configuration.Config) -> Tuple[Optional[State], List[str]]:
    try:
        return wiring.open_state(config, readonly=True), []
    except StateError as error:
        return None, [str(error)]


def _cache_drives(config: configuration.Config, state: Optional[State]) -> Tuple[CacheDrive, ...]:
    drives = wiring.open_cache_drives(config, state)
    return () if drives is None else drives.survey()


def _waiting(config: configuration.Config, drives: Tuple[CacheDrive, ...]) -> Tuple[status.WaitingSet, ...]:
    problems = {drive.identity: drive.problem for drive in reversed(drives)}

    def problem(identities: Iterable[str]) -> Optional[str]:
        found = (problems.get(identity, "it is not plugged in") for identity in sorted(identities))
        return next(filter(None, found), None)

    return tuple(
        status.WaitingSet(
            one.server, one.job_id, one.received_at, one.devices, problem(one.drives), one.jobs_before,
            one.runs_before, one.ran_here_until,
        )  # fmt: skip
        for one in cached_sets.all_of_them(config.state)
    )


def _print(lines: Sequence[status_text.Line]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    columns = max(LEAST_COLUMNS, console.width)
    for line in lines:
        # Whoever greps it wants each line whole.
        parts = words.folded(line.text, columns, line.hang) if console.is_terminal else (line.text,)
        for part in parts:
            console.print(Text(part, style=_STYLES[line.tone]), soft_wrap=True)
