"""The paper runbook: every command in its order, and for each server either how to boot it or why not."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import List

import pytest

from anvil_dr import config as configuration
from anvil_dr.activation import life_signs, nodes, runbook_file
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.runbook import Kept, Runbook
from anvil_dr.activation.survey import survey
from anvil_dr.cli import wiring
from anvil_dr.demo.server import DemoServer, definition
from anvil_dr.records.state import State
from tests.doubles.filled_box import FilledBox

ORDER = "{servers: {Web01: {start_after: Db01, start_delay: 30, addresses: [10.255.4.10]}}}"
NOW = "2026-11-20T10:00:00+00:00"


@pytest.fixture
def box(tmp_path: Path) -> FilledBox:
    return FilledBox(tmp_path / "box", activation=ORDER)


def keep(box: FilledBox, server: str, *, sequence: int = 1, **firmware: bytes) -> Path:
    folder = box.images.parent / "node"
    folder.mkdir(exist_ok=True)
    disks = (folder / f"{server}_0.img", folder / f"{server}_1.img")
    for disk in disks:
        disk.write_bytes(bytes(4096))
    box.receive(server, disks, sequence=sequence, firmware_state=firmware)
    return box.define(server, definition(DemoServer(server, disks, "", "")), disks)


def write(box: FilledBox) -> str:
    config = configuration.load(str(box.config))
    with State.open(str(box.state)) as state:
        store = wiring.open_store(config, state)
        seen = survey(store, state, config.definitions)
        places = FirmwarePlaces(config.state, config.definitions)
        path = runbook_file.write(config, seen, store, places, NOW)
    assert path == str(box.definitions / "RUNBOOK.txt")
    return Path(path).read_text()


def commands(text: str) -> List[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def test_the_commands_are_in_the_order_in_which_they_are_typed(box: FilledBox) -> None:
    web, db = keep(box, "Web01"), keep(box, "Db01")
    nodes.remember(str(box.state), "Web01", life_signs.Node("an-a05n01", "10.201.10.1", NOW))
    found = commands(write(box))
    assert found == [
        "ping -c 1 -W 2 10.201.10.1 || true   # node an-a05n01",
        "ping -c 1 -W 2 10.255.4.10 || true   # server Web01",
        "systemctl stop anvil-dr-target.socket anvil-dr-target.service",
        "systemctl start libvirtd",
        f"virsh create {db}",
        "sleep 30",
        f"virsh create {web}",
        "virsh list --all",
    ]


def test_lines_for_a_reader_fit_on_paper(box: FilledBox) -> None:
    keep(box, "Web01")
    assert [line for line in write(box).splitlines() if len(line) > 80 and not line.startswith("    ")] == []


def test_an_older_set_is_booted_from_a_copy_of_the_definition(box: FilledBox, tmp_path: Path) -> None:
    path = keep(box, "Web01", sequence=2, nvram=b"of set 2")
    before = path.read_text()
    # A path that only begins like one of the images' must stay as it is.
    path.write_text(before.replace("</devices>", f"<!-- {box.images}/Web01_Web01_0_1.raw2 --></devices>"))
    found = commands(write(box))
    assert f"cp {box.state}/firmware/Web01/job-2/nvram {box.definitions}/nvram/Web01.fd" in found
    edit = next(line for line in found if line.startswith("sed "))
    target = str(tmp_path / "copy.xml")
    subprocess.run(["sh", "-ec", edit.replace("/run/anvil-dr-by-hand/Web01.xml", target)], check=True)
    changed = Path(target).read_text()
    assert changed.count(f"{box.images}/Web01_Web01_0_2.raw\"") == 1
    assert changed.count(f"{box.images}/Web01_Web01_1_2.raw\"") == 1
    assert f"{box.images}/Web01_Web01_0_1.raw2" in changed
    assert "virsh create /run/anvil-dr-by-hand/Web01.xml" in found


def test_a_server_that_cannot_be_booted_says_why(box: FilledBox) -> None:
    keep(box, "Web01").unlink()
    text = write(box)
    assert "  Web01: it has no definition" in text
    assert not any("create" in line for line in commands(text))


def test_a_server_that_was_activated_boots_what_it_ran_from(box: FilledBox) -> None:
    keep(box, "Web01")
    keep(box, "Web01", sequence=2)
    with State.open(str(box.state)) as state:
        state.activate("Web01", 2, "alice")
    text = write(box)
    assert "It was activated on" in text
    assert "_2.raw" in text


def test_volume_groups_are_activated_and_another_hypervisor_is_named() -> None:
    config = configuration.parse(
        "store: lvm:dr01_vg0,dr01_vg1\nactivation: {connect: 'qemu+unix:///system?socket=/x y'}", "t.yaml"
    )
    found = commands(Runbook(runbook_file.setting(config), (), (), lambda owner, sequence: "", {}, {}).text(NOW))
    assert "vgchange --activate y dr01_vg0" in found and "vgchange --activate y dr01_vg1" in found
    assert "virsh --connect 'qemu+unix:///system?socket=/x y' list --all" in found


def test_the_state_of_a_tpm_is_put_where_libvirt_looks_for_it(box: FilledBox) -> None:
    keep(box, "Web01")
    config = configuration.load(str(box.config))
    with State.open(str(box.state)) as state:
        store = wiring.open_store(config, state)
        seen = survey(store, state, config.definitions)
    kept = {("Web01", "job-1"): Kept(None, "/state/tpm", "/var/lib/libvirt/swtpm/x/tpm2")}
    found = commands(Runbook(runbook_file.setting(config), seen.servers, seen.images, store.path, {}, kept).text(NOW))
    assert found.index("cp /state/tpm/* /var/lib/libvirt/swtpm/x/tpm2/") == found.index(
        "mkdir -p /var/lib/libvirt/swtpm/x/tpm2"
    ) + 1


def test_a_runbook_that_cannot_be_written_fails_nothing(box: FilledBox) -> None:
    config = configuration.load(str(box.config))
    box.definitions.rmdir()
    box.definitions.write_text("a file where the folder belongs")
    with State.open(str(box.state)) as state:
        store = wiring.open_store(config, state)
        seen = survey(store, state, str(box.state))
        places = FirmwarePlaces(config.state, config.definitions)
        assert runbook_file.write(config, seen, store, places, NOW) == ""
