"""A run dies at each of its steps, in every scenario; what it leaves is checked, recovered, and goes on with a job.

Nothing is sampled: the steps are counted in a run that nobody kills, and each of them is struck, after its effect and
(slow) before it. The checker (provenance.py) sees names and bytes only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import pytest

from anvil_dr import digest, sets
from anvil_dr.model import ImageSet, Location
from anvil_dr.state import State
from tests.doubles.memory_store import Died, Fate
from tests.doubles.mortal_box import DirectoryWorld, MemoryWorld, MortalBox, World
from tests.doubles.provenance import Checker, Push

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
        self.scenario, self.folder = scenario, folder
        self.box = MortalBox(folder, world, copies=scenario.copies)
        self.story = Story(self.box)
        scenario.past(self.story)
        self.box.config = replace(self.box.config, copies=scenario.copies)
        self.before = self.story.complete()
        self._images, self._files = world.save(), _files(folder)
        self._pushes, self._minutes = list(self.story.checker.pushes), self.box.minutes

    def rewind(self) -> None:
        self.box.world.load(self._images)
        _put_back(self.folder, self._files)
        self.story.checker.pushes[:], self.box.minutes = self._pushes, self._minutes

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
        return faults + untidy(box, checker)


def untidy(box: MortalBox, checker: Checker) -> List[str]:
    """What the state and the files say of the sets, and whether anything was left lying about."""
    faults = []
    with State.open(box.config.state, readonly=True) as state:
        if state.pending():
            faults.append(f"the journal is not empty: {state.pending()}")
        records, jobs = state.set_records(), state.last_jobs()
        assembled = sets.assemble(box.world.store(state.owners).images(), records)
    if [one.sequence for one in assembled if not one.complete or one.record is None]:
        faults.append(f"sets are not known as complete: {assembled}")
    if len(records) != len(assembled):
        faults.append(f"there are {len(records)} records of {len(assembled)} sets")
    images = box.world.images()
    for one in assembled:
        faults += _digest_faults(one, images)
    if jobs[SERVER].state != "succeeded":
        faults.append(f"the last job is {jobs[SERVER]}")
    folder = box.folder / "state" / "firmware" / SERVER
    kept = set(os.listdir(folder)) if folder.exists() else set()
    newest = checker.push(checker.complete(SERVER, images)[0][1], SERVER)
    assert newest is not None
    known = {one.record.job_id for one in assembled if one.record is not None}
    if not kept <= known or (newest.firmware and jobs[SERVER].id not in kept):
        faults.append(f"firmware state of {kept} is kept, and the sets are of {known}")
    for name in newest.firmware:
        if (folder / jobs[SERVER].id / name).read_bytes() != newest.firmware_content(name):
            faults.append(f"the firmware state {name} is not the newest set's")
    if "nvram" in newest.firmware:
        published = box.folder / "definitions" / "nvram" / f"{SERVER}.fd"
        if published.read_bytes() != newest.firmware_content("nvram"):
            faults.append("the published variables are not the newest set's")
    if not (box.folder / "definitions" / f"{SERVER}.xml").is_file():
        faults.append("there is no definition")
    for name in ("state", "definitions"):
        left = [str(path) for path in (box.folder / name).rglob("*.tmp")]
        faults += [f"left lying about: {path}" for path in left]
    return faults


def _digest_faults(one: ImageSet, images: Mapping[str, bytes]) -> Iterator[str]:
    for image in one.record.images if one.record else ():
        name = f"{SERVER}_{image.disk}_{one.sequence}"
        if name not in images:
            continue  # an admin removed it
        content = images[name][: image.size_bytes]
        digester = digest.digester(image.digest.partition(":")[0])
        whole = digest.ImageDigest(digester, image.size_bytes)
        for start in range(0, image.size_bytes, digest.SEGMENT_BYTES):
            segment = content[start : start + digest.SEGMENT_BYTES]
            padded = segment.ljust(-(-len(segment) // digest.BLOCK_BYTES) * digest.BLOCK_BYTES, b"\0")
            whole.add(digester.segment(digester.blocks(memoryview(padded))))
        if whole.text() != image.digest:
            yield f"the digest kept of {image.disk} in set {one.sequence} is not that of its bytes"


def _files(folder: Path) -> Dict[str, Optional[bytes]]:
    """Everything below the state and the definitions."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for name in ("state", "definitions")
        for path in sorted((folder / name).rglob("*"))
    }


def _put_back(folder: Path, files: Mapping[str, Optional[bytes]]) -> None:
    for name in ("state", "definitions"):
        for path in sorted((folder / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    for name, content in files.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


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


def world_of(kind: str, folder: Path, places: Tuple[Location, ...]) -> World:
    return DirectoryWorld(folder) if kind == "directory" else MemoryWorld(places)


def test_a_process_that_dies_while_it_cycles_loses_nothing(tmp_path: Path) -> None:
    (scenario,) = (one for one in SCENARIOS if one.name == "cycling two")
    sweep(Trial(scenario, tmp_path, MemoryWorld()), ("after",))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "directory"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_a_process_that_dies_at_any_step_loses_nothing(scenario: Scenario, kind: str, tmp_path: Path) -> None:
    if scenario.places and kind == "directory":
        scenario = replace(scenario, places=())
    sweep(Trial(scenario, tmp_path, world_of(kind, tmp_path, scenario.places)), ("before", "after"))
