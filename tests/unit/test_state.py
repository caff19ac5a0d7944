"""The state database keeps what it was told, through power cuts, damage and several processes at once."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from anvil_dr.errors import NameCollisionError, ServiceError, StateError
from anvil_dr.model import (
    INCOMPLETE,
    ImageRecord,
    JobRecord,
    JournalStep,
    Owner,
    Removal,
    Rename,
    SetRecord,
)
from anvil_dr.records.database import Database
from anvil_dr.records.state import State

ROOT = Path(__file__).parents[2]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State.open(str(tmp_path))
    yield opened
    opened.close()


def record(job: str, *identities: str, server: str = "Web01") -> SetRecord:
    images = tuple(
        ImageRecord(f"{server}_{number}", identity, 4096, f"sha256:{identity}")
        for number, identity in enumerate(identities)
    )
    return SetRecord(server, "2026-11-20T10:00:00+00:00", "an-a05n01", job, images)


def receive(state: State, one: SetRecord) -> None:
    steps = [JournalStep(Rename(Owner(one.server, each.disk), INCOMPLETE, 1), each.identity) for each in one.images]
    publication = state.finish(state.begin(one.server, "promote", steps, one))
    assert publication is not None
    state.finish(publication)


def job(number: int, server: str = "Web01", **changes: object) -> JobRecord:
    started = JobRecord(f"job-{number}", server, "an-a05n01", "running", "2026-11-20T10:00:00+00:00")
    return replace(started, **changes)  # type: ignore[arg-type]


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


# — owners —


def test_owners_are_remembered_over_restarts_and_claiming_again_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        state = State.open(str(tmp_path))
        state.claim(Owner("Web01", "Web01_0"))
        state.claim(Owner("Db01", "Db01_0"))
        state.close()
    assert State.open(str(tmp_path)).owners() == (Owner("Db01", "Db01_0"), Owner("Web01", "Web01_0"))


def test_two_pairs_that_build_one_image_name_are_refused_also_after_a_restart(tmp_path: Path) -> None:
    State.open(str(tmp_path)).claim(Owner("a_b", "c"))
    state = State.open(str(tmp_path))
    with pytest.raises(NameCollisionError) as caught:
        state.claim(Owner("a", "b_c"))
    assert (caught.value.holder_server, caught.value.holder_disk) == ("a_b", "c")
    assert state.owners() == (Owner("a_b", "c"),)


# — journal —


def test_a_plan_is_pending_word_for_word_until_it_is_finished(state: State, tmp_path: Path) -> None:
    owner = Owner("Web01", "Web01_0")
    steps = (
        JournalStep(Rename(owner, 2, INCOMPLETE), "lv:b"),
        JournalStep(Rename(owner, 1, 2), "lv:a"),
        JournalStep(Removal(owner, 3), "lv:c"),
        JournalStep(Removal(owner, INCOMPLETE), "lv:d"),
    )
    first = state.begin("Web01", "cycle", steps)
    second = state.begin("Db01", "promote", (), record("j", "lv:x", server="Db01"))
    again = State.open(str(tmp_path))
    assert again.pending() == (first, second)
    assert (first.steps, second.record) == (steps, record("j", "lv:x", server="Db01"))
    again.finish(first)
    assert state.pending() == (second,)
    assert state.set_records() == ()


def test_finishing_a_promotion_records_its_set(state: State) -> None:
    receive(state, record("new", "lv:a", "lv:b"))
    assert state.set_records() == (record("new", "lv:a", "lv:b"),)
    assert state.pending() == ()


def test_a_promotion_leaves_its_set_to_be_published_and_an_older_one_is_not_any_more(state: State) -> None:
    first = state.finish(state.begin("Web01", "promote", (), record("first", "lv:a")))
    other = state.finish(state.begin("Db01", "promote", (), record("other", "lv:x", server="Db01")))
    second = state.finish(state.begin("Web01", "promote", (), record("second", "lv:b")))
    assert first is not None and second is not None
    assert (second.purpose, second.steps, second.record) == ("publish", (), record("second", "lv:b"))
    assert state.pending() == (other, second)
    assert state.finish(second) is None
    assert state.pending() == (other,)


def test_why_a_plan_could_not_be_finished_is_kept_with_it(state: State) -> None:
    entry = state.begin("Web01", "cycle", (JournalStep(Removal(Owner("Web01", "Web01_0"), 3), "lv:c"),))
    state.note_failure(entry, "the volume is in use")
    assert state.pending() == (replace(entry, failure="the volume is in use"),)
    state.drop(entry)
    assert state.pending() == ()


@pytest.mark.parametrize(
    ("column", "value"),
    [("steps", "[{"), ("steps", '[{"kind": "Swap"}]'), ("purpose", "merge"), ("record", '{"server": "Web01"}')],
)
def test_a_plan_that_nobody_understands_says_so_and_hides_no_other(
    state: State, tmp_path: Path, column: str, value: str
) -> None:
    bad, good = state.begin("Web01", "cycle", ()), state.begin("Db01", "cycle", ())
    with sqlite3.connect(tmp_path / "state.sqlite") as connection:
        connection.execute(f"UPDATE journal SET {column} = ? WHERE id = ?", (value, bad.id))
    first, second = state.pending()
    assert (first.server, first.readable, first.steps) == ("Web01", False, ())
    assert "cannot be read" in str(first.failure)
    assert second == good


def test_a_set_whose_images_are_recycled_is_forgotten_with_the_last_of_them(state: State) -> None:
    receive(state, record("old", "lv:a", "lv:b"))
    receive(state, record("new", "lv:a", "lv:c"))
    lacking = record("old", "", "lv:b")
    assert [[each.identity for each in one.images] for one in state.set_records()] == [["", "lv:b"], ["lv:a", "lv:c"]]
    assert state.set_records()[0].images[0].disk == lacking.images[0].disk
    receive(state, record("newest", "lv:b"))
    assert [one.job_id for one in state.set_records()] == ["new", "newest"]


def test_finishing_twice_is_the_same_as_once(state: State) -> None:
    entry = state.begin("Web01", "promote", (), record("new", "lv:a"))
    published = state.finish(entry)
    assert state.finish(entry) is None
    assert state.set_records() == (record("new", "lv:a"),)
    assert state.pending() == (published,)


def test_a_finish_that_fails_half_way_changes_nothing(state: State) -> None:
    receive(state, record("old", "lv:a"))
    twice = record("new", "lv:a", "lv:b")
    twice = replace(twice, images=(*twice.images, replace(twice.images[1], identity="lv:c")))
    entry = state.begin("Web01", "promote", (), twice)
    with pytest.raises(StateError):
        state.finish(entry)
    assert state.pending() == (entry,)
    assert state.set_records() == (record("old", "lv:a"),)


def test_a_recycled_image_no_longer_belongs_to_the_set_it_was_in(state: State) -> None:
    receive(state, record("old", "lv:a", "lv:b"))
    state.forget_images(["lv:a", "lv:unknown", ""])
    assert [each.identity for each in state.set_records()[0].images] == ["", "lv:b"]
    state.forget_images(["lv:b"])
    assert state.set_records() == ()


def test_records_can_be_asked_for_one_server(state: State) -> None:
    receive(state, record("one", "lv:a"))
    receive(state, record("two", "lv:b", server="Db01"))
    assert [one.server for one in state.set_records("Db01")] == ["Db01"]
    assert state.set_records("none") == ()


def test_a_plan_that_begin_returned_survives_the_death_of_its_process(tmp_path: Path) -> None:
    code = """
import os, sys
from anvil_dr.records.state import State
from anvil_dr.model import JournalStep, Owner, Rename
State.open(sys.argv[1]).begin("Web01", "cycle", [JournalStep(Rename(Owner("Web01", "d"), 1, 2), "lv:a")])
os.kill(os.getpid(), 9)
"""
    assert run_python(code, str(tmp_path)).wait() == -9
    (entry,) = State.open(str(tmp_path)).pending()
    assert entry.steps == (JournalStep(Rename(Owner("Web01", "d"), 1, 2), "lv:a"),)


def test_every_transaction_syncs_its_directory_too(tmp_path: Path) -> None:
    """FULL does not: a power cut could bring a deleted rollback journal back, and undo a plan that was begun."""
    extra = 3
    with Database(str(tmp_path), readonly=False).writing() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (extra,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_process_that_dies_inside_a_transaction_leaves_what_was_before(tmp_path: Path) -> None:
    """The rollback journal it leaves is hot; both a service and a read-only status must see through it."""
    state = State.open(str(tmp_path))
    receive(state, record("old", "lv:a"))
    code = """
import os, sys
from anvil_dr.records.database import Database
with Database(sys.argv[1], readonly=False).writing() as connection:
    connection.execute("PRAGMA cache_spill = 1")
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("UPDATE images SET identity = 'lv:torn'")
    for number in range(200):
        connection.execute("INSERT INTO definitions VALUES (?, ?, '[]', '', '{}')", (str(number), "x" * 4096))
    os.kill(os.getpid(), 9)
"""
    assert run_python(code, str(tmp_path)).wait() == -9
    assert (tmp_path / "state.sqlite-journal").exists(), "the test lost its point: nothing was spilled"
    assert State.open(str(tmp_path), readonly=True).set_records() == (record("old", "lv:a"),)
    assert state.set_records() == (record("old", "lv:a"),)
    assert state.source_definition("0") is None


# — jobs —


def test_the_last_job_of_each_server_is_known_running_or_not(state: State) -> None:
    state.job_started(job(1))
    state.job_finished(
        job(1, state="succeeded", finished_at="2026-11-20T11:00:00+00:00", wire_bytes=5, written_bytes=4)
    )
    state.job_started(job(1, "Db01"))
    assert state.last_jobs()["Web01"].wire_bytes == 5
    assert state.last_jobs()["Db01"] == job(1, "Db01")
    state.job_started(job(2))
    assert state.last_jobs()["Web01"] == job(2)


def test_a_job_id_is_used_once_for_a_server(state: State) -> None:
    state.job_started(job(1))
    with pytest.raises(StateError, match="job-1"):
        state.job_started(job(1))


def test_a_job_that_was_never_started_can_still_have_failed(state: State) -> None:
    refused = job(1, state="failed", finished_at="2026-11-20T10:00:01+00:00", error="the store is too small")
    state.job_finished(refused)
    assert state.last_jobs() == {"Web01": refused}


def test_at_the_services_start_running_jobs_have_failed_unless_their_set_is_complete(state: State) -> None:
    state.job_started(job(1))
    state.job_finished(job(1, state="succeeded"))
    state.job_started(job(2))
    state.job_started(job(2, "Db01"))
    receive(state, record("job-2", "lv:x", server="Db01"))
    ended = state.end_running_jobs("the service was stopped")
    assert [(one.id, one.server) for one in ended] == [("job-2", "Web01"), ("job-2", "Db01")]
    last = state.last_jobs()
    assert [last["Web01"], last["Db01"]] == list(ended)
    assert (last["Web01"].state, last["Web01"].error) == ("failed", "the service was stopped")
    assert (last["Db01"].state, last["Db01"].error) == ("succeeded", None)
    assert last["Web01"].finished_at and last["Db01"].finished_at
    assert state.end_running_jobs("again") == ()


def test_the_history_is_bounded_for_each_server_and_running_jobs_stay(state: State) -> None:
    state.job_started(job(0))
    for number in range(1, 6):
        state.job_finished(job(number, state="failed"))
    state.job_finished(job(1, "Db01", state="succeeded"))
    state.prune(jobs_kept=2)
    with sqlite3.connect(state.database_path) as connection:
        kept = connection.execute("SELECT id, server FROM jobs ORDER BY number").fetchall()
    connection.close()
    assert kept == [("job-0", "Web01"), ("job-4", "Web01"), ("job-5", "Web01"), ("job-1", "Db01")]


def test_a_node_cannot_make_the_history_large_with_long_words(state: State) -> None:
    state.job_started(job(1, node="n" * 10_000_000))
    state.job_finished(job(1, state="failed", error="e" * 10_000_000))
    kept = state.last_jobs()["Web01"]
    assert 0 < len(kept.node) < 10_000 and 0 < len(kept.error or "") < 10_000


# — definitions and activations —


def test_the_last_source_definition_is_kept(state: State) -> None:
    assert state.source_definition("Web01") is None
    state.keep_source_definition("Web01", "<domain/>", ["/dev/sr0"])
    state.keep_source_definition("Web01", "<domain>é</domain>", ["/dev/sr0", "/dev/sdz"])
    kept = state.source_definition("Web01")
    assert kept is not None
    assert (kept.xml, kept.left_out) == ("<domain>é</domain>", ("/dev/sr0", "/dev/sdz"))


def test_an_activated_server_stays_so_until_it_is_released(state: State, tmp_path: Path) -> None:
    state.activate("Web01", 2, "alice")
    found = State.open(str(tmp_path)).activations()["Web01"]
    assert (found.server, found.sequence, found.user) == ("Web01", 2, "alice")
    assert state.release("Web01") is True
    assert state.release("Web01") is False
    assert state.activations() == {}


# — several at once —


@pytest.mark.slow
def test_threads_and_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    code = """
import sys
from anvil_dr.records.state import State
from anvil_dr.model import ImageRecord, SetRecord
state = State.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(15):
    name = f"{sys.argv[2]}-{number}"
    made = SetRecord("Web01", "now", "node", name, (ImageRecord("d", "lv:" + name, 1, "sha256:0"),))
    state.finish(state.finish(state.begin("Web01", "promote", (), made)) or sys.exit("it is not published"))
"""
    processes = [run_python(code, str(tmp_path), f"p{number}") for number in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    state = State.open(str(tmp_path))
    errors: List[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(15):
                receive(state, record(f"{name}-{number}", f"lv:{name}-{number}"))
                state.last_jobs()
        except StateError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    outcomes = [process.communicate("go\n") for process in processes]
    for thread in threads:
        thread.join()
    assert [error for _, error in outcomes] == ["", ""]
    assert errors == []
    assert {one.job_id for one in state.set_records()} == {
        f"{name}-{number}" for name in ("p0", "p1", "t0", "t1") for number in range(15)
    }
    assert state.pending() == ()


def test_only_one_service_works_on_a_state_directory(tmp_path: Path) -> None:
    code = """
import sys
from anvil_dr.records.state import State
state = State.open(sys.argv[1])
state.lock_service()
print("locked", flush=True)
sys.stdin.readline()
"""
    holder = run_python(code, str(tmp_path))
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    state = State.open(str(tmp_path))
    with pytest.raises(ServiceError, match=f"pid {holder.pid}"):
        state.lock_service()
    holder.communicate("\n")
    state.lock_service()
    other = State.open(str(tmp_path))
    with pytest.raises(ServiceError, match=f"pid {os.getpid()}"):
        other.lock_service()
    state.close()
    other.lock_service()
    other.close()


# — missing, damaged, forbidden —


def test_a_missing_database_is_made_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "state"
    State.open(str(directory)).claim(Owner("Web01", "Web01_0"))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "state.sqlite").stat().st_mode) == 0o600


def test_read_only_on_nothing_is_empty_and_makes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "none"
    state = State.open(str(directory), readonly=True)
    assert (state.owners(), state.pending(), state.set_records(), state.last_jobs()) == ((), (), (), {})
    assert (state.activations(), state.source_definition("Web01")) == ({}, None)
    assert not directory.exists()


def test_read_only_refuses_to_write(tmp_path: Path) -> None:
    State.open(str(tmp_path)).claim(Owner("Web01", "Web01_0"))
    state = State.open(str(tmp_path), readonly=True)
    assert state.owners() == (Owner("Web01", "Web01_0"),)
    with pytest.raises(StateError, match="reading only"):
        state.claim(Owner("Db01", "Db01_0"))


def damage_header(path: Path) -> None:
    path.write_bytes(b"not sqlite at all" * 100)


def damage_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def damage_length(path: Path) -> None:
    os.truncate(path, 4096 * 3)


@pytest.mark.parametrize("damage", [damage_header, damage_pages, damage_length])
def test_a_damaged_database_is_moved_aside_and_one_made_from_the_spare_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    state = State.open(str(tmp_path))
    for number in range(50):
        receive(state, record(f"job-{number}", f"lv:{number}"))
    damage(tmp_path / "state.sqlite")  # type: ignore[operator]
    damaged = (tmp_path / "state.sqlite").read_bytes()
    with pytest.raises(StateError):
        State.open(str(tmp_path), readonly=True).set_records()
    with caplog.at_level(logging.WARNING):
        state = State.open(str(tmp_path))
    assert [one.job_id for one in state.set_records()] == [f"job-{number}" for number in range(50)]
    receive(state, record("after", "lv:a"))
    (aside,) = tmp_path.glob("state.sqlite.damaged-*")
    assert aside.read_bytes() == damaged
    assert str(aside) in caplog.text


def test_damage_is_repaired_once_however_many_open_at_the_same_time(tmp_path: Path) -> None:
    State.open(str(tmp_path)).claim(Owner("Web01", "Web01_0"))
    damage_header(tmp_path / "state.sqlite")
    code = "import sys; from anvil_dr.records.state import State; State.open(sys.argv[1]).owners()"
    processes = [run_python(code, str(tmp_path)) for _ in range(4)]
    assert [process.communicate()[1].count("Traceback") for process in processes] == [0] * 4
    assert len(list(tmp_path.glob("state.sqlite.damaged-*"))) == 1


def test_a_database_that_goes_away_while_in_use_is_made_again(state: State, tmp_path: Path) -> None:
    state.claim(Owner("Web01", "Web01_0"))
    state.job_started(job(1))
    (tmp_path / "state.sqlite").unlink()
    assert state.last_jobs() == {}
    assert state.owners() == (Owner("Web01", "Web01_0"),)
    state.job_started(job(1))
    assert state.last_jobs()["Web01"] == job(1)


# — the spare copy —


def everything(state: State) -> Tuple[object, ...]:
    return state.owners(), state.set_records(), state.activations()


def test_what_a_lost_database_knew_of_sets_owners_and_activations_is_known_again(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.claim(Owner("Web01", "Web01_0"))
    state.claim(Owner("Db01", "Db01_0"))
    receive(state, record("one", "lv:a", "lv:b"))
    receive(state, record("two", "lv:c", "lv:d"))
    receive(state, record("three", "lv:a", "lv:b"))
    state.forget_images(["lv:c"])
    state.judge_image("lv:a", "sha256:lv:a", "2026-11-20T12:00:00+00:00", None)
    state.judge_image("lv:b", "sha256:lv:b", "2026-11-20T12:00:00+00:00", "byte 7 is wrong")
    state.activate("Web01", 2, "root")
    state.activate("Db01", 1, "root")
    state.release("Db01")
    before = everything(state)
    assert len(state.activations()) == 1 and len(state.set_records()) == 2
    (tmp_path / "state.sqlite").unlink()
    assert everything(State.open(str(tmp_path), readonly=True)) == before
    with caplog.at_level(logging.INFO):
        assert everything(State.open(str(tmp_path))) == before
    assert "taken from the spare copy server=Web01 disks=1 sets=2 activated=True" in caplog.text


def test_a_spare_copy_that_makes_no_sense_is_said_and_the_others_are_used(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for server in ("Db01", "Web01", "Mail01"):
        state.claim(Owner(server, "vda"))
    (tmp_path / "servers" / "Db01.json").write_text("{")
    (tmp_path / "servers" / "Mail01.json").write_text('{"version": 2}')
    (tmp_path / "state.sqlite").unlink()
    assert State.open(str(tmp_path)).owners() == (Owner("Web01", "vda"),)
    assert "Db01.json" in caplog.text and "Mail01.json" in caplog.text


def test_a_spare_copy_that_cannot_be_written_fails_nothing(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "servers").write_text("in the way")
    state.activate("Web01", 1, "root")
    assert "Web01" in state.activations()
    assert "no spare copy can be kept server=Web01" in caplog.text


def test_an_image_that_was_read_again_is_known_as_right_or_rotten(state: State) -> None:
    receive(state, record("one", "lv:a", "lv:b"))
    state.judge_image("lv:a", "sha256:lv:a", "2026-11-20T12:00:00+00:00", None)
    state.judge_image("lv:b", "sha256:lv:b", "2026-11-20T12:00:00+00:00", "byte 7 is wrong")
    right, wrong = state.set_records()[0].images
    assert (right.verified_at, right.rotten) == ("2026-11-20T12:00:00+00:00", None)
    assert (wrong.verified_at, wrong.rotten) == (None, "byte 7 is wrong")
    state.judge_image("lv:b", "sha256:another", "2026-11-20T13:00:00+00:00", None)
    assert state.set_records()[0].images[1] == wrong, "it is another image's by now"
    state.judge_image("lv:b", "sha256:lv:b", "2026-11-20T14:00:00+00:00", None)
    assert state.set_records()[0].images[1].rotten is None


def test_a_database_of_a_newer_version_is_left_alone(state: State, tmp_path: Path) -> None:
    connection = sqlite3.connect(state.database_path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for readonly in (False, True):
        with pytest.raises(StateError, match="newer version"):
            State.open(str(tmp_path), readonly=readonly)
    assert not list(tmp_path.glob("*damaged*"))


def test_a_directory_that_cannot_be_made_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError):
        State.open(str(tmp_path / "file" / "state"))


def test_values_that_no_honest_node_sends_are_a_state_error(state: State) -> None:
    with pytest.raises(StateError):
        state.job_started(job(1, node="\ud800"))
    with pytest.raises(StateError):
        state.job_started(job(1, wire_bytes=2**70))
    assert state.last_jobs() == {}


def test_a_set_that_a_server_ran_on_says_so_and_its_digests_say_nothing_any_more(tmp_path: Path) -> None:
    with State.open(str(tmp_path)) as state:
        receive(state, record("job-1", "inode:1", "inode:2"))
        receive(state, record("job-2", "inode:3", server="Db01"))
        state.ran_here(["inode:1", "inode:2"], "2026-11-20T10:00:00+00:00")
        found = {record.server: record for record in state.set_records()}
    assert found["Web01"].ran_here_until == "2026-11-20T10:00:00+00:00"
    assert [image.digest for image in found["Web01"].images] == ["", ""]
    assert (found["Db01"].ran_here_until, found["Db01"].images[0].digest != "") == (None, True)
    (tmp_path / "state.sqlite").unlink()
    with State.open(str(tmp_path)) as state:
        assert {record.server: record for record in state.set_records()} == found
