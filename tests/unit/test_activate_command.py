"""anvil-activate-dr from its command line, with libvirt's own driver for tests: real transient domains, no guests."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import libvirt
import pytest

from anvil_dr import cli
from anvil_dr import config as configuration
from anvil_dr.activation import activation_text, boot, nodes
from anvil_dr.activation.life_signs import Node
from anvil_dr.activation.overlays import Overlays
from anvil_dr.cli import activate, activate_decide, activate_view
from anvil_dr.definition import Requirements, requirements
from anvil_dr.demo.server import DemoServer, definition
from anvil_dr.errors import HypervisorError
from anvil_dr.hypervisor import LibvirtHypervisor, connect
from anvil_dr.model import JournalStep, Purpose, Removal
from anvil_dr.ports import Completed
from anvil_dr.records.state import State
from anvil_dr.status.status_text import Line
from anvil_dr.stores.directory import DirectoryStore
from tests.doubles.filled_box import FilledBox

URI = "test:///default"
OF_THE_DRIVER = "test"
"""The one domain that the driver comes with; it is persistent."""

Command = Callable[..., Tuple[int, str, str]]


@pytest.fixture
def hypervisor() -> Iterator[LibvirtHypervisor]:
    """What the driver has lives for as long as somebody is connected."""
    with connect(URI) as connected:
        yield connected


@pytest.fixture
def box(tmp_path: Path, hypervisor: LibvirtHypervisor) -> FilledBox:
    return FilledBox(tmp_path / "box")


@pytest.fixture
def command(box: FilledBox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(boot, "WATCH_SECONDS", 0.0)

    def run(*arguments: str) -> Tuple[int, str, str]:
        code = activate.main(["--config", str(box.config), "--connect", URI, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def sources(box: FilledBox, server: str, content: bytes = b"disk") -> Tuple[Path, Path]:
    """The disks of a server, on its node."""
    folder = box.images.parent / "node"
    folder.mkdir(exist_ok=True)
    disks = (folder / f"{server}_0.img", folder / f"{server}_1.img")
    for disk in disks:
        disk.write_bytes(content.ljust(4096, b"\0"))
    return disks


def keep(box: FilledBox, server: str, *, sequence: int = 1) -> Path:
    """A server with one set and its definition."""
    disks = sources(box, server)
    box.receive(server, disks, sequence=sequence)
    return box.define(server, definition(DemoServer(server, disks, "", ""), virt_type="test"), disks)


@contextmanager
def held_open(path: Path) -> Iterator[None]:
    """Another process has it open."""
    with open(path, "rb") as file, subprocess.Popen(["sleep", "600"], stdin=file) as holder:
        try:
            yield
        finally:
            holder.kill()


def running(hypervisor: LibvirtHypervisor) -> List[str]:
    return [domain.name for domain in hypervisor.active() if domain.name != OF_THE_DRIVER]


def never_defined() -> bool:
    connection = libvirt.open(URI)
    defined = {domain.name() for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)}
    return defined == {OF_THE_DRIVER}


def test_every_server_is_booted_transient_and_marked(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01"), keep(box, "Db01")
    code, out, _ = command("--yes")
    assert code == 0
    assert running(hypervisor) == ["Db01", "Web01"]
    assert not any(domain.persistent for domain in hypervisor.active() if domain.name != OF_THE_DRIVER)
    assert never_defined()
    assert "2 of 2 servers running" in out
    with State.open(str(box.state), readonly=True) as state:
        assert {name: one.sequence for name, one in state.activations().items()} == {"Db01": 1, "Web01": 1}


def test_only_the_servers_that_were_named_are_booted(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01"), keep(box, "Db01"), keep(box, "Dns01")
    assert command("--yes", "--server", "Web01", "--server", "Dns01")[0] == 0
    assert running(hypervisor) == ["Dns01", "Web01"]


def test_without_set_1_the_newest_complete_set_is_booted_and_the_definition_stays_as_it_is(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    path = keep(box, "Web01", sequence=2)
    before = path.read_bytes()
    code, out, _ = command("--yes")
    assert code == 0
    assert "set 1 is missing or not complete, so set 2 is used" in out
    (domain,) = [one for one in hypervisor.active() if one.name == "Web01"]
    assert domain.disk_paths == tuple(str(box.images / f"Web01_Web01_{number}_2.raw") for number in (0, 1))
    assert path.read_bytes() == before


def test_an_older_set_is_booted_when_it_is_asked_for(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    box.receive("Web01", sources(box, "Web01", b"older"), sequence=2)
    assert command("--yes", "--sequence", "2")[0] == 0
    (domain,) = [one for one in hypervisor.active() if one.name == "Web01"]
    assert all(path.endswith("_2.raw") for path in domain.disk_paths)


def test_one_broken_server_does_not_stop_another_and_the_exit_code_tells(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    keep(box, "Bad01").write_text("<domain>")
    code, out, _ = command("--yes")
    assert code == 1
    assert running(hypervisor) == ["Web01"]
    assert "Bad01  NOT RUNNING: its definition" in out
    assert "edit " + str(box.definitions / "Bad01.xml") in out


def test_a_check_boots_nothing_and_marks_nothing(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    assert command("--check")[0] == 0
    assert running(hypervisor) == []
    with State.open(str(box.state), readonly=True) as state:
        assert state.activations() == {}
    keep(box, "Bad01").unlink()
    code, out, _ = command("--check")
    assert code == 1
    assert "it has no definition" in out


def test_a_server_that_runs_already_is_left_alone_the_second_time(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    assert command("--yes")[0] == 0
    keep(box, "Db01")
    code, out, _ = command("--yes")
    assert code == 0
    assert "runs already" in out
    assert running(hypervisor) == ["Db01", "Web01"]


def test_a_server_that_was_booted_before_and_is_paused_does_not_count_as_running(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    hypervisor.boot(keep(box, "Web01").read_text())
    libvirt.open(URI).lookupByName("Web01").suspend()
    code, out, _ = command("--yes")
    assert code == 1
    assert "it was booted before and is paused now" in out
    assert "virsh destroy Web01" in out


def test_a_server_that_was_ended_goes_on_with_the_set_it_ran_from(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    box.receive("Web01", sources(box, "Web01", b"older"), sequence=2)
    command("--yes", "--sequence", "2")
    hypervisor.destroy("Web01")
    assert command("--yes")[0] == 0
    (domain,) = [one for one in hypervisor.active() if one.name == "Web01"]
    assert all(path.endswith("_2.raw") for path in domain.disk_paths)


def test_a_set_that_a_server_ran_from_before_another_one_is_not_called_what_was_received(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    box.receive("Web01", sources(box, "Web01", b"older"), sequence=2)
    command("--yes")
    hypervisor.destroy("Web01")
    assert command("--yes", "--sequence", "2")[0] == 0
    with State.open(str(box.state), readonly=True) as state:
        ran = {record.job_id: record for record in state.set_records()}
        assert state.activations()["Web01"].sequence == 2
    assert ran["job-1"].ran_here_until is not None
    assert {image.digest for image in ran["job-1"].images} == {""}
    assert ran["job-2"].ran_here_until is None


def test_without_a_state_database_the_servers_are_found_by_their_definitions(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    shutil.rmtree(box.state)
    code, out, _ = command("--yes")
    assert code == 0
    assert "when this set was received is not known" in out
    assert running(hypervisor) == ["Web01"]


def test_a_state_that_cannot_be_used_at_all_does_not_keep_servers_down(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    shutil.rmtree(box.state)
    box.state.write_text("a file where the folder was")
    code, out, _ = command("--yes")
    assert code == 0
    assert "the state cannot be used" in out
    assert "Web01: cannot be marked as activated" in out
    assert "A job may write over Web01: not marked as activated" in out
    assert "No job writes over" not in out
    code, out, _ = command("--yes")
    assert "A job may write over Web01" in out and "No job writes over" not in out
    assert running(hypervisor) == ["Web01"]


def test_a_database_with_one_damaged_page_is_passed_over_for_its_spare_copy(
    box: FilledBox, command: Command
) -> None:
    keep(box, "Web01"), keep(box, "Db01")
    damage_page(box.state / "state.sqlite", "images")
    code, out, _ = command("--check")
    assert (code, out.splitlines()[-1]) == (0, "2 of 2 servers could be booted here now.")
    assert "what is known of sets is from its spare copies" in out
    assert "when this set was received is not known" not in out


def damage_page(path: Path, table: str) -> None:
    """As on a disk that rots: one page makes no sense, and all others do."""
    with closing(sqlite3.connect(path)) as connection:
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    with open(path, "r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\x99" * page_bytes)


def test_without_a_terminal_nothing_is_booted_unless_it_is_confirmed_beforehand(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    code, _, err = command()
    assert (code, running(hypervisor)) == (2, [])
    assert "--yes" in err


@pytest.mark.parametrize(("answer", "code", "booted"), [("y", 0, ["Web01"]), ("n", 1, []), ("", 1, [])])
def test_on_a_terminal_one_question_is_asked(
    answer: str, code: int, booted: List[str], box: FilledBox, command: Command, hypervisor: LibvirtHypervisor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keep(box, "Web01")
    questions: List[str] = []

    def ask(question: str) -> str:
        questions.append(question)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", ask)
    ended, said, _ = command()
    assert ended == code
    assert running(hypervisor) == booted
    assert questions == ["Boot 1 server here (Web01)? [y/N] "]
    assert "Is the original site really down?" in said


@pytest.fixture
def living(tmp_path: Path, box: FilledBox) -> None:
    """Web01's own address answers. 127.0.0.2 is this machine, but no interface has it, so it is asked."""
    box.config.write_text(
        box.config.read_text().replace("activation: {}", "activation: {servers: {Web01: {addresses: [127.0.0.2]}}}")
    )


def records(box: FilledBox) -> List[Dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((box.state / "records").glob("*.json"))]


def test_a_server_whose_address_is_alive_is_not_booted(
    living: None, box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01"), keep(box, "Db01")
    code, out, _ = command("--yes")
    assert (code, running(hypervisor)) == (1, ["Db01"])
    assert "its own address is alive: 127.0.0.2" in out


def test_force_boots_it_and_that_is_kept_with_user_and_time(
    living: None, box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    assert command("--yes", "--force")[0] == 0
    assert running(hypervisor) == ["Web01"]
    (record,) = records(box)
    assert record["forced"] == {"Web01": "--force"}
    assert record["servers"][0]["warnings"][0]["advice"] == "booted all the same, because you said so"
    assert record["user"] and record["at"]


@pytest.mark.parametrize(("typed", "code", "booted"), [("Web01", 0, ["Db01", "Web01"]), ("", 1, ["Db01"])])
def test_on_a_terminal_its_name_must_be_typed_in(
    typed: str, code: int, booted: List[str], living: None, box: FilledBox, command: Command,
    hypervisor: LibvirtHypervisor, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keep(box, "Web01"), keep(box, "Db01")
    answers = iter([typed, "y"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert command()[0] == code
    assert running(hypervisor) == booted
    assert records(box)[0]["forced"] == ({"Web01": "its name was typed in"} if typed else {})


@pytest.mark.parametrize(("again", "code", "booted"), [("Web01", 0, ["Db01", "Web01"]), ("", 1, ["Db01"])])
def test_whoever_thinks_about_it_for_long_is_asked_again_if_the_original_came_back_meanwhile(
    again: str, code: int, booted: List[str], box: FilledBox, command: Command, hypervisor: LibvirtHypervisor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keep(box, "Web01"), keep(box, "Db01")
    questions: List[str] = []
    answers = iter(["y", again, "y"])

    def ask(question: str) -> str:
        questions.append(question)
        nodes.remember(str(box.state), "Web01", Node("an-a05n01", "127.0.0.2", "2026-11-25T00:00:00+00:00"))
        return next(answers)

    monkeypatch.setattr(activate_decide, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", ask)
    ended, out, _ = command()
    assert (ended, running(hypervisor)) == (code, booted)
    assert "While you decided, something changed" in out
    assert "node an-a05n01 (127.0.0.2)" in out
    assert questions[0].startswith("Boot 2 servers here") and len(questions) == 3


def test_servers_of_which_nobody_can_be_asked_are_named_in_json_too(box: FilledBox, command: Command) -> None:
    keep(box, "Web01")
    (warned,) = [text for text in json.loads(command("--yes", "--json")[1])["warnings"] if "address" in text]
    assert warned == "no address is known to ask for signs of life of Web01: look for yourself"
    assert warned in command("--yes")[1]


def test_a_check_asks_nobody_because_its_node_is_alive_on_every_good_day(
    living: None, box: FilledBox, command: Command
) -> None:
    keep(box, "Web01")
    assert command("--check")[0] == 0


def test_a_server_is_booted_with_less_memory_and_its_definition_stays_as_it_is(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    path = keep(box, "Web01")
    before = path.read_bytes()
    assert command("--yes", "--memory", "Web01=64M")[0] == 0
    booted = definition_of(hypervisor, "Web01")
    assert (booted.memory_bytes, requirements(path.read_text()).memory_bytes) == (64 << 20, 128 << 20)
    assert path.read_bytes() == before


def definition_of(hypervisor: LibvirtHypervisor, server: str) -> Requirements:
    return requirements(hypervisor.definition(server))


def test_a_server_that_starts_after_one_that_is_not_here_says_so_and_the_others_boot(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    box.config.write_text(
        box.config.read_text().replace("activation: {}", "activation: {servers: {Web01: {start_after: Dsn01}}}")
    )
    keep(box, "Web01"), keep(box, "Db01")
    code, out, _ = command("--yes")
    assert (code, running(hypervisor)) == (1, ["Db01"])
    assert "the configuration starts it after Dsn01, and there is no such server here" in out
    assert command("--yes", "--server", "Web01")[0] == 0


def test_a_server_that_was_started_by_hand_is_marked_when_it_is_seen(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    hypervisor.boot(keep(box, "Web01").read_text())
    code, out, _ = command("--check")
    assert (code, "it was started by hand" in out) == (0, True)
    assert command("--yes")[0] == 0
    with State.open(str(box.state), readonly=True) as state:
        assert set(state.activations()) == {"Web01"}


@pytest.fixture
def by_hand(box: FilledBox, hypervisor: LibvirtHypervisor) -> Callable[[], None]:
    """virsh create of a server that has two sets."""
    box.receive("Web01", sources(box, "Web01"), sequence=2, received_at="2026-11-19T01:02:03+00:00")
    path = keep(box, "Web01")
    return lambda: hypervisor.boot(path.read_text())


def ran_here(box: FilledBox) -> List[str]:
    """The jobs of those sets whose bytes are not what was received."""
    with State.open(str(box.state), readonly=True) as state:
        records = state.set_records()
    return [one.job_id for one in records if one.ran_here_until is not None and not any(i.digest for i in one.images)]


def marks(box: FilledBox) -> Dict[str, int]:
    with State.open(str(box.state), readonly=True) as state:
        return {server: one.sequence for server, one in state.activations().items()}


def test_a_server_that_was_started_by_hand_is_marked_with_the_set_that_it_runs_from_whatever_is_asked_for(
    box: FilledBox, command: Command, by_hand: Callable[[], None], hypervisor: LibvirtHypervisor
) -> None:
    by_hand()
    code, out, _ = command("--yes", "--sequence", "2", "Web01")
    assert (code, marks(box)) == (1, {"Web01": 1})
    assert "it runs from set 1 already, and not from set 2" in out and "virsh shutdown Web01" in out
    assert command("--yes")[0] == 0
    hypervisor.destroy("Web01")
    assert "Set 1 holds what it wrote here" in command("--release", "Web01")[1]
    assert ran_here(box) == ["job-1"]


def test_a_server_that_was_started_by_hand_from_another_set_than_its_mark_has_is_a_problem_and_both_are_known(
    box: FilledBox, command: Command, by_hand: Callable[[], None], hypervisor: LibvirtHypervisor
) -> None:
    assert command("--yes", "--sequence", "2", "Web01")[0] == 0
    assert command("--check")[0] == 0
    hypervisor.destroy("Web01")
    by_hand()
    code, out, _ = command("--yes")
    assert (code, marks(box)) == (1, {"Web01": 2})
    assert "PROBLEM: it runs from set 1, started by hand, without what it wrote to set 2" in out
    assert "to go on with set 2: virsh shutdown Web01; then anvil-activate-dr --server Web01" in out
    assert ran_here(box) == ["job-1"]
    hypervisor.destroy("Web01")
    assert command("--release", "Web01")[0] == 0
    assert ran_here(box) == ["job-2", "job-1"]


@pytest.mark.parametrize(
    ("sequence", "advice", "next_code"),
    [(1, "anvil-activate-dr --release Web01 --discard", 1), (2, "to go on with the overlays over set 2", 0)],
)
def test_a_server_that_was_started_by_hand_beside_its_overlays_is_a_problem_and_spoils_those_over_what_it_ran_on(
    box: FilledBox,
    command: Command,
    by_hand: Callable[[], None],
    hypervisor: LibvirtHypervisor,
    sequence: int,
    advice: str,
    next_code: int,
) -> None:
    overlays = Overlays(f"{box.state}-overlays", lambda argv, **unused: Completed(argv, b"", b""))
    with State.open(str(box.state)) as state:
        stored = DirectoryStore(str(box.images), state.owners).images()
        images = [(image, image.path) for image in stored if image.sequence == sequence]
        overlays.make("Web01", sequence, "2026-11-20T05:00:00+00:00", images, f"job-{sequence}")
        state.activate("Web01", sequence, "alice")
    by_hand()
    code, out, _ = command("--yes")
    said = " ".join(out.split())
    assert code == 1 and "it runs on set 1 itself, started by hand, without what it wrote to overlays over" in said
    assert advice in said and ran_here(box) == ["job-1"] and marks(box) == {"Web01": sequence}
    hypervisor.destroy("Web01")
    assert command("--check")[0] == next_code
    if sequence == 1:
        code, _, err = command("--release", "Web01", "--keep")
        assert code == 1 and "was written to since then" in err
        assert "set 1 holds what it wrote when it ran on that itself" in command("--release", "Web01", "--discard")[1]


def test_the_drift_of_a_definition_from_its_source_is_a_warning(box: FilledBox, command: Command) -> None:
    path = keep(box, "Web01")
    with State.open(str(box.state)) as state:
        state.keep_source_definition("Web01", path.read_text().replace("128</memory>", "256</memory>"))
    code, out, _ = command("--check")
    assert code == 0
    assert "its definition differs from its source's: RAM: 256 MiB at the source, 128 MiB in the definition here" in out


def test_the_list_needs_no_hypervisor(box: FilledBox, capsys: pytest.CaptureFixture[str]) -> None:
    keep(box, "Web01")
    nowhere = f"qemu+unix:///system?socket={box.state}/none"
    assert activate.main(["--config", str(box.config), "--connect", nowhere, "--list", "--json"]) == 0
    (server,) = json.loads(capsys.readouterr().out)["servers"]
    assert (server["name"], server["activated"]) == ("Web01", False)
    assert [one["sequence"] for one in server["sets"]] == [1]
    assert activate.main(["--config", str(box.config), "--connect", nowhere, "--check"]) == 1
    assert "systemctl start libvirtd" in capsys.readouterr().err


def test_json_tells_the_plan_and_what_became_of_it(box: FilledBox, command: Command) -> None:
    keep(box, "Web01")
    keep(box, "Bad01").unlink()
    code, out, err = command("--yes", "--json")
    assert code == 1
    told = {server["name"]: server for server in json.loads(out)["servers"]}
    assert told["Web01"]["state"] == "ready" and told["Web01"]["booted"]
    assert told["Web01"]["set"]["source"] == "an-a05n01"
    assert told["Bad01"]["state"] == "blocked" and not told["Bad01"]["booted"]
    assert told["Bad01"]["problems"][0]["text"] == "it has no definition"
    assert "Web01  running" in err
    assert command("--json")[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--server", "Nope01", "--check"),
        ("--sequence", "0", "--check"),
        ("--release", "Web01"),
        ("--memory", "Web01=lots", "--check"),
        ("--memory", "Nope01=1G", "--check"),
        ("--keep", "--yes"),
        ("--discard", "--yes"),
        ("--report", "file", "--check"),
        ("--overlay", "--rehearse"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    arguments: Tuple[str, ...], box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    code, _, err = command(*arguments)
    assert code == 2
    assert err.startswith("anvil-activate-dr: ")
    assert running(hypervisor) == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(["--chek"], "did you mean --check?"), (["--server"], "expected one argument"), (["--list", "--check"], "--list")],
)
def test_a_mistyped_option_says_what_was_meant_and_what_is_enough(
    typed: List[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        activate.main(typed)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert meant in said
    assert "Usually it is enough to type: anvil-activate-dr " in said
    assert len(said.splitlines()) == 2


def test_memory_for_a_server_that_is_here_but_not_asked_for_is_no_unknown_server(
    box: FilledBox, command: Command
) -> None:
    keep(box, "Web01"), keep(box, "Db01")
    code, _, err = command("--check", "--memory", "Db01=4G", "Web01")
    assert (code, "Db01 is not among those to be booted: Web01" in err) == (2, True)


@pytest.mark.parametrize("wrong", ["nan", "inf", "soon"])
def test_a_wait_without_an_end_is_refused(wrong: str, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command("--rehearse", "--wait", wrong)
    assert ended.value.code == 2
    assert f"not '{wrong}'" in capsys.readouterr().err


def test_a_terminal_that_has_no_width_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "0")
    terminal = Terminal()
    activate_view.show([Line("Web01 runs")], terminal)
    activate_view.Progress(5, terminal).phase("Web01", "running", 1.0)
    assert "Web01 runs" in terminal.getvalue()


def test_a_mistyped_server_says_which_was_meant(box: FilledBox, command: Command) -> None:
    keep(box, "Web01")
    for typed in ("web01", "Web1"):
        assert "did you mean Web01?" in command(typed, "--check")[2]
    assert "did you mean" not in command("Mail07", "--check")[2]


def test_a_server_is_named_with_or_without_the_option(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01"), keep(box, "Db01"), keep(box, "Dns01")
    assert command("Web01", "--server", "Dns01", "--yes")[0] == 0
    assert running(hypervisor) == ["Dns01", "Web01"]
    for server in ("Dns01", "Web01"):
        hypervisor.destroy(server)
    out = command("--release", "Web01", "Dns01")[1]
    assert "Web01: released" in out and "Dns01: released" in out


def test_what_a_check_came_to_is_its_last_line(box: FilledBox, command: Command) -> None:
    path = keep(box, "Web01")
    keep(box, "Db01")
    assert command("--check")[1].splitlines()[-1] == "2 of 2 servers could be booted here now."
    path.unlink()
    assert command("--check")[1].splitlines()[-1] == "1 of 2 servers could be booted here now; not Web01."
    command("--yes")
    assert command("--check", "Db01")[1].splitlines()[-1] == "1 of 1 server running here already."


def test_an_error_is_an_object_too_where_json_is_wanted(box: FilledBox, command: Command) -> None:
    code, out, err = command("--check", "--json", "--connect", "nonsense:///")
    assert code == 1
    error = json.loads(out)["error"]
    assert re.search("libvirtd is not running; start it with|libvirt is not installed", error)
    assert error in err


def test_a_libvirtd_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "sock"))
        silent.listen()
        with pytest.raises(HypervisorError, match="does not answer.*systemctl restart libvirtd"):
            connect(f"qemu+unix:///system?socket={tmp_path / 'sock'}", timeout_seconds=0.2)


def test_a_store_that_is_not_mounted_is_the_first_thing_said(box: FilledBox, command: Command) -> None:
    keep(box, "Web01")
    for image in box.images.iterdir():
        image.unlink()
    assert f"no image at all in {box.images}: is the store mounted?" in command("--check")[1]


@pytest.mark.parametrize("how", ["--check", "--list", "--yes"])
def test_a_store_whose_folder_is_gone_is_said_beside_the_servers(how: str, box: FilledBox, command: Command) -> None:
    keep(box, "Web01")
    shutil.rmtree(box.images)
    code, out, err = command(how)
    assert (code, "Web01" in out) == (1, True)
    assert "is the store mounted?" in out + err


def test_servers_are_booted_although_nothing_can_be_said(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(box, "Web01")
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stdout", full)
        monkeypatch.setattr(cli, "_forget_output", lambda: None)
        code = command("--yes")[0]
        monkeypatch.undo()
        assert (code, running(hypervisor)) == (1, ["Web01"])
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), full.fileno())  # it is flushed once more when it is closed


def test_a_closed_output_is_no_reason_to_fail(
    box: FilledBox, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(box, "Web01")
    monkeypatch.setattr("sys.stdout", None)
    assert command("--check")[0] == 0


def test_servers_whose_names_begin_alike_are_told_apart_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setattr(activate_view, "_UNFOLDED", 40)
    servers = ("Fileserver-Amsterdam", "Fileserver-Antwerp")
    rest = ("1", "2 days", "4.0 GiB", "2", "1", "lan, dmz, storage", "at once")
    activate_view.show_table(activation_text.PLAN_HEADINGS, [(("1", one, *rest), "plain") for one in servers])
    assert all(one in shown.getvalue() for one in servers)


def test_a_name_that_is_not_activated_keeps_all_from_being_released(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    command("--yes")
    hypervisor.destroy("Web01")
    code, out, _ = command("--release", "Web01", "--release", "Nope", "--json")
    assert (code, "Nope is not activated" in json.loads(out)["error"]) == (2, True)
    assert command("--release", "Web01")[0] == 0


def test_what_was_released_before_an_error_is_in_json_too(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01"), keep(box, "Db01")
    command("--yes")
    for server in ("Web01", "Db01"):
        hypervisor.destroy(server)
    with held_open(box.images / "Db01_Db01_0_1.raw"):
        code, out, _ = command("--release", "Web01", "--release", "Db01", "--json")
    told = json.loads(out)
    assert (code, list(told["released"]), "Db01" in told["error"]) == (1, ["Web01"], True)


def test_a_report_that_cannot_be_written_is_said_before_anything_is_rehearsed(
    box: FilledBox, command: Command, tmp_path: Path
) -> None:
    keep(box, "Web01")
    code, out, err = command("--rehearse", "--report", str(tmp_path / "none" / "x.html"))
    assert (code, out) == (2, "")
    assert f"there is no folder {tmp_path / 'none'}" in err


def test_ctrl_c_at_the_question_boots_nothing_and_says_so(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    keep(box, "Web01")

    def interrupted(question: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", interrupted)
    code, out, _ = command()
    assert (code, running(hypervisor)) == (130, [])
    assert out.endswith("\nNothing was booted.\n")


def test_a_box_with_nothing_on_it_says_so(box: FilledBox, command: Command) -> None:
    code, out, _ = command("--yes")
    assert code == 1
    assert "There is nothing to boot" in out


def test_a_released_server_is_not_activated_any_more(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    command("--yes")
    hypervisor.destroy("Web01")
    code, out, _ = command("--release", "Web01", "--json")
    assert (code, list(json.loads(out)["released"])) == (0, ["Web01"])
    with State.open(str(box.state), readonly=True) as state:
        assert state.activations() == {}
        (record,) = state.set_records("Web01")
    assert record.ran_here_until is not None
    assert "ran here until just now" in command("--list")[1]
    assert [image.digest for image in record.images] == ["", ""]


def damage_overlays(box: FilledBox, server: str) -> Path:
    """A manifest of overlays that was cut off."""
    manifest = Path(configuration.load(str(box.config)).overlays) / server / "overlays.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("")
    return manifest


def test_overlays_that_nobody_understands_keep_only_their_own_server_down(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01"), keep(box, "Db01")
    damage_overlays(box, "Web01")
    assert command("--check", "Db01")[0] == 0
    code, out, _ = command("--list")
    assert (code, "its overlays cannot be understood" in out) == (0, True)
    code, out, _ = command("--yes")
    assert (code, running(hypervisor)) == (1, ["Db01"])
    assert "anvil-activate-dr --release Web01 --discard" in out


def test_overlays_that_nobody_understands_are_thrown_away_when_that_is_said(box: FilledBox, command: Command) -> None:
    keep(box, "Web01")
    manifest = damage_overlays(box, "Web01")
    code, _, err = command("--release", "Web01")
    assert (code, manifest.exists()) == (1, True)
    assert "if nobody needs it: anvil-activate-dr --release Web01 --discard" in err
    code, out, _ = command("--release", "Web01", "--discard")
    assert (code, manifest.exists()) == (0, False)
    assert "Its overlays are gone" in out
    assert command("--check")[0] == 0


@pytest.mark.parametrize("wish", ["--keep", "--discard"])
def test_what_was_written_to_the_images_themselves_cannot_be_discarded(
    wish: str, box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    command("--yes")
    hypervisor.destroy("Web01")
    assert command("--release", "Web01", wish)[0] == (0 if wish == "--keep" else 2)


def test_an_image_that_is_in_use_keeps_its_server_from_being_booted_and_released(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    command("--yes")
    hypervisor.destroy("Web01")
    image = box.images / "Web01_Web01_0_1.raw"
    with held_open(image):
        code, out, _ = command("--yes")
        assert (code, running(hypervisor)) == (1, [])
        assert f"{image} is in use by" in out
        assert command("--release", "Web01")[0] == 1


def begun(box: FilledBox, server: str, purpose: Purpose, *, sequence: int) -> None:
    """A plan about the images of one set, of which nothing was done."""
    with State.open(str(box.state)) as state:
        stored = [one for one in DirectoryStore(str(box.images), state.owners).images() if one.sequence == sequence]
        steps = [JournalStep(Removal(image.owner, sequence), image.identity) for image in stored]
        state.note_failure(state.begin(server, purpose, steps), "Input/output error")


def test_an_old_set_that_cannot_be_removed_keeps_nobody_down_who_boots_another(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01"), box.receive("Web01", sources(box, "Web01"), sequence=2)
    begun(box, "Web01", "trim", sequence=2)
    code, out, _ = command("--check", "--sequence", "2", "Web01")
    assert code == 1
    assert "plan 5 (trim) for its images was begun and is not finished" in out
    assert "anvil-dr-target --forget 5" in out
    assert command("--check")[0] == 0
    assert command("--yes")[0] == 0
    assert running(hypervisor) == ["Web01"]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_cycling_that_was_begun_keeps_its_server_down_and_a_check_says_what_to_type(
    force: Tuple[str, ...], box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01"), keep(box, "Db01")
    begun(box, "Web01", "cycle", sequence=1)
    for how in ("--check", "--yes"):
        code, out, _ = command(how, *force)
        assert code == 1
        assert "plan 5 (cycle) for its images was begun and is not finished: Input/output error" in out
        assert "anvil-dr-target --recover" in out
    assert running(hypervisor) == ["Db01"]


def test_a_job_that_is_writing_at_this_moment_means_a_living_node_and_only_force_boots(
    box: FilledBox, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, "Web01")
    incomplete = box.images / "Web01_Web01_0_incomplete.raw"
    incomplete.write_bytes(b"half")
    with held_open(incomplete):
        code, out, _ = command("--yes")
        assert (code, running(hypervisor)) == (1, [])
        assert "a node is alive" in out
        assert command("--yes", "--force")[0] == 0
        assert running(hypervisor) == ["Web01"]
