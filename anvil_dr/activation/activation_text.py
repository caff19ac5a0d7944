"""An activation in words, for somebody tired at a terminal of 80 columns. Pure: plans and outcomes in, lines out."""

from __future__ import annotations

from datetime import datetime
from typing import Collection, Final, Iterable, Iterator, Mapping, Optional, Tuple

from anvil_dr.activation.boot_images import set_name
from anvil_dr.activation.boot_plan import BootPlan, Found, Outcome, PlannedServer
from anvil_dr.model import CACHED, Activation, ImageSet, Sequence
from anvil_dr.status.status_text import Line, Tone
from anvil_dr.words import age, count, listed, printable, size

LIST_HEADINGS: Final = ("Server", "Set", "Received", "From", "")
PLAN_HEADINGS: Final = ("", "Server", "Set", "Age", "RAM", "CPUs", "Disks", "Network", "Start")

_WORDS: Final[Mapping[bool, Tuple[str, Tone]]] = {True: ("PROBLEM", "bad"), False: ("warning", "plain")}
_TONES: Final[Mapping[str, Tone]] = {"ready": "good", "running": "quiet", "blocked": "bad"}
KEEP_JOBS_OFF: Final = "systemctl stop anvil-dr-target.socket anvil-dr-target"
_ADVICE_INDENT: Final = " " * 6


def plan_rows(plan: BootPlan, now: datetime) -> Iterator[Tuple[str, ...]]:
    """One row for each server, under PLAN_HEADINGS. The number is its turn."""
    turn = 0
    for planned in plan.servers:
        turn += planned.state == "ready"
        draft = planned.draft
        yield (
            f"{turn}" if planned.state == "ready" else "-",
            printable(draft.server),
            _number(draft.chosen.sequence) if draft.chosen is not None else "-",
            _received(draft.chosen, now).replace(" ago", ""),
            size(draft.memory_bytes) if draft.memory_bytes else "-",
            str(draft.cpus) if draft.cpus else "-",
            str(planned.disks) if planned.disks else "-",
            printable(", ".join(draft.networks)) or "-",
            _start(planned),
        )


def tone(planned: PlannedServer) -> Tone:
    """How a row is meant: `good`, `bad` or `quiet`."""
    return _TONES[planned.state]


def plan_lines(plan: BootPlan, *, on_overlays: bool = False) -> Iterator[Line]:
    """The sums, what is wrong with the box, and what with each server: the problem, and what to do about it."""
    if on_overlays and plan.ready:
        yield Line("On overlays: the images stay as they were received. Afterwards you choose what is kept.")
    if len(plan.ready) > 1:
        available = plan.host.available_bytes
        of = f" of {size(available)} that is free" if available is not None else ""
        yield Line(f"Together: {size(plan.memory_bytes)}{of}, {plan.cpus} CPUs on {plan.host.cpus}.", "quiet")
    for text in plan.warnings:
        yield Line(f"! {printable(text)}", "bad")
    for planned in plan.servers:
        if planned.draft.findings:
            yield Line(printable(planned.server), "title")
        for finding in (*planned.problems, *planned.warnings):
            word, meant = _WORDS[finding.fatal]
            yield Line(f"  {word}: {printable(finding.text)}", meant)
            if finding.advice:
                yield Line(f"{_ADVICE_INDENT}-> {printable(finding.advice)}")


def verdict(plan: BootPlan) -> Line:
    """What a check came to."""
    total, bootable = len(plan.servers), len(plan.ready)
    running = total - bootable - len(plan.blocked)
    runs = f" {count(running, 'server')} running here already." if running else ""
    if plan.blocked:
        names = printable(listed([one.server for one in plan.blocked]))
        return Line(f"{bootable} of {count(total, 'server')} could be booted here now; not {names}.{runs}", "bad")
    if not plan.ready:
        return Line(f"{total} of {count(total, 'server')} running here already.", "good")
    return Line(f"{bootable} of {count(total, 'server')} could be booted here now.{runs}", "good")


def question(plan: BootPlan) -> str:
    """The one question that is asked."""
    ready = [planned.server for planned in plan.ready]
    left_out = [planned.server for planned in plan.blocked]
    without = f" {printable(listed(left_out))} cannot be booted." if left_out else ""
    return (
        "Is the original site really down? A server that runs at both places at once destroys its data.\n"
        f"Boot {count(len(ready), 'server')} here ({printable(listed(ready))})?{without} [y/N]"
    )


def force_question(servers: Iterable[str]) -> str:
    """Asked where nothing keeps servers down but what the admin may overrule."""
    return (
        f"Kept down only by what stands above and you may overrule: {printable(listed(list(servers)))}.\n"
        "Type the names of those to boot all the same, or just press Enter:"
    )


def end_lines(
    plan: BootPlan,
    outcomes: Tuple[Outcome, ...],
    seconds: float,
    *,
    on_overlays: bool = False,
    unmarked: Collection[str] = (),
) -> Iterator[Line]:
    """How it ended, and what to do next. `unmarked` are servers that ran already and could not be marked."""
    up = [outcome for outcome in outcomes if outcome.error is None]
    before = [planned.server for planned in plan.servers if planned.state == "running"]
    down = [outcome for outcome in outcomes if outcome.error is not None]
    total = len(plan.servers)
    yield Line("")
    yield Line(f"{len(up) + len(before)} of {count(total, 'server')} running, after {seconds:.1f} s", "title")
    width = max((len(printable(planned.server)) for planned in plan.servers), default=0)
    for outcome in up:
        yield Line(f"  {printable(outcome.server):<{width}}  {_times(outcome)}", "good")
    for planned in (one for one in plan.servers if one.state == "running"):
        but = f", but {_why(planned)}" if planned.problems else ""
        yield Line(f"  {printable(planned.server):<{width}}  ran already{but}", "bad" if but else "quiet")
    for outcome in down:
        word = "NOBODY KNOWS WHETHER IT RUNS" if outcome.unknown else "NOT RUNNING"
        yield Line(f"  {printable(outcome.server):<{width}}  {word}: {printable(outcome.error or '')}", "bad")
        if outcome.advice:
            yield Line(f"{_ADVICE_INDENT}-> {printable(outcome.advice)}")
    for planned in plan.blocked:
        yield Line(f"  {printable(planned.server):<{width}}  NOT RUNNING: {_why(planned)}", "bad")
    if down or plan.blocked:
        yield Line("Correct what is said above and type the same again. What runs is left alone.")
    if up or before:
        first = printable(up[0].server if up else before[0])
        yield Line(f"A screen: virsh vncdisplay {first}. A console: virsh console {first}.")
    bare = sorted({*unmarked, *(outcome.server for outcome in outcomes if outcome.unmarked and not _is_off(outcome))})
    if {*before, *(outcome.server for outcome in up)} - set(bare):
        decide = ", with --keep or --discard" if on_overlays else ""
        them = "the others" if bare else "them"
        yield Line(f"No job writes over {them} until you say: anvil-activate-dr --release SERVER{decide}")
    if bare:
        yield Line(f"A job may write over {printable(listed(bare))}: not marked as activated.", "bad")
        yield Line(f"{_ADVICE_INDENT}-> keep jobs off: {KEEP_JOBS_OFF}")


def _is_off(outcome: Outcome) -> bool:
    return outcome.error is not None and not outcome.unknown


def list_rows(servers: Iterable[Found], now: datetime) -> Iterator[Tuple[str, ...]]:
    """One row for each complete set that there is, under LIST_HEADINGS."""
    for found in servers:
        notes = [] if found.definition_problem is None else [printable(found.definition_problem)]
        if found.overlays_problem is not None:
            notes.append("its overlays cannot be understood")
        complete = [one for one in found.sets if one.complete]
        if found.activation is not None and all(one.sequence != found.activation.sequence for one in complete):
            notes.append(_activated(found, found.activation, now))
        for one in complete:
            source = "unknown" if one.record is None else printable(one.record.source)
            said = "; ".join([*notes, *_ran(found, one, now)])
            yield (printable(found.server), _number(one.sequence), _received(one, now), source, said)
        if not complete:
            yield (printable(found.server), "-", "-", "-", "; ".join(["no complete set", *notes]))


def _number(sequence: Sequence) -> str:
    return "cache" if sequence == CACHED else str(sequence)


def _ran(found: Found, one: ImageSet, now: datetime) -> Iterator[str]:
    """Whether the server runs, or ran, from this set on this box."""
    if found.activation is not None and found.activation.sequence == one.sequence:
        yield _activated(found, found.activation, now)
    if one.record is not None and one.record.ran_here_until is not None:
        yield f"ran here until {age(one.record.ran_here_until, now)}"


def _activated(found: Found, activation: Activation, now: datetime) -> str:
    on = ", on overlays," if found.overlays is not None else ""
    return f"activated from {set_name(activation.sequence)}{on} {age(activation.since, now)}"


def _received(one: Optional[ImageSet], now: datetime) -> str:
    if one is None:
        return "-"
    return "unknown" if one.record is None else age(one.record.received_at, now)


def _start(planned: PlannedServer) -> str:
    if planned.state != "ready":
        return "runs already" if planned.state == "running" else "CANNOT BOOT"
    delay = f"{planned.delay_seconds} s" if planned.delay_seconds else ""
    if not planned.after:
        return f"after {delay}" if delay else "at once"
    return " ".join(filter(None, (delay, "after", printable(", ".join(planned.after)))))


def _times(outcome: Outcome) -> str:
    booted = f"booted after {outcome.booted_seconds or 0.0:.1f} s"
    if outcome.answered_seconds is None:
        return booted
    return f"{booted}, its guest answers after {outcome.answered_seconds:.1f} s"


def _why(planned: PlannedServer) -> str:
    first, *more = [printable(one.text) for one in planned.problems]
    return f"{first} (and {count(len(more), 'problem')} more)" if more else first
