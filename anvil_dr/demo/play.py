"""The whole demo, from the first line to the verdict. Touches what its scenes touch, and standard input for --keep."""

from __future__ import annotations

import sys
import time
from typing import Final, Tuple

from rich.console import Console

from anvil_dr.demo import needs, story
from anvil_dr.demo.interrupts import Interrupts
from anvil_dr.demo.narrator import Narrator
from anvil_dr.demo.server import Markers, Report
from anvil_dr.demo.stage import Stage
from anvil_dr.demo.story import Story
from anvil_dr.errors import AnvilDrError, ServiceError

_OPENING: Final = (
    "A server is imaged to a DR box four times, is lost with its site, and is booted from the newest set. All of it "
    "is real, in one scratch folder; when the demo ends nothing is left of it. Lines after $ are the commands it runs."
)


def play(*, keep: bool) -> int:
    """Exit code: 0 if the guest's own words prove its disks intact, or if nothing can be booted here; else 1."""
    began = time.monotonic()
    narrator = Narrator(Console(highlight=False, markup=False, emoji=False))
    absent = needs.missing_to_image()
    if absent:
        raise ServiceError(f"there can be no demo without these packages: {' '.join(absent)}")
    reasons = _reasons_not_to_boot()
    narrator.say(_OPENING, "bold")
    if reasons:
        narrator.remark(f"The boot at the end is left out: {'; '.join(reasons)}.")
    interrupts = Interrupts()
    stage = Stage(narrator, interrupts, keep=keep)
    try:
        with interrupts, stage:
            stage.open()
            intact = _play(stage, narrator, reasons)
            if keep:
                _let_look_around(stage, narrator)
    except BrokenPipeError:
        raise  # the reader has gone, as with `| head`
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ServiceError(f"the demo cannot go on: {where}{error.strerror or error}") from error
    except (AnvilDrError, KeyboardInterrupt):
        narrator.gap()
        narrator.say(_left_behind(stage))
        raise
    narrator.say(f"{_left_behind(stage)} The demo took {time.monotonic() - began:.0f} seconds.")
    return 0 if intact else 1


def _left_behind(stage: Stage) -> str:
    if stage.kept is not None:
        return f"All is stopped. Kept: {stage.kept} (rm -r {stage.kept})."
    return "All is stopped, and the scratch folder is gone: nothing is left."


def _reasons_not_to_boot() -> Tuple[str, ...]:
    absent = (*needs.missing_to_boot(), *needs.missing_to_be_bootable())
    missing = f"these packages are missing: {' '.join(absent)}" if absent else None
    return tuple(filter(None, (missing, needs.obstacle_to_boot())))


def _play(stage: Stage, narrator: Narrator, reasons: Tuple[str, ...]) -> bool:
    told = Story(stage, bootable=not needs.missing_to_be_bootable())
    try:
        told.play()
        told.lose_the_site()
    except AnvilDrError:
        _show_log(stage, narrator)
        raise
    if reasons:
        if "python3-libvirt" not in needs.missing_to_boot():
            stage.run("anvil-activate-dr", "--config", story.CONFIG, "--list")
        narrator.say(
            f"Where it can boot, anvil-activate-dr would now boot {story.SERVER} from set 1, whose images are byte for "
            f"byte what job {story.JOBS} sent."
        )
        narrator.remark(f"The boot was not tried: {'; '.join(reasons)}.")
        return True
    # Only here: without libvirt's Python module it can't even be imported.
    from anvil_dr.demo import disaster

    narrator.chapter("anvil-activate-dr")
    report = disaster.boot(stage, story.CONFIG, story.SERVER)
    return _judge(narrator, told.newest, report)


def _judge(narrator: Narrator, sent: Markers, found: Report) -> bool:
    """Compare what was sent with what the guest found."""
    narrator.gap()
    pairs = (("disk 0, token", sent.token, found.token), ("disk 1, checksum", sent.checksum, found.checksum))
    narrator.table(
        ("", f"sent by job {story.JOBS}", "read by the booted server"),
        [(what, one[:16], f"{other[:16]} {'the same' if one == other else 'DIFFERENT'}") for what, one, other in pairs],
    )
    intact = (sent.token, sent.checksum) == (found.token, found.checksum)
    verdict = f"Verdict: both disks are intact. {story.SERVER} runs on the DR box with what job {story.JOBS} sent."
    narrator.verdict(verdict if intact else "Verdict: the disks are NOT what was sent.", good=intact)
    return intact


def _show_log(stage: Stage, narrator: Narrator) -> None:
    said = stage.log_of_server()
    if said:
        narrator.say("This failed. The last words of the service:", "bold red")
        narrator.shown(said)


def _let_look_around(stage: Stage, narrator: Narrator) -> None:
    if not sys.stdin.isatty():
        return
    narrator.gap()
    narrator.say(
        "--keep: everything still runs. In another terminal, type the lines above that begin with PATH=, cd and uri=, "
        "and look around. Enter ends it.",
        "bold",
    )
    try:
        sys.stdin.readline()
    except KeyboardInterrupt:
        narrator.gap()
