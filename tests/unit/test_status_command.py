"""anvil-dr-status on a real directory, a real database and a real socket: it shows what it can, and says what not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import pytest

from anvil_dr import config, definition_files, naming
from anvil_dr.cli import wiring
from anvil_dr.config import Config, StoreConfig
from anvil_dr.definition_files import DefinitionFile
from anvil_dr.errors import CommandError, ServiceError, StoreError
from anvil_dr.model import INCOMPLETE, ImageRecord, JournalStep, Owner, Rename, SetRecord, SourceDefinition
from anvil_dr.receiving.target import JobProgress
from anvil_dr.records.state import State
from anvil_dr.status import inquiry, observation
from anvil_dr.status.status import Observation, WaitingSet, assess
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.protocol import Error, Hello, Kind, Message, RunningJobReport, Status, decode
from tests.doubles.bad_inode import unopenable
from tests.doubles.dr_box import DrBox, Node
from tests.doubles.memory_store import MemoryStore

STATUS = Path(__file__).resolve().parents[2] / "bin" / "anvil-dr-status"
WEB01 = Owner("Web01", "Web01_0")
DEFINITION = """\
<domain type='kvm'>
  <name>{server}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/><target dev='vda'/></disk>
  </devices>
</domain>
"""


@pytest.fixture
def box(tmp_path: Path) -> Config:
    """A box that has received one set of Web01."""
    made = Config(
        name="dr01",
        store=StoreConfig("fs", (str(tmp_path / "store"),)),
        definitions=str(tmp_path / "definitions"),
        state=str(tmp_path / "state"),
        runtime=str(tmp_path / "run"),
    )
    (tmp_path / "t.yaml").write_text(
        f"name: dr01\nstore: fs:{tmp_path}/store\ndefinitions: {made.definitions}\n"
        f"state: {made.state}\nruntime: {made.runtime}\n"
    )
    for folder in ("store", "definitions"):
        (tmp_path / folder).mkdir()
    state = State.open(made.state)
    state.claim(WEB01)
    store = wiring.open_store(made, state)
    image = store.create(WEB01, 4096, made.store.locations[0])
    remembered = SetRecord(
        "Web01", "2026-11-20T09:00:00+00:00", "node1", "job-1", (ImageRecord(WEB01.disk, image.identity, 4096, "x:1"),)
    )
    entry = state.begin("Web01", "promote", [JournalStep(Rename(WEB01, INCOMPLETE, 1), image.identity)], remembered)
    store.rename(image, 1)
    state.finish(entry)
    define(made, memory_mib=512)
    state.keep_source_definition("Web01", definition_of(made, memory_mib=512))
    return made


def definition_of(made: Config, server: str = "Web01", memory_mib: int = 512) -> str:
    path = os.path.join(made.store.locations[0], naming.file_name(WEB01, 1))
    return DEFINITION.format(server=server, memory_mib=memory_mib, path=path)


def define(made: Config, *, named: str = "Web01", memory_mib: int = 512) -> None:
    Path(made.definitions, "Web01.xml").write_text(definition_of(made, named, memory_mib))


def run(tmp_path: Path, *arguments: str) -> Tuple[int, str, str]:
    done = subprocess.run(
        [str(STATUS), "--config", str(tmp_path / "t.yaml"), *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def look(made: Config, **more: Any) -> Observation:
    with State.open(made.state, readonly=True) as state:
        store = wiring.open_store(made, state)
        return observation.observe(made, store, state, running_jobs=lambda: (), cache_drives=lambda: (), **more)


@pytest.mark.parametrize(
    ("problem", "has_set", "serious", "words"),
    [
        (None, True, False, "on its way to the store"),
        ("it is not plugged in", True, True, "a newer complete set, received 2 hours ago, is on cache drive /dev/sdb"),
        ("it is not plugged in", False, True, "its only complete set, received 2 hours ago"),
    ],
)
def test_a_set_that_waits_on_a_cache_drive_alarms_where_its_drive_is_not_there(
    box: Config, problem: Optional[str], has_set: bool, serious: bool, words: str
) -> None:
    waiting = WaitingSet("Web01", "job2", "2026-11-20T10:00:00+00:00", ("/dev/sdb (USB, S1)",), problem)
    seen = look(box, waiting=lambda drives: (waiting,))
    if not has_set:
        seen = replace(seen, images=())
    (server,) = assess(seen, datetime(2026, 11, 20, 12, tzinfo=timezone.utc)).servers
    (remark,) = [remark for remark in server.remarks if "on cache drive" in remark.text]
    assert remark.serious == serious and words in remark.text
    assert ("is copied by itself" in remark.text) == (problem is not None)


def test_a_set_that_was_received_before_the_server_ran_here_is_said_to_stay(box: Config) -> None:
    received_at, ran = "2026-11-20T10:00:00+00:00", "2026-11-20T11:00:00+00:00"
    waiting = WaitingSet("Web01", "job2", received_at, ("/dev/sdb (USB, S1)",), "it is not plugged in")
    seen = look(box, waiting=lambda drives: (waiting,))
    seen = replace(seen, records=tuple(replace(one, ran_here_until=ran) for one in seen.records or ()))
    (server,) = assess(seen, datetime(2026, 11, 20, 12, tzinfo=timezone.utc)).servers
    (remark,) = [remark for remark in server.remarks if "on cache drive" in remark.text]
    assert not remark.serious and "stays there until its next job has succeeded" in remark.text


@contextmanager
def service(path: Path, answer: Message, asked: List[Hello]) -> Iterator[None]:
    """Answers one session on the socket."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            channel = Channel(*(os.dup(connection.fileno()),) * 2, silence_seconds=10)
            kind, content = channel.receive(frame_buffer())
            assert kind is Kind.HELLO
            asked.append(decode(Hello, content))
            channel.send(answer.kind, answer.encode())
            channel.close()

    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


# — the command —


@pytest.mark.slow
def test_the_command_shows_a_set_and_says_that_no_service_answers(box: Config, tmp_path: Path) -> None:
    code, out, err = run(tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("dr01: NOT ALL IS WELL\n! the service cannot be reached")
    assert "1 of 1 server can be booted here" in out
    assert "set 1       1 disk, 4.0 KiB, received" in out


@pytest.mark.slow
def test_the_command_prints_one_object_with_what_the_service_says(box: Config, tmp_path: Path) -> None:
    asked: List[Hello] = []
    jobs = Status((RunningJobReport("job-2", "node1", ("Db01",), "running", 1, 2),))
    with service(tmp_path / "run" / "target.sock", jobs, asked):
        code, out, err = run(tmp_path, "--json")
    found = json.loads(out)
    assert (code, err, asked[0].purpose) == (0, "", "status")
    assert found["jobs"] == [
        {"id": "job-2", "node": "node1", "servers": ["Db01"], "state": "running", "bytes_done": 1, "bytes_total": 2}
    ]
    (web01,) = found["servers"]
    assert (web01["name"], web01["sets"][0]["complete"], web01["sets"][0]["images"][0]["digest"]) == (
        "Web01",
        True,
        "x:1",
    )
    assert web01["definition"] == f"{box.definitions}/Web01.xml"
    assert found["store"]["locations"][0]["size_bytes"] > 0


@pytest.mark.slow
def test_the_command_shows_what_it_can_when_the_database_is_damaged_and_leaves_it_alone(
    box: Config, tmp_path: Path
) -> None:
    database = Path(box.state, "state.sqlite")
    database.write_bytes(b"no database " * 1000)
    code, out, err = run(tmp_path, "--json")
    (web01,) = json.loads(out)["servers"]
    assert code == 1
    assert "not a database" in err
    assert (web01["sets"][0]["complete"], web01["sets"][0]["received_at"]) == (True, None)
    assert database.read_bytes() == b"no database " * 1000
    assert sorted(os.listdir(box.state)) == ["servers", "state.sqlite"]


@pytest.mark.slow
def test_a_check_says_whether_all_is_well_and_so_does_its_exit_code(tmp_path: Path) -> None:
    dr_box = DrBox(tmp_path)
    (tmp_path / "t.yaml").write_text(
        f"name: dr01\nstore: fs:{dr_box.store_folder}\ndefinitions: {dr_box.config.definitions}\n"
        f"state: {dr_box.config.state}\nruntime: {dr_box.config.runtime}\n"
    )
    with dr_box.running():
        for name in ("Web01", "Db01"):
            assert dr_box.send(Node(tmp_path / name, name, disks={f"{name}_0": b"1"}).outgoing()).succeeded
        code, out, err = run(tmp_path, "--check")
        assert (code, err, len(out.splitlines())) == (0, "", 2)
        assert out.startswith("dr01: all is well\n2 of 2 servers can be booted here, from sets received ")
        Path(dr_box.config.definitions, "Web01.xml").unlink()
        code, out, err = run(tmp_path, "--check")
        assert (code, err) == (1, "")
        first, *more = out.splitlines()
        assert first == "dr01: NOT ALL IS WELL"
        assert "! Web01: no definition: this server cannot be booted here" in more
        assert not any("Db01" in line for line in more)
        assert run(tmp_path, "--check", "--json")[0] == 1
        assert run(tmp_path)[0] == 0, "what there is to see was shown"
    code, out, _ = run(tmp_path, "--check")
    assert code == 1 and "the service cannot be reached" in out


@pytest.mark.slow
def test_the_command_refuses_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    code, out, err = run(tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"anvil-dr-status: {tmp_path}/t.yaml: there is no such file")


@pytest.mark.slow
def test_a_reader_that_leaves_early_causes_no_complaint(box: Config, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$1" --config "$2" --json | true', "sh", str(STATUS), str(tmp_path / "t.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


# — looking —


def test_sets_are_known_from_the_spare_copy_when_the_database_is_gone(box: Config) -> None:
    before = look(box)
    Path(box.state, "state.sqlite").unlink()
    seen = look(box)
    assert (seen.images, seen.records) == (before.images, before.records) and seen.records


def test_sets_are_found_again_by_the_definitions_when_the_state_is_gone(box: Config) -> None:
    shutil.rmtree(box.state)
    os.mkdir(box.state)
    seen = look(box)
    assert seen.images is not None
    assert [(one.owner, one.sequence) for one in seen.images] == [(WEB01, 1)]
    assert (seen.records, seen.problems) == ((), ())


def test_a_missing_store_is_a_problem_and_all_else_is_still_seen(box: Config) -> None:
    os.rename(box.store.locations[0], box.store.locations[0] + ".away")
    seen = look(box)
    assert (seen.images, seen.locations) == (None, ())
    assert seen.records is not None and len(seen.records) == 1
    assert seen.definitions is not None and "Web01" in seen.definitions
    assert len(seen.problems) == 1, "one cause is told once"


def test_an_image_that_cannot_be_opened_is_a_problem_and_the_others_are_shown(box: Config, tmp_path: Path) -> None:
    damaged = tmp_path / "store" / naming.file_name(WEB01, 2)
    damaged.write_bytes(b"rotten below")
    with unopenable(damaged):
        code, said, problems = run(tmp_path, "--json")
    assert code == 1
    assert f"cannot look at {damaged}" in problems
    assert [one["sequence"] for one in json.loads(said)["servers"][0]["sets"]] == [1]


def test_a_check_that_fails_makes_the_stores_answers_worthless(box: Config) -> None:
    def check() -> None:
        raise StoreError("store /srv/dr: its file system is not mounted")

    seen = look(box, check=check)
    assert (seen.images, seen.problems) == (None, ("store /srv/dr: its file system is not mounted",))


def test_groups_that_cannot_be_asked_are_a_problem_too(box: Config) -> None:
    class Broken(MemoryStore):
        def images(self, server: Any = None) -> Any:
            raise CommandError(("lvs",), 5, b"", b"no such group")

    store = Broken()
    seen = observation.observe(box, store, None, running_jobs=lambda: (), cache_drives=lambda: ())
    assert seen.images is None and "no such group" in seen.problems[0]
    assert (seen.records, seen.last_jobs) == (None, {})


# — definitions —


def test_a_definition_that_is_as_the_source_has_it_differs_in_nothing(box: Config) -> None:
    seen = look(box)
    assert seen.definitions is not None
    assert seen.definitions["Web01"].problem is None
    assert not [one for one in seen.definitions["Web01"].differences if "RAM" in one]


def test_ram_that_an_admin_reduced_is_told(box: Config) -> None:
    define(box, memory_mib=256)
    seen = look(box)
    assert seen.definitions is not None
    assert [one for one in seen.definitions["Web01"].differences if "RAM" in one]


def test_a_definition_of_another_server_is_no_use(box: Config) -> None:
    define(box, named="Db01")
    seen = look(box)
    assert seen.definitions is not None
    assert seen.definitions["Web01"].problem == "it is for a server named Db01"


def test_a_source_definition_that_cannot_be_read_does_not_spoil_the_status(box: Config) -> None:
    file = DefinitionFile("Web01", "/d/Web01.xml", definition_of(box))
    found = observation.facts(file, SourceDefinition("Web01", "<domain", (), "2026-11-20T09:00:00+00:00"))
    assert found.problem is None
    assert "cannot be compared" in found.differences[0]


@pytest.mark.parametrize("content", [b"<domain>", b"\xff\xfe", b"x" * (5 << 20)])
def test_a_definition_that_cannot_be_read_says_why(box: Config, content: bytes) -> None:
    Path(box.definitions, "Web01.xml").write_bytes(content)
    seen = look(box)
    assert seen.definitions is not None
    assert seen.definitions["Web01"].problem


def test_what_is_no_definition_file_is_passed_over_and_a_fifo_does_not_hold_the_status_up(box: Config) -> None:
    folder = Path(box.definitions)
    for name in ("notes.txt", ".xml", "-x.xml", "a b.xml", "Web01.xml~"):
        (folder / name).write_text("")
    os.mkfifo(folder / "Db01.xml")
    (folder / "nvram").mkdir()
    found = {one.server: one.problem for one in definition_files.read_all(box.definitions)}
    assert found == {"Db01": "it is not a regular file", "Web01": None}


def test_definitions_name_only_images_of_their_own_server_in_the_store() -> None:
    def names(server: str, path: str) -> Tuple[Owner, ...]:
        xml = DEFINITION.format(server=server, memory_mib=1, path=path)
        return definition_files.owners_named([DefinitionFile(server, "/d", xml)], "/srv/dr")

    assert names("Web01", "/srv/dr/Web01_Web01_0_1.raw") == (Owner("Web01", "Web01_0"),)
    assert names("a_b", "/srv/dr/a_b_c_d_1.raw") == (Owner("a_b", "c_d"),)
    assert names("Web01", "/srv/dr/Db01_Db01_0_1.raw") == ()
    assert names("Web01", "/srv/other/Web01_Web01_0_1.raw") == ()
    assert names("Web01", "/srv/dr/Web01_1.raw") == ()
    assert names("Web01", "/srv/dr/Web01__1.raw") == ()
    assert names("Web01", "/srv/dr/Web01_disk.qcow2") == ()
    assert definition_files.owners_named([DefinitionFile("Web01", "/d", "<broken")], "/srv/dr") == ()


# — asking the service —


def test_the_real_service_tells_which_jobs_it_works_on(tmp_path: Path) -> None:
    dr_box = DrBox(tmp_path)
    with dr_box.running() as target:
        assert inquiry.running_jobs(dr_box.config.socket) == ()
        progress = JobProgress("job-7", "node1", ("Web01", "Db01"), 400, 100, wire_bytes=lambda: 30, disk="Web01_0")
        progress.began -= 5
        with target.running(progress):
            (job,) = inquiry.running_jobs(dr_box.config.socket)
    assert (job.id, job.servers, job.bytes_done, job.bytes_total) == ("job-7", ("Web01", "Db01"), 100, 400)
    assert (job.wire_bytes, job.disk) == (30, "Web01_0")
    assert job.seconds >= 5


def test_a_service_that_refuses_or_says_something_else_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "run" / "target.sock"
    with service(path, Error("NotAllowed", "only root may ask"), []):
        with pytest.raises(ServiceError, match="only root may ask"):
            inquiry.running_jobs(str(path))


def test_a_socket_that_is_missing_or_left_over_is_a_service_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "target.sock"
    with pytest.raises(ServiceError, match="nobody listens"):
        inquiry.running_jobs(str(path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(ServiceError, match="nobody listens"):
        inquiry.running_jobs(str(path))


def test_a_service_that_hangs_up_is_an_error_in_words(tmp_path: Path) -> None:
    path = tmp_path / "target.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(ServiceError):
            inquiry.running_jobs(str(path))
        thread.join()


def test_the_default_configuration_path_is_the_documented_one() -> None:
    assert config.DEFAULT_PATH == "/etc/anvil-dr/target.yaml"
