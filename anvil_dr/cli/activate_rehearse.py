"""`anvil-activate-dr --rehearse`: shows how each server comes up on throw-away overlays, and keeps a report.

Touches what rehearse.py touches, the terminal, and this process's signal handlers meanwhile.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Dict, Final, Mapping, Optional, Tuple

from anvil_dr.activation import activate
from anvil_dr.activation.activate import Request
from anvil_dr.cli import activate_boot, activate_box, activate_view, complain
from anvil_dr.cli.activate_box import Box
from anvil_dr.errors import UsageError
from anvil_dr.ports import Hypervisor
from anvil_dr.preflight.host import LocalHost
from anvil_dr.receiving.target import utc_now
from anvil_dr.rehearsal import rehearsal_records, rehearsal_report, rehearsal_stage
from anvil_dr.rehearsal.rehearsal_result import IN_WORDS, Rehearsal, RehearsalResult
from anvil_dr.rehearsal.rehearsal_turns import RehearsalTurns
from anvil_dr.rehearsal.rehearse import Rehearser
from anvil_dr.status.status_text import Line, Tone
from anvil_dr.words import count, printable

_TONES: Final[Mapping[str, Tone]] = {"passed": "good", "failed": "bad", "not bootable": "bad"}


def run(
    box: Box, request: Request, hypervisor: Hypervisor, *, wait_seconds: Optional[float], as_json: bool, report: str
) -> int:
    """Rehearse; the exit code is 0 if every server came up. `report` is a file to write it to as well."""
    config, overlays, turns = box.config, box.rehearsal_overlays, RehearsalTurns(box.config.runtime)
    _refuse_unwritable(report)
    rehearsal_stage.sweep(overlays, box.places, turns)
    plan = activate.plan(box.survey(), request, config.activation, box.store, hypervisor, LocalHost())
    if not plan.servers:
        raise UsageError(activate_box.nothing_here(config))
    signs = {server: rule.sign_of_life for server, rule in config.activation.servers.items()}
    at = utc_now()
    rehearser = Rehearser(
        hypervisor, overlays, box.places, turns, signs, now=utc_now, wait_seconds=wait_seconds
    )
    progress = _Progress(activate_view.widths(plan.servers), as_json=as_json)
    turns_words = ", one after the other" if len(plan.servers) > 1 else ""
    progress.say(
        f"{count(len(plan.servers), 'server')}{turns_words}, on throw-away copies, without a network."
        " Ctrl-C ends it and leaves nothing behind."
    )
    with activate_boot.until_stopped() as stopped:
        rehearsal = Rehearsal(config.name, at, rehearser.run(plan, progress, stopped))
    earlier = rehearsal_records.load(config.state)
    text = rehearsal_report.html(rehearsal, earlier, activate_view.now())
    kept = rehearsal_records.keep(config.state, rehearsal, text)
    path = report if report and _write(report, text) else kept
    if as_json:
        activate_view.show_json(_to_json(rehearsal, path))
    else:
        _end(rehearsal, path)
    return 0 if rehearsal.passed else 1


class _Progress:
    """A rehearse.Observer: one line for each server."""

    def __init__(self, name_columns: int, *, as_json: bool) -> None:
        self._columns, self._stream = name_columns, sys.stderr if as_json else sys.stdout

    def say(self, text: str) -> None:
        activate_view.show([Line(text)], self._stream)

    def began(self, server: str) -> None:
        if self._stream.isatty():
            waiting = f"  {printable(server):<{self._columns}}  waiting for a sign of life ..."
            print(waiting, end="\r", file=self._stream, flush=True)

    def ended(self, result: RehearsalResult) -> None:
        seconds = f" after {result.seconds:.1f} s" if result.seconds is not None else ""
        text = f"  {result.server:<{self._columns}}  {IN_WORDS[result.verdict]}{seconds}: {result.detail}"
        if self._stream.isatty():
            print("\r\x1b[K", end="", file=self._stream)
        activate_view.show([Line(printable(text), _TONES.get(result.verdict, "quiet"))], self._stream)


def _end(rehearsal: Rehearsal, path: Optional[str]) -> None:
    passed = sum(one.verdict == "passed" for one in rehearsal.results)
    tried = sum(one.verdict != "skipped" for one in rehearsal.results)
    print(f"{passed} of {count(tried, 'server')} came up. Their images were not changed.")
    if any(one.verdict == "interrupted" for one in rehearsal.results):
        print("It was ended before all had been tried. To try the others: type the same again.")
    if any(_TONES.get(one.verdict) == "bad" for one in rehearsal.results):
        print("What keeps servers down, and what to do about it: anvil-activate-dr --check")
    print(f"Report: {path}" if path else "No report could be kept; write it elsewhere with --report FILE.")


def _refuse_unwritable(path: str) -> None:
    """Raise UsageError: that is better known before half an hour of rehearsing than after it."""
    folder = os.path.dirname(os.path.abspath(path))
    if path and not os.path.isdir(folder):
        raise UsageError(f"--report {path}: there is no folder {folder}")
    if path and (os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK)):
        raise UsageError(f"--report {path}: it cannot be written to")


def _write(path: str, text: str) -> bool:
    """False if it could not be written, and that was said: the verdict counts all the same."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        complain(f"--report {path}: {error.strerror}")
        return False
    return True


def _to_json(rehearsal: Rehearsal, path: Optional[str]) -> Dict[str, Any]:
    results: Tuple[Dict[str, Any], ...] = tuple(
        {
            "name": one.server,
            "verdict": one.verdict,
            "detail": one.detail,
            "seconds": one.seconds,
            "sequence": one.sequence,
            "received_at": one.received_at,
            "warnings": list(one.warnings),
        }
        for one in rehearsal.results
    )
    return {"target": rehearsal.target, "at": rehearsal.at, "report": path, "servers": list(results)}
