"""After each job somebody looks whether the servers could be booted, and no job ever waits for that."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import List

import pytest

from anvil_dr.activation import check_record
from anvil_dr.activation.boot_plan import BootPlan, Draft, PlannedServer
from anvil_dr.activation.check_result import CheckResult, of_plan
from anvil_dr.cli import target_aftercare
from anvil_dr.errors import CommandError
from anvil_dr.ports import HostFacts
from anvil_dr.preflight.findings import problem, warning
from anvil_dr.receiving.aftercare import Aftercare
from tests.doubles.cache_drives import FolderDrives
from tests.doubles.dr_box import DrBox

AT = "2026-11-20T01:02:03+00:00"
PATIENCE_SECONDS = 30.0


class Work:
    """Counts, and can be waited for."""

    def __init__(self, error: bool = False) -> None:
        self.error, self.times = error, 0
        self.done = threading.Semaphore(0)

    def __call__(self) -> None:
        self.times += 1
        self.done.release()
        if self.error:
            raise CommandError(("anvil-activate-dr",), 1, b"", b"")

    def wait(self) -> bool:
        return self.done.acquire(timeout=PATIENCE_SECONDS)


def test_it_is_done_once_after_the_start_and_then_after_each_job() -> None:
    work = Work()
    aftercare = Aftercare(work, settle_seconds=0.0, first_seconds=0.0)
    with aftercare.at_work():
        assert work.wait()
        aftercare.job_ended()
        assert work.wait()


def test_it_is_done_daily_without_any_job() -> None:
    work = Work()
    with Aftercare(work, day_seconds=0.01, first_seconds=0.0).at_work():
        assert work.wait() and work.wait() and work.wait()


def test_a_look_that_fails_is_followed_by_the_next_one() -> None:
    work = Work(error=True)
    aftercare = Aftercare(work, settle_seconds=0.0, first_seconds=0.0)
    with aftercare.at_work():
        assert work.wait()
        aftercare.job_ended()
        assert work.wait()


def test_a_job_that_ends_and_a_service_that_stops_do_not_wait_for_a_look_that_hangs() -> None:
    begun, never = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        never.wait(PATIENCE_SECONDS)

    ended: List[str] = []
    aftercare = Aftercare(hang, settle_seconds=0.0, first_seconds=0.0)
    with aftercare.at_work():
        assert begun.wait(PATIENCE_SECONDS)
        aftercare.job_ended()
        ended.append("job")
    assert not never.is_set() and ended == ["job"]
    never.set()


def planned(server: str, *, running: bool = False, activated: bool = False, broken: bool = False) -> PlannedServer:
    findings = (problem("no bridge lan1", "make it"), warning("slow")) if broken else ()
    return PlannedServer(Draft(server, "", running=running, activated=activated, findings=findings))


def test_what_is_kept_of_a_plan_is_what_keeps_servers_down_and_who_runs_unmarked() -> None:
    plan = BootPlan(
        (
            planned("Web01"),
            planned("Bad01", broken=True),
            planned("Hand01", running=True),
            planned("Up01", running=True, activated=True),
        ),
        HostFacts(4, 1, 1),
    )
    assert of_plan(plan, AT) == CheckResult(
        AT, problems={"Bad01": ("no bridge lan1 (make it)",)}, by_hand=("Hand01",)
    )


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    results = (
        CheckResult(AT, problems={"Bad01": ("x (y)", "z (w)"), "Ü01": ()}, by_hand=("Hand01",)),
        CheckResult(AT, problem="libvirtd is not running"),
    )
    for result in results:
        check_record.write(str(tmp_path), result)
        assert check_record.read(str(tmp_path)) == result


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"at": 1}', '{"at": "x", "problem": null, "problems": 3}'])
def test_a_result_that_makes_no_sense_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "check.json").write_text(content)
    assert check_record.read(str(tmp_path)) is None


def test_a_result_that_cannot_be_kept_raises_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("where the folder belongs")
    check_record.write(os.fspath(path), CheckResult(AT))
    assert check_record.read(os.fspath(path)) is None


# — the runbook on the drives that are carried away —


def test_the_runbook_lies_on_each_cache_drive_too(tmp_path: Path) -> None:
    drives = FolderDrives(tmp_path / "drives", {"/dev/sdb": 1 << 30, "/dev/sdc": 1 << 30}, owners=tuple)
    (tmp_path / "box").mkdir()
    box = DrBox(tmp_path / "box")
    box.open_cache_drives = lambda state: drives
    with box.running() as target:
        target_aftercare.copy_to_cache_drives(target)
        assert list(tmp_path.rglob("RUNBOOK*")) == [], "there is none yet"
        definitions = Path(box.config.definitions)
        definitions.mkdir(exist_ok=True)
        (definitions / "RUNBOOK.txt").write_text("1. Make sure")
        drives.pulled.append("/dev/sdc")
        target_aftercare.copy_to_cache_drives(target)
    (copy,) = (tmp_path / "drives").rglob("RUNBOOK*")
    assert copy == drives.folder("/dev/sdb") / "RUNBOOK-dr01.txt"
    assert copy.read_text() == "1. Make sure"
