"""The demo as a user runs it: it ends well, it says so for a reason, and it leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Iterator, List

import pytest

DEMO = Path(__file__).resolve().parents[2] / "bin" / "anvil-dr-demo"
GUEST = "guest=Web01,"
"""On the command line of the server's QEMU, and of none that libvirt only asks what it can do."""


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the demo's scratch folder will be, and nothing else."""
    if os.geteuid() != 0:
        pytest.skip("the demo boots only as root")
    if shutil.which("libvirtd", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("libvirt-daemon-system is not installed")
    with tempfile.TemporaryDirectory(prefix="adr-") as folder:
        yield Path(folder)


def start(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(DEMO)],
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def read_until(stream: IO[str], words: str) -> str:
    said = ""
    for line in stream:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it never said {words!r}: {said}")


def mentions(place: Path, *files: str) -> List[str]:
    """The processes in whose environment, command line, folder or mounts this place is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(process / file).read_bytes() for file in files]
            texts.append(os.fsencode(os.readlink(process / "cwd")))
        except OSError:
            continue  # it has just ended, or is the kernel's
        if any(os.fsencode(place) in text for text in texts):
            found.append(f"{process.name} {(process / 'cmdline').read_bytes()!r}")
    return found


def kill(place: Path, program: str) -> None:
    """As if it had crashed. It may be about to start itself anew, as QEMU does: then both go."""
    processes = [line for line in mentions(place, "environ", "cmdline") if program in line]
    assert processes
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(int(process.split()[0]), signal.SIGKILL)


def wait_for_the_guest(demo: subprocess.Popen[str], place: Path) -> None:
    assert demo.stdout is not None
    read_until(demo.stdout, "$ anvil-activate-dr")
    while not any(GUEST in line for line in mentions(place, "cmdline")):
        assert demo.poll() is None
        time.sleep(0.05)


def left_behind(place: Path) -> List[str]:
    return [*map(str, place.iterdir()), *mentions(place, "environ", "cmdline", "mountinfo")]


def interrupt(demo: subprocess.Popen[str], number: signal.Signals) -> None:
    demo.send_signal(number)
    said, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, said
    assert "nothing is left" in said


def test_the_server_that_was_sent_boots_and_says_that_both_disks_are_intact(place: Path) -> None:
    with start(place) as demo:
        said, _ = demo.communicate(timeout=300)
        assert demo.returncode == 0, said
        assert "Verdict: both disks are intact." in said
        last_table = said[said.index("Job 4:") :]
        sets = re.findall(r"^ +(\d) +job (\d) +(\w{16}) ", last_table, re.MULTILINE)
        assert [(sequence, job) for sequence, job, _ in sets] == [("1", "4"), ("2", "3"), ("3", "2")]
        (console,) = re.findall(r"DR-READY token=(\w+) sum=\w{64} boots=1 ", said)
        assert console == sets[0][2]
    assert left_behind(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_interrupted_in_a_job_leaves_nothing_behind(place: Path, number: signal.Signals) -> None:
    with start(place) as demo:
        assert demo.stdout is not None
        read_until(demo.stdout, "Job 2")
        interrupt(demo, number)
    assert left_behind(place) == []


def test_a_demo_interrupted_while_the_guest_runs_leaves_nothing_behind(place: Path) -> None:
    with start(place) as demo:
        wait_for_the_guest(demo, place)
        interrupt(demo, signal.SIGINT)
    assert left_behind(place) == []


def test_a_demo_that_fails_says_why_and_leaves_nothing_behind(place: Path) -> None:
    with start(place) as demo:
        assert demo.stdout is not None
        read_until(demo.stdout, "Job 2")
        kill(place, r"\x00target\x00--config")
        said, _ = demo.communicate(timeout=60)
        assert demo.returncode == 1, said
        assert "The last words of the service:" in said
        reasons = "anvil-dr-demo: (anvil-dr-send .*: exit code 1|the service has ended)"
        assert re.match(reasons, said.splitlines()[-1]), said
    assert left_behind(place) == []


def test_an_emulator_that_crashes_is_started_once_more(place: Path) -> None:
    with start(place) as demo:
        wait_for_the_guest(demo, place)
        kill(place, GUEST)
        said, _ = demo.communicate(timeout=120)
        assert demo.returncode == 0, said
        assert "QEMU has crashed" in said
        assert "Verdict: both disks are intact." in said
    assert left_behind(place) == []
