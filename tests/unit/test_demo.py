"""The demo's parts that need neither root nor QEMU: its disks, its scratch folder, its signals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, Iterator

import psutil
import pytest
from rich.console import Console

from anvil_dr.demo import server as demo_server
from anvil_dr.demo.interrupts import Interrupts
from anvil_dr.demo.narrator import Narrator
from anvil_dr.demo.stage import Stage
from anvil_dr.errors import CommandError


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    with Interrupts() as handled:
        yield handled


@pytest.fixture
def told() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def make_stage(
    interrupts: Interrupts, told: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Stage]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda keep=False: Stage(Narrator(Console(file=told, width=100)), interrupts, keep=keep)


def signal_ourselves() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# — on a machine that lacks what the boot needs —


@pytest.mark.parametrize("command", ["demo", "receive", "send", "status", "target"])
@pytest.mark.slow
def test_what_the_demo_runs_before_the_boot_needs_neither_libvirt_nor_systemd(command: str) -> None:
    script = (
        "import sys; from importlib import import_module; sys.path.insert(0, sys.argv[1]); "
        "sys.modules.update(libvirt=None, libvirt_qemu=None, systemd=None); "
        "import_module('anvil_dr.cli.' + sys.argv[2])"
    )
    argv = [sys.executable, "-c", script, str(Path(__file__).resolve().parents[2]), command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# — the server's disks —


def test_markers_are_read_back_from_the_disks_and_change_with_a_days_work(tmp_path: Path) -> None:
    first = demo_server.build(tmp_path, "Web01", bootable=False)
    assert demo_server.markers(first.disks) == demo_server.Markers(first.token, first.checksum)
    changed = demo_server.change(first)
    assert demo_server.markers(first.disks) == demo_server.Markers(changed.token, changed.checksum)
    assert first.token != changed.token
    assert first.checksum != changed.checksum


# — signals —


def test_a_signal_interrupts_at_once(interrupts: Interrupts) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal_ourselves()


def test_a_signal_waits_until_what_is_being_made_is_made(interrupts: Interrupts) -> None:
    made = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts.held():
            signal_ourselves()
            made.append("folder")
        made.append("more")
    assert made == ["folder"]


def test_a_second_signal_does_not_interrupt_the_tidying_up(interrupts: Interrupts) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal_ourselves()
    signal_ourselves()
    with interrupts.held():
        signal_ourselves()


def test_signals_are_handled_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


# — the scratch folder and what runs in it —


def test_after_an_error_folder_and_processes_are_gone_and_we_are_back(
    make_stage: Callable[..., Stage], told: io.StringIO, tmp_path: Path
) -> None:
    home = os.getcwd()
    with pytest.raises(CommandError, match="false: exit code 1"):
        with make_stage() as stage:
            stage.open()
            stage.serve("sleep", "1000", log="sleep.log")
            stage.check_server()
            assert Path.cwd().parent == tmp_path
            assert Path(tempfile.mkdtemp()).is_relative_to(stage.folder)
            stage.run("false")
    assert os.getcwd() == home
    assert list(tmp_path.iterdir()) == []
    assert [child for child in psutil.Process().children() if "1000" in child.cmdline()] == []
    assert told.getvalue().splitlines() == ["$ sleep 1000 > sleep.log 2>&1 &", "$ false"]


def test_a_signal_while_a_command_runs_ends_the_command_too(make_stage: Callable[..., Stage], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        with make_stage() as stage:
            stage.open()
            stage.run("sh", "-c", f"kill {os.getpid()}; exec sleep 1001")
    assert [child for child in psutil.Process().children() if "1001" in child.cmdline()] == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_kept_stays_and_is_named(make_stage: Callable[..., Stage], tmp_path: Path) -> None:
    with make_stage(keep=True) as stage:
        assert stage.kept is None
        stage.open()
    assert [stage.kept] == list(tmp_path.iterdir())


# — what is told —


def test_columns_are_aligned_and_hostile_text_cannot_command_the_terminal(told: io.StringIO) -> None:
    narrator = Narrator(Console(file=told))
    narrator.table(("set", "from"), [("1", "job 4"), ("10", "")])
    narrator.shown("a\x1b[2Jb")
    assert told.getvalue() == "  set  from\n  1    job 4\n  10\n    a\\x1b[2Jb\n"
