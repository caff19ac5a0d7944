"""Every reason for which a server would not boot here is found before anything is booted, and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anvil_dr.definition import requirements
from anvil_dr.ports import Domain, HostFacts, PathFacts
from anvil_dr.preflight.boot_subject import Answers, HostView, Subject
from anvil_dr.preflight.findings import Finding
from anvil_dr.preflight.preflight import check, own_domain
from anvil_dr.preflight.preflight_machine import nearest_machine
from tests.doubles.hypervisor import CAPABLE, GIB

PATH = "/dev/anvil-dr/Web01_d_1"
MISSING = PathFacts("missing")
FILE = PathFacts("file", "inode:1")
IMAGE = PathFacts("block", "block:253:3")

TEXT = """<domain type='kvm'>
  <name>Web01</name>
  <uuid>5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4c</uuid>
  <memory unit='GiB'>2</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <disk type='block' device='disk'><source dev='/dev/anvil-dr/Web01_d_1'/><target dev='vda'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/></disk>
  </devices>
</domain>
"""

VIEW = HostView(HostFacts(8, 64 * GIB, 48 * GIB), paths={PATH: IMAGE})
ABLE = Answers(capabilities=CAPABLE)


def subject(text: str = TEXT, answers: Answers = ABLE) -> Subject:
    return Subject("Web01", "/shared/definitions/Web01.xml", requirements(text), {PATH: PATH}, answers)


def with_device(device: str) -> str:
    return TEXT.replace("  </devices>", f"    {device}\n  </devices>")


def at_top(element: str) -> str:
    return TEXT.replace("  <devices>", f"  {element}\n  <devices>")


def only(text: str = TEXT, answers: Answers = ABLE, view: HostView = VIEW) -> Finding:
    (finding,) = check(subject(text, answers), view)
    return finding


def test_a_server_that_fits_has_nothing_said_of_it() -> None:
    assert check(subject(), VIEW) == ()


def test_every_problem_says_what_to_do_and_where() -> None:
    finding = only(with_device("<interface type='bridge'><source bridge='ifn1_bridge1'/></interface>"))
    assert finding.fatal
    assert finding.text == "there is no bridge ifn1_bridge1 here"
    assert finding.advice.endswith("name one that is: edit /shared/definitions/Web01.xml line 10")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace("<name>Web01", "<name>Web02"), "its definition is for a server named Web02"),
        (with_device("<emulator>/usr/libexec/qemu-kvm</emulator>"), "there is no emulator /usr/libexec/qemu-kvm here"),
        (TEXT.replace("<vcpu>2", "<vcpu>512"), "it has 512 CPUs, and this machine type takes 288"),
        (TEXT.replace("<vcpu>", "<vcpu cpuset='8-15'>"), "it is bound to the host's CPUs 8-15"),
        (at_top("<cpu mode='host-passthrough'/>"), "CPU mode host-passthrough is not possible here"),
        (at_top("<cpu mode='custom'><model>Anvil9000</model></cpu>"), "CPU model Anvil9000 is not known here"),
        (
            TEXT.replace("</os>", "<loader>/usr/share/edk2/ovmf/OVMF_CODE.fd</loader></os>"),
            "its firmware /usr/share/edk2/ovmf/OVMF_CODE.fd is not here",
        ),
        (
            TEXT.replace("</os>", "<nvram template='/usr/share/x.fd'>/shared/nvram/Web01.fd</nvram></os>"),
            "and so is their template /usr/share/x.fd",
        ),
        (
            with_device("<tpm model='tpm-crb'><backend type='emulator' version='1.2'/></tpm>"),
            "its TPM is of version 1.2, and the one here can do 2.0",
        ),
        (
            with_device("<disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sdb'/></disk>"),
            "the medium /x.iso in drive sdb is not here",
        ),
        (
            with_device("<disk type='block' device='disk'><source dev='/dev/sdz'/><target dev='vdb'/></disk>"),
            "disk vdb: there is no /dev/sdz",
        ),
        (with_device("<interface type='network'><source network='lan'/></interface>"), "no libvirt network lan here"),
        (
            with_device("<interface type='direct'><source dev='eno9'/></interface>"),
            "there is no network card eno9 here",
        ),
        (
            with_device("<interface type='user'><filterref filter='our-rules'/></interface>"),
            "there is no network filter our-rules here",
        ),
        (
            with_device(
                "<hostdev mode='subsystem' type='pci'><source>"
                "<address domain='0x0000' bus='0x3b' slot='0x00' function='0x0'/></source></hostdev>"
            ),
            "the host device pci:0000:3b:00.0 is not here",
        ),
        (at_top("<memoryBacking><hugepages/></memoryBacking>"), "it wants 2.0 GiB of huge pages, and 0 B are free"),
    ],
)
def test_what_this_host_does_not_have_is_a_problem(text: str, said: str) -> None:
    finding = only(text)
    assert said in finding.text
    assert finding.fatal and finding.advice and not finding.forceable


@pytest.mark.parametrize(
    ("text", "view"),
    [
        (
            with_device("<interface type='bridge'><source bridge='br0'/></interface>"),
            replace(VIEW, interfaces=frozenset({"br0"})),
        ),
        (
            with_device("<interface type='network'><source network='lan'/></interface>"),
            replace(VIEW, networks={"lan": True}),
        ),
        (
            with_device("<interface type='user'><filterref filter='our-rules'/></interface>"),
            replace(VIEW, filters=frozenset({"our-rules"})),
        ),
        (
            with_device("<disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sdb'/></disk>"),
            replace(VIEW, paths={PATH: IMAGE, "/x.iso": FILE}),
        ),
        (
            with_device(
                "<disk type='file' device='cdrom'><source file='/x.iso' startupPolicy='optional'/>"
                "<target dev='sdb'/></disk>"
            ),
            VIEW,
        ),
        (
            with_device("<emulator>/usr/bin/qemu-system-x86_64</emulator>"),
            replace(VIEW, paths={PATH: IMAGE, "/usr/bin/qemu-system-x86_64": FILE}),
        ),
        (at_top("<memoryBacking><hugepages/></memoryBacking>"), replace(VIEW, free_hugepages_bytes=2 * GIB)),
        (
            with_device("<hostdev type='usb'><source startupPolicy='optional'><vendor id='0x0529'/>"
                        "<product id='0x0001'/></source></hostdev>"),
            VIEW,
        ),
    ],
)  # fmt: skip
def test_what_this_host_has_is_no_problem(text: str, view: HostView) -> None:
    assert check(subject(text), view) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace("<vcpu>2", "<vcpu>16"), "it has 16 CPUs and the host 8"),
        (TEXT.replace("</os>", "<nvram>/shared/nvram/Web01.fd</nvram></os>"), "its UEFI variables"),
        (
            with_device("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"),
            "its TPM forgets everything",
        ),
    ],
)
def test_what_a_server_can_live_with_is_a_warning(text: str, said: str) -> None:
    finding = only(text)
    assert said in finding.text
    assert not finding.fatal


def test_a_network_that_is_not_started_is_a_problem_that_says_how_to_start_it() -> None:
    text = with_device("<interface type='network'><source network='lan'/></interface>")
    assert only(text, view=replace(VIEW, networks={"lan": False})).advice == "start it: virsh net-start lan"


def test_missing_cpu_features_stop_a_server_unless_it_does_not_check_them() -> None:
    cpu = "<cpu mode='custom' check='{}'><model>EPYC</model></cpu>"
    answers = replace(ABLE, cpu_problem="avx2, bmi2")
    refused, hidden = only(at_top(cpu.format("partial")), answers), only(at_top(cpu.format("none")), answers)
    assert refused.fatal and "avx2, bmi2" in refused.text
    assert not hidden.fatal and "avx2, bmi2" in hidden.text


def test_kvm_that_is_missing_is_called_by_its_name() -> None:
    error = "this host cannot run it: Emulator '/usr/bin/qemu-system-x86_64' does not support virt type 'kvm'"
    assert only(answers=Answers(platform_error=error)).text == "KVM is not available here"


def test_a_machine_type_that_is_missing_is_named_with_the_nearest_that_is_here() -> None:
    text = TEXT.replace("pc-q35-7.2", "pc-q35-rhel9.4.0")
    here = ("pc-i440fx-7.2", "pc-q35-6.2", "pc-q35-10.0", "q35")
    finding = only(text, Answers(platform_error="no such machine", machines=here))
    assert finding.text == "it wants machine type pc-q35-rhel9.4.0, which is not here; this host has pc-q35-10.0"
    assert finding.advice == "edit /shared/definitions/Web01.xml line 6 and write machine='pc-q35-10.0'"


def test_another_reason_of_the_platform_is_told_in_libvirts_words() -> None:
    error = "this host cannot run it: machine type 'pc-q35-rhel9.4.0' is not supported"
    finding = only(answers=Answers(platform_error=error))
    assert finding.text == error
    assert "Web01.xml line 6" in finding.advice


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [("pc-q35-rhel9.4.0", "pc-q35-7.2"), ("q35", "pc-q35-7.2"), ("pc-i440fx-rhel7", "pc-i440fx-6.2"), ("s390-ccw", "")],
)
def test_the_nearest_machine_is_the_newest_of_its_family(wanted: str, nearest: str) -> None:
    assert nearest_machine(wanted, ("pc-i440fx-6.2", "pc-q35-5.2", "pc-q35-7.2", "microvm")) == nearest


def test_a_pci_device_needs_an_iommu() -> None:
    text = with_device(
        "<hostdev mode='subsystem' type='pci'><source>"
        "<address domain='0x0000' bus='0x3b' slot='0x00' function='0x0'/></source></hostdev>"
    )
    there = replace(VIEW, devices=frozenset({"pci:0000:3b:00.0"}))
    assert check(subject(text), there) == ()
    assert "IOMMU is off" in only(text, view=replace(there, has_iommu=False)).text


def test_no_firmware_and_no_tpm_emulator_name_the_package() -> None:
    nothing = replace(ABLE, capabilities=replace(CAPABLE, loaders=(), tpm_backends=(), tpm_versions=()))
    uefi = TEXT.replace("<os>", "<os firmware='efi'>")
    assert "apt install ovmf" in only(uefi, nothing).advice
    tpm = with_device("<tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'/></tpm>")
    assert "apt install swtpm" in only(tpm, nothing).advice


def test_an_image_that_is_not_there_is_a_problem() -> None:
    assert only(view=replace(VIEW, paths={})).text == f"disk vda: there is no {PATH}"


def test_a_file_that_is_called_a_block_device_is_a_problem() -> None:
    finding = only(view=replace(VIEW, paths={PATH: FILE}))
    assert finding.text == f"disk vda is of type block, and {PATH} is a file"


def domain(name: str = "Other", uuid: str = "", *disks: str) -> Domain:
    return Domain(name, uuid, "running", True, disks)


def test_a_disk_under_another_name_in_a_running_domain_is_in_use() -> None:
    view = replace(VIEW, domains=(domain("Copy", "", "/dev/dm-3"),), paths={PATH: IMAGE, "/dev/dm-3": IMAGE})
    finding = only(view=view)
    assert finding.text == f"{PATH} is in use by the running domain Copy"
    assert not finding.forceable


def test_a_missing_disk_of_a_running_domain_is_not_taken_for_a_missing_one_of_ours() -> None:
    view = replace(VIEW, domains=(domain("Copy", "", "/gone"),), paths={"/gone": MISSING})
    assert [one.text for one in check(subject(), view)] == [f"disk vda: there is no {PATH}"]


def test_an_image_that_a_program_has_open_is_in_use() -> None:
    finding = only(answers=replace(ABLE, image_users={PATH: "process 7 (dd)"}))
    assert finding.text == f"{PATH} is in use by process 7 (dd)"
    assert "systemctl stop anvil-dr-target.socket anvil-dr-target" in finding.advice, "or the next node starts it again"


def test_a_name_or_a_uuid_that_another_domain_has_is_a_problem() -> None:
    same_name = only(view=replace(VIEW, domains=(domain("Web01"),)))
    assert same_name.text == "another domain named Web01 is running, on other disks"
    same_uuid = only(view=replace(VIEW, domains=(domain("Copy", "5C3B1F0A-9D1E-4B6B-8A3C-0F6A1D2E3B4C"),)))
    assert same_uuid.text == "the running domain Copy has its UUID"


def test_a_domain_that_is_defined_is_warned_of() -> None:
    finding = only(answers=replace(ABLE, defined=True))
    assert not finding.fatal
    assert "virsh undefine Web01" in finding.advice


def test_a_screen_whose_port_is_taken_is_a_problem() -> None:
    text = with_device("<graphics type='vnc' port='5901' listen='10.0.0.7'/>")
    answers = replace(ABLE, listening_problems={("10.0.0.7", 5901): "Address already in use"})
    assert only(text, answers).text == "its screen cannot be at 10.0.0.7 port 5901: Address already in use"


def test_what_only_libvirt_knows_is_told_when_nothing_else_explains_it() -> None:
    answers = replace(ABLE, dry_run_error="unsupported configuration: of some kind")
    assert only(answers=answers).text == "unsupported configuration: of some kind"
    explained = check(subject(answers=answers), replace(VIEW, paths={}))
    assert [one.text for one in explained] == [f"disk vda: there is no {PATH}"]


def test_a_domain_of_its_name_is_a_servers_own_if_it_has_its_images() -> None:
    own = domain("Web01", "", "/dev/dm-3")
    view = replace(VIEW, domains=(own,), paths={PATH: IMAGE, "/dev/dm-3": IMAGE})
    assert own_domain("Web01", [PATH], view) == own
    assert own_domain("Web02", [PATH], view) is None
    assert own_domain("Web01", ["/dev/missing"], view) is None


def test_a_folder_that_qemus_user_may_not_pass_is_a_warning_that_says_what_to_type() -> None:
    finding = only(view=replace(VIEW, closed={PATH: "/srv/dr"}))
    assert not finding.fatal
    assert finding.advice == "chmod o+x /srv/dr"
