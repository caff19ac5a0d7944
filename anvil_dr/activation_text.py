"""An activation in words and as JSON, for somebody tired. Pure: plans and outcomes in, rows, lines and objects out."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, Final, Iterable, Iterator, Mapping, Optional, Tuple

from anvil_dr.boot_plan import BootPlan, Found, Outcome, PlannedServer
from anvil_dr.findings import Finding
from anvil_dr.model import ImageSet
from anvil_dr.status_text import Line, Tone
from anvil_dr.words import age, count, listed, printable, size

LIST_HEADINGS: Final = ("Server", "Set", "Received", "From", "")
PLAN_HEADINGS: Final = ("", "Server", "Set", "Received", "From", "Memory", "CPUs", "")

_WORDS: Final[Mapping[bool, Tuple[str, Tone]]] = {True: ("PROBLEM", "bad"), False: ("warning", "plain")}
_STATES: Final = {"ready": "ready", "running": "runs already", "blocked": "CANNOT BE BOOTED"}
_TONES: Final[Mapping[str, Tone]] = {"ready": "good", "running": "quiet", "blocked": "bad"}


def plan_rows(plan: BootPlan, now: datetime) -> Iterator[Tuple[str, ...]]:
    """One row for each server, under PLAN_HEADINGS. The number is its turn."""
    turn = 0
    for planned in plan.servers:
        turn += planned.state == "ready"
        draft = planned.draft
        received, source = _origin(draft.chosen, now)
        yield (
            f"{turn}." if planned.state == "ready" else "-",
            printable(draft.server),
            str(draft.chosen.sequence) if draft.chosen is not None else "-",
            received,
            source,
            size(draft.memory_bytes) if draft.memory_bytes else "-",
            str(draft.cpus) if draft.cpus else "-",
            _STATES[planned.state] + _turn(planned),
        )


def tone(planned: PlannedServer) -> Tone:
    """How a row is meant: `good`, `bad` or `quiet`."""
    return _TONES[planned.state]


def plan_lines(plan: BootPlan) -> Iterator[Line]:
    """What is wrong with the box, and what with each server: the problem, and what to do about it."""
    for text in plan.warnings:
        yield Line(f"! {printable(text)}", "bad")
    for planned in plan.servers:
        if planned.draft.findings:
            yield Line("")
            yield Line(printable(planned.server), "title")
        for finding in (*planned.problems, *planned.warnings):
            word, meant = _WORDS[finding.fatal]
            yield Line(f"  {word}: {printable(finding.text)}", meant)
            if finding.advice:
                yield Line(f"           {printable(finding.advice)}")


def question(plan: BootPlan) -> str:
    """The one question that is asked."""
    ready = [planned.server for planned in plan.ready]
    return (
        "Is the original site really down? A server that runs at both places at once destroys its data.\n"
        f"Boot {count(len(ready), 'server')} here ({printable(listed(ready))})? [y/N] "
    )


def end_lines(plan: BootPlan, outcomes: Tuple[Outcome, ...]) -> Iterator[Line]:
    """How it ended, and what to do next."""
    running = [outcome.server for outcome in outcomes if outcome.error is None]
    running += [planned.server for planned in plan.servers if planned.state == "running"]
    down = [planned.server for planned in plan.servers if planned.server not in running]
    yield Line("")
    if down:
        yield Line(f"NOT RUNNING: {printable(listed(down))}", "bad")
        yield Line("Correct what is said above, and type the same again; what runs already is left alone.")
    if running:
        yield Line(f"Running: {printable(listed(running))}", "good")
        yield Line(f"See a screen or console: virsh console {printable(running[0])}")
        yield Line("No job writes over them until you say: anvil-activate-dr --release SERVER")


def to_json(plan: BootPlan, outcomes: Optional[Tuple[Outcome, ...]]) -> Dict[str, Any]:
    """The plan as one object; and what became of each server, where it was carried out."""
    ended = {outcome.server: outcome for outcome in outcomes or ()}
    return {
        "warnings": list(plan.warnings),
        "servers": [
            {
                "name": planned.server,
                "state": planned.state,
                "definition": planned.draft.definition_path,
                "set": _set_to_json(planned.draft.chosen),
                "memory_bytes": planned.draft.memory_bytes,
                "cpus": planned.draft.cpus,
                "after": list(planned.after),
                "delay_seconds": planned.delay_seconds,
                "problems": [_finding_to_json(one) for one in planned.problems],
                "warnings": [_finding_to_json(one) for one in planned.warnings],
                "booted": planned.server in ended and ended[planned.server].error is None,
                "error": ended[planned.server].error if planned.server in ended else None,
            }
            for planned in plan.servers
        ],
    }


def list_rows(servers: Iterable[Found], now: datetime) -> Iterator[Tuple[str, ...]]:
    """One row for each complete set that there is, under LIST_HEADINGS."""
    for found in servers:
        notes = [] if found.definition_problem is None else [printable(found.definition_problem)]
        if found.activation is not None:
            notes.append(f"activated from set {found.activation.sequence} {age(found.activation.since, now)}")
        complete = [one for one in found.sets if one.complete]
        for one in complete:
            yield (printable(found.server), str(one.sequence), *_origin(one, now), "; ".join(notes))
        if not complete:
            yield (printable(found.server), "-", "-", "-", "; ".join(["no complete set", *notes]))


def list_to_json(servers: Iterable[Found]) -> Dict[str, Any]:
    """The same as one object."""
    return {
        "servers": [
            {
                "name": found.server,
                "definition": found.definition_path if found.definition_problem is None else None,
                "activated": found.activation is not None,
                "sets": [_set_to_json(one) for one in found.sets if one.complete],
            }
            for found in servers
        ]
    }


def _origin(one: Optional[ImageSet], now: datetime) -> Tuple[str, str]:
    if one is None or one.record is None:
        return "-" if one is None else "unknown", "-" if one is None else "unknown"
    return age(one.record.received_at, now), printable(one.record.source)


def _turn(planned: PlannedServer) -> str:
    if planned.state != "ready" or not planned.delay_seconds:
        return f", after {printable(listed(planned.after))}" if planned.after and planned.state == "ready" else ""
    behind = printable(listed(planned.after)) if planned.after else "the first"
    return f", {planned.delay_seconds} s after {behind}"


def _set_to_json(one: Optional[ImageSet]) -> Optional[Dict[str, Any]]:
    if one is None:
        return None
    record = one.record
    return {
        "sequence": one.sequence,
        "received_at": record.received_at if record is not None else None,
        "source": record.source if record is not None else None,
        "images": [{"disk": image.owner.disk, "path": image.path} for image in one.images],
    }


def _finding_to_json(finding: Finding) -> Dict[str, str]:
    return {"text": finding.text, "advice": finding.advice}
