"""anvil-activate-dr with real guests: they boot from the store's images and say what is in them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Callable, Iterable, Set, Tuple

import pytest

from anvil_dr.activation import boot
from anvil_dr.cli import activate
from anvil_dr.definition import DiskTarget, make_dr_definition
from anvil_dr.demo import server as demo_server
from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import DemoServer, Report, definition
from anvil_dr.errors import CommandError
from anvil_dr.hypervisor import LibvirtHypervisor
from tests.doubles.dr_box import DrBox, Node
from tests.doubles.filled_box import FilledBox

ROOT = Path(__file__).resolve().parents[2]
COMMAND, README = ROOT / "bin" / "anvil-activate-dr", ROOT / "README.md"

Activate = Callable[..., Tuple[int, str, str]]
Reporter = Callable[[str, Callable[[], object]], Report]


@pytest.fixture
def box(tmp_path: Path) -> FilledBox:
    return FilledBox(tmp_path / "box")


@pytest.fixture
def run(
    box: FilledBox,
    libvirt: PrivateLibvirt,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Activate:
    monkeypatch.setattr(boot, "WATCH_SECONDS", 0.0)

    def main(*arguments: str) -> Tuple[int, str, str]:
        code = activate.main(["--config", str(box.config), "--connect", libvirt.uri, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return main


def keep(box: FilledBox, server: DemoServer, **wishes: str) -> Path:
    """Set 1 and its definition, as a job leaves them."""
    box.receive(server.name, server.disks)
    return box.define(server.name, definition(server, **wishes), server.disks)  # type: ignore[arg-type]


def defined(libvirt: PrivateLibvirt) -> bytes:
    return libvirt.run("virsh", "-q", "-c", libvirt.uri, "list", "--all", "--persistent").stdout.strip()


def test_a_server_boots_from_its_images_and_is_never_defined(
    box: FilledBox,
    web: DemoServer,
    run: Activate,
    report: Reporter,
    libvirt: PrivateLibvirt,
    hypervisor: LibvirtHypervisor,
) -> None:
    keep(box, web)
    originals = [disk.read_bytes() for disk in web.disks]
    said = report("Web01", lambda: run("--yes"))
    assert (said.token, said.checksum, said.boots) == (web.token, web.checksum, 1)
    (domain,) = hypervisor.active()
    assert not domain.persistent
    assert defined(libvirt) == b""
    assert [disk.read_bytes() for disk in web.disks] == originals


def test_the_definition_that_a_job_makes_from_a_running_server_boots_here(
    box: FilledBox, web: DemoServer, run: Activate, report: Reporter, hypervisor: LibvirtHypervisor, tmp_path: Path
) -> None:
    medium = tmp_path / "install.iso"
    medium.write_bytes(bytes(1 << 20))
    hypervisor.boot(definition(web, medium=medium), paused=True)
    source = hypervisor.definition("Web01")
    hypervisor.destroy("Web01")
    medium.unlink()
    images = box.receive("Web01", web.disks)
    targets = {str(disk): DiskTarget(str(image), "file") for disk, image in zip(web.disks, images)}
    made = make_dr_definition(source, "Web01", targets, (), None)
    (box.definitions / "Web01.xml").write_text(made.xml)
    assert report("Web01", lambda: run("--yes")).token == web.token


def test_after_a_failed_job_the_guest_reads_the_newest_complete_set_and_the_definition_is_not_touched(
    box: FilledBox, web: DemoServer, run: Activate, report: Reporter
) -> None:
    path = keep(box, web)
    box.receive("Web01", web.disks, sequence=2)
    before = path.read_bytes()
    demo_server.change(web)
    box.receive("Web01", web.disks, sequence=1)
    (box.images / "Web01_Web01_1_1.raw").rename(box.images / "Web01_Web01_1_incomplete.raw")
    said = report("Web01", lambda: run("--yes"))
    assert (said.token, said.checksum) == (web.token, web.checksum)
    assert path.read_bytes() == before


def test_the_set_that_was_asked_for_is_what_the_guest_reads(
    box: FilledBox, web: DemoServer, run: Activate, report: Reporter
) -> None:
    keep(box, web)
    box.receive("Web01", web.disks, sequence=2)
    changed = demo_server.change(web)
    box.receive("Web01", web.disks, sequence=1)
    said = report("Web01", lambda: run("--yes", "--sequence", "2"))
    assert said.token == web.token != changed.token


def test_without_the_state_database_a_server_boots_all_the_same(
    box: FilledBox, web: DemoServer, run: Activate, report: Reporter
) -> None:
    keep(box, web)
    shutil.rmtree(box.state)
    assert report("Web01", lambda: run("--yes")).token == web.token


def test_a_server_that_cannot_boot_here_does_not_stop_another(
    box: FilledBox, web: DemoServer, run: Activate, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, web)
    path = keep(box, DemoServer("Bad01", web.disks, web.token, web.checksum))
    path.write_text(path.read_text().replace("machine='q35'", "machine='pc-q35-rhel9.4.0'"))
    code, out, _ = run("--yes", "--json")
    told = {server["name"]: server for server in json.loads(out)["servers"]}
    assert (code, told["Bad01"]["state"], told["Web01"]["booted"]) == (1, "blocked", True)
    assert [domain.name for domain in hypervisor.active()] == ["Web01"]


def test_three_servers_with_an_order_are_up_in_half_a_minute_and_each_reads_its_own_disks(
    tmp_path: Path, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor
) -> None:
    # Nothing is there in this network, so nobody answers.
    order = (
        "{servers: {Dns01: {addresses: [10.255.5.11]}, Db01: {start_after: Dns01, start_delay: 3, "
        "addresses: [10.255.5.12]}, Web01: {start_after: Db01, start_delay: 2, addresses: [10.255.5.13]}}}"
    )
    box = FilledBox(tmp_path / "box", activation=order)
    servers = [demo_server.build(tmp_path / "disks", name, agent=True) for name in ("Dns01", "Db01", "Web01")]
    for server in servers:
        keep(box, server)
    call = (str(COMMAND), "--config", str(box.config), "--connect", libvirt.uri, "--yes", "--wait", "90")
    said_here = libvirt.run(*call).stdout.decode()
    record = json.loads(Path(said_here.split()[-1]).read_text())
    booted = {server["name"]: server["booted_seconds"] for server in record["servers"]}
    assert booted["Dns01"] < booted["Db01"] - 3 < booted["Web01"] - 5 < 30
    assert all(server["answered_seconds"] for server in record["servers"])
    for server in servers:
        said = demo_server.read_report(hypervisor.console_text(server.name, " end", timeout_seconds=60))
        assert said is not None
        assert (said.token, said.checksum) == (server.token, server.checksum)
    assert [server["name"] for server in record["servers"]] == ["Dns01", "Db01", "Web01"]
    assert record["user"]
    promised = README.read_text().partition("root@dr01:~# anvil-activate-dr\n")[2].partition("```")[0]
    asked = ("Is the original site", "destroys its data", "Boot 3 servers", "Record:")
    missing = _shapes(line for line in promised.splitlines() if not line.startswith(asked)) - _shapes(
        said_here.splitlines()
    )
    assert promised and missing == set(), "the README shows what the program says"


def _shapes(lines: Iterable[str]) -> Set[str]:
    """Lines without their numbers and widths; these servers are of another age, and have no network."""
    known = (line.replace("bridge_lan", "-").replace("minutes", "days") for line in lines)
    return {re.sub(r"[0-9.]+", "N", " ".join(line.split())) for line in known}


def test_an_image_that_another_domain_runs_on_is_refused_with_that_domains_name(
    box: FilledBox, web: DemoServer, run: Activate, hypervisor: LibvirtHypervisor
) -> None:
    path = keep(box, web)
    link = box.images.parent / "other-name"
    link.symlink_to(box.images / "Web01_Web01_0_1.raw")
    copy = path.read_text().replace("<name>Web01<", "<name>Copy<").replace("<uuid>", "<uuid>0", 1)
    copy = copy.replace(str(box.images / "Web01_Web01_0_1.raw"), str(link))
    hypervisor.boot(copy[: copy.index("<uuid>")] + copy[copy.index("</uuid>") + len("</uuid>") :], paused=True)
    code, out, _ = run("--yes")
    assert code == 1
    assert "is in use by the running domain Copy" in out
    assert [domain.name for domain in hypervisor.active()] == ["Copy"]


def test_what_libvirt_refuses_at_the_last_moment_fails_that_server_and_leaves_it_unmarked(
    box: FilledBox, web: DemoServer, run: Activate, hypervisor: LibvirtHypervisor
) -> None:
    path = keep(box, web)
    # Nothing but a boot finds out that this cannot be had.
    path.write_text(
        path.read_text().replace("<serial type='pty'/>", "<serial type='dev'><source path='/dev/none'/></serial>")
    )
    code, out, _ = run("--yes")
    assert code == 1
    assert "Web01  FAILED" in out
    assert hypervisor.active() == ()
    assert run("--list")[1].count("activated") == 0


def test_the_command_runs_where_the_bridges_are(box: FilledBox, web: DemoServer, libvirt: PrivateLibvirt) -> None:
    keep(box, web, bridge="lan1")
    call = (str(COMMAND), "--config", str(box.config), "--connect", libvirt.uri, "--check", "--json")
    with pytest.raises(CommandError) as refused:
        libvirt.run(*call)
    assert refused.value.returncode == 1
    assert "there is no bridge lan1 here" in refused.value.stdout.decode()
    libvirt.run("ip", "link", "add", "lan1", "type", "bridge")
    try:
        (server,) = json.loads(libvirt.run(*call).stdout)["servers"]
    finally:
        libvirt.run("ip", "link", "del", "lan1")
    assert (server["state"], server["problems"]) == ("ready", [])


def test_the_commands_of_the_paper_runbook_boot_the_servers(
    tmp_path: Path, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor
) -> None:
    box = FilledBox(
        tmp_path / "box",
        activation=f"{{connect: '{libvirt.uri}', servers: {{Web01: {{start_after: Dns01, start_delay: 1}}}}}}",
    )
    dns, web = (demo_server.build(tmp_path / "disks", name) for name in ("Dns01", "Web01"))
    keep(box, dns)
    # Of this one only an older set is complete.
    box.receive("Web01", web.disks, sequence=2)
    box.define("Web01", definition(web), web.disks)
    libvirt.run(str(COMMAND), "--config", str(box.config), "--after-job")
    text = (box.definitions / "RUNBOOK.txt").read_text()
    script = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    # This machine has no systemd to ask; what it would do is done.
    libvirt.run("sh", "-ec", f"systemctl() {{ :; }}\n{script}")
    assert [domain.name for domain in hypervisor.active()] == ["Dns01", "Web01"]
    assert defined(libvirt) == b""
    for server in (dns, web):
        said = demo_server.read_report(hypervisor.console_text(server.name, " end", timeout_seconds=90))
        assert said is not None
        assert (said.token, said.checksum) == (server.token, server.checksum)
    kept = json.loads((box.state / "check.json").read_text())
    assert (kept["problem"], kept["problems"]) == (None, {})


def test_jobs_for_an_activated_server_are_refused_until_it_is_given_back(
    box: FilledBox, web: DemoServer, run: Activate, hypervisor: LibvirtHypervisor, tmp_path: Path
) -> None:
    keep(box, web)
    run("--yes")
    node = Node(tmp_path / "node", "Web01", disks={"Web01_0": b"a day later", "Web01_1": b"and here too"})
    dr_box = DrBox(box.state.parent)
    with dr_box.running():
        refused = dr_box.send(node.outgoing())
        assert not refused.succeeded
        assert "activated on the DR box" in str(refused)
        hypervisor.destroy("Web01")
        assert not dr_box.send(node.outgoing()).succeeded, "it is marked also while it is off"
        assert run("--release", "Web01")[0] == 0
        assert dr_box.send(node.outgoing()).succeeded


def test_on_a_full_disk_servers_boot_all_the_same(
    box: FilledBox, web: DemoServer, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor
) -> None:
    keep(box, web)
    state = str(box.state)
    script = f"""
        cp -a {state} {state}.was
        mount -t tmpfs -o size=300k tmpfs {state}
        cp -a {state}.was/. {state}
        dd if=/dev/zero of={state}/filler bs=1k 2>/dev/null || :
    """
    libvirt.run("sh", "-ec", script)
    try:
        said = libvirt.run(str(COMMAND), "--config", str(box.config), "--connect", libvirt.uri, "--yes")
    finally:
        libvirt.run("umount", state)
    assert [domain.name for domain in hypervisor.active()] == ["Web01"]
    out = said.stdout.decode()
    assert "Web01: cannot be marked as activated" in out
    assert "systemctl stop anvil-dr-target.socket" in out
    assert f"Record: {box.state.parent}/run/records/" in out
