"""anvil-activate-dr on real volume groups, one of them lost. libvirt's own driver for tests takes what is booted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple

import pytest

from anvil_dr import command
from anvil_dr.activation import boot
from anvil_dr.cli import activate
from anvil_dr.hypervisor import LibvirtHypervisor, connect
from anvil_dr.model import Owner
from anvil_dr.stores.lvm import LvmStore

pytestmark = pytest.mark.in_guest(drives=("200M", "200M"))

MIB = 1 << 20
RULE = Path(__file__).resolve().parents[2] / "etc" / "62-anvil-dr.rules"
URI = "test:///default"
OF_THE_DRIVER = "test"

Activate = Callable[..., Tuple[int, str]]


@pytest.fixture(scope="module", autouse=True)
def groups() -> None:
    shutil.copy(RULE, "/etc/udev/rules.d")
    command.run(("udevadm", "control", "--reload"))
    command.run(("modprobe", "dm_mod"))
    for group, drive in (("dr01_vg0", "/dev/ubda"), ("dr01_vg1", "/dev/ubdb")):
        command.run(("vgcreate", "--yes", group, drive))


@pytest.fixture
def hypervisor() -> Iterator[LibvirtHypervisor]:
    with connect(URI) as connected:
        yield connected
        for domain in connected.active():
            if domain.name != OF_THE_DRIVER:
                connected.destroy(domain.name)


def put(server: str, group: str, sequence: int) -> str:
    """An image in this group; the path that a definition says for it."""
    store = LvmStore(("dr01_vg0", "dr01_vg1"), command.run)
    owner = Owner(server, f"{server}_0")
    store.rename(store.create(owner, 4 * MIB, group), sequence)
    return store.path(owner, 1)


@pytest.fixture
def run(
    tmp_path: Path,
    hypervisor: LibvirtHypervisor,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Activate]:
    """Two servers: the newest set of each in one group, the older one in the other."""
    monkeypatch.setattr(boot, "WATCH_SECONDS", 0.0)
    definitions = tmp_path / "definitions"
    definitions.mkdir()
    for number, (server, group) in enumerate((("Web01", "dr01_vg0"), ("Db01", "dr01_vg1"))):
        path = put(server, group, 1)
        put(server, "dr01_vg1" if group == "dr01_vg0" else "dr01_vg0", 2)
        (definitions / f"{server}.xml").write_text(
            f"<domain type='test'><name>{server}</name><uuid>5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4{number}</uuid>"
            "<memory unit='MiB'>1</memory><os><type>hvm</type></os><devices><disk type='block' device='disk'>"
            f"<source dev='{path}'/><target dev='vda'/></disk></devices></domain>"
        )
    config = tmp_path / "target.yaml"

    def main(groups: str, *arguments: str) -> Tuple[int, str]:
        config.write_text(
            f"name: dr01\nstore: lvm:{groups}\ndefinitions: {definitions}\nstate: {tmp_path}/state\n"
            f"runtime: {tmp_path}/run\n"
        )
        code = activate.main(["--config", str(config), "--connect", URI, *arguments])
        return code, capsys.readouterr().out

    yield main
    command.run(("lvremove", "-y", "dr01_vg0", "dr01_vg1"))


def booted(hypervisor: LibvirtHypervisor) -> Dict[str, Tuple[str, ...]]:
    return {one.name: one.disk_paths for one in hypervisor.active() if one.name != OF_THE_DRIVER}


def test_each_server_boots_from_the_path_that_its_definition_says_whatever_group_it_lies_in(
    run: Activate, hypervisor: LibvirtHypervisor
) -> None:
    code, out = run("dr01_vg0,dr01_vg1", "--yes")
    assert code == 0, out
    assert booted(hypervisor) == {
        "Db01": ("/dev/anvil-dr/Db01_Db01_0_1",),
        "Web01": ("/dev/anvil-dr/Web01_Web01_0_1",),
    }


def test_an_older_set_is_booted_by_its_own_link(run: Activate, hypervisor: LibvirtHypervisor) -> None:
    assert run("dr01_vg0,dr01_vg1", "--yes", "--sequence", "2")[0] == 0
    assert booted(hypervisor)["Web01"] == ("/dev/anvil-dr/Web01_Web01_0_2",)


def test_a_group_that_is_missing_keeps_only_its_own_servers_down(
    run: Activate, hypervisor: LibvirtHypervisor
) -> None:
    command.run(("vgrename", "dr01_vg1", "elsewhere"))
    try:
        code, out = run("dr01_vg0,dr01_vg1", "--yes", "--json")
    finally:
        command.run(("vgrename", "elsewhere", "dr01_vg1"))
    told = json.loads(out)
    servers: Dict[str, Dict[str, object]] = {one["name"]: one for one in told["servers"]}
    warnings: List[str] = told["warnings"]
    assert any("there is no volume group dr01_vg1" in text for text in warnings)
    assert servers["Web01"]["booted"]
    assert booted(hypervisor)["Web01"] == ("/dev/anvil-dr/Web01_Web01_0_1",)
    # Its older set is in the group that is left.
    assert booted(hypervisor)["Db01"] == ("/dev/anvil-dr/Db01_Db01_0_2",)
    assert code == 0


def test_volumes_that_nobody_activated_since_the_machine_started_are_activated(
    run: Activate, hypervisor: LibvirtHypervisor
) -> None:
    command.run(("vgchange", "--activate", "n", "dr01_vg0", "dr01_vg1"))
    assert not Path("/dev/anvil-dr/Web01_Web01_0_1").exists()
    code, out = run("dr01_vg0,dr01_vg1", "--yes")
    assert code == 0, out
    assert set(booted(hypervisor)) == {"Db01", "Web01"}
