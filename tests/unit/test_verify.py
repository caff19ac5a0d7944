"""Images are read again: what is rotten is named, kept in mind, not chosen, and healed by the next job."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

from anvil_dr.activation import boot_images
from anvil_dr.cli import verify as command
from anvil_dr.cycling import sets
from anvil_dr.errors import UsageError
from anvil_dr.model import INCOMPLETE, ImageRecord, ImageSet, JobRecord, Owner, SetRecord, StoredImage
from anvil_dr.receiving import verify
from anvil_dr.receiving.target import Target
from anvil_dr.receiving.verify import Check, Verdict, Verifier
from anvil_dr.status import status
from anvil_dr.stores import openers
from anvil_dr.stores.directory import DirectoryStore
from anvil_dr.wire.pace import Pace
from tests.doubles.hypervisor import Clock
from tests.doubles.mortal_box import DirectoryWorld, MortalBox
from tests.doubles.provenance import Checker, Push

pytestmark = pytest.mark.slow

DISKS = {"Web01_0": 20 << 20, "Web01_1": 70_001}


class Watched:
    """Implements verify.Observer."""

    def __init__(self, when_advanced: Callable[[], None] = lambda: None) -> None:
        self.told: List[str] = []
        self._when_advanced = when_advanced

    def begun(self, check: Check) -> None:
        self.told.append(f"begun {command.name_of(check)}")

    def advanced(self, check: Check, done_bytes: int) -> None:
        self.told.append(f"{done_bytes}")
        self._when_advanced()

    def ended(self, verdict: Verdict) -> None:
        self.told.append(f"ended {verdict.state}")


class Box(MortalBox):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, DirectoryWorld(folder), copies=2)
        self.checker = Checker()

    def receive(self) -> None:
        self.checker.pushes.append(Push(len(self.checker.pushes) + 1, DISKS))
        assert self.push(self.checker.pushes[-1]).succeeded

    def path(self, name: str) -> Path:
        return self.folder / "store" / f"{name}.raw"

    def rot(self, name: str, offset: int = 5000) -> None:
        """Bits fall over, and nothing else changes."""
        with open(self.path(name), "r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))

    def verify(self, observer: Optional[Watched] = None, *, pace: Optional[Pace] = None) -> List[Verdict]:
        with self.process() as target:
            checks = verify.plan(verify.look(target.store, target.state))
            verifier = Verifier(target.store, target.state, observer or Watched(), pace=pace, now=self.now)
            return list(verifier.run(checks))

    def sets(self) -> Tuple[ImageSet, ...]:
        with self.process() as target:
            return verify.look(target.store, target.state)

    def run(self, *arguments: str) -> int:
        path = self.folder / "target.yaml"
        one = self.config
        path.write_text(
            f"store: fs:{self.folder}/store\nstate: {one.state}\n"
            f"definitions: {one.definitions}\nruntime: {one.runtime}\n"
        )
        return command.main(["--config", str(path), *arguments])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Box, Any]:
    made = Box(tmp_path_factory.mktemp("box"))
    made.receive()
    made.receive()
    return made, made.mark()


@pytest.fixture
def box(filled: Tuple[Box, Any]) -> Iterator[Box]:
    """Two complete sets, the same ones for every test."""
    made, mark = filled
    yield made
    made.rewind(mark)
    made.checker.pushes[2:] = []


def test_images_that_are_as_they_were_received_are_known_as_read_again(box: Box) -> None:
    watched = Watched()
    assert [one.state for one in box.verify(watched)] == ["right"] * 4
    records = [image for one in box.sets() if one.record for image in one.record.images]
    assert [(image.verified_at, image.rotten) for image in records] == [(box.now(), None)] * 4
    assert watched.told[:5] == [
        "begun Web01_Web01_0_2", str(16 << 20), str(20 << 20), "ended right", "begun Web01_Web01_1_2",
    ]  # fmt: skip


@pytest.mark.parametrize("offset", [0, 5000, 20 << 19, (20 << 20) - 1])
def test_one_bit_that_fell_over_is_found_and_kept_in_mind(box: Box, offset: int) -> None:
    box.rot("Web01_Web01_0_1", offset)
    wrong = [one for one in box.verify() if one.state == "rotten"]
    assert [command.name_of(one.check) for one in wrong] == ["Web01_Web01_0_1"]
    first, second = box.sets()
    assert (first.rotten, second.rotten) == (("Web01_0",), ())
    assert first.record is not None and "was received" in str(first.record.images[0].rotten)


def test_data_in_what_was_a_hole_is_rot_too(box: Box) -> None:
    hole = next(page for page in range(5000) if not any(box.path("Web01_Web01_0_1").read_bytes()[page * 4096 :][:4096]))
    box.rot("Web01_Web01_0_1", hole * 4096)
    assert "rotten" in [one.state for one in box.verify()]


def test_an_image_that_cannot_be_read_is_rotten_with_the_byte(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.path("Web01_Web01_1_1").open("r+b").truncate(4096)
    (wrong,) = [one for one in box.verify() if one.state == "rotten"]
    assert "digest" in wrong.reason or "at byte" in wrong.reason


def test_what_is_rotten_is_healed_by_the_next_job_and_costs_no_good_set(box: Box) -> None:
    box.rot("Web01_Web01_0_1")
    box.verify()
    box.receive()
    assert box.checker.complete("Web01", box.world.images()) == [(1, 3), (2, 1)], "the rotten set was written over"
    assert [one.rotten for one in box.sets()] == [(), ()]
    assert {one.state for one in box.verify()} == {"right"}


def test_an_image_that_is_right_again_is_no_longer_rotten(box: Box) -> None:
    box.rot("Web01_Web01_0_1")
    box.verify()
    box.rot("Web01_Web01_0_1")
    assert [one.state for one in box.verify()] == ["right"] * 4
    assert box.sets()[0].rotten == ()


def test_a_rotten_set_is_not_chosen_over_a_good_one(box: Box) -> None:
    box.rot("Web01_Web01_0_1")
    box.verify()
    chosen, findings = boot_images.choose_set(box.sets(), None, None)
    assert chosen is not None and chosen.sequence == 2
    asked, findings = boot_images.choose_set(box.sets(), 1, None)
    assert asked is not None and asked.sequence == 1 and any(one.fatal for one in findings)


def test_a_rotten_set_counts_as_broken_when_one_is_to_be_recycled(box: Box) -> None:
    box.rot("Web01_Web01_0_1")
    box.verify()
    assert [sets.to_planner(one).complete for one in box.sets()] == [False, True]


def test_the_status_names_it(box: Box) -> None:
    box.rot("Web01_Web01_1_2")
    box.verify()
    with box.process() as target:
        seen = status.Observation("dr01", "fs", images=target.store.images(), records=target.state.set_records())
    (server,) = status.assess(seen, datetime(2026, 11, 20, 12, tzinfo=timezone.utc)).servers
    (text,) = [one.text for one in server.remarks if "Web01_1" in one.text]
    assert text.startswith("set 2 is rotten: disk Web01_1: its bytes have digest ") and server.needs_attention


# — it is never in the way —


def running(target: Target, server: str = "Web01") -> JobRecord:
    job = JobRecord("job-9", server, "an-a01n01", "running", "2026-11-20T10:00:00+00:00")
    target.state.job_started(job)
    return job


def test_it_lets_go_of_an_image_when_a_job_of_its_server_begins(box: Box) -> None:
    begun: List[JobRecord] = []
    with box.process() as target:
        watched = Watched(lambda: begun or begun.append(running(target)))  # type: ignore[func-returns-value]
        verdicts = box.verify(watched)
        target.state.job_finished(replace(begun[0], state="failed"))
    assert {(one.state, one.reason) for one in verdicts} == {("skipped", "a job of server Web01 is running")}
    assert [one for one in watched.told if one.isdigit()] == [str(16 << 20)], "it stopped at once"
    assert [one.state for one in box.verify()] == ["right"] * 4


def test_an_image_that_a_job_writes_over_meanwhile_is_not_called_rotten(box: Box) -> None:
    """A job forgets what an image was before it writes the first byte."""

    def recycle() -> None:
        with box.process() as target:
            (image,) = [one for one in target.store.images() if (one.sequence, one.owner.disk) == (2, "Web01_0")]
            target.state.forget_images([image.identity])
        box.rot("Web01_Web01_0_2", 18 << 20)

    assert [one.state for one in box.verify(Watched(recycle))][0] == "skipped"
    assert all(image.rotten is None for one in box.sets() if one.record for image in one.record.images)


def test_the_images_of_an_activated_server_are_left_alone(box: Box) -> None:
    with box.process() as target:
        target.state.activate("Web01", 1, "root")
    assert {one.reason for one in box.verify()} == {"server Web01 is activated, and writes to its images"}


def test_what_a_guest_writes_that_was_activated_meanwhile_is_no_rot(box: Box) -> None:
    def activate() -> None:
        with box.process() as target:
            target.state.activate("Web01", 1, "root")
        box.rot("Web01_Web01_0_1", 18 << 20)

    assert {(one.state, one.reason) for one in box.verify(Watched(activate))} == {
        ("skipped", "server Web01 is activated, and writes to its images")
    }
    assert all(image.rotten is None for one in box.sets() if one.record for image in one.record.images)


def test_what_a_guest_writes_that_was_booted_by_hand_meanwhile_is_no_rot(box: Box) -> None:
    box.rot("Web01_Web01_0_1")
    users: Iterator[Tuple[str, ...]] = iter(((), ("qemu-system-x86 (1234)",)))
    with box.process() as target:
        target.store.users = lambda images: dict(zip(images, next(users)))  # type: ignore[method-assign]
        checks = verify.plan(verify.look(target.store, target.state), sequence=1)
        (check,) = [one for one in checks if one.image.owner.disk == "Web01_0"]
        (verdict,) = Verifier(target.store, target.state, Watched()).run([check])
    assert (verdict.state, verdict.reason) == ("skipped", "it is in use by qemu-system-x86 (1234)")
    assert all(image.rotten is None for one in box.sets() if one.record for image in one.record.images)


READER = """
import sys
open("/proc/self/comm", "w").write(sys.argv[2])
file = open(sys.argv[1], "rb")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("name", "is_user"), [(openers.VERIFIER, False), ("qemu-system-x86", True)])
def test_an_image_that_is_only_being_verified_is_not_in_use(box: Box, name: str, is_user: bool) -> None:
    path = box.path("Web01_Web01_0_1")
    store = DirectoryStore(str(path.parent), lambda: [Owner("Web01", disk) for disk in DISKS])
    (image,) = [one for one in store.images() if one.path == str(path)]
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        assert (store.users([image]).get(image) is not None) == is_user
        reader.communicate()


def test_the_rate_is_kept(box: Box) -> None:
    clock = Clock(time=0.0)
    box.verify(pace=Pace(10 << 20, clock=clock.now, sleep=clock.sleep))
    assert clock.time == pytest.approx(2 * sum(DISKS.values()) / (10 << 20), rel=0.5)


# — which —


def a_set(
    server: str, number: int, *images: Tuple[str, int, Optional[str]], received_at: str = "2026-11-01"
) -> ImageSet:
    stored = tuple(
        StoredImage(Owner(server, disk), number, "vg", f"{server}{disk}{number}", size, "") for disk, size, _ in images
    )
    remembered = tuple(
        ImageRecord(disk, f"{server}{disk}{number}", size, "sha256:0", read_at) for disk, size, read_at in images
    )
    return ImageSet(server, number, stored, True, SetRecord(server, received_at, "node", "job", remembered))


def planned(present: Tuple[ImageSet, ...], **options: object) -> List[str]:
    return [command.name_of(one) for one in verify.plan(present, **options)]  # type: ignore[arg-type]


SETS = (
    a_set("Db01", 1, ("a", 100, "2026-11-10")),
    a_set("Web01", 1, ("a", 100, None), ("b", 50, "2026-10-02"), received_at="2026-11-15"),
    a_set("Web01", 2, ("a", 100, "2026-11-12"), received_at="2026-09-01"),
)


def test_what_was_not_read_for_the_longest_time_comes_first() -> None:
    assert planned(SETS) == ["Web01_b_1", "Db01_a_1", "Web01_a_2", "Web01_a_1"]


def test_what_was_rotten_comes_first_of_all() -> None:
    (image,) = SETS[2].record.images  # type: ignore[union-attr]
    rotten = replace(SETS[2].record, images=(replace(image, rotten="bits"),))  # type: ignore[type-var]
    assert planned((*SETS[:2], replace(SETS[2], record=rotten)))[0] == "Web01_a_2"


def test_a_share_is_of_the_bytes_and_never_nothing() -> None:
    assert planned(SETS, share_percent=25) == ["Web01_b_1", "Db01_a_1"]
    assert planned(SETS, share_percent=1) == ["Web01_b_1"]


def test_four_shares_of_a_quarter_are_all_of_it() -> None:
    present, seen = list(SETS), []
    for week in range(4):
        for name in planned(tuple(present), share_percent=25):
            seen.append(name)
            present = [_verified(one, name, f"2026-12-0{week + 1}") for one in present]
    assert set(seen) == set(planned(SETS))


def _verified(one: ImageSet, name: str, at: str) -> ImageSet:
    assert one.record is not None
    images = tuple(
        replace(image, verified_at=at) if f"{one.server}_{image.disk}_{one.sequence}" == name else image
        for image in one.record.images
    )
    return replace(one, record=replace(one.record, images=images))


def test_only_the_servers_and_the_number_that_were_asked_for() -> None:
    assert planned(SETS, servers=("Db01",)) == ["Db01_a_1"]
    assert planned(SETS, servers=("Web01",), sequence=2) == ["Web01_a_2"]
    with pytest.raises(UsageError, match="Mail01"):
        planned(SETS, servers=("Mail01", "Web01"))
    with pytest.raises(UsageError, match="no set 2 of Db01"):
        planned(SETS, servers=("Db01",), sequence=2)


def test_what_nobody_knows_the_digest_of_is_not_read_but_told() -> None:
    lost = replace(SETS[0], record=None)
    half = replace(SETS[1], sequence=INCOMPLETE)
    assert planned((lost, half)) == []
    assert verify.without_digest((lost, half, SETS[2])) == (lost,)


# — the command —


def test_the_command_reads_all_and_says_so(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert box.run() == 0
    out, err = capsys.readouterr()
    assert out.startswith("4 images as received (40.1 MiB in ")
    assert err.splitlines() == [f"Web01_Web01_{disk}_{number}: right" for number in (2, 1) for disk in (0, 1)]


def test_the_command_names_what_is_rotten_and_fails(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.rot("Web01_Web01_0_1")
    assert box.run("Web01", "--sequence", "1", "--no-progress") == 1
    out, err = capsys.readouterr()
    assert out.startswith("ROTTEN: Web01_Web01_0_1: its bytes have digest ") and "1 image of 2 not as received" in out
    assert err == ""


def test_the_json_says_the_same(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.rot("Web01_Web01_1_2")
    assert box.run("--json", "--bandwidth-limit", "1G") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert {one["image"]: one["state"] for one in found["images"]} == {
        "Web01_Web01_0_1": "right", "Web01_Web01_1_1": "right", "Web01_Web01_0_2": "right", "Web01_Web01_1_2": "rotten",
    }  # fmt: skip
    assert err == ""


def test_the_command_fails_if_nothing_of_what_was_asked_for_could_be_read(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    with box.process() as target:
        running(target)
    assert box.run() == 0
    assert box.run("Web01") == 1
    assert "a job of server Web01 is running" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [("--share", "0"), ("--share", "101"), ("--sequence", "0"), ("Mail01",), ("--bandwidth-limit", "fast")]
)
def test_what_makes_no_sense_is_a_usage_error(box: Box, arguments: Tuple[str, ...]) -> None:
    assert box.run(*arguments) == 2
