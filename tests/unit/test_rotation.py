"""Cycling: no good set is dropped while a job fails, what has one number comes from one job, destinations are free.

`Box` is the DR box as far as rotation sees it: images that know which job they came from, moved by nothing but the
steps of plans. It shares no code with the planner. Every plan is also cut off at every step and taken up again.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, FrozenSet, Iterable, List, Optional, Set, Tuple, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil_dr.cycling.rotation import (
    bind,
    leaves_no_complete_set,
    outcome,
    plan_end,
    plan_overwrite,
    plan_start,
    remaining,
    withdrawal,
)
from anvil_dr.model import (
    INCOMPLETE,
    JournalStep,
    Owner,
    Removal,
    Rename,
    Sequence,
    SetOnDisk,
    Step,
    StoredImage,
)

SERVER = "Web01"
Name = Tuple[str, Sequence]
Disks = Tuple[str, ...]


@dataclasses.dataclass
class Box:
    """Images by name; each is (identity, job). A job of 0 means that its bytes are of no set."""

    images: Dict[Name, Tuple[int, int]] = dataclasses.field(default_factory=dict)
    jobs: Dict[int, FrozenSet[str]] = dataclasses.field(default_factory=dict)
    created: int = 0

    def copy(self) -> Box:
        return Box(dict(self.images), dict(self.jobs), self.created)

    def create(self, disk: str, sequence: Sequence, job: int = 0) -> None:
        assert (disk, sequence) not in self.images
        self.created += 1
        self.images[disk, sequence] = (self.created, job)

    def numbers(self) -> List[int]:
        return sorted({sequence for _, sequence in self.images if sequence != INCOMPLETE})

    def disks(self, sequence: Sequence) -> Disks:
        return tuple(sorted(disk for disk, there in self.images if there == sequence))

    def job_at(self, number: int) -> int:
        """The job that all images with this number came from."""
        jobs = {job for (_, sequence), (_, job) in self.images.items() if sequence == number}
        assert len(jobs) == 1, f"number {number} has images of jobs {jobs}"
        return jobs.pop()

    def complete(self) -> Dict[int, int]:
        """number -> job of the sets that have all the images of their job."""
        found = {number: self.job_at(number) for number in self.numbers()}
        return {number: job for number, job in found.items() if self.jobs[job] == set(self.disks(number))}

    def whole_jobs(self) -> Set[int]:
        """Jobs of which every image is there and untouched, wherever it stands: no step has cost any of them."""
        there: Dict[int, Set[str]] = {}
        for (disk, sequence), (_, job) in self.images.items():
            if sequence != INCOMPLETE:
                there.setdefault(job, set()).add(disk)
        return {job for job, disks in there.items() if job and disks == self.jobs[job]}

    def sets(self) -> Tuple[SetOnDisk, ...]:
        complete = self.complete()
        sequences: List[Sequence] = [*self.numbers()]
        if self.disks(INCOMPLETE):
            sequences.append(INCOMPLETE)
        return tuple(SetOnDisk(sequence, self.disks(sequence), sequence in complete) for sequence in sequences)

    def stored(self) -> Tuple[StoredImage, ...]:
        return tuple(
            StoredImage(Owner(SERVER, disk), sequence, "vg0", f"lv:{identity}", 1, f"/dev/vg0/{disk}_{sequence}")
            for (disk, sequence), (identity, _) in self.images.items()
        )

    def take(self, step: Step) -> None:
        assert step.owner.server == SERVER
        if isinstance(step, Removal):
            del self.images[step.owner.disk, step.sequence]
        else:
            assert (step.owner.disk, step.after) not in self.images, f"{step}: its destination is not free"
            self.images[step.owner.disk, step.after] = self.images.pop((step.owner.disk, step.before))

    def take_up(self, journal: Tuple[JournalStep, ...]) -> None:
        """What start-up does with a journaled plan."""
        for planned in remaining(journal, self.stored()):
            step = planned.step
            name = (step.owner.disk, step.before if isinstance(step, Rename) else step.sequence)
            assert planned.identity == f"lv:{self.images[name][0]}"
            self.take(step)

    def take_back(self, journal: Tuple[JournalStep, ...], before: Dict[Name, Tuple[int, int]]) -> None:
        """Everything is as it was, but for what is gone; unless that was of a numbered set."""
        back = withdrawal(journal, self.stored())
        gone = {name for name, one in before.items() if one not in self.images.values()}
        if back is None:
            assert any(sequence != INCOMPLETE for _, sequence in gone)
            return
        for planned in back:
            self.take(planned.step)
        assert self.images == {name: one for name, one in before.items() if name not in gone}
        assert withdrawal(journal, self.stored()) == (), "what was taken back is not taken back again"

    def carry_out(self, steps: Tuple[Step, ...], watch: Callable[[Box], None] = lambda box: None) -> None:
        """Take every step. Cut off before each, after each and after the last, the plan ends the same."""
        journal = bind(steps, self.stored())
        assert tuple(planned.step for planned in journal) == steps
        expected = {(image.owner.disk, image.sequence): image.identity for image in outcome(self.stored(), steps)}
        before, cut_off = dict(self.images), [self.copy()]
        for step in steps:
            self.take(step)
            watch(self)
            cut_off.append(self.copy())
        assert {name: f"lv:{identity}" for name, (identity, _) in self.images.items()} == expected
        for survivor in cut_off:
            survivor.copy().take_back(journal, before)
            survivor.take_up(journal)
            assert survivor.images == self.images
            survivor.take_up(journal)
            assert survivor.images == self.images, "a plan that is done is not done again"


class Site:
    """Jobs against a box, with every promise checked on the way."""

    def __init__(self, box: Optional[Box] = None) -> None:
        self.box = box or Box()
        self.job = max(self.box.jobs, default=0)

    def start(self, disks: Disks, copies: int) -> None:
        """As far as `_incomplete` images that can be written, N = 1 only as far as nothing is overwritten."""
        box, before = self.box, self.box.copy()
        good, whole = before.complete(), before.whole_jobs()
        steps = plan_start(SERVER, box.sets(), disks, copies)
        assert not leaves_no_complete_set(box.sets(), steps)
        lost_jobs: Set[int] = set()

        def watch(now: Box) -> None:
            lost_jobs.update(whole - now.whole_jobs())
            assert len(lost_jobs) <= 1, "a start costs one set at most"
            assert not good or set(good.values()) - lost_jobs, "a complete set survives"

        box.carry_out(steps, watch)
        self.check_order()
        had_incomplete = bool(before.disks(INCOMPLETE))
        if copies == 1:
            assert before.numbers() == box.numbers() and not lost_jobs
        else:
            assert 1 not in box.numbers()
        if had_incomplete or not set(range(1, copies + 1)) <= set(before.numbers()):
            numbered = {name: image for name, image in before.images.items() if name[1] != INCOMPLETE}
            kept = {image for name, image in box.images.items() if name[1] != INCOMPLETE}
            assert kept == set(numbered.values()), "nothing is recycled where it need not be"
            if 1 not in before.numbers():
                assert all(box.images[name] == image for name, image in numbered.items()), "nothing moves"
        for number in before.numbers():
            if number > copies and had_incomplete is False and set(range(1, copies + 1)) <= set(before.numbers()):
                assert box.disks(number) == before.disks(number), "sets above N stay until a job succeeds"
        assert set(box.disks(INCOMPLETE)) <= set(disks)

    def overwrite(self, disks: Disks) -> None:
        box, sets, before = self.box, self.box.sets(), self.box.copy()
        steps = plan_overwrite(SERVER, sets, disks)
        box.carry_out(steps)
        self.check_order()
        assert leaves_no_complete_set(sets, steps) == bool(before.complete() and not box.complete())
        gone = {job for number, job in before.complete().items()} - set(box.complete().values())
        assert gone <= {before.complete().get(1)}, "only set 1 is overwritten"
        if before.disks(INCOMPLETE):
            assert box.images == before.images, "what is incomplete already is written into"
        assert set(box.disks(INCOMPLETE)) <= set(disks)

    def receive(self, disks: Disks, *, finished: bool) -> None:
        """Placement creates what is missing, and bytes go in."""
        self.job += 1
        self.box.jobs[self.job] = frozenset(disks)
        for disk in disks:
            if (disk, INCOMPLETE) not in self.box.images:
                self.box.create(disk, INCOMPLETE)
        for disk in disks:
            identity, _ = self.box.images[disk, INCOMPLETE]
            self.box.images[disk, INCOMPLETE] = (identity, self.job if finished else 0)

    def end(self, disks: Disks, copies: int) -> None:
        box, before = self.box, self.box.copy()
        lost_jobs: Set[int] = set()

        def watch(now: Box) -> None:
            lost_jobs.update(before.whole_jobs() - now.whole_jobs())
            assert not lost_jobs or self.job in now.whole_jobs(), "the new set is there before an old one goes"

        box.carry_out(plan_end(SERVER, box.sets(), disks, copies), watch)
        self.check_order()
        assert box.complete()[1] == self.job
        assert not box.disks(INCOMPLETE)
        assert max(box.numbers()) <= copies
        if len(before.numbers()) < copies and max(before.numbers(), default=0) <= copies:
            assert len(box.numbers()) == len(before.numbers()) + 1, "nothing is dropped that there is room for"

    def check_order(self) -> None:
        """A lower number is a newer job, and a number is of one job."""
        jobs = [self.box.job_at(number) for number in self.box.numbers()]
        assert jobs == sorted(set(jobs), reverse=True)

    def run(self, disks: Disks, copies: int, ending: str) -> None:
        self.start(disks, copies)
        if ending == "fails before the first byte":
            return
        if copies == 1:
            self.overwrite(disks)
        self.receive(disks, finished=ending == "succeeds")
        if ending == "succeeds":
            self.end(disks, copies)


def history(*endings: str, disks: Disks = ("Web01_0", "Web01_1"), copies: int = 3) -> Site:
    site = Site()
    for ending in endings:
        site.run(disks, copies, ending)
    return site


def names(box: Box) -> List[str]:
    return sorted(f"{SERVER}_{disk}_{sequence}" for disk, sequence in box.images)


def set_(sequence: Sequence, disks: str = "ab", complete: bool = True) -> SetOnDisk:
    return SetOnDisk(sequence, tuple(disks), complete and sequence != INCOMPLETE)


def said(steps: Iterable[Step]) -> str:
    """`a:3>incomplete b:-5`: a rename of disk a, a removal of disk b's image 5."""
    return " ".join(
        f"{step.owner.disk}:" + (f"{step.before}>{step.after}" if isinstance(step, Rename) else f"-{step.sequence}")
        for step in steps
    )


# — random histories: jobs, and what an admin can do with lvremove and lvrename between them —


@dataclasses.dataclass(frozen=True)
class Job:
    disks: Disks
    copies: int
    ending: str

    def happen(self, site: Site) -> None:
        site.run(self.disks, self.copies, self.ending)


@dataclasses.dataclass(frozen=True)
class SetRemoved:
    sequence: Sequence

    def happen(self, site: Site) -> None:
        for disk in site.box.disks(self.sequence):
            del site.box.images[disk, self.sequence]


@dataclasses.dataclass(frozen=True)
class ImageRemoved:
    disk: str
    sequence: Sequence

    def happen(self, site: Site) -> None:
        site.box.images.pop((self.disk, self.sequence), None)


@dataclasses.dataclass(frozen=True)
class SetAside:
    """A set is renamed to `_incomplete` by hand, so that one can stand beside set 1."""

    number: int

    def happen(self, site: Site) -> None:
        if not site.box.disks(INCOMPLETE):
            for disk in site.box.disks(self.number):
                identity, _ = site.box.images.pop((disk, self.number))
                site.box.images[disk, INCOMPLETE] = (identity, 0)


DISKS = "abc"
disk_lists = st.sets(st.sampled_from(DISKS), min_size=1).map(lambda disks: tuple(sorted(disks)))
places = st.one_of(st.integers(1, 5), st.just(INCOMPLETE))
endings = st.sampled_from(["succeeds", "succeeds", "fails", "fails before the first byte"])
jobs = st.builds(Job, disk_lists, st.integers(1, 4), endings)
admins = st.one_of(
    st.builds(SetRemoved, places),
    st.builds(ImageRemoved, st.sampled_from(DISKS), places),
    st.builds(SetAside, st.integers(1, 5)),
)
Event = Union[Job, SetRemoved, ImageRemoved, SetAside]


@given(st.lists(st.one_of(jobs, jobs, jobs, admins), max_size=12))
def test_no_history_of_jobs_admins_and_power_cuts_breaks_a_promise(events: List[Event]) -> None:
    site = Site()
    for event in events:
        event.happen(site)


@given(st.lists(st.tuples(disk_lists, endings), max_size=10), st.integers(2, 4))
def test_with_the_same_copies_the_newest_successes_are_kept(runs: List[Tuple[Disks, str]], copies: int) -> None:
    site = Site()
    successes: List[int] = []
    for disks, ending in runs:
        site.run(disks, copies, ending)
        if ending == "succeeds":
            successes.insert(0, site.job)
            assert list(site.box.complete().values()) == successes[:copies]
        else:
            assert list(site.box.complete().values()) in (successes[:copies], successes[: copies - 1])


@given(st.lists(st.tuples(disk_lists, endings), min_size=1, max_size=6), st.integers(2, 4), disk_lists)
def test_failures_in_a_row_cost_what_the_first_one_cost(
    failures: List[Tuple[Disks, str]], copies: int, disks: Disks
) -> None:
    site = history(*["succeeds"] * copies, disks=disks, copies=copies)
    site.run(disks, copies, "fails")
    after_one = {name: image for name, image in site.box.images.items() if name[1] != INCOMPLETE}
    assert len(site.box.complete()) == copies - 1
    for _ in range(2):
        site.run(disks, copies, "fails")
    for disks, ending in failures:
        site.run(disks, copies, "fails" if ending == "succeeds" else ending)
        assert {name: image for name, image in site.box.images.items() if name[1] != INCOMPLETE} == after_one


@given(disk_lists, disk_lists, st.sets(st.integers(1, 6)), st.sets(st.integers(1, 6)), st.booleans(), st.integers(1, 4))
def test_any_state_at_all_can_be_cycled(
    disks: Disks, had: Disks, numbers: Set[int], broken: Set[int], incomplete: bool, copies: int
) -> None:
    box = Box()
    for number in numbers:
        job = 10 - number
        box.jobs[job] = frozenset({*had, "lost"} if number in broken else had)
        for disk in had:
            box.create(disk, number, job)
    if incomplete:
        for disk in had[:2]:
            box.create(disk, INCOMPLETE)
    for ending in ("fails", "succeeds", "fails before the first byte"):
        Site(box.copy()).run(disks, copies, ending)


@given(disk_lists, st.integers(1, 4), st.integers(1, 4))
def test_with_one_copy_starting_again_and_again_moves_nothing(disks: Disks, sets: int, failures: int) -> None:
    site = history(*["succeeds"] * sets, disks=disks, copies=max(sets, 2))
    before = site.box.copy()
    for _ in range(failures):
        site.start(disks, 1)
        assert site.box.images == before.images


# — the examples of the SPEC —


def test_a_full_server_is_cycled_as_in_the_specs_example() -> None:
    site = history("succeeds", "succeeds", "succeeds")
    assert names(site.box) == [f"Web01_Web01_{disk}_{number}" for disk in (0, 1) for number in (1, 2, 3)]
    steps = plan_start(SERVER, site.box.sets(), ("Web01_0", "Web01_1"), 3)
    moves: Tuple[Tuple[Sequence, Sequence], ...] = ((3, INCOMPLETE), (2, 3), (1, 2))
    assert steps == tuple(
        Rename(Owner("Web01", disk), before, after)
        for before, after in moves
        for disk in ("Web01_0", "Web01_1")
    )
    site.start(("Web01_0", "Web01_1"), 3)
    site.receive(("Web01_0", "Web01_1"), finished=True)
    assert plan_end(SERVER, site.box.sets(), ("Web01_0", "Web01_1"), 3) == tuple(
        Rename(Owner("Web01", disk), INCOMPLETE, 1) for disk in ("Web01_0", "Web01_1")
    )


def test_ten_failures_cost_no_good_set() -> None:
    site = history("succeeds", "succeeds", "succeeds", *["fails"] * 10)
    assert site.box.complete() == {2: 3, 3: 2}
    site.run(("Web01_0", "Web01_1"), 3, "succeeds")
    assert site.box.complete() == {1: site.job, 2: 3, 3: 2}


START: List[Tuple[str, List[SetOnDisk], str, int, str]] = [
    ("the first job moves nothing", [], "ab", 3, ""),
    ("with fewer sets than copies they move up", [set_(1), set_(2)], "ab", 3, "a:2>3 b:2>3 a:1>2 b:1>2"),
    ("with two copies the second is recycled", [set_(1), set_(2)], "ab", 2,
     "a:2>incomplete b:2>incomplete a:1>2 b:1>2"),
    ("a gap is closed by what must move", [set_(1), set_(3)], "ab", 3, "a:1>2 b:1>2"),
    ("a higher gap too", [set_(1), set_(2), set_(4)], "ab", 4, "a:2>3 b:2>3 a:1>2 b:1>2"),
    ("no set 1, nothing to move", [set_(2), set_(3)], "ab", 3, ""),
    ("no set 1, and an incomplete one", [set_(2), set_(INCOMPLETE)], "ab", 3, ""),
    ("an old job's disk is dropped", [set_(2), set_(INCOMPLETE, "abc")], "ab", 3, "c:-incomplete"),
    ("copies lowered: N is recycled and what is above stays", [set_(1), set_(2), set_(3), set_(4)], "ab", 2,
     "a:2>incomplete b:2>incomplete a:1>2 b:1>2"),
    ("copies raised: nothing is recycled", [set_(1), set_(2)], "a", 3, "a:2>3 b:2>3 a:1>2 b:1>2"),
    ("set 1 beside an incomplete one", [set_(1), set_(2), set_(INCOMPLETE)], "ab", 2, "a:2>3 b:2>3 a:1>2 b:1>2"),
    ("set 1 beside an incomplete one of an old job", [set_(1), set_(INCOMPLETE, "ac")], "ab", 3,
     "c:-incomplete a:1>2 b:1>2"),
    ("a lost disk goes with the set that is recycled", [set_(1), set_(2)], "a", 2,
     "b:-2 a:2>incomplete a:1>2 b:1>2"),
    ("a gained disk is nobody's to move", [set_(1, "a"), set_(2, "a")], "ab", 2, "a:2>incomplete a:1>2"),
    ("the last complete set is not recycled", [set_(1, "a", False), set_(2)], "ab", 2, "a:1>incomplete"),
    ("the last complete set is not recycled, of three", [set_(1, "a", False), set_(2, "b", False), set_(3)], "ab", 3,
     "b:2>incomplete a:1>2"),
    ("what is not complete goes before what is", [set_(1, "a", False), set_(2), set_(3)], "ab", 2, "a:1>incomplete"),
    ("what is not complete goes first, of three", [set_(1), set_(2, "a", False), set_(3)], "ab", 3,
     "a:2>incomplete a:1>2 b:1>2"),
    ("what is not complete above N stays, and N goes", [set_(1), set_(2), set_(3, "a", False)], "ab", 2,
     "a:2>incomplete b:2>incomplete a:1>2 b:1>2"),
    ("with no complete set N is recycled", [set_(1, "a", False), set_(2, "b", False)], "ab", 2,
     "b:2>incomplete a:1>2"),
    ("a number without images is free", [set_(1), set_(2, ""), set_(3)], "ab", 3, "a:1>2 b:1>2"),
    ("one copy stays where it is", [set_(1)], "ab", 1, ""),
    ("one copy, with others above it", [set_(1), set_(2), set_(INCOMPLETE, "ac")], "ab", 1, "c:-incomplete"),
]  # fmt: skip

END: List[Tuple[str, List[SetOnDisk], str, int, str]] = [
    ("the first set", [set_(INCOMPLETE)], "ab", 2, "a:incomplete>1 b:incomplete>1"),
    ("beside older ones", [set_(INCOMPLETE), set_(2)], "ab", 2, "a:incomplete>1 b:incomplete>1"),
    ("copies lowered", [set_(INCOMPLETE), set_(2), set_(3), set_(5)], "ab", 2,
     "a:incomplete>1 b:incomplete>1 a:-5 b:-5 a:-3 b:-3"),
    ("one copy beside the old one", [set_(INCOMPLETE), set_(1)], "ab", 1,
     "a:1>2 b:1>2 a:incomplete>1 b:incomplete>1 a:-2 b:-2"),
    ("set 1 came back meanwhile", [set_(INCOMPLETE, "a"), set_(1), set_(2, "b")], "a", 2,
     "b:2>3 a:1>2 b:1>2 a:incomplete>1 b:-3"),
    ("a gap takes the old ones", [set_(INCOMPLETE, "a"), set_(1, "a"), set_(3, "a")], "a", 3, "a:1>2 a:incomplete>1"),
    ("a disk that is not the job's", [set_(INCOMPLETE, "abc")], "ab", 2, "c:-incomplete a:incomplete>1 b:incomplete>1"),
]  # fmt: skip

OVERWRITE: List[Tuple[str, List[SetOnDisk], str, str, bool]] = [
    ("the only set is overwritten", [set_(1)], "ab", "a:1>incomplete b:1>incomplete", True),
    ("an older one is still there", [set_(1), set_(2)], "ab", "a:1>incomplete b:1>incomplete", False),
    ("an older one that lacks an image is no comfort", [set_(1), set_(2, "a", False)], "ab",
     "a:1>incomplete b:1>incomplete", True),
    ("a set that lacks an image is no loss", [set_(1, "a", False)], "ab", "a:1>incomplete", False),
    ("a lost disk goes", [set_(1)], "b", "b:1>incomplete a:-1", True),
    ("an incomplete set is written into", [set_(1), set_(INCOMPLETE, "a")], "ab", "", False),
    ("one that has no disk of the job is none", [set_(1), set_(INCOMPLETE, "c")], "ab",
     "a:1>incomplete b:1>incomplete", True),
    ("nothing is there", [], "ab", "", False),
]  # fmt: skip


YOUNG: List[Tuple[str, List[SetOnDisk], int, Set[int], str]] = [
    ("it is written over and the others stay", [set_(1), set_(2), set_(3)], 3, {1}, "a:1>incomplete b:1>incomplete"),
    ("the newest of several", [set_(1), set_(2), set_(3)], 3, {1, 2}, "a:1>incomplete b:1>incomplete"),
    ("all of them", [set_(1), set_(2)], 2, {1, 2}, "a:1>incomplete b:1>incomplete"),
    ("one that was sorted behind an older one", [set_(1), set_(2), set_(3)], 3, {2},
     "a:2>incomplete b:2>incomplete a:1>2 b:1>2"),
    ("what is broken goes before it", [set_(1), set_(2, "a", False)], 2, {1}, "a:2>incomplete a:1>2 b:1>2"),
    ("where there is room nothing is written over", [set_(1), set_(2)], 3, {1}, "a:2>3 b:2>3 a:1>2 b:1>2"),
    ("one above N counts for nothing", [set_(1), set_(2), set_(3)], 2, {3},
     "a:2>incomplete b:2>incomplete a:1>2 b:1>2"),
    ("one copy is one copy", [set_(1)], 1, {1}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("case", "sets", "copies", "young", "expected"), YOUNG, ids=[case[0] for case in YOUNG])
def test_a_set_that_is_too_young_to_cost_an_older_one_its_place(
    case: str, sets: List[SetOnDisk], copies: int, young: Set[int], expected: str
) -> None:
    assert said(plan_start(SERVER, sets, ("a", "b"), copies, young)) == expected


numbers_of_sets = st.sets(st.integers(1, 6))


@given(numbers_of_sets, numbers_of_sets, numbers_of_sets, st.integers(2, 4))
def test_the_last_complete_set_is_never_recycled_however_young_it_is(
    young: Set[int], numbers: Set[int], broken: Set[int], copies: int
) -> None:
    sets = [set_(number, "ab", number not in broken) for number in sorted(numbers)]
    steps = plan_start(SERVER, sets, ("a", "b"), copies, young)
    assert not leaves_no_complete_set(sets, steps)


@pytest.mark.parametrize(("case", "sets", "disks", "copies", "expected"), START, ids=[case[0] for case in START])
def test_the_start_of_a_job(
    case: str, sets: List[SetOnDisk], disks: str, copies: int, expected: str
) -> None:
    assert said(plan_start(SERVER, sets, tuple(disks), copies)) == expected
    assert said(plan_start(SERVER, reversed(sets), tuple(disks), copies)) == expected


@pytest.mark.parametrize(("case", "sets", "disks", "copies", "expected"), END, ids=[case[0] for case in END])
def test_the_end_of_a_job(case: str, sets: List[SetOnDisk], disks: str, copies: int, expected: str) -> None:
    assert said(plan_end(SERVER, sets, tuple(disks), copies)) == expected


@pytest.mark.parametrize(
    ("case", "sets", "disks", "expected", "nothing_left"), OVERWRITE, ids=[case[0] for case in OVERWRITE]
)
def test_overwriting_the_only_copy(
    case: str, sets: List[SetOnDisk], disks: str, expected: str, nothing_left: bool
) -> None:
    steps = plan_overwrite(SERVER, sets, tuple(disks))
    assert said(steps) == expected
    assert leaves_no_complete_set(sets, steps) == nothing_left


def test_a_set_that_only_moves_is_still_complete() -> None:
    sets = [set_(1)]
    assert not leaves_no_complete_set(sets, plan_start(SERVER, sets, ("a",), 2))


def test_a_set_that_is_torn_apart_or_half_removed_is_not_complete() -> None:
    assert leaves_no_complete_set([set_(1)], (Rename(Owner(SERVER, "a"), 1, 2),))
    assert leaves_no_complete_set([set_(1)], (Removal(Owner(SERVER, "a"), 1),))


@pytest.mark.parametrize("disks", ["ac", ""])
def test_a_set_that_is_not_all_there_cannot_be_promoted(disks: str) -> None:
    with pytest.raises(ValueError, match="promoted"):
        plan_end(SERVER, [set_(INCOMPLETE), set_(2)], tuple(disks), 2)


def test_there_is_no_less_than_one_copy() -> None:
    with pytest.raises(ValueError, match="copies"):
        plan_start(SERVER, [set_(1)], ("a",), 0)


# — binding to images, and taking up again —


def image(disk: str, sequence: Sequence, identity: str, location: str = "vg0") -> StoredImage:
    return StoredImage(Owner(SERVER, disk), sequence, location, identity, 1, "/dev/null")


def test_a_plan_for_an_image_that_is_not_there_is_not_journaled() -> None:
    with pytest.raises(ValueError, match="no image"):
        bind((Rename(Owner(SERVER, "a"), 1, 2),), [image("a", 2, "lv:1")])


def test_two_images_of_one_name_in_two_groups_go_the_same_way() -> None:
    twins = [image("a", INCOMPLETE, "lv:1", "vg0"), image("a", INCOMPLETE, "lv:2", "vg1")]
    step = Removal(Owner(SERVER, "a"), INCOMPLETE)
    assert bind((step,), twins) == (JournalStep(step, "lv:1"), JournalStep(step, "lv:2"))
    assert outcome(twins, (step,)) == ()


def test_after_the_last_step_of_replacing_the_only_copy_nothing_is_left_to_do() -> None:
    """By its names alone this plan could begin again, and would remove the only good set."""
    before = [image("a", 1, "lv:old"), image("a", INCOMPLETE, "lv:new")]
    journal = bind(plan_end(SERVER, [set_(1, "a"), set_(INCOMPLETE, "a")], ("a",), 1), before)
    assert len(journal) == 3
    assert remaining(journal, before) == journal
    assert remaining(journal, [image("a", 1, "lv:new")]) == ()


def test_an_image_that_an_admin_moved_or_put_there_since_is_left_alone() -> None:
    before = [image("a", 1, "lv:1"), image("b", 1, "lv:2"), image("b", 2, "lv:3")]
    journal = bind((Rename(Owner(SERVER, "a"), 1, 2), Removal(Owner(SERVER, "b"), 2)), before)
    assert remaining(journal, [image("a", 5, "lv:1"), image("b", 2, "lv:9")]) == ()
    assert remaining(journal, [image("a", 1, "lv:1"), image("b", 7, "lv:3")]) == journal[:1]
    assert remaining(journal, [StoredImage(Owner("other", "a"), 1, "vg0", "lv:1", 1, "/dev/null")]) == ()
