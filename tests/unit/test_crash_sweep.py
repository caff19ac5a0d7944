"""A run dies at each of its steps, in every scenario; what it leaves is checked, recovered, and goes on with a job.

Nothing is sampled: the steps are counted in a run that nobody kills, and each of them is struck, after its effect and,
in memory, before it. The checker (provenance.py) sees names and bytes only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Tuple

import pytest

from anvil_dr.model import Location
from tests.doubles.memory_store import Died, Fate
from tests.doubles.mortal_box import DirectoryWorld, MemoryWorld, MortalBox, World
from tests.doubles.provenance import Checker, Push
from tests.doubles.tidy import untidy

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

SERVER = "Web01"
BOTH = {"Web01_0": 200_000, "Web01_1": 70_001}
ONE = {"Web01_0": 200_000}
GROWN = {"Web01_0": 300_000, "Web01_1": 70_001}
SHRUNK = {"Web01_0": 100_000, "Web01_1": 70_001}
FIRMWARE = ("nvram", "tpm/tpm2-00.permall")


class Story:
    """What has happened to a box so far, for the checker and for whoever tells on."""

    def __init__(self, box: MortalBox) -> None:
        self.box, self.checker = box, Checker()

    def push(
        self,
        disks: Mapping[str, int],
        *,
        fails: bool = False,
        copies: Optional[int] = None,
        firmware: Tuple[str, ...] = (),
        fate: Optional[Fate] = None,
    ) -> Push:
        """One job, received by a process of its own after what its start finishes."""
        if copies is not None:
            self.box.config = replace(self.box.config, copies=copies)
        sent = Push(len(self.checker.pushes) + 1, disks, SERVER, firmware)
        self.checker.pushes.append(sent)
        outcome = self.box.push(sent, fate=fate, fails=fails)
        assert outcome.succeeded != fails, outcome.servers[0].error
        return sent

    def remove(self, number: int, disk: str) -> None:
        """The admin removes an image by hand."""
        with self.box.process() as target:
            for image in target.store.images():
                if (image.owner.disk, image.sequence) == (disk, number):
                    target.store.remove(image)

    def complete(self) -> List[int]:
        """The jobs of which there is a whole set, newest first."""
        return [job for _, job in self.checker.complete(SERVER, self.box.world.images())]


@dataclass(frozen=True)
class Scenario:
    """A past, and the job that dies."""

    name: str
    copies: int
    past: Callable[[Story], object]
    disks: Mapping[str, int] = field(default_factory=lambda: BOTH)
    fails: bool = False
    firmware: Tuple[str, ...] = ()
    places: Tuple[Location, ...] = ()
    """Of a store in memory."""


def jobs(number: int, disks: Mapping[str, int] = BOTH, **options: Any) -> Callable[[Story], None]:
    def tell(story: Story) -> None:
        for _ in range(number):
            story.push(disks, **options)

    return tell


def after(*parts: Callable[[Story], object]) -> Callable[[Story], None]:
    def tell(story: Story) -> None:
        for part in parts:
            part(story)

    return tell


FAILED = jobs(1, fails=True)
SCENARIOS = (
    Scenario("first", 2, jobs(0)),
    Scenario("second", 2, jobs(1)),
    Scenario("cycling two", 2, jobs(2)),
    Scenario("cycling three", 3, jobs(4)),
    Scenario("first fails", 2, jobs(0), fails=True),
    Scenario("cycling fails", 2, jobs(2), fails=True),
    Scenario("resume", 2, after(jobs(2), FAILED)),
    Scenario("resume the first", 2, FAILED),
    Scenario("resume after two failures", 3, after(jobs(3), FAILED, FAILED)),
    Scenario("one copy", 1, jobs(1)),
    Scenario("one copy fails", 1, jobs(1), fails=True),
    Scenario("one copy resumed", 1, after(jobs(1), FAILED)),
    Scenario("lowered", 2, jobs(4, copies=4)),
    Scenario("lowered to one", 1, jobs(3, copies=3)),
    Scenario("lowered to one after a failure", 1, after(jobs(3, copies=3), FAILED)),
    Scenario("raised", 3, jobs(2, copies=1)),
    Scenario("disk gained", 2, jobs(2, ONE)),
    Scenario("disk gained after a failure", 2, after(jobs(2, ONE), jobs(1, ONE, fails=True))),
    Scenario("disk lost", 2, jobs(2), disks=ONE),
    Scenario("disk lost after a failure", 2, after(jobs(2), FAILED), disks=ONE),
    Scenario("grown", 2, jobs(2), disks=GROWN),
    Scenario("shrunk", 2, jobs(2), disks=SHRUNK),
    Scenario("grown after a failure", 2, after(jobs(2), FAILED), disks=GROWN),
    Scenario("firmware", 2, jobs(2, firmware=FIRMWARE), firmware=FIRMWARE),
    Scenario("firmware gained", 2, jobs(2), firmware=FIRMWARE),
    Scenario("firmware lost", 2, jobs(2, firmware=FIRMWARE)),
    Scenario("an image removed by hand", 3, after(jobs(3), lambda story: story.remove(2, "Web01_1"))),
    Scenario("the newest set broken by hand", 2, after(jobs(2), lambda story: story.remove(1, "Web01_1"))),
    Scenario(
        "moved to another group", 2, jobs(2), disks=GROWN,
        # The first has no room to grow in; the second is empty.
        places=(Location("a", 560 << 10, 560 << 10, 4096), Location("b", 1 << 20, 550 << 10, 4096)),
    ),
)  # fmt: skip


class Trial:
    """One scenario, told once, and then continued from the same point as often as needed."""

    def __init__(self, scenario: Scenario, folder: Path, world: World) -> None:
        self.scenario = scenario
        self.box = MortalBox(folder, world, copies=scenario.copies)
        self.story = Story(self.box)
        scenario.past(self.story)
        self.box.config = replace(self.box.config, copies=scenario.copies)
        self.before = self.story.complete()
        self._start = self.mark()

    def mark(self) -> Tuple[Any, ...]:
        """Everything as it is now, to rewind to."""
        return self.box.mark(), list(self.story.checker.pushes)

    def rewind(self, mark: Optional[Tuple[Any, ...]] = None) -> None:
        place, pushes = mark or self._start
        self.box.rewind(place)
        self.story.checker.pushes[:] = pushes

    def job(self, fate: Optional[Fate] = None) -> None:
        one = self.scenario
        self.story.push(one.disks, fails=one.fails, firmware=one.firmware, fate=fate)

    def steps(self) -> List[str]:
        """What the job does when nobody kills it."""
        fate = Fate()
        self.rewind()
        self.job(fate)
        return fate.steps

    def die(self, fate: Fate) -> None:
        self.rewind()
        with pytest.raises(Died):
            self.job(fate)

    def faults_at_once(self) -> List[str]:
        return self.story.checker.faults_of_numbers(SERVER, self.box.world.images())

    def faults_recovered(self) -> List[str]:
        checker, images = self.story.checker, self.box.world.images()
        new = len(checker.pushes)
        faults = checker.faults_of_keeping(SERVER, images, self.before, new, self.scenario.copies)
        return faults + (checker.faults_of_sets(SERVER, images) if "by hand" not in self.scenario.name else [])

    def faults_in_the_end(self) -> List[str]:
        """After one more job: the sets are those that an undisturbed box would have."""
        checker, images, box = self.story.checker, self.box.world.images(), self.box
        last = checker.pushes[-1].number
        found = checker.complete(SERVER, images)
        died = [last - 1] if last - 1 in [job for _, job in found] else []
        wanted = [last, *died, *self.before][: self.scenario.copies]
        faults = checker.faults_of_sets(SERVER, images)
        if found != list(enumerate(wanted, 1)):
            faults.append(f"the sets are {found}, and should be {wanted}")
        if any("incomplete" in name for name in images):
            faults.append(f"an incomplete image is left: {sorted(images)}")
        return faults + untidy(box, checker, SERVER)


def sweep(trial: Trial, sides: Tuple[str, ...]) -> None:
    names = trial.steps()
    assert len(names) > 10, "the steps are counted"
    faults = []
    for number, name in enumerate(names, 1):
        for side in sides:
            trial.die(Fate(number, after=side == "after"))
            found = [("at once", fault) for fault in trial.faults_at_once()]
            trial.box.recover()
            found += [("recovered", fault) for fault in trial.faults_recovered()]
            trial.story.push(trial.scenario.disks, firmware=trial.scenario.firmware)
            found += [("in the end", fault) for fault in trial.faults_in_the_end()]
            faults += [f"{side} step {number} ({name}), {when}: {fault}" for when, fault in found]
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def sweep_recovery(trial: Trial) -> int:
    """Wherever the job dies, the recovery dies too, after each of its steps. Returns how often that was."""
    faults, deaths = [], 0
    for number, name in enumerate(trial.steps(), 1):
        trial.die(Fate(number, after=True))
        died = trial.mark()
        fate = Fate()
        trial.box.recover(fate)
        for again, step in enumerate(fate.steps, 1):
            deaths += 1
            trial.rewind(died)
            with pytest.raises(Died):
                trial.box.recover(Fate(again, after=True))
            found = [("at once", fault) for fault in trial.faults_at_once()]
            trial.box.recover()
            found += [("recovered", fault) for fault in trial.faults_recovered()]
            faults += [f"step {number} ({name}), recovery's step {again} ({step}), {when}: {f}" for when, f in found]
        trial.story.push(trial.scenario.disks, firmware=trial.scenario.firmware)
        faults += [f"step {number} ({name}), in the end: {fault}" for fault in trial.faults_in_the_end()]
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)
    return deaths


def world_of(kind: str, folder: Path, places: Tuple[Location, ...]) -> World:
    return DirectoryWorld(folder) if kind == "directory" else MemoryWorld(places)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "directory"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_a_process_that_dies_at_any_step_loses_nothing(scenario: Scenario, kind: str, tmp_path: Path) -> None:
    # What is there before a step is there after the one before it: of files, one of both is enough.
    sides = ("before", "after") if kind == "memory" else ("after",)
    sweep(Trial(scenario, tmp_path, world_of(kind, tmp_path, scenario.places)), sides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "kind"),
    [
        pytest.param(one, kind, id=f"{one.name}-{kind}")
        for kind, names in (
            ("memory", ("first", "cycling two", "one copy", "lowered", "disk lost", "firmware")),
            # Files that stay as they were, and all of the state's: a recovery takes the same steps there.
            ("directory", ("first", "cycling two", "one copy")),
        )
        for one in SCENARIOS
        if one.name in names
    ],
)
def test_a_recovery_that_dies_itself_is_recovered_from(scenario: Scenario, kind: str, tmp_path: Path) -> None:
    assert sweep_recovery(Trial(scenario, tmp_path, world_of(kind, tmp_path, scenario.places))) > 50
