"""The status says at a glance whether all is well, names what is not, and speaks the JSON of the specification."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, List, Tuple

from hypothesis import given
from hypothesis import strategies as st

from anvil_dr.activation.check_result import CheckResult
from anvil_dr.model import (
    INCOMPLETE,
    Activation,
    CacheDrive,
    ImageRecord,
    JobRecord,
    JournalEntry,
    Location,
    Owner,
    RunningJob,
    Sequence,
    SetRecord,
    StoredImage,
)
from anvil_dr.rehearsal.rehearsal_result import RehearsalResult, Rehearsed
from anvil_dr.status import status, status_json, status_text
from anvil_dr.status.status import DefinitionFacts, Observation

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=timezone.utc)
GIB = 2**30


def at(**ago: float) -> str:
    return (NOW - timedelta(**ago)).isoformat(timespec="seconds")


def image(server: str, disk: str, sequence: Sequence, identity: str) -> StoredImage:
    path = f"/dev/dr01_vg0/{server}_{disk}_{sequence}"
    return StoredImage(Owner(server, disk), sequence, "dr01_vg0", identity, 40 * GIB, path)


def record(server: str, received_at: str, *images: Tuple[str, str]) -> SetRecord:
    remembered = tuple(ImageRecord(disk, identity, 40 * GIB, f"sha256:{identity}") for disk, identity in images)
    return SetRecord(server, received_at, "an-a05n01", "job-1", remembered)


def job(server: str, **changes: Any) -> JobRecord:
    done = JobRecord(
        "job-1", server, "an-a05n01", "succeeded", at(hours=3, minutes=20), at(hours=3), None, 3 * GIB, 2 * GIB
    )
    return replace(done, **changes)


WELL = Observation(
    target="dr01",
    store_kind="lvm",
    locations=(Location("dr01_vg0", 1000 * GIB, 400 * GIB, 4096), Location("dr01_vg1", 500 * GIB, 0, 4096)),
    images=(
        image("Web01", "Web01_0", 1, "lv:a"),
        image("Web01", "Web01_1", 1, "lv:b"),
        image("Web01", "Web01_0", 2, "lv:c"),
        image("Web01", "Web01_1", 2, "lv:d"),
        image("Db01", "Db01_0", 1, "lv:e"),
    ),
    records=(
        record("Web01", at(days=1, hours=3), ("Web01_0", "lv:c"), ("Web01_1", "lv:d")),
        record("Web01", at(hours=3), ("Web01_0", "lv:a"), ("Web01_1", "lv:b")),
        record("Db01", at(days=2), ("Db01_0", "lv:e")),
    ),
    last_jobs={"Web01": job("Web01"), "Db01": job("Db01", finished_at=at(days=2), started_at=at(days=2, minutes=9))},
    definitions={
        "Web01": DefinitionFacts("/shared/definitions/Web01.xml"),
        "Db01": DefinitionFacts("/shared/definitions/Db01.xml"),
    },
    jobs=(),
)


def warnings(seen: Observation, server: str = "Web01") -> List[str]:
    (found,) = [one for one in status.assess(seen, NOW).servers if one.name == server]
    return [remark.text for remark in found.remarks]


def text(seen: Observation, now: datetime = NOW) -> str:
    return "\n".join(line.text.rstrip() for line in status_text.lines(status.assess(seen, now), now)) + "\n"


# — judgement —


def test_a_box_on_which_all_is_well_has_no_warnings() -> None:
    assert [one.remarks for one in status.assess(WELL, NOW).servers] == [(), ()]


def test_a_server_without_a_complete_set_is_warned_of() -> None:
    seen = replace(WELL, images=(image("Web01", "Web01_0", INCOMPLETE, "lv:a"),))
    assert warnings(seen)[0] == "no complete set: this server cannot be booted here"


def test_the_missing_disk_of_a_set_is_named_and_the_set_that_would_boot_too() -> None:
    assert WELL.images is not None
    seen = replace(WELL, images=WELL.images[1:])
    assert warnings(seen) == [
        "set 1 is not complete: disk Web01_0 is missing",
        "the newest complete set is number 2: a job was begun that has not succeeded",
    ]


def test_a_plan_that_was_not_finished_is_told_with_its_reason_unless_a_job_is_at_it() -> None:
    entry = JournalEntry(7, "Web01", "promote", (), failure="volume dr01_vg0/Web01_Web01_0_1 is in the way")
    seen = replace(WELL, pending=(entry, JournalEntry(8, "Web01", "cycle", ())))
    assert warnings(seen) == [
        "plan 7 (promote) was begun and is not finished: volume dr01_vg0/Web01_Web01_0_1 is in the way",
        "plan 8 (cycle) was begun and is not finished: the service does that when it starts",
    ]
    running = RunningJob("job-2", "an-a05n01", ("Web01",), "running", 0, 10)
    assert warnings(replace(seen, jobs=(running,))) == []


def test_while_a_job_runs_a_missing_set_one_is_no_alarm() -> None:
    assert WELL.images is not None
    running = (RunningJob("job-2", "an-a05n01", ("Web01",), "running", 1, 2),)
    seen = status.assess(replace(WELL, images=WELL.images[2:], jobs=running), NOW)
    web01 = seen.servers[1]
    assert [remark.serious for remark in web01.remarks] == [False]
    assert not web01.needs_attention


def test_a_set_that_the_database_does_not_know_is_warned_of_but_only_if_it_was_read() -> None:
    lost = replace(WELL, records=())
    assert any("sets 1 and 2 are not in the state database" in one for one in warnings(lost))
    unread = replace(WELL, records=None, problems=("the state database is locked",))
    assert warnings(unread) == []


def test_a_server_without_a_definition_is_warned_of_and_so_is_one_that_cannot_be_used() -> None:
    assert warnings(replace(WELL, definitions={})) == ["no definition: this server cannot be booted here"]
    broken = {"Web01": DefinitionFacts("/d/Web01.xml", "line 3: not well-formed")}
    assert warnings(replace(WELL, definitions=broken)) == ["the definition cannot be used: line 3: not well-formed"]


def test_a_definition_that_differs_from_the_source_is_told_but_is_no_alarm() -> None:
    drifted = {"Web01": DefinitionFacts("/d/Web01.xml", None, ("the source has 8 GiB of RAM, this 4 GiB",))}
    seen = replace(WELL, definitions={**(WELL.definitions or {}), **drifted})
    assert warnings(seen) == ["the definition differs from the source: the source has 8 GiB of RAM, this 4 GiB"]
    assert text(seen).startswith("dr01: all is well\n")


def test_a_failed_job_is_told_with_its_reason_and_age() -> None:
    failed = job("Web01", state="failed", error="the peer has been silent for 60 seconds\x1b[2J")
    seen = replace(WELL, last_jobs={"Web01": failed})
    assert warnings(seen) == ["the last job failed 3 hours ago: the peer has been silent for 60 seconds\\x1b[2J"]


def test_a_job_that_runs_is_no_warning_unless_no_service_could_be_running_it() -> None:
    seen = replace(WELL, last_jobs={"Web01": job("Web01", state="running", finished_at=None)})
    assert warnings(seen) == []
    assert warnings(replace(seen, jobs=None)) == ["job job-1 was running when the service was last heard of"]


def test_an_activated_server_says_since_when_by_whom_and_how_to_end_it() -> None:
    seen = replace(WELL, activations={"Web01": Activation("Web01", 2, at(hours=5), "alice")})
    assert warnings(seen) == [
        "activated 5 hours ago by alice from set 2; its jobs are refused until: anvil-activate-dr --release Web01"
    ]


def test_a_set_is_old_after_eight_days() -> None:
    def received(**ago: float) -> Observation:
        return replace(WELL, records=(record("Db01", at(**ago), ("Db01_0", "lv:e")),))

    assert warnings(received(days=8), "Db01") == []
    assert warnings(received(days=9), "Db01") == ["the newest set was received 9 days ago"]


def test_where_jobs_come_monthly_a_set_is_old_after_two_months() -> None:
    def received(newest: int, earlier: int) -> Observation:
        earlier_set = record("Web01", at(days=earlier), ("Web01_0", "lv:c"), ("Web01_1", "lv:d"))
        return replace(
            WELL, records=(earlier_set, record("Web01", at(days=newest), ("Web01_0", "lv:a"), ("Web01_1", "lv:b")))
        )

    assert warnings(received(29, 59)) == []
    assert warnings(received(61, 91)) == ["the newest set was received 8 weeks ago"]


def test_every_server_that_left_a_trace_is_shown() -> None:
    seen = Observation(
        target="dr01",
        store_kind="fs",
        images=(image("Image", "d", INCOMPLETE, "inode:1"),),
        records=(record("Record", at(hours=1), ("d", "inode:2")),),
        last_jobs={"Job": job("Job")},
        activations={"Activation": Activation("Activation", 1, at(hours=1), "root")},
        definitions={"Definition": DefinitionFacts("/d/Definition.xml")},
    )
    names = [one.name for one in status.assess(seen, NOW).servers]
    assert names == ["Activation", "Definition", "Image", "Job", "Record"]


def test_a_store_that_could_not_be_read_does_not_make_servers_look_lost() -> None:
    seen = replace(WELL, images=None, locations=(), problems=("store /srv/dr: it is not mounted",))
    assert warnings(seen) == []
    assert "! store /srv/dr: it is not mounted" in text(seen)
    assert not text(seen).startswith("dr01: all is well")


# — JSON —


def matches(value: Any, shape: Any) -> bool:
    """A shape is a type, a tuple of alternatives, a list of one shape, or an object with exactly these names."""
    if isinstance(shape, dict):
        return (
            isinstance(value, dict) and list(value) == list(shape) and all(matches(value[k], shape[k]) for k in shape)
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(matches(one, shape[0]) for one in value)
    if isinstance(shape, tuple):
        return any(matches(value, one) for one in shape)
    if isinstance(shape, type):
        return isinstance(value, shape) and (shape is not int or not isinstance(value, bool))
    return bool(value == shape)


NOTHING = type(None)
SHAPE = {
    "target": str,
    "store": {"type": ("fs", "lvm"), "locations": [{"name": str, "size_bytes": int, "free_bytes": int}]},
    "servers": [
        {
            "name": str,
            "definition": (str, NOTHING),
            "activated": bool,
            "warnings": [str],
            "sets": [
                {
                    "sequence": (int, "incomplete"),
                    "complete": bool,
                    "received_at": (str, NOTHING),
                    "source": (str, NOTHING),
                    "images": [
                        {"disk": str, "image": str, "path": str, "size_bytes": int, "digest": (str, NOTHING)},
                    ],
                }
            ],
            "last_job": (
                NOTHING,
                {
                    "id": str,
                    "state": ("succeeded", "failed", "running"),
                    "started_at": str,
                    "finished_at": (str, NOTHING),
                    "error": (str, NOTHING),
                    "wire_bytes": int,
                    "written_bytes": int,
                },
            ),
        }
    ],
    "cache_drives": [
        {"device": str, "mountpoint": (str, NOTHING), "filesystem": str, "size_bytes": int, "free_bytes": int}
    ],
    "jobs": [{"id": str, "node": str, "servers": [str], "state": str, "bytes_done": int, "bytes_total": int}],
}
FULL = replace(
    WELL,
    images=(*(WELL.images or ()), image("Web01", "Web01_0", INCOMPLETE, "lv:i")),
    activations={"Db01": Activation("Db01", 1, at(hours=1), "alice")},
    cache_drives=(
        CacheDrive("/dev/sdb1", None, "ext4", 64 * GIB, 60 * GIB),
        CacheDrive("/dev/sdc1", "/media/usb", "xfs", 32 * GIB, GIB),
    ),
    jobs=(RunningJob("job-2", "an-a05n02", ("Web01", "App01"), "running", 10 * GIB, 40 * GIB),),
)


def test_the_object_has_the_names_and_types_of_the_specification() -> None:
    for seen in (FULL, WELL, Observation("dr01", "fs"), replace(FULL, records=None, definitions=None)):
        assert matches(json.loads(json.dumps(status_json.to_json(status.assess(seen, NOW)))), SHAPE)


def test_the_shape_that_is_compared_with_would_notice_a_difference() -> None:
    found = status_json.to_json(status.assess(FULL, NOW))
    assert not matches({**found, "more": 1}, SHAPE)
    assert not matches({**found, "target": 1}, SHAPE)
    found["servers"][0]["activated"] = 1
    assert not matches(found, SHAPE)


def test_the_object_says_what_is_there() -> None:
    found = status_json.to_json(status.assess(FULL, NOW))
    db01, web01 = found["servers"]
    assert (db01["activated"], web01["activated"]) == (True, False)
    assert web01["definition"] == "/shared/definitions/Web01.xml"
    assert [(one["sequence"], one["complete"]) for one in web01["sets"]] == [
        (1, True),
        (2, True),
        ("incomplete", False),
    ]
    assert web01["sets"][0] == {
        "sequence": 1,
        "complete": True,
        "received_at": "2026-11-20T09:00:00+00:00",
        "source": "an-a05n01",
        "images": [
            {
                "disk": f"Web01_{number}",
                "image": f"Web01_Web01_{number}_1",
                "path": f"/dev/dr01_vg0/Web01_Web01_{number}_1",
                "size_bytes": 40 * GIB,
                "digest": f"sha256:lv:{letter}",
            }
            for number, letter in enumerate("ab")
        ],
    }
    incomplete = web01["sets"][2]
    assert (incomplete["received_at"], incomplete["source"], incomplete["images"][0]["digest"]) == (None, None, None)
    assert found["jobs"][0]["servers"] == ["Web01", "App01"]
    assert found["cache_drives"][0]["mountpoint"] is None


# — words —


def test_the_text_of_a_box_on_which_all_is_well() -> None:
    assert (
        text(WELL)
        == """\
dr01: all is well
2 of 2 servers can be booted here, from sets received between 2 days ago and 3 hours ago.

Db01
  set 1       1 disk, 40.0 GiB, received 2 days ago (2026-11-18 12:00) from an-a05n01
  definition  /shared/definitions/Db01.xml
  last job    succeeded 2 days ago (2026-11-18 12:00) after 9 minutes, 3.0 GiB over the network, 2.0 GiB written

Web01
  set 1       2 disks, 80.0 GiB, received 3 hours ago (2026-11-20 09:00) from an-a05n01
  set 2       2 disks, 80.0 GiB, received 27 hours ago (2026-11-19 09:00) from an-a05n01
  definition  /shared/definitions/Web01.xml
  last job    succeeded 3 hours ago (2026-11-20 09:00) after 20 minutes, 3.0 GiB over the network, 2.0 GiB written

Store: logical volumes
  dr01_vg0    400.0 GiB of 1000.0 GiB free
  dr01_vg1    0 B of 500.0 GiB free

Cache drives
  none

Running jobs
  none
"""
    )


def test_the_text_of_a_box_on_which_much_is_wrong() -> None:
    assert WELL.images is not None
    seen = replace(
        FULL,
        images=(*WELL.images[1:], image("Web01", "Web01_0", INCOMPLETE, "lv:i")),
        records=(*(WELL.records or ())[:2], record("Db01", "2026-01-01T00:00:00Z", ("Db01_0", "lv:e"))),
        definitions={
            "Db01": DefinitionFacts("/shared/definitions/Db01.xml", None, ("the source has 2 disks, this 1",))
        },
        last_jobs={"Web01": job("Web01", state="failed", error="the store is too small", finished_at=None)},
        jobs=None,
        service_problem="nobody listens on /run/anvil-dr/target.sock",
        problems=("the definitions in /shared/definitions cannot be listed: Input/output error",),
    )
    assert (
        text(seen)
        == """\
dr01: NOT ALL IS WELL
! the definitions in /shared/definitions cannot be listed: Input/output error
! the service cannot be reached, so no job can be received: nobody listens on /run/anvil-dr/target.sock
! Db01 and Web01 (of 2 servers) need attention: see below
1 of 2 servers can be booted here, from sets received 10 months ago.

Db01
  ! warning   activated 1 hour ago by alice from set 1; its jobs are refused until: anvil-activate-dr --release Db01
  ! warning   the newest set was received 10 months ago
  note        the definition differs from the source: the source has 2 disks, this 1
  set 1       1 disk, 40.0 GiB, received 10 months ago (2026-01-01 00:00) from an-a05n01
  definition  /shared/definitions/Db01.xml
  last job    none is known

Web01
  ! warning   set 1 is not complete: disk Web01_0 is missing
  ! warning   the newest complete set is number 2: a job was begun that has not succeeded
  ! warning   no definition: this server cannot be booted here
  ! warning   the last job failed 3 hours ago: the store is too small
  set 1       NOT COMPLETE: 1 disk, 40.0 GiB, received 3 hours ago (2026-11-20 09:00) from an-a05n01
  set 2       2 disks, 80.0 GiB, received 27 hours ago (2026-11-19 09:00) from an-a05n01
  incomplete  1 disk, 40.0 GiB: what a job has written so far, and the next one goes on with
  definition  none
  last job    failed 3 hours ago (2026-11-20 08:40), 3.0 GiB over the network, 2.0 GiB written

Store: logical volumes
  dr01_vg0    400.0 GiB of 1000.0 GiB free
  dr01_vg1    0 B of 500.0 GiB free

Cache drives
  /dev/sdb1   60.0 GiB of 64.0 GiB free, ext4, not mounted
  /dev/sdc1   1.0 GiB of 32.0 GiB free, xfs, mounted on /media/usb

Running jobs
  unknown: the service cannot be asked
"""
    )


def test_a_running_job_shows_how_far_it_is() -> None:
    assert "job-2       Web01 and App01 from an-a05n02: running, 25 %, 10.0 GiB of 40.0 GiB" in text(FULL)


def test_a_box_that_has_received_nothing_says_so() -> None:
    empty = replace(WELL, images=(), records=(), last_jobs={}, definitions={})
    assert text(empty).startswith("dr01: ready, but no server has been received yet\n")


def test_a_running_job_is_shown_with_what_it_looked_at_what_it_sent_and_how_long_it_will_take() -> None:
    running = RunningJob(
        "job-2", "an-a05n02", ("Web01",), "running", 10 * GIB, 40 * GIB, GIB // 4, 20, "Web01_0"
    )
    shown = text(replace(WELL, jobs=(running,)))
    assert "25 %, 10.0 GiB of 40.0 GiB, 512.0 MiB/s, about 1 minute left, 256.0 MiB over the wire" in shown
    assert "now disk Web01_0" in shown
    begun = RunningJob("job-2", "an-a05n02", ("Web01",), "running", 0, 40 * GIB, 0, 3)
    assert "0 %, 0 B of 40.0 GiB" in text(replace(WELL, jobs=(begun,)))


def test_times_are_shown_in_the_admins_time_zone() -> None:
    zone = timezone(timedelta(hours=-5))
    assert "3 hours ago (2026-11-20 04:00)" in text(WELL, NOW.astimezone(zone))


@given(st.text(max_size=30), st.text(max_size=30))
def test_nothing_that_a_node_said_commands_the_terminal(node: str, error: str) -> None:
    seen = replace(
        FULL,
        last_jobs={"Web01": job("Web01", state="failed", error=error, id=node)},
        jobs=(RunningJob(node, node, (node,), node, 1, 2),),
        records=(replace(record("Db01", at(hours=1), ("Db01_0", "lv:e")), source=node),),
        activations={"Db01": Activation("Db01", 1, at(hours=1), node)},
        definitions={"Db01": DefinitionFacts("/d/Db01.xml", error, (error,))},
    )
    assert all(line.text.isprintable() for line in status_text.lines(status.assess(seen, NOW), NOW))


def test_what_the_last_look_found_is_said_of_each_server() -> None:
    problems = {"Web01": ("there is no bridge lan1 here (make it)",)}
    seen = replace(WELL, check=CheckResult(at(hours=3), problems=problems, by_hand=("Db01",)))
    assert warnings(seen) == [
        "it could not be booted here (looked at 3 hours ago): there is no bridge lan1 here (make it)"
    ]
    assert warnings(seen, "Db01") == [
        "it ran here 3 hours ago, started by hand; so that no job writes over it: anvil-activate-dr --server Db01"
    ]
    assert all(one.needs_attention for one in status.assess(seen, NOW).servers)
    # A set and a definition alone do not make a server that boots.
    assert "1 of 2 servers can be booted here" in text(seen)


def test_a_server_whose_only_set_is_rotten_does_not_count_as_bootable() -> None:
    (*others, only) = WELL.records
    damaged = replace(only, images=tuple(replace(one, rotten="bits") for one in only.images))
    assert "1 of 2 servers can be booted here" in text(replace(WELL, records=(*others, damaged)))


def test_a_look_that_was_not_possible_is_no_good_news() -> None:
    seen = replace(WELL, check=CheckResult(at(hours=3), problem="libvirtd is not running"))
    assert warnings(seen) == [
        "whether it could be booted could not be looked at (3 hours ago): libvirtd is not running"
    ]
    assert "2 of 2 servers could be booted, if anything can be booted here, from sets received" in text(seen)


def test_a_rehearsal_that_failed_is_told_and_one_that_passed_is_not() -> None:
    failed = RehearsalResult("Web01", "failed", "it was booted and then crashed")
    rehearsed = {
        "Web01": Rehearsed(at(days=3), failed),
        "Db01": Rehearsed(at(days=3), RehearsalResult("Db01", "passed", "its guest agent answers")),
    }
    seen = replace(WELL, rehearsed=rehearsed)
    assert warnings(seen) == [
        "its last rehearsal, 3 days ago, failed: did not come up: it was booted and then crashed"
    ]
    assert warnings(seen, "Db01") == []


def test_a_drive_that_was_filled_at_a_node_says_what_to_type() -> None:
    brings = "Web01 of 2026-11-20T09:00:00+00:00 from node1, 64.0 GiB"
    drive = CacheDrive("/dev/sdb1", None, "ext4", 64 * GIB, 60 * GIB, contents=("x.raw",), carries=(brings,))
    shown = text(replace(FULL, cache_drives=(drive,)))
    assert f"brings {brings}" in shown and "anvil-dr-import /dev/sdb1" in shown and "x.raw" not in shown
