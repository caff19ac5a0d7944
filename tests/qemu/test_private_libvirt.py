"""The private libvirtd leaves nothing behind and shows nothing outside."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import DemoServer, definition
from anvil_dr.errors import HypervisorError
from anvil_dr.hypervisor import connect


def using(path: Path) -> int:
    """How many processes of this machine have that file open."""
    count = 0
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            count += descriptor.resolve() == path
        except OSError:
            continue
    return count


def test_every_guest_ends_with_it_and_a_bridge_in_it_is_nowhere_else(libvirt: PrivateLibvirt, web: DemoServer) -> None:
    with tempfile.TemporaryDirectory(prefix="adr-") as folder:
        bridge = "ip link add ifn1_bridge1 type bridge"
        with PrivateLibvirt(Path(folder), prepare=bridge) as other, connect(other.uri) as hypervisor:
            hypervisor.boot(definition(web, bridge="ifn1_bridge1"), paused=True)
            assert using(web.disks[0]) == 1
            assert b"ifn1_bridge1" in other.run("ls", "/sys/class/net").stdout
            assert not Path("/sys/class/net/ifn1_bridge1").exists()
            assert b"ifn1_bridge1" not in libvirt.run("ls", "/sys/class/net").stdout
        assert using(web.disks[0]) == 0


def test_one_that_cannot_start_says_why() -> None:
    with tempfile.TemporaryDirectory(prefix="adr-") as folder:
        broken = PrivateLibvirt(Path(folder), prepare="echo the bridge is broken; false")
        with pytest.raises(HypervisorError, match="the bridge is broken"):
            broken.start()


def test_a_folder_that_is_too_deep_for_its_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="shorter directory"):
        PrivateLibvirt(tmp_path / ("d" * 100))
