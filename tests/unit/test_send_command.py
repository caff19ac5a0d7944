"""anvil-dr-send from its command line to its exit code, against a real service in this process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, List

import pytest

from anvil_dr.cli import send
from anvil_dr.cli.interruption import Interruption
from anvil_dr.sending.off_notes import OffNotes
from tests.doubles.dr_box import DrBox, Node

ROOT = Path(__file__).resolve().parents[2]


def job_file(tmp_path: Path, *servers: str) -> str:
    """A job file with these servers, a disk of 3 MiB each."""
    text = "name: nightly\nservers:\n"
    for name in servers:
        node = Node(tmp_path / f"node-{name}", name, disks={f"{name}_0": random.Random(name).randbytes(3 << 20)})
        outgoing = node.outgoing()
        (tmp_path / f"{name}.xml").write_text(outgoing.definition)
        text += f"  - name: {name}\n    definition: {name}.xml\n    disks:\n"
        text += "".join(f"      - {{name: {disk.name}, path: {disk.path}}}\n" for disk in outgoing.disks)
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return str(path)


def to(box: DrBox) -> List[str]:
    return ["--to", f"unix:{box.config.socket}"]


def test_a_job_file_is_sent_and_reported_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = DrBox(tmp_path)
    with box.running():
        assert send.main([*to(box), "--job", job_file(tmp_path, "Web01", "Db01")]) == 0
    assert box.names() == ["Db01_Db01_0_1.raw", "Web01_Web01_0_1.raw"]
    said = capsys.readouterr()
    assert "Web01: complete: 1 disk, 3.0 MiB" in said.out and "2 of 2 servers complete" in said.out
    assert "Web01 Web01_0: 3.0 MiB\n" in said.err


def test_json_is_all_that_is_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = DrBox(tmp_path)
    with box.running() as target:
        target.state.activate("Db01", 1, "root")
        assert send.main([*to(box), "--json", "--no-progress", "--job", job_file(tmp_path, "Web01", "Db01")]) == 1
    report: Any = json.loads(capsys.readouterr().out)
    assert report["target"] == "dr01" and report["job_id"] and report["wire_bytes"] > 3 << 20
    web, db = report["servers"]
    assert (web["state"], web["error"], web["downtime_seconds"]) == ("succeeded", None, None)
    assert web["wire_bytes"] > 3 << 20 and web["written_bytes"] == 3 << 20
    assert (db["state"], db["code"]) == ("failed", "ServerActivated") and "--release Db01" in db["error"]


def test_a_box_that_is_not_there_fails_every_server_with_one_clear_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--to", f"unix:{tmp_path}/none", "--json", "--job", job_file(tmp_path, "Web01", "Db01")]
    assert send.main(arguments) == 1
    report: Any = json.loads(capsys.readouterr().out)
    assert [(server["code"], server["state"]) for server in report["servers"]] == [("Service", "failed")] * 2
    assert "nobody listens" in report["servers"][0]["error"] and report["job_id"] is None


def test_a_disk_that_is_not_there_fails_its_server_and_the_other_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box, path = DrBox(tmp_path), job_file(tmp_path, "Web01", "Db01")
    (tmp_path / "node-Db01" / "Db01_0.img").unlink()
    with box.running():
        assert send.main([*to(box), "--job", path]) == 1
    assert "Db01: FAILED: cannot open" in capsys.readouterr().out
    assert box.names() == ["Web01_Web01_0_1.raw"]


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("none", "none: No such file or directory. Mount the drive there first"), (".", "there is no .dr_cache in it")],
)
def test_a_folder_that_is_no_drive_fails_every_server_and_says_once_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, reason: str
) -> None:
    arguments = ["--to", f"drive:{tmp_path}/{folder}", "--job", job_file(tmp_path, "Web01", "Db01"), "--no-progress"]
    assert send.main(arguments) == 1
    said = capsys.readouterr()
    assert said.out.count(reason) == 1 and "Web01 and Db01: FAILED" in said.out
    assert "run the same command again" not in said.out and said.err == ""
    assert send.main([*arguments, "--json"]) == 1
    report: Any = json.loads(capsys.readouterr().out)
    assert [server["code"] for server in report["servers"]] == ["DriveRefused", "DriveRefused"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--to", "dr01", "Web01"], "'dr01' (it must be ssh://[user@]host[:port], unix:PATH or drive:FOLDER)"),
        (["--to", "ssh://dr01"], "give either servers or --job FILE"),
        (["--to", "ssh://dr01", "Web01", "--job", "job.yaml"], "give either servers or --job FILE"),
        (["--to", "ssh://dr01", "--job", "job.yaml", "--shutdown"], "--shutdown is for servers that libvirt has"),
        (["--to", "ssh://dr01", "--job", "job.yaml", "--leave-out", "/dev/sdq"], "--leave-out is for servers"),
        (["--to", "ssh://dr01", "--job", "/none/job.yaml"], "/none/job.yaml: cannot be read"),
        (["--to", "ssh://dr01", "--job", "x", "--bandwidth-limit", "fast"], "not a rate: 'fast'"),
    ],
)
def test_a_command_that_makes_no_sense_is_exit_code_2(
    arguments: List[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send.main(arguments) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--to"], ["--to", "ssh://dr01", "Web01", "--shutdown-timeout", "nan"]])
def test_options_that_cannot_be_parsed_are_exit_code_2(arguments: List[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        send.main(arguments)
    assert ending.value.code == 2


def test_a_libvirt_that_is_not_there_is_said_once_for_each_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--to", f"unix:{tmp_path}/none", "--json", "--connect", f"qemu+unix:///system?socket={tmp_path}/none"]
    assert send.main([*arguments, "Web01"]) == 1
    report: Any = json.loads(capsys.readouterr().out)
    assert report["servers"][0]["code"] == "Hypervisor" and "libvirtd" in report["servers"][0]["error"]


NODE = """<node><domain type='test'>
  <name>Web01</name><memory>8192</memory><os><type>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver type='raw'/><source file='{image}'/><target dev='vda'/></disk>
  </devices>
  <test:runstate xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>5</test:runstate>
</domain></node>"""


@pytest.mark.parametrize("trouble", ["no DR box", "no disk"])
def test_a_server_that_a_killed_run_left_off_is_started_whatever_keeps_this_job_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    """Libvirt's test driver has a server that is off."""
    image, libvirt = tmp_path / "Web01_0.img", tmp_path / "node.xml"
    libvirt.write_text(NODE.format(image=image))
    if trouble != "no disk":
        image.write_bytes(bytes(4096))
    OffNotes(str(tmp_path)).keep("Web01", "<domain/>", transient=False)
    (tmp_path / "Web01.log").write_text("2026-01-02 03:04:05.678+0000: starting up libvirt version: 9.0.0\n")
    arguments = ["--to", f"unix:{tmp_path}/none", "--connect", f"test://{libvirt}", "--state", str(tmp_path)]
    arguments += ["--libvirt-log", str(tmp_path)]
    assert send.main([*arguments, "Web01"]) == 1
    said = capsys.readouterr()
    assert "Web01: FAILED" in said.out and "it is started now" in said.err and "Web01: runs again" in said.err
    assert OffNotes(str(tmp_path)).of("Web01") is None


def test_the_stub_in_bin_runs_it() -> None:
    done = subprocess.run([ROOT / "bin" / "anvil-dr-send", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("anvil-dr-send ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_abandons_the_session_and_raises_nothing(number: signal.Signals) -> None:
    before, abandoned = signal.getsignal(number), []
    with Interruption() as interruption:
        interruption.watch(lambda: abandoned.append(number))
        assert not interruption
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption and interruption.by is number
    assert len(abandoned) == 2 and signal.getsignal(number) is before


def test_a_signal_that_comes_before_there_is_a_session_ends_it_at_once() -> None:
    abandoned: List[bool] = []
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        interruption.watch(lambda: abandoned.append(True))
    assert abandoned == [True]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption
    finally:
        signal.signal(signal.SIGHUP, before)


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from anvil_dr.cli import progress, send
progress.Silent.disk_advanced = lambda *what: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(send.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_an_interrupted_job_says_so_and_the_next_one_finishes(tmp_path: Path) -> None:
    box, path = DrBox(tmp_path), job_file(tmp_path, "Web01", "Db01")
    image = tmp_path / "node-Web01" / "Web01_0.img"
    image.write_bytes(random.Random(1).randbytes(60 << 20))
    with box.running() as target:
        program = [sys.executable, "-c", INTERRUPTED.format(root=str(ROOT))]
        arguments = [*to(box), "--no-progress", "--json", "--job", path]
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")
        report = json.loads(done.stdout)
        assert [server["error"] for server in report["servers"]] == ["interrupted by SIGTERM"] * 2
        assert box.names() == ["Web01_Web01_0_incomplete.raw"]
        while target.jobs():
            time.sleep(0.1)  # it notices in its own time
        assert target.state.last_jobs()["Web01"].error == "the node gave up: interrupted by SIGTERM"
        assert send.main([*to(box), "--no-progress", "--job", path]) == 0
    assert box.image("Web01_Web01_0_1") == image.read_bytes()
