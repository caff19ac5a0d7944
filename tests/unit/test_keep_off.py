"""A server is off while it is imaged, and runs again afterwards, whatever happens in between."""

from __future__ import annotations

import gzip
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, Dict, List, Optional

import pytest

from anvil_dr.definition import TpmRequirement
from anvil_dr.errors import HypervisorError, ShutdownRefusedError, SourceChangedError, SourceError, StateError
from anvil_dr.ports import DomainState
from anvil_dr.sending.keep_off import Keeper
from anvil_dr.sending.off_notes import OffNotes
from anvil_dr.sending.start_log import StartLog
from tests.doubles.machine import Connection, Machine


def keeper(machine: Machine, *, shut_down: bool = True, interrupted: Callable[[], bool] = lambda: False) -> Keeper:
    return Keeper(
        machine.connect, shut_down=shut_down, notes=machine.notes, refuse=machine.refuse, timeout_seconds=60,
        interrupted=interrupted, clock=machine.clock.now, sleep=machine.clock.sleep,
    )  # fmt: skip


def test_a_server_that_is_off_is_left_off() -> None:
    machine = Machine(domains={"Web01": "shut off"})
    kept = keeper(machine)
    kept.check("Web01")
    with kept.off("Web01"):
        pass
    assert machine.events == [] and kept.downtime_seconds == {}


def test_a_running_server_is_refused_without_leave_to_shut_it_down() -> None:
    machine = Machine()
    kept = keeper(machine, shut_down=False)
    with pytest.raises(SourceError, match="Web01 is running, so its image would be torn; .*--shutdown"):
        kept.check("Web01")
    with pytest.raises(SourceError, match="torn"), kept.off("Web01"):
        raise AssertionError("it must not be imaged")
    assert machine.events == []


def test_a_running_server_is_shut_down_imaged_and_started_and_its_downtime_is_known() -> None:
    machine = Machine()
    kept = keeper(machine)
    kept.check("Web01")
    with kept.off("Web01"):
        assert machine.domains["Web01"] == "shut off"
        machine.clock.sleep(12)
    assert machine.events == ["shutdown Web01", "start Web01"]
    assert kept.downtime_seconds == {"Web01": 42.0} and kept.not_started == {}


def test_a_transient_server_is_made_again_from_what_it_ran_with() -> None:
    machine = Machine(transient={"Web01"})
    kept = keeper(machine)
    with kept.off("Web01"):
        assert "Web01" not in machine.domains
    assert machine.events == ["shutdown Web01", "boot <domain><name>Web01</name></domain>"]


@pytest.mark.parametrize("error", [SourceError("unreadable"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_server_is_started_again_whatever_became_of_its_image(error: BaseException) -> None:
    machine = Machine()
    kept = keeper(machine)
    with pytest.raises(type(error)), kept.off("Web01"):
        raise error
    assert machine.events == ["shutdown Web01", "start Web01"]


@pytest.mark.parametrize("first", ["shut off", "running"])
def test_a_server_that_somebody_starts_meanwhile_has_no_good_image(first: DomainState) -> None:
    machine = Machine(domains={"Web01": first})
    kept = keeper(machine)
    with pytest.raises(SourceChangedError, match="somebody started it"), kept.off("Web01"):
        machine.domains["Web01"] = "running"
    assert "start Web01" not in machine.events


def test_a_server_that_a_cluster_starts_at_once_is_not_imaged() -> None:
    machine = Machine()
    machine.after_shutdown = lambda: machine.domains.update({"Web01": "running"})
    with pytest.raises(SourceError, match="does a cluster watch over it"), keeper(machine).off("Web01"):
        raise AssertionError("it must not be imaged")
    assert machine.events == ["shutdown Web01"]


@pytest.mark.parametrize("state", ["paused", "suspended", "shutting down", "crashed"])
def test_a_server_in_a_state_between_on_and_off_is_refused(state: DomainState) -> None:
    machine = Machine(domains={"Web01": state})
    with pytest.raises(SourceError, match=f"Web01 (is|has) {state}"):
        keeper(machine).check("Web01")
    with pytest.raises(SourceError), keeper(machine).off("Web01"):
        raise AssertionError("it must not be imaged")
    assert machine.events == []


def test_a_server_whose_memory_is_saved_is_not_at_rest() -> None:
    machine = Machine(domains={"Web01": "shut off"}, saved={"Web01"})
    with pytest.raises(SourceError, match="saved with its memory"):
        keeper(machine).check("Web01")


def test_a_server_that_is_not_there_or_has_gone_since_is_refused() -> None:
    machine = Machine(domains={})
    with pytest.raises(SourceError, match="there is no server Web01"):
        keeper(machine).check("Web01")
    with pytest.raises(SourceError, match="moved to another node"), keeper(machine).off("Web01"):
        raise AssertionError("it must not be imaged")


def test_a_server_that_goes_off_too_late_fails_and_is_started_all_the_same() -> None:
    machine = Machine()
    machine.goes_off_at = machine.clock.time + 100
    kept = keeper(machine)
    with pytest.raises(HypervisorError, match="did not shut down within 60"), kept.off("Web01"):
        raise AssertionError("it must not be imaged")
    assert machine.events == ["shutdown Web01"]
    kept.start_late()
    assert machine.events == ["shutdown Web01", "start Web01"]
    assert kept.downtime_seconds["Web01"] >= 100 and kept.not_started == {}


def test_a_server_that_never_goes_off_is_not_waited_for_for_ever() -> None:
    machine = Machine()
    machine.goes_off_at = machine.clock.time + 10_000
    kept = keeper(machine)
    with pytest.raises(HypervisorError), kept.off("Web01"):
        pass
    kept.start_late()
    assert machine.events == ["shutdown Web01"] and machine.domains == {"Web01": "running"}
    assert machine.clock.time < 10_000
    assert "may go off yet" in str(kept.not_started["Web01"]) and not kept.not_started["Web01"].is_off


def test_a_server_whose_shutdown_libvirt_refused_is_neither_waited_for_nor_started_another_night() -> None:
    machine = Machine(shutdown_refused="cannot acquire state change lock")
    kept, began = keeper(machine), machine.clock.time
    with pytest.raises(ShutdownRefusedError, match="state change lock"), kept.off("Web01"):
        raise AssertionError("it must not be imaged")
    kept.start_late()
    assert kept.not_started == {} and machine.clock.time == began
    machine.domains["Web01"] = "shut off"  # somebody wants it so
    with keeper(machine).off("Web01"):
        pass
    assert machine.events == [] and machine.domains == {"Web01": "shut off"}


def test_no_server_is_shut_down_after_an_interruption() -> None:
    machine = Machine()
    with pytest.raises(SourceError, match="interrupted"), keeper(machine, interrupted=lambda: True).off("Web01"):
        raise AssertionError("it must not be imaged")
    assert machine.events == []


def test_a_start_that_fails_is_tried_again_on_a_new_connection() -> None:
    machine = Machine(start_errors=["the disk is busy"])
    kept = keeper(machine)
    with kept.off("Web01"):
        pass
    assert machine.events == ["shutdown Web01", "start Web01"] and kept.not_started == {}
    assert machine.connections == 2


def test_a_libvirt_that_was_restarted_meanwhile_does_not_keep_the_server_off() -> None:
    machine = Machine()
    kept = keeper(machine)
    with kept.off("Web01"):
        machine.broken_connections = 1
    assert machine.events == ["shutdown Web01", "start Web01"]


@pytest.mark.parametrize("seconds", [3, 120])
def test_a_libvirt_that_is_away_for_a_while_costs_neither_the_image_nor_the_server(seconds: float) -> None:
    machine = Machine()
    kept = keeper(machine)
    with kept.off("Web01"):
        machine.restart_libvirt(seconds)
    assert machine.events == ["shutdown Web01", "start Web01"] and kept.not_started == {}
    assert 30 + seconds <= kept.downtime_seconds["Web01"] <= 30 + seconds + 5


def test_a_libvirt_that_ends_while_it_starts_the_server_is_asked_until_it_is_back() -> None:
    machine = Machine()
    kept = keeper(machine)
    with kept.off("Web01"):
        connection = kept.hypervisor
        assert isinstance(connection, Connection)
        connection.start = lambda name: machine.restart_libvirt(60) or connection._ask()  # type: ignore[method-assign, func-returns-value]
    assert machine.events == ["shutdown Web01", "start Web01"] and kept.not_started == {}


def test_a_libvirt_that_stays_away_is_not_waited_for_for_ever_and_less_long_after_an_interruption() -> None:
    waited: List[float] = []
    for interrupted in (False, True):
        machine, signals = Machine(), [False]
        kept = keeper(machine, interrupted=lambda signals=signals: signals[0])  # type: ignore[misc]
        with pytest.raises(SourceError, match="unreadable"), kept.off("Web01"):
            machine.restart_libvirt(100_000)
            signals[0] = interrupted
            began = machine.clock.time
            raise SourceError("unreadable")
        waited.append(machine.clock.time - began)
        assert "libvirtd is not running" in str(kept.not_started["Web01"])
    assert waited == [300, 60]


def test_a_server_that_could_not_be_started_is_tried_again_at_the_end_of_the_job() -> None:
    machine = Machine(start_errors=["no memory"] * 9999)
    kept = keeper(machine)
    with kept.off("Web01"):
        pass
    assert list(kept.not_started) == ["Web01"]
    machine.start_errors.clear()
    kept.start_late()
    assert machine.events == ["shutdown Web01", "start Web01"] and kept.not_started == {}
    assert machine.notes.kept == {}


def test_a_server_that_cannot_be_started_is_known_and_its_image_is_kept() -> None:
    machine = Machine(start_errors=["no memory"] * 9999)
    kept = keeper(machine)
    with kept.off("Web01"):
        pass
    assert "could not be started again: no memory" in str(kept.not_started["Web01"])
    assert kept.downtime_seconds == {}


@pytest.mark.parametrize(
    ("transient", "start"), [(False, "virsh start Web01"), (True, "virsh create /notes/Web01.xml")]
)
def test_a_server_that_crashes_while_it_is_imaged_is_known_to_be_down_and_must_be_ended_first(
    transient: bool, start: str
) -> None:
    machine = Machine(transient={"Web01"} if transient else set())
    machine.after_shutdown = lambda: machine.domains.update({"Web01": "crashed"})
    kept = keeper(machine)
    with pytest.raises(SourceError, match="crashed"), kept.off("Web01"):
        raise AssertionError("it must not be imaged")
    assert "crashed" in str(kept.not_started["Web01"])
    assert kept.not_started["Web01"].by_hand == f"virsh destroy Web01 && {start}"


def test_a_server_that_was_undefined_meanwhile_is_reported_at_once_with_where_its_definition_is() -> None:
    machine = Machine()
    kept = keeper(machine)
    with kept.off("Web01"):
        del machine.domains["Web01"]
        began = machine.clock.time
    kept.start_late()
    assert machine.clock.time == began and machine.events == ["shutdown Web01"]
    by_hand = "virsh define /notes/Web01.xml && virsh start Web01"
    assert kept.not_started["Web01"].by_hand == by_hand
    assert "moved to another machine, start nothing here" in str(kept.not_started["Web01"])
    later = keeper(machine)
    with pytest.raises(SourceError, match=f"is not defined on this machine any more; .*: {by_hand}"):
        later.check("Web01")
    later.start_left_off(["Web01"])
    assert machine.events == ["shutdown Web01"] and later.not_started == {}


def test_a_shutdown_that_would_destroy_a_tpm_is_refused() -> None:
    def tpm(backend: str, persistent: bool) -> TpmRequirement:
        return TpmRequirement("tpm-crb", backend, "2.0", persistent, 1)

    transient, defined = keeper(Machine(transient={"Web01"})), keeper(Machine())
    with pytest.raises(SourceError, match="persistent_state"):
        transient.check_survives_shutdown("Web01", tpm("emulator", False))
    transient.check_survives_shutdown("Web01", tpm("emulator", True))
    transient.check_survives_shutdown("Web01", tpm("passthrough", False))
    transient.check_survives_shutdown("Web01", None)
    defined.check_survives_shutdown("Web01", tpm("emulator", False))


@pytest.mark.parametrize("state", ["running", "shut off"])
def test_a_server_whose_way_back_began_after_the_job_did_is_left_alone(state: DomainState) -> None:
    machine = Machine(domains={"Web01": state})
    kept = keeper(machine)
    kept.check("Web01")
    machine.half_back.add("Web01")
    with pytest.raises(SourceError, match="part old and part new"), kept.off("Web01"):
        raise AssertionError("it must not be imaged")
    assert machine.events == []
    with pytest.raises(SourceError, match="part old and part new"):
        keeper(machine).check("Web01")


@pytest.mark.parametrize("state", ["running", "shut off"])
def test_a_server_whose_way_back_begins_while_it_is_imaged_is_not_started_and_its_image_is_given_up(
    state: DomainState,
) -> None:
    machine = Machine(domains={"Web01": state})
    kept = keeper(machine)
    with pytest.raises(SourceError, match="part old and part new"), kept.off("Web01"):
        machine.half_back.add("Web01")
    kept.start_late()
    assert "start Web01" not in machine.events and machine.domains == {"Web01": "shut off"}
    if state == "running":
        down = kept.not_started["Web01"]
        assert down.by_hand == "" and str(down).endswith("part old and part new")


# — a run that was killed —


class Killed(BaseException):
    """Nothing of the run is done after this, as after kill -9."""


def kill_while_off(machine: Machine) -> None:
    """What is left of a run that ended without its end."""
    kept = keeper(machine)
    kept._put_back = lambda stopped, tries_seconds=0: None  # type: ignore[method-assign, misc]
    with pytest.raises(Killed), kept.off("Web01"):
        raise Killed
    machine.events.clear()


@pytest.mark.parametrize(
    ("transient", "way_back"), [(False, "start Web01"), (True, "boot <domain><name>Web01</name></domain>")]
)
def test_a_server_that_a_killed_run_left_off_is_imaged_as_it_lies_and_started_by_the_next(
    transient: bool, way_back: str
) -> None:
    machine = Machine(transient={"Web01"} if transient else set())
    kill_while_off(machine)
    kept = keeper(machine, shut_down=False)
    kept.check("Web01")
    assert kept.definition("Web01") == "<domain><name>Web01</name></domain>"
    with kept.off("Web01"):
        assert machine.events == [], "it is off already"
    assert machine.events == [way_back]
    assert machine.notes.kept == {}


@pytest.mark.parametrize("transient", [False, True])
def test_a_server_that_a_killed_run_left_off_is_started_though_the_job_never_came_to_it(transient: bool) -> None:
    machine = Machine(transient={"Web01"} if transient else set())
    kill_while_off(machine)
    kept = keeper(machine, shut_down=False)
    kept.start_left_off(["Db01", "Web01"])
    assert machine.domains == {"Web01": "running"} and machine.notes.kept == {}
    assert kept.not_started == {} and kept.downtime_seconds == {}, "nobody knows how long it was off"


def test_a_server_that_was_left_off_and_cannot_be_started_is_reported() -> None:
    machine = Machine(start_errors=["no memory"] * 9999)
    kill_while_off(machine)
    kept = keeper(machine)
    kept.start_left_off(["Web01"])
    kept.start_late()
    assert "no memory" in str(kept.not_started["Web01"]) and list(machine.notes.kept) == ["Web01"]


@pytest.mark.parametrize("why", ["no note", "in doubt", "another run lives", "saved", "refused"])
def test_a_server_that_is_off_for_a_reason_of_its_own_is_not_started(why: str) -> None:
    machine = Machine()
    kill_while_off(machine)
    if why == "no note":
        machine.notes.forget("Web01")
    elif why == "in doubt":
        machine.notes.doubt("it was started here since then")
    elif why == "another run lives":
        machine.notes.another_run_has("Web01")
    elif why == "saved":
        machine.saved.add("Web01")
    elif why == "refused":
        machine.half_back.add("Web01")
    kept = keeper(machine)
    kept.start_left_off(["Web01"])
    assert machine.events == [] and kept.not_started == {}


def test_a_server_that_another_run_keeps_off_is_neither_imaged_nor_started() -> None:
    machine = Machine()
    kill_while_off(machine)
    machine.notes.another_run_has("Web01")
    kept = keeper(machine)
    with pytest.raises(SourceError, match="imaged by another run"):
        kept.check("Web01")
    with pytest.raises(SourceError, match="imaged by another run"), kept.off("Web01"):
        raise AssertionError("it must not be imaged")
    assert machine.events == [] and list(machine.notes.kept) == ["Web01"]


def test_a_note_belongs_to_the_run_that_wrote_it_until_that_ends(tmp_path: Path) -> None:
    ours, theirs = (OffNotes(str(tmp_path), boot_id="one") for _ in range(2))

    def held(notes: OffNotes) -> bool:
        note = notes.of("Web01")
        assert note is not None
        return note.held

    program = "from anvil_dr.sending.off_notes import OffNotes; import sys\n"
    program += "kept = OffNotes(sys.argv[1], boot_id='one'); kept.keep('Web01', '<domain/>', transient=False)\n"
    program += "print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        assert held(ours) and not ours.take_over("Web01")
        run.kill()
    assert not held(ours) and not held(theirs)
    assert ours.take_over("Web01") and not held(ours)
    assert held(theirs) and not theirs.take_over("Web01")
    ours.forget("Web01")
    theirs.keep("Web01", "<domain/>", transient=False)
    assert held(ours) and not held(theirs)


@pytest.mark.parametrize("doubt", ["this node was started since then", "it was started here since then"])
def test_nothing_is_started_that_may_be_off_on_purpose_or_run_elsewhere_by_now(doubt: str) -> None:
    machine, defined = Machine(transient={"Web01"}), Machine()
    for each in (machine, defined):
        kill_while_off(each)
        each.notes.doubt(doubt)
    where = f"{doubt}, and it does not run here; if it runs nowhere else: virsh create /notes/Web01.xml"
    with pytest.raises(SourceError, match=where):
        keeper(machine).check("Web01")
    with pytest.raises(SourceError, match=where), keeper(machine).off("Web01"):
        raise AssertionError("it must not be imaged")
    kept = keeper(defined)
    told: List[str] = []
    kept.tell = told.append
    kept.check("Web01")
    with kept.off("Web01"):
        pass
    assert machine.events == defined.events == []
    assert told[0].endswith(f"left off, because {doubt}; if it is to run: virsh start Web01")


def test_a_server_that_runs_again_is_not_remembered_as_off() -> None:
    machine = Machine()
    kill_while_off(machine)
    machine.domains["Web01"] = "running"
    keeper(machine).check("Web01")
    assert machine.notes.kept == {}
    with keeper(machine).off("Web01"):
        assert list(machine.notes.kept) == ["Web01"]
    assert machine.notes.kept == {}


def test_whoever_cannot_start_a_transient_server_is_told_where_its_definition_is() -> None:
    machine = Machine(transient={"Web01"}, boot_errors=["no memory"] * 9999)
    kept = keeper(machine)
    with kept.off("Web01"):
        pass
    assert "try: virsh create /notes/Web01.xml" in str(kept.not_started["Web01"])
    assert list(machine.notes.kept) == ["Web01"]


OFF_AT = datetime(2026, 11, 26, 1, 0, 0, tzinfo=timezone.utc)
STARTED = "2026-11-{}.123+0000: starting up libvirt version: 9.0.0, qemu version: 7.2\nLC_ALL=C \\\n"
ENDED = "2026-11-{}.456+0000: shutting down, reason={}\n"
BEFORE = STARTED.format("25 09:00:00") + "char device redirected to /dev/pts/0\n"


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({}, None),
        ({"Web01.log": "2026-11-26 02:00:00.000+0000: Domain id=1 is tainted\n"}, None),
        ({"Web01.log": BEFORE + ENDED.format("26 01:00:20", "shutdown")}, False),
        ({"Web01.log": BEFORE + ENDED.format("26 01:00:20", "shutdown") + STARTED.format("26 01:30:00")}, True),
        ({"Web01.log": ENDED.format("26 01:00:20", "shutdown")}, False),
        ({"Web01.log": BEFORE + STARTED.format("26 02:00:00") + ENDED.format("26 02:00:01", "failed")}, False),
        ({"Web01.log": BEFORE + STARTED.format("26 02:00:00") + ENDED.format("26 03:00:00", "migrated")}, True),
        ({"Web01.log": "", "Web01.log.0": BEFORE + STARTED.format("26 02:00:00")}, True),
        ({"Web01.log": "", "Web01.log.2.gz": BEFORE + STARTED.format("26 02:00:00")}, True),
        ({"Web01.log": "", "Web01.log.2.gz": "no gzip"}, None),
        ({"Web01.log": BEFORE, "Web01.log.old.log": STARTED.format("26 02:00:00")}, False),
        ({"Web010.log": STARTED.format("26 02:00:00")}, None),
    ],
)  # fmt: skip
def test_libvirts_log_tells_whether_a_server_was_started_since(
    tmp_path: Path, files: Dict[str, str], answer: Optional[bool]
) -> None:
    for name, text in files.items():
        packed = name.endswith(".gz") and text.startswith("2026")
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert StartLog(str(tmp_path)).started_since("Web01", OFF_AT) is answer


def test_a_note_is_in_doubt_once_the_node_or_the_server_was_started_since(tmp_path: Path) -> None:
    OffNotes(str(tmp_path), boot_id="one").keep("Web01", "<domain/>", transient=False)

    def doubt(boot_id: str, log: str) -> str:
        (tmp_path / "Web01.log").write_text(log)
        note = OffNotes(str(tmp_path), boot_id=boot_id, starts=StartLog(str(tmp_path))).of("Web01")
        assert note is not None
        return note.doubt

    assert doubt("one", BEFORE) == ""
    assert doubt("two", BEFORE) == "this node was started since then"
    later = STARTED.format("25 00:00:00").replace("2026", "2999")
    assert doubt("one", BEFORE + later) == "it was started here since then"
    assert doubt("one", "").startswith("nobody can tell whether it was started since then")
    assert str(tmp_path) in doubt("one", "")


def test_a_note_survives_its_writer_and_keeps_the_definition_beside_it(tmp_path: Path) -> None:
    OffNotes(str(tmp_path), boot_id="one").keep("Web01", "<domain/>", transient=True)
    OffNotes(str(tmp_path), boot_id="one").keep("Db01", "<domain id='2'/>", transient=False)
    starts = StartLog(str(tmp_path))
    (tmp_path / "Web01.log").write_text(BEFORE)
    same, later = (OffNotes(str(tmp_path), boot_id=boot, starts=starts) for boot in ("one", "two"))
    found = same.of("Web01")
    assert found is not None
    assert (found.transient, found.definition, found.doubt) == (True, "<domain/>", "")
    assert Path(found.definition_path).read_text() == "<domain/>"
    for note, expected in ((later.of("Web01"), (True, "<domain/>")), (later.of("Db01"), (False, "<domain id='2'/>"))):
        assert note is not None
        assert (note.transient, note.definition) == expected and note.doubt == "this node was started since then"
    same.forget("Web01")
    assert same.of("Web01") is None and list((tmp_path / "off").glob("Web01.*")) == []
    (tmp_path / "off" / "Db01.xml").unlink()
    note = later.of("Db01")
    assert note is not None and note.definition is None, "libvirt has it"
    (tmp_path / "off" / "Db01.json").write_text("{")
    assert same.of("Db01") is None, "it makes no sense"
    with pytest.raises(StateError):
        same.keep("../etc/Web01", "<domain/>", transient=True)
