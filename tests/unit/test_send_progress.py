"""What is said while a job runs, and at its end."""

from __future__ import annotations

import io
from typing import List, Optional

import pytest
from rich.console import Console

from anvil_dr.cli.progress import Lines, Silent, watcher
from anvil_dr.cli.progress_bars import Bars
from anvil_dr.cli.send_report import Recorder, Report, ServerReport, server_reports, to_json, to_lines
from anvil_dr.errors import (
    AnvilDrError,
    JobInterruptedError,
    NotStartedError,
    PeerGoneError,
    RemoteError,
    SourceError,
)
from anvil_dr.sending.job import Observer, ServerOutcome
from anvil_dr.wire.protocol import JobPlan, Refusal, ServerDone, ServerPlan
from tests.doubles.hypervisor import Clock

MIB = 1 << 20
GIB = 1 << 30
PLAN = JobPlan("20261120T010203-1a2b", (ServerPlan("Web01"), ServerPlan("Db01", Refusal("ServerBusy", "is busy"))))
DONE = ServerDone("Web01", "2026-11-20T01:02:03+00:00", 25 * MIB, 22 * MIB, "/shared/definitions/Web01.xml", True)


def play(observer: Observer, clock: Clock) -> None:
    """A job of one disk of 10 GiB, which takes a minute."""
    observer.job_planned(PLAN)
    observer.server_ended(ServerOutcome("Db01", RemoteError("ServerBusy", "server Db01 is busy")))
    observer.server_begun("Web01")
    observer.disk_begun("Web01", "Web01_0", 10 * GIB)
    for second in range(1, 61):
        clock.sleep(1)
        observer.disk_advanced("Web01", "Web01_0", second * 10 * GIB // 60, second * 25 * MIB // 60)
    observer.disk_done("Web01", "Web01_0", 22 * MIB, 25 * MIB)
    observer.server_ended(ServerOutcome("Web01", None, DONE))


def test_a_log_has_a_line_for_each_event_and_one_every_few_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, every_seconds=20, clock=clock.now) as lines:
        lines.note("Web01: shutting down")
        play(lines, clock)
    assert stream.getvalue() == (
        "Web01: shutting down\n"
        "job 20261120T010203-1a2b: 1 of 2 servers accepted\n"
        "Db01: failed: server Db01 is busy\n"
        "Web01 Web01_0: 10.0 GiB\n"
        "Web01 Web01_0: 3.3 GiB of 10.0 GiB (33 %), 170.7 MiB/s, about 40 seconds left, 8.3 MiB over the wire\n"
        "Web01 Web01_0: 6.7 GiB of 10.0 GiB (66 %), 170.7 MiB/s, about 20 seconds left, 16.7 MiB over the wire\n"
        "Web01 Web01_0: sent in 1 minute, 25.0 MiB over the wire, 22.0 MiB written\n"
        "Web01: complete\n"
    )


class Broken(io.StringIO):
    """A stream whose reader has gone."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        raise BrokenPipeError


def test_a_reader_that_goes_away_ends_the_reports_and_not_the_job() -> None:
    stream = Broken()
    play(Lines(stream, clock=Clock().now), Clock())
    assert stream.writes == 1
    with Bars(Broken(), {"Web01": 10 * GIB, "Db01": 1}) as bars:
        play(bars, Clock())


def test_what_a_node_or_a_box_brings_cannot_command_the_terminal() -> None:
    stream = io.StringIO()
    Lines(stream).server_ended(ServerOutcome("Web01", RemoteError("Store", "bad\n\x1b[2Jworse")))
    assert stream.getvalue() == "Web01: failed: bad\\n\\x1b[2Jworse\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars_a_log_lines_and_those_who_want_nothing_nothing() -> None:
    assert isinstance(watcher(Terminal(), {}, wanted=True), Bars)
    assert isinstance(watcher(io.StringIO(), {}, wanted=True), Lines)
    assert type(watcher(Terminal(), {}, wanted=False)) is Silent


def test_bars_show_the_disk_the_job_and_what_crossed_the_wire() -> None:
    clock, bars = Clock(), Bars(io.StringIO(), {"Web01": 20 * GIB, "Db01": GIB})
    shown: List[str] = []

    def look() -> None:
        console = Console(file=io.StringIO(), width=200)
        console.print(bars.renderable)
        shown.append(console.file.getvalue())  # type: ignore[attr-defined]

    bars.job_planned(PLAN)
    bars.disk_begun("Web01", "Web01_0", 10 * GIB)
    bars.disk_advanced("Web01", "Web01_0", 5 * GIB, 7 * MIB)
    look()
    bars.disk_done("Web01", "Web01_0", MIB, 9 * MIB)
    bars.disk_begun("Web01", "Web01_1", 10 * GIB)
    bars.disk_advanced("Web01", "Web01_1", GIB, 2 * MIB)
    look()
    bars.server_ended(ServerOutcome("Web01", PeerGoneError()))
    look()
    clock.sleep(1)
    job, disk = shown[0].splitlines()
    assert "all" in job and "5.0/20.0 GiB" in job and "7.0 MiB over the wire" in job
    assert "Web01 Web01_0" in disk and "5.0/10.0 GiB" in disk
    assert "11.0/20.0 GiB" in shown[1].splitlines()[0] and "11.0 MiB over the wire" in shown[1].splitlines()[0]
    assert len(shown[2].splitlines()) == 1 and "20.0/20.0 GiB" in shown[2]


def report(*servers: ServerReport, session_error: Optional[AnvilDrError] = None) -> Report:
    return Report("job-1", "dr01", servers, 26 * MIB, 75.0, session_error)


COMPLETE = ServerReport(ServerOutcome("Web01", None, DONE, ("one copy",)), 2, 10 * GIB, 25 * MIB, 22 * MIB, 41.0)


def test_the_end_says_what_is_complete_what_failed_and_what_to_do() -> None:
    busy = ServerReport(ServerOutcome("Db01", RemoteError("ServerBusy", "server Db01 is busy: job 7 is working on it")))
    running = ServerReport(ServerOutcome("Mail01", SourceError("Mail01 is running; use --shutdown")))
    lost = ServerReport(ServerOutcome("Dns01", PeerGoneError()), downtime_seconds=130.0)
    assert to_lines(report(COMPLETE, busy, running, lost)) == (
        "Web01: complete: 2 disks, 10.0 GiB; 25.0 MiB over the wire, 22.0 MiB written; it was off for 41 seconds",
        "  its definition was made on the DR box, and is yours to edit: /shared/definitions/Web01.xml",
        "  warning: one copy",
        "Db01: FAILED: server Db01 is busy: job 7 is working on it",
        "  what to do: wait for that job to end (anvil-dr-status on the DR box), then run the same command again",
        "Mail01: FAILED: Mail01 is running; use --shutdown",
        "Dns01: FAILED: the connection was closed before the job ended; it was off for 2 minutes",
        "  what to do: run the same command again; what has arrived is not sent again",
        "1 of 4 servers complete (job job-1 on dr01): 26.0 MiB over the wire in 1 minute",
    )


@pytest.mark.parametrize("by_hand", ["virsh start Web01", "virsh create /notes/Web01.xml"])
def test_a_server_that_does_not_run_again_is_shouted_about_though_its_image_is_good(by_hand: str) -> None:
    down = NotStartedError("Web01", "no memory", by_hand)
    assert "could not be started again: no memory" in str(down)
    lines = to_lines(report(ServerReport(COMPLETE.outcome, not_started=down)))
    assert lines[0].startswith("Web01: complete")
    assert lines[2:4] == (f"  IT IS OFF: {down}", f"  what to do: start it by hand, now: {by_hand}")
    whole = report(ServerReport(COMPLETE.outcome, not_started=down))
    assert not whole.succeeded
    assert to_json(whole)["servers"][0]["error"] == str(down)  # type: ignore[index]


def test_nobody_is_told_to_start_a_server_that_must_not_be_started() -> None:
    half_back = NotStartedError("Web01", "don't start it; run anvil-dr-export Web01 again", "")
    said = "\n".join(to_lines(report(ServerReport(COMPLETE.outcome, not_started=half_back))))
    assert said.count("don't start it") == 1 and "start it by hand" not in said and "; try:" not in said


def test_a_server_that_may_go_off_yet_is_not_said_to_be_off() -> None:
    slow = NotStartedError("Web01", "did not shut down within 9 seconds", "virsh start Web01", is_off=False)
    said = "\n".join(to_lines(report(ServerReport(COMPLETE.outcome, not_started=slow))))
    assert f"IT MAY GO OFF YET: {slow}" in said and "IT IS OFF" not in said


def test_json_has_the_keys_that_scripts_read() -> None:
    failed = ServerReport(ServerOutcome("Db01", RemoteError("ServerBusy", "is busy")), wire_bytes=7)
    assert to_json(report(COMPLETE, failed)) == {
        "job_id": "job-1",
        "target": "dr01",
        "servers": [
            {
                "name": "Web01", "state": "succeeded", "error": None, "code": None, "wire_bytes": 25 * MIB,
                "written_bytes": 22 * MIB, "downtime_seconds": 41.0, "warnings": ["one copy"],
            },
            {
                "name": "Db01", "state": "failed", "error": "is busy", "code": "ServerBusy", "wire_bytes": 7,
                "written_bytes": 0, "downtime_seconds": None, "warnings": [],
            },
        ],
        "wire_bytes": 26 * MIB,
    }  # fmt: skip


def test_servers_of_which_nothing_is_known_share_the_fate_of_the_session() -> None:
    recorder = Recorder(Silent())
    recorder.disk_begun("Web01", "Web01_0", 100)
    recorder.disk_advanced("Web01", "Web01_0", 50, 60)
    recorder.disk_done("Web01", "Web01_0", 40, 70)
    recorder.disk_advanced("Web01", "Web01_1", 10, 5)
    early = ServerOutcome("Db01", SourceError("is running"))
    web, db, mail = server_reports(
        ("Web01", "Db01", "Mail01"), (), (early,), recorder, JobInterruptedError("SIGTERM"), {"Web01": 9.0}, {}
    )
    assert (str(web.error), web.wire_bytes, web.written_bytes, web.downtime_seconds) == (
        "interrupted by SIGTERM", 75, 40, 9.0,
    )  # fmt: skip
    assert str(db.error) == "is running" and str(mail.error) == "interrupted by SIGTERM"


def test_a_reason_that_all_share_is_said_once() -> None:
    gone = PeerGoneError("nobody listens")
    servers = [ServerReport(ServerOutcome(name, gone)) for name in ("Web01", "Db01", "Mail01")]
    lines = to_lines(report(servers[0], ServerReport(ServerOutcome("Dns01", gone), downtime_seconds=9.0), *servers[1:],
                            session_error=gone))  # fmt: skip
    assert lines[0] == "Web01, Db01 and Mail01: FAILED: nobody listens"
    plain = [ServerReport(ServerOutcome(name, None, DONE)) for name in ("Web01", "Db01")]
    assert [line.split(":")[0] for line in to_lines(report(*plain))[:4:2]] == ["Web01", "Db01"]
    assert [line for line in lines if "Dns01" in line] == ["Dns01: FAILED: nobody listens; it was off for 9 seconds"]


def test_a_session_that_breaks_after_its_last_server_costs_nothing_but_a_warning() -> None:
    ended = report(COMPLETE, session_error=PeerGoneError())
    assert ended.succeeded
    assert to_lines(ended)[-1].startswith("warning: the session did not end in good order: the connection was closed")
