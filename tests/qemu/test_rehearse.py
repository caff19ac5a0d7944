"""Rehearsals with real guests: they come up, their images do not change, and nothing of them is left."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import pytest

from anvil_dr import command
from anvil_dr.activation import boot
from anvil_dr.cli import activate
from anvil_dr.demo import server as demo_server
from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import DemoServer, definition
from anvil_dr.hypervisor import LibvirtHypervisor
from tests.doubles.dr_box import DrBox, Node
from tests.doubles.filled_box import FilledBox

COMMAND = Path(__file__).resolve().parents[2] / "bin" / "anvil-activate-dr"
PATIENCE_SECONDS = 60.0
SIGN = r"serial: DR-READY token=\w+ sum=\w+ boots=1"

Activate = Callable[..., Tuple[int, str, str]]


@pytest.fixture
def box(tmp_path: Path, web: DemoServer) -> FilledBox:
    made = FilledBox(tmp_path / "box", activation=f"{{servers: {{Web01: {{sign_of_life: '{SIGN}'}}}}}}")
    made.receive(web.name, web.disks)
    made.define(web.name, definition(web), web.disks)
    return made


@pytest.fixture
def run(
    box: FilledBox, libvirt: PrivateLibvirt, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Activate:
    monkeypatch.setattr(boot, "WATCH_SECONDS", 0.0)

    def main(*arguments: str) -> Tuple[int, str, str]:
        code = activate.main(["--config", str(box.config), "--connect", libvirt.uri, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return main


def checksums(box: FilledBox) -> Dict[str, Tuple[str, int]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(box.images.glob("*.raw"))
    }


def left_behind(box: FilledBox) -> List[Path]:
    return list((box.state.parent / "state-overlays").glob("rehearsals/*"))


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_servers_come_up_and_their_images_do_not_change(
    box: FilledBox, run: Activate, hypervisor: LibvirtHypervisor, tmp_path: Path
) -> None:
    mail = demo_server.build(tmp_path / "disks", "Mail01", agent=True)
    box.receive("Mail01", mail.disks)
    box.define("Mail01", definition(mail, bridge="br0").replace("type='bridge'", "type='user'"), mail.disks)
    before = checksums(box)
    report = tmp_path / "report.html"
    code, out, _ = run("--rehearse", "--json", "--report", str(report))
    told = {one["name"]: one for one in json.loads(out)["servers"]}
    assert (code, told["Mail01"]["detail"]) == (0, "its guest agent answers"), out
    # The pattern has what this very server has on its disks; it was booted for the first time.
    assert told["Web01"]["detail"].startswith("it said on its serial port: DR-READY token=")
    assert all(one["seconds"] > 0 for one in told.values())
    assert checksums(box) == before
    assert hypervisor.active() == ()
    assert left_behind(box) == []
    assert report.read_text().count('src="data:image/png;base64,') == 2
    assert json.loads(run("--list", "--json")[1])["servers"][0]["activated"] is False


def test_a_real_activation_ends_a_rehearsal_and_boots(
    box: FilledBox, run: Activate, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, tmp_path: Path
) -> None:
    box.config.write_text(box.config.read_text().replace(SIGN, "serial: never said"))
    argv = (str(COMMAND), "--config", str(box.config), "--connect", libvirt.uri, "--rehearse", "--json")
    rehearsal = command.start(argv, output=tmp_path / "said")
    wait_for(lambda: [domain.name for domain in hypervisor.active()] == ["Web01-rehearsal"])
    assert run("--yes")[0] == 0
    assert rehearsal.wait(PATIENCE_SECONDS) == 1
    assert [domain.name for domain in hypervisor.active()] == ["Web01"]
    assert left_behind(box) == []
    assert '"interrupted"' in (tmp_path / "said").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_rehearsal_ends_nothing_of_it_runs_on_and_the_next_one_finds_a_clean_place(
    number: signal.Signals,
    box: FilledBox,
    run: Activate,
    libvirt: PrivateLibvirt,
    hypervisor: LibvirtHypervisor,
    tmp_path: Path,
) -> None:
    before, said = checksums(box), box.config.read_text()
    box.config.write_text(said.replace(SIGN, "serial: never said"))
    argv = (str(COMMAND), "--config", str(box.config), "--connect", libvirt.uri, "--rehearse")
    rehearsal = command.start(argv, output=tmp_path / "said")
    wait_for(hypervisor.active)
    os.kill(rehearsal.pid, number)
    rehearsal.wait(PATIENCE_SECONDS)
    wait_for(lambda: hypervisor.active() == ())
    assert checksums(box) == before
    if number != signal.SIGKILL:
        assert left_behind(box) == []
    box.config.write_text(said.replace("serial:", "serial: DR-|"))
    assert run("--rehearse")[0] == 0
    assert left_behind(box) == []


def test_a_job_for_another_server_goes_on_beside_a_rehearsal_and_one_for_its_own_ends_it(
    box: FilledBox, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, tmp_path: Path
) -> None:
    before = checksums(box)
    box.config.write_text(box.config.read_text().replace(SIGN, "serial: never said"))
    argv = (str(COMMAND), "--config", str(box.config), "--connect", libvirt.uri, "--rehearse", "--json")
    rehearsal = command.start(argv, output=tmp_path / "said")
    wait_for(hypervisor.active)
    mail = Node(tmp_path / "node", "Mail01", disks={"Mail01_0": bytes(range(256)) * 4096})
    web = Node(tmp_path / "node", "Web01", disks={"Web01_0": b"a day later", "Web01_1": b"and here too"})
    with DrBox(box.state.parent).running():
        beside = DrBox(box.state.parent)
        assert beside.send(mail.outgoing()).succeeded
        assert [domain.name for domain in hypervisor.active()] == ["Web01-rehearsal"]
        assert {name: seen for name, seen in checksums(box).items() if name.startswith("Web01")} == before
        assert beside.send(web.outgoing()).succeeded
    assert hypervisor.active() == ()
    assert rehearsal.wait(PATIENCE_SECONDS) == 1
    assert left_behind(box) == []


def test_a_rehearsal_shows_what_would_keep_a_server_down(box: FilledBox, run: Activate) -> None:
    path = box.definitions / "Web01.xml"
    path.write_text(path.read_text().replace("machine='q35'", "machine='pc-q35-rhel9.4.0'"))
    code, out, _ = run("--rehearse")
    assert code == 1
    assert "could not be booted: it wants machine type pc-q35-rhel9.4.0" in " ".join(out.split())
