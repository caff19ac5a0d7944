"""Cache drives that fail while a job writes to them: an error in the middle, no room, a write that takes half a minute.

The drives are device-mapper tables over real ones, which can be made to fail at any moment.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import pytest

from anvil_dr import command
from anvil_dr.caching import cached_copy, cached_sets
from anvil_dr.cli import wiring
from anvil_dr.errors import AnvilDrError
from anvil_dr.receiving.target import Target
from tests.doubles.caching_box import MIB, noise
from tests.doubles.dr_box import DrBox, Node, Quiet

pytestmark = pytest.mark.in_guest(drives=("96M", "64M"), memory="768M")

LARGE, SMALL = "large", "small"
DISK = {LARGE: "/dev/ubda", SMALL: "/dev/ubdb"}
SECONDS = 30


def run(*argv: str, stdin: bytes = b"") -> str:
    return command.run(argv, timeout_seconds=300, stdin=stdin).stdout.decode()


def table(name: str, kind: str, options: str = "") -> None:
    """Change what a drive does, while it is mounted and written to."""
    sectors = run("blockdev", "--getsz", DISK[name]).strip()
    text = f"0 {sectors} {kind} {options or f'{DISK[name]} 0'}".replace("error " + DISK[name] + " 0", "error")
    run("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    run("dmsetup", "load", name, "--table", text)
    run("dmsetup", "resume", name)


def make(name: str) -> None:
    sectors = run("blockdev", "--getsz", DISK[name]).strip()
    run("dmsetup", "create", name, "--table", f"0 {sectors} linear {DISK[name]} 0")
    run("mkfs.ext4", "-q", "-F", "-e", "remount-ro", f"/dev/mapper/{name}")
    with at(name) as folder:
        (folder / ".dr_cache").touch()
    run("udevadm", "trigger", "--settle", "--action=change", "--subsystem-match=block")


@contextmanager
def at(name: str) -> Iterator[Path]:
    os.makedirs(f"/mnt/{name}", exist_ok=True)
    run("mount", f"/dev/mapper/{name}", f"/mnt/{name}")
    try:
        yield Path(f"/mnt/{name}")
    finally:
        run("umount", f"/mnt/{name}")


def mounted() -> List[Path]:
    """Where the service has mounted drives."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return [Path(line.split()[1]) for line in lines if "/run/cache/" in line]


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    for module in ("dm_mod", "dm-delay"):
        run("modprobe", module)


@pytest.fixture
def drives(request: pytest.FixtureRequest) -> Iterator[None]:
    names = getattr(request, "param", (LARGE, SMALL))
    for name in names:
        make(name)
    yield
    for path in mounted():
        run("umount", "--lazy", str(path))
    for name in names:
        run("dmsetup", "remove", "--retry", name)
        run("wipefs", "-q", "-a", DISK[name])


class Case:
    """A box with set 0 of a server, and a job for set 1 during which something happens."""

    def __init__(self, folder: Path) -> None:
        self.box = DrBox(folder, copies=1)
        self.box.open_cache_drives = lambda state: wiring.open_cache_drives(self.box.config, state)
        self.node = Node(folder / "node", disks=self.disks(0))

    def disks(self, seed: int) -> dict[str, bytes]:
        return {"Web01_0": noise(6 * MIB, seed), "Web01_1": noise(18 * MIB, seed) + bytes(3 * MIB) + noise(9_001, seed)}

    def send(self, seed: int, happens: Callable[[], None] = lambda: None) -> Optional[AnvilDrError]:
        """`happens` when the first disk is there, and the second one begins."""
        self.node.disks = self.disks(seed)
        left = [happens]

        class Watching(Quiet):
            def disk_begun(self, server: str, disk: str, size_bytes: int) -> None:
                if disk == "Web01_1" and left:
                    left.pop()()

        (outcome,) = self.box.send(self.node.outgoing(), observer=Watching()).servers
        return outcome.error

    def stored(self, seed: int) -> bool:
        wanted = {f"Web01_{name}_1.raw": content for name, content in self.disks(seed).items()}
        return {name: self.box.image(name[:-4]) for name in self.box.names()} == wanted


def wait(target: Target) -> None:
    deadline = time.monotonic() + 300
    while target.is_busy("Web01"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def case(tmp_path: Path, drives: None) -> Case:
    return Case(tmp_path)


def test_a_drive_that_gives_errors_is_left_for_another(case: Case) -> None:
    with case.box.running() as target:
        assert case.send(0) is None
        error = case.send(1, lambda: table(LARGE, "error"))
        wait(target)
        if error is None:
            assert case.stored(1), "it went to the other drive in the same job"
        else:
            assert "dm-" in str(error) and case.stored(0)
        table(LARGE, "linear")
        assert case.send(2) is None
        wait(target)
        assert case.stored(2) and cached_sets.all_of_them(target.config.state) == ()
    assert mounted() == []


@pytest.mark.parametrize("drives", [(LARGE,)], indirect=True)
def test_the_only_drive_gives_errors_and_is_named_and_works_again_later(case: Case) -> None:
    """Its file system became read-only by that, as the kernel has it, and stays so until it is mounted again."""
    with case.box.running() as target:
        assert case.send(0) is None
        error = case.send(1, lambda: table(LARGE, "error"))
        wait(target)
        assert error is not None and "cache drive" in str(error) and "dm-" in str(error)
        assert case.stored(0)
        table(LARGE, "linear")
        assert case.send(2) is None
        wait(target)
        assert case.stored(2)
    assert mounted() == []


@pytest.mark.parametrize("drives", [(LARGE,)], indirect=True)
def test_a_drive_that_becomes_read_only_in_the_middle_is_named(case: Case) -> None:
    def becomes_read_only() -> None:
        """As the kernel does it in an emergency: whatever is open to be written stays open."""
        (path,) = mounted()
        Path("/proc/sysrq-trigger").write_text("u")
        deadline = time.monotonic() + 30
        while not os.statvfs(path).f_flag & os.ST_RDONLY:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        seen.append(True)

    seen: List[bool] = []
    with case.box.running() as target:
        assert case.send(0) is None
        error = case.send(1, becomes_read_only)
        wait(target)
        assert seen == [True]
        assert error is not None and "dm-" in str(error)
        assert case.stored(0)
        assert case.send(2) is None
        wait(target)
        assert case.stored(2)


@pytest.mark.parametrize("drives", [(SMALL,)], indirect=True)
def test_a_drive_that_somebody_else_fills_is_named(case: Case) -> None:
    def fill() -> None:
        (path,) = mounted()
        with open(path / "holiday.mp4", "wb") as file:
            try:
                while True:
                    file.write(bytes(MIB))
                    file.flush()
            except OSError:
                pass

    with case.box.running() as target:
        assert case.send(0) is None
        error = case.send(1, fill)
        wait(target)
        assert error is not None and "No space left" in str(error) and "dm-" in str(error)
        assert case.stored(0)
        with at(SMALL) as folder:
            (folder / "holiday.mp4").unlink()
        assert case.send(2) is None
        wait(target)
        assert case.stored(2)


@pytest.mark.parametrize("drives", [(LARGE,)], indirect=True)
def test_a_drive_that_answers_after_half_a_minute_only_takes_longer(case: Case) -> None:
    def become_slow() -> None:
        table(LARGE, "delay", f"{DISK[LARGE]} 0 0 {DISK[LARGE]} 0 {SECONDS * 1000}")
        began.append(time.monotonic())
        # A job flushes several times one after the other; to wait for the first shows all there is to see.
        recovers.start()

    began: List[float] = []
    recovers = threading.Timer(SECONDS + 5, lambda: table(LARGE, "linear"))
    with case.box.running() as target:
        assert case.send(0) is None
        assert case.send(1, become_slow) is None
        assert time.monotonic() - began[0] > SECONDS
        recovers.join()
        wait(target)
        assert case.stored(1)


@pytest.mark.parametrize("drives", [(LARGE,)], indirect=True)
def test_a_drive_that_fails_while_it_is_copied_keeps_its_set_until_it_can_be_read(case: Case) -> None:
    with case.box.running() as target:
        assert case.send(0) is None
        target.stopping.set()
        assert case.send(1) is None
        wait(target)
    with case.box.running() as target:
        wait(target)
    assert case.stored(1)
    with case.box.running() as target:
        target.stopping.set()
        assert case.send(2) is None
        wait(target)
        target.stopping.clear()
        run("sysctl", "-q", "vm.drop_caches=3")
        sectors = int(run("blockdev", "--getsz", DISK[LARGE]))
        half = f"0 32768 linear {DISK[LARGE]} 0\n32768 {sectors - 32768} error\n"
        run("dmsetup", "suspend", LARGE)
        run("dmsetup", "load", LARGE, stdin=half.encode())
        run("dmsetup", "resume", LARGE)
        for thread in cached_copy.resume(target):
            thread.join()
        assert len(cached_sets.all_of_them(target.config.state)) == 1
        table(LARGE, "linear")
        for thread in cached_copy.resume(target):
            thread.join()
        assert case.stored(2) and cached_sets.all_of_them(target.config.state) == ()
