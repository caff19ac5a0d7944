"""The way in as it is in the field: anvil-dr-send, ssh, sshd, a key with one command, the service; all of them real."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from anvil_dr.records.state import State
from tests.doubles.ssh_box import SshBox, children_of, kill_child, wait_for, write_job


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBox]:
    box = SshBox(tmp_path_factory.mktemp("box"))
    box.add_key("node")
    box.add_key("web", allow=("Web*",))
    box.add_key("loose", options="")
    with box.listening():
        yield box


@pytest.fixture
def box(standing: SshBox) -> Iterator[SshBox]:
    """Empty, with the service at work."""
    for folder in (standing.store, standing.folder / "state", standing.folder / "definitions"):
        shutil.rmtree(folder, ignore_errors=True)
    standing.store.mkdir()
    standing.service_log.unlink(missing_ok=True)
    with standing.serving():
        yield standing


def noise(size_bytes: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def report(done: subprocess.CompletedProcess[str]) -> Dict[str, Any]:
    value: Dict[str, Any] = json.loads(done.stdout)
    return value


def outcome(done: subprocess.CompletedProcess[str], server: str) -> Dict[str, Any]:
    (found,) = [one for one in report(done)["servers"] if one["name"] == server]
    return dict(found)


def test_a_job_through_ssh_has_the_bytes_the_names_and_its_source(box: SshBox, tmp_path: Path) -> None:
    disks = {"Web01_0": noise(5_000_001, 1), "Web01_1": bytes(3 << 20) + noise(70_000, 2)}
    done = box.send("node", write_job(tmp_path / "node", {"Web01": disks}))
    assert (done.returncode, done.stderr) == (0, "")
    assert box.images() == ["Web01_Web01_0_1.raw", "Web01_Web01_1_1.raw"]
    for name, content in disks.items():
        assert box.image(f"Web01_{name}_1") == content
    with State.open(str(box.folder / "state"), readonly=True) as state:
        assert [record.source for record in state.set_records("Web01")] == [os.uname().nodename]
    assert box.logged(r"session begun peer='127\.0\.0\.1'"), "the address is sshd's word, not the node's"


def test_a_key_is_good_for_its_own_servers_and_the_others_of_the_job_are_refused(box: SshBox, tmp_path: Path) -> None:
    job = write_job(tmp_path / "node", {"Db01": {"Db01_0": noise(9000, 1)}, "Web01": {"Web01_0": noise(9000, 2)}})
    done = box.send("web", job, "--json")
    assert done.returncode == 1
    assert "this key is not allowed to send server Db01" in json.dumps(outcome(done, "Db01"))
    assert box.images() == ["Web01_Web01_0_1.raw"]
    assert box.send("node", job).returncode == 0
    assert box.images() == ["Db01_Db01_0_1.raw", "Web01_Web01_0_1.raw", "Web01_Web01_0_2.raw"]


@pytest.mark.parametrize("wanted", [("/bin/id",), ("anvil-dr-receive", "--allow", "*"), ("-s", "sftp"), ()])
def test_a_key_runs_nothing_else(box: SshBox, wanted: tuple[str, ...]) -> None:
    options = wanted[:1] if wanted[:1] == ("-s",) else ()
    done = subprocess.run(
        box.ssh("web", "-T", *options, "127.0.0.1", *wanted[len(options) :]),
        input=b"", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    # Whatever was asked for, it was the receiving that was begun, and that heard nothing.
    assert b"uid=" not in done.stdout and b"the connection was closed before the job ended" in done.stdout


def test_a_restricted_key_opens_no_port_on_the_box(box: SshBox) -> None:
    done = subprocess.run(
        box.ssh("web", "-T", "-oExitOnForwardFailure=yes", "-R0:127.0.0.1:22", "127.0.0.1"),
        input=b"", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert b"remote port forwarding failed" in done.stderr


def test_a_restricted_key_reaches_nothing_behind_the_box(box: SshBox) -> None:
    with subprocess.Popen(
        box.ssh("web", "-T", f"-W127.0.0.1:{box.port}", "127.0.0.1"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        out, errors = process.communicate(timeout=60)
    assert out == b"" and b"administratively prohibited" in errors


def test_a_restricted_key_has_no_terminal(box: SshBox) -> None:
    done = subprocess.run(
        box.ssh("web", "-tt", "127.0.0.1"), input=b"", capture_output=True, timeout=60, check=False
    )
    assert b"PTY allocation request failed" in done.stderr


def test_a_terminal_is_refused_with_what_to_do_and_is_left_as_it_was(box: SshBox) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        box.ssh("loose", "-tt", "127.0.0.1"), stdin=terminal, stdout=terminal, stderr=subprocess.STDOUT
    )
    code = process.wait(timeout=60)
    os.close(terminal)
    said = " ".join(os.read(controller, 4096).decode().split())  # it folds its lines to the terminal
    os.close(controller)
    if os.geteuid() != 0:
        assert code == 255, "an sshd that is not root has no terminals to give; test_relay.py has the refusal itself"
        return
    assert code == 2
    assert "anvil-dr-receive: standard input is a terminal; a node's ssh must be called without -t" in said


def test_an_ssh_that_dies_ends_the_session_and_the_next_job_resumes(box: SshBox, tmp_path: Path) -> None:
    job = write_job(tmp_path / "node", {"Web01": {"Web01_0": noise(4 << 20, 1)}})
    assert box.send("node", job).returncode == 0
    content = noise(96 << 20, 2)
    job = write_job(tmp_path / "node", {"Web01": {"Web01_0": content}})
    with box.sending("node", job, "--bandwidth-limit", "30M", "--compression", "none") as process:
        incomplete = box.store / "Web01_Web01_0_incomplete.raw"
        wait_for(lambda: incomplete.exists() and incomplete.stat().st_blocks > 60000, "not much has arrived")
        kill_child(process.pid, r"ssh -F")
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "run the same command again" in out + errors
    wait_for(lambda: box.logged(r"server ended .* state=failed"), "the service did not notice")
    assert box.images() == ["Web01_Web01_0_2.raw", "Web01_Web01_0_incomplete.raw"]
    done = box.send("node", job, "--json", "--compression", "none")
    assert done.returncode == 0
    assert report(done)["wire_bytes"] < (80 << 20), "what had arrived was sent again"
    assert box.image("Web01_Web01_0_1") == content


def test_a_relay_that_is_killed_ends_the_session_at_both_ends(box: SshBox, tmp_path: Path) -> None:
    job = write_job(tmp_path / "node", {"Web01": {"Web01_0": noise(64 << 20, 1)}})
    with box.sending("node", job, "--bandwidth-limit", "5M", "--compression", "none") as process:
        wait_for(lambda: box.logged("disk begun"), "the disk was not begun")
        relays = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_relay(pid, box)]
        assert len(relays) == 1
        os.kill(relays[0], signal.SIGKILL)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "the connection was closed" in out + errors
    wait_for(lambda: box.logged(r"server ended .* state=failed"), "the service did not notice")
    assert box.send("node", job).returncode == 0


def is_relay(pid: int, box: SshBox) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"receive" in arguments and str(box.config).encode() in arguments


def test_without_a_service_the_node_gets_one_clear_line(standing: SshBox, tmp_path: Path) -> None:
    job = write_job(tmp_path / "node", {"Web01": {"Web01_0": noise(9000, 1)}})
    done = standing.send("node", job)
    assert done.returncode == 1
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "does not answer" in line]
    assert len(lines) == 1 and "systemctl status anvil-dr-target" in lines[0]
    direct = subprocess.run(
        standing.ssh("node", "-T", "127.0.0.1"), input=b"", capture_output=True, timeout=60, check=False
    )
    assert direct.returncode == 1 and direct.stdout == b""
    assert re.fullmatch(rb"anvil-dr-receive: the DR service does not answer at [^\n]*\n", direct.stderr)


def test_a_service_that_is_stopped_in_the_middle_tells_the_node(standing: SshBox, tmp_path: Path) -> None:
    job = write_job(tmp_path / "node", {"Web01": {"Web01_0": noise(64 << 20, 5)}})
    with standing.serving() as service:
        with standing.sending("node", job, "--bandwidth-limit", "5M", "--compression", "none") as process:
            wait_for(lambda: bool(children_of(process.pid)), "ssh was not started")
            wait_for(lambda: standing.log().count("disk begun") > standing.log().count("server ended"), "no disk")
            service.terminate()
            out, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the DR service was stopped" in out + errors
    with standing.serving():
        assert standing.send("node", job).returncode == 0


def test_two_hundred_megabytes_cross_in_both_shapes_without_a_deadlock(box: SshBox, tmp_path: Path) -> None:
    size = 200 << 20
    content = bytearray(noise(size, 1))
    for _ in range(2):
        assert box.send("node", write_job(tmp_path / "node", {"Web01": {"Web01_0": bytes(content)}})).returncode == 0
    assert box.image("Web01_Web01_0_1") == content
    # One page of every block has changed: three questions and an answer for each of 3200 blocks, both ways at once.
    for offset in range(0, size, 65536):
        content[offset + 4096 : offset + 8192] = noise(4096, offset)
    done = box.send("node", write_job(tmp_path / "node", {"Web01": {"Web01_0": bytes(content)}}), "--json")
    assert done.returncode == 0
    assert box.image("Web01_Web01_0_1") == content
    assert report(done)["wire_bytes"] < size // 8


def test_sessions_that_share_one_ssh_connection_do_not_disturb_each_other(box: SshBox, tmp_path: Path) -> None:
    """O_NONBLOCK is set on pipes whose other ends belong to one sshd."""
    config = box.folder / "ssh_shared"
    config.write_text(
        (box.folder / "ssh_node").read_text() + f"    ControlMaster auto\n    ControlPath {tmp_path}/master\n"
    )
    master = subprocess.Popen(box.ssh("shared", "-N", "-M", "127.0.0.1", "-l", box.destination[6:].split("@")[0]))
    try:
        wait_for((tmp_path / "master").exists, "the connection did not come up")
        servers = [f"Web{number:02}" for number in range(1, 5)]
        jobs = {name: write_job(tmp_path / name, {name: {f"{name}_0": noise(20 << 20, 3)}}) for name in servers}
        running = [box.sending("shared", job) for job in jobs.values()]
        for process in running:
            with process:
                process.communicate(timeout=120)
            assert process.returncode == 0
        assert box.send("shared", jobs["Web01"]).returncode == 0
    finally:
        master.terminate()
        master.wait()
    assert (box.folder / "sshd.log").read_text().count("Starting session") >= 5
    for name in servers:
        assert box.image(f"{name}_{name}_0_1") == noise(20 << 20, 3)
