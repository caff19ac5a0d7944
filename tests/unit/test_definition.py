"""Definitions: what becomes of every golden one, and which disks, names and needs a definition has.

`DEFINITION_GOLDENS=write` writes the expected files anew; read the difference before it is committed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
from lxml import etree

from anvil_dr import definition
from anvil_dr.definition import DiskTarget, Made
from anvil_dr.errors import DefinitionError

GOLDENS = Path(__file__).resolve().parent.parent / "golden" / "definitions"
CASES = sorted(folder.name for folder in GOLDENS.iterdir())
BOOTABLE = [case for case in CASES if (GOLDENS / case / "expected.xml").exists()]
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


def job_of(case: str) -> Dict[str, Any]:
    job: Dict[str, Any] = json.loads((GOLDENS / case / "job.json").read_text())
    return job


def source_of(case: str) -> str:
    return (GOLDENS / case / "source.xml").read_text()


def expected_of(case: str) -> str:
    return (GOLDENS / case / "expected.xml").read_text()


def target_of(job: Dict[str, Any], disk: str) -> DiskTarget:
    image = f"{job['server']}_{disk}_1"
    if job["store"] == "lvm":
        return DiskTarget(f"/dev/anvil-dr/{image}", "block")
    return DiskTarget(f"/srv/dr/{image}.raw", "file")


def imageable_paths(xml: str) -> Tuple[str, ...]:
    try:
        found = definition.source_disks(definition.parse(xml))
    except DefinitionError:
        return ()
    return tuple(disk.path for disk in found if disk.imageable and disk.path is not None)


def targets_of(case: str) -> Dict[str, DiskTarget]:
    """As the node does it, unless the job says otherwise: every disk that can be imaged, by its usual name."""
    job = job_of(case)
    disks = job.get("disks")
    if disks is None:
        disks = {path: definition.disk_name(path) for path in imageable_paths(source_of(case))}
    return {path: target_of(job, name) for path, name in disks.items()}


def make(case: str) -> Made:
    job = job_of(case)
    nvram = f"/shared/definitions/nvram/{job['server']}.fd"
    return definition.make_dr_definition(
        source_of(case), job["server"], targets_of(case), job.get("left_out", ()), nvram
    )


def outcome(case: str) -> Dict[str, str]:
    """The files that a case should have, besides its source."""
    try:
        made = make(case)
    except DefinitionError as error:
        return {"expected-error.txt": f"{error}\n"}
    return {"expected.xml": made.xml, "warnings.txt": "".join(f"{warning}\n" for warning in made.warnings)}


def reviewed_files(case: str) -> Tuple[Path, ...]:
    return tuple(path for path in (GOLDENS / case).iterdir() if path.name not in ("source.xml", "job.json"))


@pytest.mark.parametrize("case", CASES)
def test_a_golden_definition_becomes_what_was_reviewed(case: str) -> None:
    now = outcome(case)
    if os.environ.get("DEFINITION_GOLDENS") == "write":
        for old in reviewed_files(case):
            old.unlink()
        for name, text in now.items():
            (GOLDENS / case / name).write_text(text)
    assert now == {path.name: path.read_text() for path in reviewed_files(case)}


def test_there_are_golden_definitions_of_both_outcomes() -> None:
    assert len(BOOTABLE) >= 10 and len(CASES) - len(BOOTABLE) >= 10


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is missing: install Debian's libvirt0 to check the goldens against it")
    return etree.RelaxNG(etree.parse(str(SCHEMA)))


@pytest.mark.parametrize("case", BOOTABLE)
def test_libvirts_own_schema_accepts_what_is_made(case: str, schema: etree.RelaxNG) -> None:
    assert schema.validate(etree.fromstring(expected_of(case))), schema.error_log


@pytest.mark.parametrize("case", BOOTABLE)
def test_every_disk_points_to_its_image_and_every_drive_is_empty(case: str) -> None:
    images = {target.path: target.kind for target in targets_of(case).values()}
    found = definition.source_disks(definition.parse(expected_of(case)))
    assert {disk.path: disk.type for disk in found if disk.is_storage} == images
    assert all(disk.path is None and disk.type == "file" for disk in found if not disk.is_storage)


@pytest.mark.parametrize("case", BOOTABLE)
def test_no_drive_is_lost(case: str) -> None:
    def drives(xml: str) -> Tuple[Tuple[str, str], ...]:
        disks = definition.source_disks(definition.parse(xml))
        return tuple((disk.device, disk.target) for disk in disks if not disk.is_storage)

    assert drives(expected_of(case)) == drives(source_of(case))


@pytest.mark.parametrize("case", BOOTABLE)
def test_what_was_made_is_made_the_same_again(case: str) -> None:
    once, job = expected_of(case), job_of(case)
    same = {target.path: target for target in targets_of(case).values()}
    again = definition.make_dr_definition(
        once, job["server"], same, (), f"/shared/definitions/nvram/{job['server']}.fd"
    )
    assert again.xml == once


@pytest.mark.parametrize("case", BOOTABLE)
def test_what_was_made_does_not_differ_from_its_source(case: str) -> None:
    left_out = job_of(case).get("left_out", ())
    assert definition.differences(source_of(case), expected_of(case), left_out) == ()


# — names —


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/dev/an-a05n01_vg0/Web01_0", "Web01_0"),
        ("/dev/mapper/vg0-web01_0", "web01_0"),
        ("/dev/mapper/an--a05n01_vg0-srv--01_0", "srv-01_0"),
        ("/dev/mapper/odd----vg-a--b--c", "a-b-c"),
        ("/dev/mapper/vg---lv", "lv"),
        ("/dev/drbd/by-res/srv01/0", "srv01_0"),
        ("/dev/drbd/by-res/srv01-web/12", "srv01-web_12"),
        ("/var/lib/libvirt/images/web01.qcow2", "web01"),
        ("/srv/images/web01.data.img", "web01.data"),
        ("/srv/images/web01", "web01"),
    ],
)
def test_a_disk_is_named_after_its_source(path: str, name: str) -> None:
    assert definition.disk_name(path) == name


@pytest.mark.parametrize(
    "path",
    [
        "/dev/sdb", "/dev/drbd0", "/dev/vg/", "/dev/vg/..", "/dev//lv", "/dev/disk/by-id/wwn-0x5000",
        "/dev/drbd/by-res/srv01", "/dev/drbd/by-res/srv01/", "/dev/drbd/by-res/srv01/0/x", "/dev/mapper/mpatha",
        "/dev/mapper/vg-lv-real", "/dev/mapper/-lv", "/dev/mapper/vg-", "/dev/mapper/vg-a/b",
        "/srv/images/", "/srv/images/.img", "/srv/images/..", "web01.img", "rbd:pool/web01", "",
    ],
)  # fmt: skip
def test_a_path_that_names_nothing_lasting_is_refused_by_name(path: str) -> None:
    with pytest.raises(DefinitionError, match="gives no disk name"):
        definition.disk_name(path)


# — disks —


def test_the_disks_of_a_server_are_told_apart_by_what_can_be_imaged() -> None:
    found = definition.source_disks(definition.parse(source_of("passed-through-left-out")))
    assert [(disk.device, disk.type, disk.path, disk.imageable) for disk in found] == [
        ("disk", "block", "/dev/drbd/by-res/Backup01/0", True),
        ("lun", "block", "/dev/disk/by-id/wwn-0x600508b1001c4d6a", False),
        ("hostdev", "scsi", "scsi:scsi_host2:0:3:0", False),
    ]


def test_a_format_that_is_not_raw_is_seen_so_that_a_node_can_refuse_it() -> None:
    (disk,) = definition.source_disks(definition.parse(source_of("qcow2-file")))
    assert (disk.format, disk.readonly, disk.shareable) == ("qcow2", False, False)


# — needs —


def test_the_needs_of_a_uefi_server_are_known_before_it_boots() -> None:
    needs = definition.requirements(expected_of("uefi-nvram-tpm"))
    assert (needs.name, needs.virt_type, needs.arch, needs.machine) == ("Win11", "kvm", "x86_64", "pc-q35-rhel9.6.0")
    assert (needs.memory_bytes, needs.vcpus, needs.emulator, needs.hugepages) == (8 << 30, 4, None, False)
    assert (needs.firmware, needs.loader) == ("efi", None)
    assert (needs.nvram, needs.nvram_template) == ("/shared/definitions/nvram/Win11.fd", None)
    assert needs.cpu is not None and (needs.cpu.mode, needs.cpu.check) == ("host-passthrough", "none")
    assert needs.tpm is not None and (needs.tpm.backend, needs.tpm.version, needs.tpm.persistent) == (
        "emulator",
        "2.0",
        True,
    )
    assert (needs.bridges, needs.networks) == ((), ("production",))
    assert [(disk.target, disk.type, disk.path) for disk in needs.disks] == [
        ("vda", "block", "/dev/anvil-dr/Win11_Win11_0_1"),
        ("sda", "file", None),
    ]
    assert [(screen.type, screen.port, screen.listen) for screen in needs.graphics] == [("vnc", None, "127.0.0.1")]


def test_the_needs_of_a_nodes_own_definition_are_readable_too() -> None:
    needs = definition.requirements(source_of("tied-to-its-host"))
    assert [(device.type, device.description, device.optional) for device in needs.hostdevs] == [
        ("usb", "usb:0x0529:0x0001", False),
        ("usb", "usb:2.7", False),
        ("pci", "pci:0000:5e:00.0", False),
    ]
    assert (needs.hugepages, needs.cpuset, needs.bridges) == (True, "8-11", ("ifn1_bridge1",))
    assert definition.requirements(source_of("uefi-nvram-tpm")).nvram == "/var/lib/libvirt/qemu/nvram/Win11_VARS.fd"


def test_a_line_number_says_where_a_need_is_written() -> None:
    xml = source_of("floppy-and-block-cd")
    lines, needs = xml.splitlines(), definition.requirements(xml)
    assert "<memory " in lines[needs.lines["memory"] - 1] and "machine=" in lines[needs.lines["machine"] - 1]
    assert [screen.port for screen in needs.graphics] == [5912]
    assert [(card.kind, card.name) for card in needs.interfaces] == [("direct", "eno2")]
    assert all("<disk " in lines[disk.line - 1] for disk in needs.disks)


@pytest.mark.parametrize(
    ("memory", "size_bytes"),
    [
        ("<memory>524288</memory>", 512 << 20),
        ("<memory unit='KiB'>524288</memory>", 512 << 20),
        ("<memory unit='k'> 524288\n</memory>", 512 << 20),
        ("<memory unit='KB'>524288</memory>", 524288000),
        ("<memory unit='bytes'>1048576</memory>", 1 << 20),
        ("<memory unit='M'>512</memory>", 512 << 20),
        ("<memory unit='GiB'>2</memory>", 2 << 30),
        ("<memory unit='GB'>2</memory>", 2 * 10**9),
        ("<memory unit='TiB'>1</memory>", 1 << 40),
    ],
)
def test_memory_is_read_in_every_unit_that_libvirt_has(memory: str, size_bytes: int) -> None:
    assert definition.requirements(f"<domain type='kvm'><name>a</name>{memory}</domain>").memory_bytes == size_bytes


def numa(memory: str, modules: str = "") -> str:
    cells = "<cell id='0' cpus='0' memory='2' unit='GiB'/>\n<cell id='1' cpus='1' memory='2097152'/>"
    return (
        f"<domain type='kvm'><name>a</name>{memory}<vcpu>2</vcpu><cpu><numa>\n{cells}</numa></cpu>"
        f"<devices>{modules}</devices></domain>"
    )


@pytest.mark.parametrize("memory", ["<memory unit='GiB'>64</memory>", "<memory unit='GiB'>1</memory>", ""])
def test_where_memory_is_split_among_numa_cells_they_say_how_much_there_is(memory: str) -> None:
    needs = definition.requirements(numa(memory))
    assert (needs.memory_bytes, needs.lines["memory"]) == (4 << 30, 2)


def test_memory_modules_are_added_to_the_cells_but_not_to_what_already_includes_them() -> None:
    kinds = ("dimm", "virtio-mem", "nvdimm")
    modules = "".join(f"<memory model='{one}'><target><size unit='GiB'>1</size></target></memory>" for one in kinds)
    total = "<memory unit='GiB'>7</memory>"
    assert definition.requirements(numa(total, modules)).memory_bytes == 6 << 30
    without = f"<domain type='kvm'><name>a</name>{total}<devices>{modules}</devices></domain>"
    assert definition.requirements(without).memory_bytes == 7 << 30


@pytest.mark.parametrize(
    "inside",
    [
        "", "<memory/>", "<memory>0</memory>", "<memory>-1</memory>", "<memory>1_000</memory>", "<memory>٣</memory>",
        "<memory unit='furlong'>1</memory>", "<memory unit='EiB'>99</memory>", "<memory>1</memory><vcpu>0</vcpu>",
        "<memory>1</memory><vcpu>two</vcpu>", "<memory>1</memory><devices><disk/></devices>",
        "<memory>1</memory><memory>2</memory>", "<memory>1</memory><cpu><numa><cell/></numa></cpu>",
        "<memory>1</memory><cpu><numa><cell memory='-1'/></numa></cpu>", "<cpu><numa><cell memory='0'/></numa></cpu>",
    ],
)  # fmt: skip
def test_needs_that_make_no_sense_are_refused(inside: str) -> None:
    with pytest.raises(DefinitionError):
        definition.requirements(f"<domain type='kvm'><name>a</name>{inside}</domain>")


# — differences —


def changed(case: str, *changes: Tuple[str, str]) -> Tuple[str, ...]:
    """How the source differs once it has changed, after its definition was made."""
    xml = source_of(case)
    for before, after in changes:
        assert before in xml
        xml = xml.replace(before, after)
    return definition.differences(xml, expected_of(case), job_of(case).get("left_out", ()))


def test_more_ram_and_cpus_at_the_source_are_told_in_words() -> None:
    case = "anvil2-rhel6-live-lvm"
    assert changed(
        case, ("<memory unit='KiB'>4194304", "<memory unit='GiB'>6"), (">2</vcpu>", ">8</vcpu>")
    ) == (
        "RAM: 6 GiB at the source, 4 GiB in the definition here",
        "virtual CPUs: 8 at the source, 2 in the definition here",
    )  # fmt: skip


def test_a_disk_and_an_interface_that_the_source_gained_are_named() -> None:
    devices = """<devices>
    <disk type='block' device='disk'><source dev='/dev/an-a05n01_vg0/Web01_2'/><target dev='vdc' bus='virtio'/></disk>
    <interface type='bridge'><mac address='52:54:00:AA:BB:CC'/><source bridge='sn_bridge1'/></interface>"""
    assert changed("anvil2-rhel6-live-lvm", ("<devices>", devices)) == (
        "disk vdc (/dev/an-a05n01_vg0/Web01_2): at the source, not in the definition here",
        "interface 52:54:00:aa:bb:cc (sn_bridge1): at the source, not in the definition here",
    )


def test_what_the_source_lost_is_named_too() -> None:
    assert changed(
        "anvil2-rhel6-live-lvm", ("<target dev='vdb' bus='virtio'/>", "<target dev='vdz' bus='virtio'/>")
    ) == (
        "disk vdz (/dev/an-a05n01_vg0/Web01_1): at the source, not in the definition here",
        "disk vdb (/dev/anvil-dr/Web01_Web01_1_1): in the definition here, not at the source",
    )


def test_machine_firmware_and_tpm_are_compared() -> None:
    assert changed(
        "uefi-nvram-tpm",
        ("rhel9.6.0", "rhel9.8.0"),
        ("<os firmware='efi'>", "<os>"),
        ("type='pflash'", "type='rom'"),
        ("type='emulator'", "type='passthrough'"),
    ) == (
        "machine type: pc-q35-rhel9.8.0 at the source, pc-q35-rhel9.6.0 in the definition here",
        "firmware: BIOS at the source, UEFI in the definition here",
        "TPM: none at the source, emulated in the definition here",
    )


def test_paths_media_and_running_state_are_no_differences() -> None:
    assert changed(
        "anvil3-live-lvm",
        (" id='12'", " id='13'"),
        ("rhel-9.4-x86_64-dvd.iso", "other.iso"),
        ("<alias name='net0'/>", "<alias name='net7'/>"),
        ("52:54:00:c7:15:e2", "52:54:00:C7:15:E2"),
        ("ifn1_bridge1", "ifn2_bridge1"),
    ) == ()  # fmt: skip


def test_a_disk_that_is_left_out_is_no_difference_but_one_that_no_longer_is() -> None:
    case = "passed-through-left-out"
    assert changed(case) == ()
    assert definition.differences(source_of(case), expected_of(case)) == (
        "lun sdb (/dev/disk/by-id/wwn-0x600508b1001c4d6a): at the source, not in the definition here",
        "passed-through device scsi:scsi_host2:0:3:0: at the source, not in the definition here",
    )
