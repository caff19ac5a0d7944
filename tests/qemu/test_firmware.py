"""UEFI variables and a TPM that travelled with a set: the guest itself says whether they are its own."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Callable, Dict

import pytest

from anvil_dr.demo import server as demo_server
from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import Report, definition
from anvil_dr.hypervisor import LibvirtHypervisor, connect
from tests.doubles.filled_box import FilledBox

COMMAND = Path(__file__).resolve().parents[2] / "bin" / "anvil-activate-dr"
SWTPM = "/var/lib/libvirt/swtpm"
BLANK = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

Reporter = Callable[[str, Callable[[], object]], Report]


@pytest.fixture
def box(tmp_path: Path) -> FilledBox:
    return FilledBox(tmp_path / "box")


def tpm_files(libvirt: PrivateLibvirt) -> Dict[str, bytes]:
    """What is in the one folder that libvirt has made."""
    (path,) = libvirt.run("find", SWTPM, "-name", "*.permall").stdout.decode().split()
    return {f"tpm/{Path(path).name}": libvirt.run("cat", path).stdout}


def test_an_older_set_boots_with_its_own_variables_and_tpm_and_keeps_what_it_made_of_them(
    box: FilledBox, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, report: Reporter, tmp_path: Path
) -> None:
    server = demo_server.build(tmp_path / "disks", "Uefi01", uefi=True)
    nvram = tmp_path / "node.fd"
    at_home = report("Uefi01", lambda: hypervisor.boot(definition(server, nvram=nvram, tpm=True)))
    assert at_home.efi == server.token
    assert at_home.tpm
    hypervisor.destroy("Uefi01")
    older = {"nvram": nvram.read_bytes(), **tpm_files(libvirt)}
    libvirt.run("rm", "-rf", SWTPM)
    box.receive("Uefi01", server.disks, sequence=2, firmware_state=older)
    demo_server.change(server)
    box.receive("Uefi01", server.disks, firmware_state={"nvram": BLANK.read_bytes()})
    published = box.definitions / "nvram" / "Uefi01.fd"
    assert published.read_bytes() == BLANK.read_bytes()
    box.define("Uefi01", definition(server, nvram=published, tpm=True), server.disks)
    call = (str(COMMAND), "--config", str(box.config), "--connect", libvirt.uri)

    here = report("Uefi01", lambda: libvirt.run(*call, "--yes", "--sequence", "2"))

    assert (here.efi, here.tpm) == (at_home.efi, at_home.tpm)
    hypervisor.destroy("Uefi01")
    ran_with = published.read_bytes()
    assert ran_with != BLANK.read_bytes()
    told = json.loads(libvirt.run(*call, "--release", "Uefi01", "--json").stdout)
    assert "Uefi01" in told["released"]
    kept = box.state / "firmware" / "Uefi01"
    assert (kept / "job-2" / "nvram").read_bytes() == ran_with
    assert published.read_bytes() == (kept / "job-1" / "nvram").read_bytes() == BLANK.read_bytes()


def test_a_qemu_that_is_not_root_comes_to_everything_also_under_a_strict_umask(tmp_path: Path) -> None:
    """As on a real host, where the service makes folders with umask 077."""
    if os.geteuid() != 0:
        pytest.skip("a private libvirtd needs root")
    with tempfile.TemporaryDirectory(prefix="adr-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        place.chmod(0o755)
        server = demo_server.build(tmp_path / "disks", "Uefi01", uefi=True)
        before = os.umask(0o077)
        try:
            box = FilledBox(place / "box")
            box.definitions.rmdir()
            box.receive("Uefi01", server.disks, firmware_state={"nvram": BLANK.read_bytes()})
        finally:
            os.umask(before)
        for store in (place / "box", box.images):
            store.chmod(0o755)
        nvram = box.definitions / "nvram" / "Uefi01.fd"
        box.define("Uefi01", definition(server, nvram=nvram, tpm=True), server.disks)
        with PrivateLibvirt(place / "lv", qemu_user="libvirt-qemu") as libvirt, connect(libvirt.uri) as hypervisor:
            call = ("sh", "-c", 'umask 077; exec "$@"', "sh", str(COMMAND), "--config", str(box.config),
                    "--connect", libvirt.uri)  # fmt: skip
            libvirt.run(*call, "--rehearse", "--wait", "1")
            libvirt.run(*call, "--yes", "--overlay")
            hypervisor.destroy("Uefi01")
            libvirt.run(*call, "--release", "Uefi01", "--discard")
            libvirt.run(*call, "--yes")
            assert [domain.state for domain in hypervisor.active()] == ["running"]
            hypervisor.destroy("Uefi01")
            box.images.chmod(0o700)
            told = json.loads(libvirt.run(*call, "--check", "--json").stdout)
            assert f"may not pass {box.images}" in str(told["servers"][0]["warnings"])
