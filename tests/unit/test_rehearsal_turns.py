"""A rehearsal gives way to a job and to a real activation, and its death frees what it had."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List

import pytest

from anvil_dr.errors import HypervisorError
from anvil_dr.rehearsal.rehearsal_turns import RehearsalTurns

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 30.0


@pytest.fixture
def turns(tmp_path: Path) -> RehearsalTurns:
    return RehearsalTurns(str(tmp_path))


@contextmanager
def rehearsing(turns: RehearsalTurns, server: str, ended: List[str]) -> Iterator[None]:
    """Somebody who rehearses until he's asked to end."""
    begun = threading.Event()

    def rehearse() -> None:
        with turns.hold(server) as wanted:
            begun.set()
            pause = threading.Event()
            while not wanted():
                pause.wait(0.01)
            ended.append(server)

    thread = threading.Thread(target=rehearse)
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    yield
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_whoever_wants_a_server_has_it_when_its_rehearsal_has_ended(turns: RehearsalTurns) -> None:
    ended: List[str] = []
    with rehearsing(turns, "Web01", ended):
        assert turns.end("Web01", PATIENCE_SECONDS)
        assert ended == ["Web01"]
    assert not turns.end("Web01", PATIENCE_SECONDS)


def test_a_job_for_another_server_ends_nothing(turns: RehearsalTurns) -> None:
    ended: List[str] = []
    with rehearsing(turns, "Web01", ended):
        assert not turns.end("Db01", PATIENCE_SECONDS)
        assert ended == []
        turns.end("Web01", PATIENCE_SECONDS)


def test_an_activation_ends_every_rehearsal_and_none_begins_meanwhile(turns: RehearsalTurns) -> None:
    ended: List[str] = []
    with rehearsing(turns, "Web01", ended):
        with turns.forbid(PATIENCE_SECONDS) as had_to:
            assert had_to and ended == ["Web01"]
            with pytest.raises(HypervisorError, match="being activated"), turns.hold("Db01"):
                pass
    with turns.hold("Db01") as wanted:
        assert not wanted()


def test_a_server_is_rehearsed_once_at_a_time(turns: RehearsalTurns) -> None:
    with turns.hold("Web01"):
        with pytest.raises(HypervisorError, match="being rehearsed already"), turns.hold("Web01"):
            pass
        with turns.hold("Db01"):
            assert not turns.is_free("Db01")
    assert turns.is_free("Web01")


def test_one_that_does_not_give_way_is_an_error_that_says_what_to_do(turns: RehearsalTurns) -> None:
    with turns.hold("Web01"):
        with pytest.raises(HypervisorError, match="kill it"):
            turns.end("Web01", 0.0)
        with pytest.raises(HypervisorError, match="kill it"), turns.forbid(0.0):
            pass


def test_one_that_was_killed_holds_nothing(turns: RehearsalTurns, tmp_path: Path) -> None:
    program = (
        "import sys, time; from anvil_dr.rehearsal.rehearsal_turns import RehearsalTurns\n"
        "with RehearsalTurns(sys.argv[1]).hold('Web01'): print('held', flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not turns.is_free("Web01")
        holder.kill()
    assert turns.is_free("Web01")
    with turns.forbid() as had_to:
        assert not had_to


def test_a_runtime_folder_that_cannot_be_made_keeps_nobody_from_activating(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    turns = RehearsalTurns(str(tmp_path / "file"))
    with turns.forbid() as had_to:
        assert not had_to
    assert not turns.end("Web01")
    with pytest.raises(HypervisorError, match="nothing can be rehearsed"), turns.hold("Web01"):
        pass


def test_a_lock_that_cannot_be_taken_keeps_nobody_from_activating(tmp_path: Path) -> None:
    turns = RehearsalTurns(str(tmp_path))
    with turns.hold("Web01"):
        pass
    lock = tmp_path / "rehearsals" / "lock"
    lock.unlink()
    lock.symlink_to(tmp_path / "no such folder" / "lock")
    with turns.forbid() as had_to:
        assert not had_to
    with pytest.raises(HypervisorError, match="nothing can be rehearsed"), turns.hold("Web01"):
        pass


def test_a_full_file_system_keeps_only_the_name_of_who_has_the_lock_from_others(tmp_path: Path) -> None:
    turns = RehearsalTurns(str(tmp_path))
    with turns.hold("Web01"):
        pass
    lock = tmp_path / "rehearsals" / "lock"
    lock.unlink()
    lock.symlink_to("/dev/full")
    with turns.forbid():
        with pytest.raises(HypervisorError, match="being activated"), turns.hold("Web01"):
            pass


def test_a_lock_that_nobody_may_write_to_still_keeps_two_people_apart(tmp_path: Path) -> None:
    turns = RehearsalTurns(str(tmp_path))
    with turns.hold("Web01"):
        pass
    lock = tmp_path / "rehearsals" / "lock"
    lock.unlink()
    lock.mkdir()  # can be opened for reading only, by root too
    with turns.forbid():
        with pytest.raises(HypervisorError, match="being activated"), turns.hold("Web01"):
            pass


def test_a_rehearsal_that_cannot_be_asked_to_end_is_an_error_in_words(tmp_path: Path) -> None:
    turns = RehearsalTurns(str(tmp_path))
    with turns.hold("Web01"):
        (tmp_path / "rehearsals" / "notes").rename(tmp_path / "elsewhere")
        with pytest.raises(HypervisorError, match="the rehearsal of Web01 cannot be asked to end"):
            turns.end("Web01", 0.0)
        (tmp_path / "elsewhere").rename(tmp_path / "rehearsals" / "notes")


def test_where_runtime_files_are_gone_after_a_reboot_everything_is_free(turns: RehearsalTurns) -> None:
    assert turns.is_free("Web01")


def test_two_people_at_once_are_told_of_each_other_and_neither_waits(tmp_path: Path) -> None:
    first, second = RehearsalTurns(str(tmp_path)), RehearsalTurns(str(tmp_path))
    with first.forbid(who="alice"):
        with pytest.raises(HypervisorError, match=rf"alice \(pid {os.getpid()}\) is at anvil-activate-dr"):
            with second.forbid(who="bob"):
                raise AssertionError("two of them")
    with second.forbid(who="bob") as ended:
        assert not ended


def test_what_a_killed_activation_has_written_is_not_taken_for_one_that_lives(tmp_path: Path) -> None:
    turns = RehearsalTurns(str(tmp_path))
    with turns.hold("Web01"):
        pass
    (tmp_path / "rehearsals" / "lock").write_text("alice (pid 1)")
    with turns.hold("Web01"):
        with pytest.raises(HypervisorError, match="a rehearsal does not end"):
            with turns.forbid(timeout_seconds=0.1):
                raise AssertionError("it was not asked to end")
