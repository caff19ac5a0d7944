"""Everything that differs between hosts, made to differ: each is named before anything is booted, with what to do.

A real libvirt and a real QEMU are asked. What libvirt itself would say comes too late, and often in other words.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest

from anvil_dr.cli import activate
from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import DemoServer, definition
from anvil_dr.hypervisor import LibvirtHypervisor
from tests.doubles.filled_box import FilledBox

SERIAL = "<serial type='pty'/>"
PCI = "<address domain='0x0000' bus='0x3b' slot='0x00' function='0x0'/>"
CPU = "<cpu mode='custom' match='exact' check='{}'><model fallback='forbid'>{}</model></cpu><clock"
OVMF = "/usr/share/OVMF/OVMF_CODE_4M.fd"
SCREEN = "<graphics type='vnc' autoport='yes'/>"
HD = "<boot dev='hd'/>"
SOURCE = "type='file' SOURCE file="
"""Stands for a disk's type and its source, and what is between them."""

# name: (what of the definition is replaced, by what, what is said of it, what to do about it)
ROWS: Dict[str, Tuple[str, str, str, str]] = {
    "Medium": ("<target dev='sda'", "<source file='/none/x.iso'/><target dev='sda'", "medium /none/x.iso", "eject it"),
    "Disk": ("IMAGE_1", "/none/disk.raw", "disk vdb: there is no /none/disk.raw", "attach it, or remove the disk"),
    "Block": (SOURCE, "type='block' SOURCE dev=", "disk vda is of type block, and .* is a file", "Web.xml line"),
    "Bridge": (SERIAL, "<interface type='bridge'><source bridge='ifn1'/></interface>", "no bridge ifn1", "ip link add"),
    "Card": (SERIAL, "<interface type='direct'><source dev='eno9'/></interface>", "no network card eno9", "line"),
    "Filter": (SERIAL, "<interface type='user'><filterref filter='ours'/></interface>", "filter ours", "copy it"),
    "Network": (SERIAL, "<interface type='network'><source network='lan'/></interface>", "network lan", "make it"),
    "Machine": ("'q35'", "'pc-q35-rhel9.4.0'", "wants machine type pc-q35-rhel9.4.0", "Web.xml line"),
    "Emulator": ("<devices>", "<devices><emulator>/none/kvm</emulator>", "no emulator /none/kvm", "remove it"),
    "Passthrough": ("<clock", "<cpu mode='host-passthrough'/><clock", "CPU mode host-passthrough", "remove <cpu>"),
    "Model": ("<clock", CPU.format("partial", "Anvil9000"), "CPU model Anvil9000 is not known", "host-model"),
    "Partial": ("<clock", CPU.format("partial", "EPYC-Milan"), "lacks what it expects: .*pcid", "host-model"),
    "Full": ("<clock", CPU.format("full", "EPYC-Milan"), "lacks what it expects: .*pcid", "host-model"),
    "Loader": (HD, "<loader readonly='yes' type='pflash'>/none/x.fd</loader>", "/none/x.fd is not here", "OVMF_CODE"),
    "Template": (
        HD,
        f"<loader readonly='yes' type='pflash'>{OVMF}</loader><nvram template='/none/VARS.fd'>/none/x.fd</nvram>",
        "so is their template /none/VARS.fd",
        "name a template that is here",
    ),
    "Pci": (
        SERIAL,
        f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{PCI}</source></hostdev>",
        "pci:0000:3b:00.0 (is not here|cannot be passed through)",
        "remove the <hostdev>",
    ),
    "Usb": (
        SERIAL,
        "<hostdev mode='subsystem' type='usb'><source><vendor id='0x0529'/><product id='0x0001'/></source></hostdev>",
        "usb:0x0529:0x0001 is not here",
        "remove the <hostdev>",
    ),
    "Memory": ("<memory unit='MiB'>128", "<memory unit='TiB'>8", "it needs 8.0 TiB of memory", "--memory"),
    "Hugepages": ("<clock", "<memoryBacking><hugepages/></memoryBacking><clock", "of huge pages", "<memoryBacking>"),
    "Cpuset": ("<vcpu>", "<vcpu cpuset='900-901'>", "bound to the host's CPUs 900-901", "remove cpuset"),
    "Vcpus": ("<vcpu>1", "<vcpu>5000", "it has 5000 CPUs", "lower <vcpu>"),
    "Address": (SCREEN, "<graphics type='vnc' port='5999' listen='10.201.7.7'/>", "10.201.7.7 port 5999", "autoport"),
    "Port": (SCREEN, "<graphics type='vnc' port='TAKEN' listen='127.0.0.1'/>", "port .*: Address already", "autoport"),
    "Tpm": (SERIAL, "<tpm><backend type='emulator' version='3.0'/></tpm>", "version 3.0", "Web.xml line"),
    "Kind": ("type='qemu'", "type='hvf'", "it is a domain of type hvf", "Web.xml"),
    "Name": ("<name>Web<", "<name>Web02<", "is for a server named Web02", "Web.xml line"),
    "Broken": ("</devices>", "", "its definition", "Web.xml"),
}
WARNINGS: Dict[str, Tuple[str, str, str]] = {
    "Hidden": ("<clock", CPU.format("none", "EPYC-Milan"), "check='none' hides it"),
    "Forgetful": (SERIAL, "<tpm><backend type='emulator' version='2.0'/></tpm>", "its TPM forgets everything"),
    "Slow": ("<vcpu>1", "<vcpu>200", "it will be slow"),
}


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def box(tmp_path: Path) -> FilledBox:
    return FilledBox(tmp_path / "box")


@pytest.fixture
def text(box: FilledBox, tmp_path: Path) -> str:
    """Of a server that would boot, were there something on its disks."""
    disks = (tmp_path / "Web_0.img", tmp_path / "Web_1.img")
    for disk in disks:
        disk.write_bytes(bytes(1 << 20))
    box.receive("Web", disks)
    return box.define("Web", definition(DemoServer("Web", disks, "", "")), disks).read_text().replace('"', "'")


def check(
    box: FilledBox, libvirt: PrivateLibvirt, capsys: pytest.CaptureFixture[str]
) -> Tuple[int, Dict[str, object]]:
    code = activate.main(["--config", str(box.config), "--connect", libvirt.uri, "--check", "--json"])
    (server,) = json.loads(capsys.readouterr().out)["servers"]
    return code, server


def test_a_server_that_fits_has_no_problem(
    text: str, box: FilledBox, libvirt: PrivateLibvirt, capsys: pytest.CaptureFixture[str]
) -> None:
    code, server = check(box, libvirt, capsys)
    assert (code, server["state"], server["problems"]) == (0, "ready", [])


def test_a_network_filter_that_is_here_is_no_problem(
    text: str, box: FilledBox, libvirt: PrivateLibvirt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "here.xml"
    rules.write_text("<filter name='here'><rule action='accept' direction='inout'><all/></rule></filter>")
    libvirt.run("virsh", "--connect", libvirt.uri, "nwfilter-define", str(rules))
    card = SERIAL.replace("<serial", "<interface type='user'><filterref filter='here'/></interface><serial", 1)
    (box.definitions / "Web.xml").write_text(text.replace(SERIAL, card, 1))
    code, server = check(box, libvirt, capsys)
    assert (code, server["state"], server["problems"]) == (0, "ready", [])


@pytest.mark.parametrize("row", sorted(ROWS))
def test_what_this_host_lacks_is_named_before_the_boot_with_what_to_do(
    row: str, text: str, taken: int, box: FilledBox, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before, after, said, advice = ROWS[row]
    between = re.search(r"type='file'(.*?<source )file=", text, re.DOTALL)
    assert between is not None
    before, after = (one.replace(" SOURCE ", between.group(1)) for one in (before, after))
    before = before.replace("IMAGE_1", str(box.images / "Web_Web_1_1.raw"))
    problems = missing(before, after.replace("TAKEN", str(taken)), text, box, libvirt, capsys)
    assert any(re.search(said, one["text"]) and re.search(advice, one["advice"]) for one in problems), problems
    assert hypervisor.active() == ()


WITHOUT_KVM = "mount --bind /dev/null /dev/kvm 2>/dev/null || :"
WITHOUT_PACKAGES = """
mount --bind /dev/null /usr/bin/swtpm
mount -t tmpfs tmpfs /usr/share/OVMF
mount -t tmpfs tmpfs /usr/share/qemu/firmware
"""


@contextmanager
def bare(prepare: str) -> Iterator[PrivateLibvirt]:
    """A host that lacks something."""
    if os.geteuid() != 0:
        pytest.skip("a private libvirtd needs root")
    with tempfile.TemporaryDirectory(prefix="adr-", ignore_cleanup_errors=True) as folder:
        with PrivateLibvirt(Path(folder), prepare=prepare) as running:
            yield running


@pytest.fixture(scope="module")
def without_packages() -> Iterator[PrivateLibvirt]:
    with bare(WITHOUT_PACKAGES) as running:
        yield running


def missing(
    before: str, after: str, text: str, box: FilledBox, libvirt: PrivateLibvirt, capsys: pytest.CaptureFixture[str]
) -> List[Dict[str, str]]:
    """What is said to be missing for a definition with this change."""
    assert before in text
    (box.definitions / "Web.xml").write_text(text.replace(before, after, 1))
    code, server = check(box, libvirt, capsys)
    problems = server["problems"]
    assert (code, server["state"]) == (1, "blocked")
    assert isinstance(problems, list)
    return problems


@pytest.mark.parametrize(
    ("before", "after", "said", "advice"),
    [
        (SERIAL, "<tpm><backend type='emulator' version='2.0'/></tpm>", "no TPM emulator", "apt install swtpm"),
        ("<os>", "<os firmware='efi'>", "no UEFI firmware on this host", "apt install ovmf"),
    ],
)
def test_what_is_not_installed_is_named_with_its_package(
    before: str, after: str, said: str, advice: str, text: str, box: FilledBox, without_packages: PrivateLibvirt,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    problems = missing(before, after, text, box, without_packages, capsys)
    assert any(said in one["text"] and advice in one["advice"] for one in problems), problems


def test_a_host_without_kvm_is_named_with_the_module_to_load(
    text: str, box: FilledBox, capsys: pytest.CaptureFixture[str]
) -> None:
    # A libvirtd of its own: one whose /dev/kvm does not work asks QEMU again and again what it can do.
    with bare(WITHOUT_KVM) as libvirt:
        problems = missing("type='qemu'", "type='kvm'", text, box, libvirt, capsys)
    assert any(
        "KVM is not available here" in one["text"] and "load kvm_intel or kvm_amd" in one["advice"] for one in problems
    ), problems


@pytest.mark.parametrize("row", sorted(WARNINGS))
def test_what_a_server_can_live_with_is_a_warning(
    row: str, text: str, box: FilledBox, libvirt: PrivateLibvirt, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after, said = WARNINGS[row]
    assert before in text
    (box.definitions / "Web.xml").write_text(text.replace(before, after, 1))
    code, server = check(box, libvirt, capsys)
    warnings = server["warnings"]
    assert (code, server["state"]) == (0, "ready")
    assert isinstance(warnings, list)
    assert any(said in one["text"] for one in warnings), warnings


def test_a_name_and_a_uuid_that_are_taken_are_named(
    text: str, box: FilledBox, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = re.sub(r"<disk type='file' device='disk'>.*?</disk>", "", text, flags=re.DOTALL)
    hypervisor.boot(other, paused=True)
    _, server = check(box, libvirt, capsys)
    assert "another domain named Web is running" in str(server["problems"])
    hypervisor.destroy("Web")
    hypervisor.boot(other.replace("<name>Web<", "<name>Stranger<"), paused=True)
    _, server = check(box, libvirt, capsys)
    assert "the running domain Stranger has its UUID" in str(server["problems"])


def test_a_disk_that_another_domain_runs_on_is_named(
    text: str, box: FilledBox, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stranger = re.sub(r"<uuid>.*</uuid>", "", text.replace("<name>Web<", "<name>Stranger<"))
    hypervisor.boot(stranger, paused=True)
    code, server = check(box, libvirt, capsys)
    assert code == 1
    assert "is in use by the running domain Stranger" in str(server["problems"])
