"""Drives that fail, lie, fill up or hang in the middle of a job, and LVM commands that do: no good set is lost by it,
and the next job just works."""

from __future__ import annotations

import random
import shutil
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple

import pytest

from anvil_dr import command
from anvil_dr.errors import AnvilDrError, CommandError
from anvil_dr.ports import CommandRunner, Completed, Store
from anvil_dr.records.state import State
from anvil_dr.sending.job import JobOutcome, OutgoingDisk, OutgoingServer
from anvil_dr.sending.source import open_source
from anvil_dr.status.inquiry import running_jobs
from anvil_dr.stores.lvm import LvmStore
from tests.doubles.dr_box import DOMAIN, DrBox, Node, Quiet

pytestmark = pytest.mark.in_guest(drives=("200M", "160M", "16M"), memory="768M")

MIB = 1 << 20
RULE = Path(__file__).resolve().parents[2] / "etc" / "62-anvil-dr.rules"
GROUP = "dr01_vg0"
DRIVES = {"pv": "/dev/ubda", "disk": "/dev/ubdb", "source": "/dev/ubdc"}
WELL = "linear {drive} 0"
FAILS_TO_WRITE = "flakey {drive} 0 0 600 1 error_writes"
LIES = "flakey {drive} 0 0 600 1 drop_writes"


def run(*argv: str, stdin: bytes = b"") -> str:
    return command.run(argv, timeout_seconds=300, stdin=stdin).stdout.decode()


def become(name: str, target: str) -> None:
    """Change what a drive does, while it is in use."""
    drive = DRIVES[name]
    table = f"0 {run('blockdev', '--getsz', drive).strip()} {target.format(drive=drive)}\n"
    run("dmsetup", "suspend", "--nolockfs", name)
    run("dmsetup", "load", name, stdin=table.encode())
    run("dmsetup", "resume", name)


@pytest.fixture(scope="module", autouse=True)
def hardware() -> None:
    for module in ("dm_mod", "dm_flakey"):
        run("modprobe", module)
    Path("/etc/lvm/lvmlocal.conf").write_text('devices { global_filter = [ "a|^/dev/mapper/pv$|", "r|.*|" ] }\n')
    shutil.copy(RULE, "/etc/udev/rules.d")
    run("udevadm", "control", "--reload")
    for name, drive in DRIVES.items():
        table = f"0 {run('blockdev', '--getsz', drive).strip()} {WELL.format(drive=drive)}\n"
        run("dmsetup", "create", name, stdin=table.encode())
    run("vgcreate", "--yes", GROUP, "/dev/mapper/pv")
    run("mkfs.ext4", "-q", "/dev/mapper/disk")


class AtTheDisk(Quiet):
    """Does something once, when the job has come to its first disk; or already when it has come to the server."""

    def __init__(self, act: Callable[[], object], *, at_the_server: bool = False) -> None:
        super().__init__()
        self._act, self._at_the_server, self._done = act, at_the_server, False

    def _once(self) -> None:
        if not self._done:
            self._done = True
            self._act()

    def server_begun(self, server: str) -> None:
        if self._at_the_server:
            self._once()

    def disk_begun(self, server: str, disk: str, size_bytes: int) -> None:
        self._once()


class Story:
    """A box, its only server, and what was sent of it."""

    def __init__(self, box: DrBox, folder: Path) -> None:
        self.box, self.node = box, Node(folder / "node")
        self.sent: List[Dict[str, bytes]] = []

    def push(self, observer: Quiet | None = None, mib: int = 4) -> JobOutcome:
        content = random.Random(len(self.sent))
        disks = {"Web01_0": content.randbytes(mib * MIB), "Web01_1": content.randbytes(70_001)}
        if self.box.config.store.kind == "lvm":
            del disks["Web01_1"]  # each volume costs seconds here
        self.sent.append(disks)
        self.node.disks = disks
        return self.box.send(self.node.outgoing(), observer=observer)

    def good(self) -> None:
        outcome = self.push()
        assert outcome.succeeded, outcome.servers[0].error

    def bad(self, act: Callable[[], object], mend: Callable[[], object], mib: int = 4, early: bool = False) -> str:
        """A job in whose middle something breaks. What the node was told."""
        try:
            outcome = self.push(AtTheDisk(act, at_the_server=early), mib)
        except AnvilDrError as error:
            return str(error)
        finally:
            mend()
        assert not outcome.succeeded
        return str(outcome.servers[0].error)

    def read(self, disk: str, number: int) -> bytes:
        if self.box.config.store.kind == "fs":
            return self.box.image(f"Web01_{disk}_{number}")
        content = Path(f"/dev/anvil-dr/Web01_{disk}_{number}").read_bytes()
        return content[: len(self.sent[-1][disk])]

    def is_set(self, number: int, job: int) -> bool:
        return all(self.read(disk, number) == content for disk, content in self.sent[job].items())


@contextmanager
def on_a_file_system(tmp_path: Path) -> Iterator[Story]:
    store = tmp_path / "store"
    store.mkdir()
    run("mount", "/dev/mapper/disk", str(store))
    shutil.rmtree(store / "lost+found", ignore_errors=True)
    for left in store.iterdir():
        left.unlink()
    try:
        yield Story(DrBox(tmp_path), tmp_path)
    finally:
        run("umount", str(store))


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Story]:
    with on_a_file_system(tmp_path) as story:
        yield story


@pytest.fixture
def volumes(tmp_path: Path) -> Story:
    run("lvremove", "-y", GROUP)
    return Story(DrBox(tmp_path, groups=(GROUP,), verify="read-back"), tmp_path)


def test_a_source_with_a_bad_sector_fails_its_server_with_the_byte_and_no_other(files: Story) -> None:
    db = Node(files.box.folder / "db", "Db01", disks={"Db01_0": b"d" * 5000})
    source = "/dev/mapper/source"
    xml = DOMAIN.format(
        name="Web01", uuid="5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4d",
        disks=f"<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{source}'/>"
        "<target dev='vda' bus='virtio'/></disk>",
    )  # fmt: skip
    web = OutgoingServer(
        "Web01", xml, (OutgoingDisk("Web01_0", source, 16 * MIB, lambda: open_source(source)),), nullcontext
    )
    sectors = 16 * MIB // 512
    bad = f"0 8192 linear /dev/ubdc 0\n8192 8 error\n8200 {sectors - 8200} linear /dev/ubdc 8200\n"
    run("dmsetup", "suspend", "source")
    run("dmsetup", "load", "source", stdin=bad.encode())
    run("dmsetup", "resume", "source")
    with files.box.running():
        outcome = files.box.send(web, db.outgoing())
        assert [one.error is None for one in outcome.servers] == [False, True]
        said = str(outcome.servers[0].error)
        assert source in said and "read at byte" in said
        become("source", WELL)
        assert files.box.send(web, db.outgoing()).succeeded


def test_a_store_that_cannot_be_written_to_any_more_loses_no_set(tmp_path: Path) -> None:
    with on_a_file_system(tmp_path) as story:
        with story.box.running():
            story.good()
            story.good()
            said = story.bad(lambda: become("disk", FAILS_TO_WRITE), lambda: become("disk", WELL))
            assert "Web01_" in said and "Input/output error" in said, said
        run("umount", str(tmp_path / "store"))
        run("bash", "-c", "e2fsck -fp /dev/mapper/disk; test $? -le 1")
        run("mount", "/dev/mapper/disk", str(tmp_path / "store"))
        with story.box.running():
            assert story.is_set(2, 1)
            story.good()
            assert story.is_set(1, 3) and story.is_set(2, 1)


def test_a_drive_that_lies_about_what_it_has_taken_is_found_out_by_reading_back(volumes: Story) -> None:
    with volumes.box.running():
        volumes.good()
        said = volumes.bad(lambda: become("pv", LIES), lambda: become("pv", WELL))
        assert "the drive does not hold what was written to it" in said, said
        assert volumes.is_set(2, 0)
        volumes.good()
        assert volumes.is_set(1, 2) and volumes.is_set(2, 0)


def test_a_store_that_others_fill_up_once_a_job_is_taken_loses_no_set(files: Story) -> None:
    filler = files.box.store_folder / "filler"
    with files.box.running():
        files.good()
        files.good()
        said = files.bad(lambda: run("bash", "-c", f"cat /dev/zero >{filler}; true"), filler.unlink, 40, early=True)
        assert "the store is too small" in said and "available" in said, said
        assert files.is_set(1, 1) and files.is_set(2, 0), "nothing was cycled for it"
        files.good()
        assert files.is_set(1, 3) and files.is_set(2, 1)


def test_a_store_that_others_fill_up_in_the_middle_of_a_disk_loses_no_set(files: Story) -> None:
    filler = files.box.store_folder / "filler"
    with files.box.running():
        files.good()
        files.good()
        said = files.bad(lambda: run("bash", "-c", f"cat /dev/zero >{filler}; true"), filler.unlink, 40)
        assert "No space left on device" in said and "Web01" in said, said
        assert files.is_set(2, 1)
        files.good()
        assert files.is_set(1, 3) and files.is_set(2, 1)


def test_a_group_that_others_fill_up_once_a_job_is_taken_loses_no_set(volumes: Story) -> None:
    with volumes.box.running():
        volumes.good()
        said = volumes.bad(
            lambda: run("lvcreate", "-y", "-Wn", "-l", "100%FREE", "-n", "others", GROUP),
            lambda: run("lvremove", "-y", f"{GROUP}/others"),
            early=True,
        )
        assert "too small" in said and GROUP in said, said
        assert volumes.is_set(1, 0), "nothing was cycled for it"
        volumes.good()
        assert volumes.is_set(1, 2) and volumes.is_set(2, 0)


@pytest.mark.parametrize("early", [True, False])
def test_a_full_state_directory_fails_the_job_and_loses_no_set(tmp_path: Path, early: bool) -> None:
    state = tmp_path / "state"
    state.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "state", str(state))
    try:
        with on_a_file_system(tmp_path) as story:
            filler = state / "filler"
            with story.box.running():
                story.good()
                story.good()
                said = story.bad(
                    lambda: run("bash", "-c", f"cat /dev/zero >{filler}; true"), filler.unlink, early=early
                )
                assert "state" in said and ("full" in said or "space" in said), said
            with story.box.running():
                story.good()
                assert story.is_set(1, 3) and story.is_set(2, 1)
    finally:
        run("umount", str(state))


def test_a_drive_that_hangs_for_a_while_is_waited_for_and_the_status_answers(files: Story) -> None:
    asked: List[Tuple[str, ...]] = []

    def hang() -> None:
        run("dmsetup", "suspend", "--nolockfs", "disk")
        threading.Timer(4, lambda: run("dmsetup", "resume", "disk")).start()
        asked.extend(job.servers for job in running_jobs(files.box.config.socket))

    with files.box.running():
        files.good()
        outcome = files.push(AtTheDisk(hang), 20)
        assert outcome.succeeded, outcome.servers[0].error
        assert asked == [("Web01",)]
        assert files.is_set(1, 1) and files.is_set(2, 0)


class Hangs:
    """Implements ports.CommandRunner: one command gets no answer, before it had its effect or after."""

    def __init__(self, program: str, number: int, after: bool) -> None:
        self._program, self._left, self._after = program, number, after

    def __call__(self, argv: Tuple[str, ...], *, timeout_seconds: float = 120.0, stdin: bytes = b"") -> Completed:
        self._left -= argv[0] == self._program
        if argv[0] != self._program or self._left != 0:
            return command.run(argv, timeout_seconds=timeout_seconds, stdin=stdin)
        if self._after:
            command.run(argv, timeout_seconds=timeout_seconds, stdin=stdin)
        raise CommandError(argv, None, b"", b"", "no answer within 120 seconds")


class Hanging(DrBox):
    runner: CommandRunner | None = None

    def open_store(self, state: State) -> Store:
        return LvmStore((GROUP,), self.runner or command.run)


def test_the_status_answers_however_long_lvm_takes(tmp_path: Path) -> None:
    run("lvremove", "-y", GROUP)
    box = Hanging(tmp_path, groups=(GROUP,))
    asked: List[Tuple[str, ...]] = []

    def slowly(argv: Tuple[str, ...], *, timeout_seconds: float = 120.0, stdin: bytes = b"") -> Completed:
        if argv[0] in ("lvcreate", "lvrename"):
            asked.extend(job.servers for job in running_jobs(box.config.socket))
        return command.run(argv, timeout_seconds=timeout_seconds, stdin=stdin)

    box.runner = slowly
    story = Story(box, tmp_path)
    with box.running():
        story.good()
        assert story.is_set(1, 0)
    assert asked == [("Web01",), ("Web01",)], "while a volume was made, and while it got its number"


@pytest.mark.parametrize(
    ("program", "number", "after"),
    [("lvrename", 1, True), ("lvcreate", 1, True), ("lvrename", 2, False)],
)
def test_an_lvm_command_that_hangs_costs_its_job_and_nothing_else(
    tmp_path: Path, program: str, number: int, after: bool
) -> None:
    """The first rename is in the cycling, the second is the promotion's."""
    run("lvremove", "-y", GROUP)
    box = Hanging(tmp_path, groups=(GROUP,))
    story = Story(box, tmp_path)
    with box.running():
        story.good()
    box.runner = Hangs(program, number, after)
    with box.running():
        outcome = story.push()
        assert not outcome.succeeded and "no answer within 120 seconds" in str(outcome.servers[0].error)
    box.runner = None
    with box.running():
        story.good()
        promoted = (program, number) == ("lvrename", 2)  # its plan was begun, and every byte is there
        assert story.is_set(1, 2) and story.is_set(2, 1 if promoted else 0)
