"""A libvirtd of our own for each worker, and a small server to boot in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable, Iterator

import pytest

from anvil_dr.demo import server as demo_server
from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import Report, read_report
from anvil_dr.errors import HypervisorError
from anvil_dr.hypervisor import LibvirtHypervisor, connect


@pytest.fixture(scope="session")
def libvirt() -> Iterator[PrivateLibvirt]:
    if os.geteuid() != 0:
        pytest.skip("a private libvirtd needs root")
    if shutil.which("libvirtd", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("libvirt-daemon-system is not installed")
    # pytest's own folders are too deep for the path of a socket.
    with tempfile.TemporaryDirectory(prefix="adr-", ignore_cleanup_errors=True) as folder:
        with PrivateLibvirt(Path(folder)) as running:
            yield running


@pytest.fixture
def hypervisor(libvirt: PrivateLibvirt) -> Iterator[LibvirtHypervisor]:
    with connect(libvirt.uri) as connected:
        yield connected
        for domain in connected.active():
            connected.destroy(domain.name)


@pytest.fixture
def web(tmp_path: Path) -> demo_server.DemoServer:
    return demo_server.build(tmp_path / "disks", "Web01")


@pytest.fixture
def report(hypervisor: LibvirtHypervisor) -> Callable[[str, Callable[[], object]], Report]:
    """Boot a guest and return what it says. Emulation crashes once in some hundred boots: then boot once more."""

    def boot_and_listen(name: str, boot: Callable[[], object]) -> Report:
        for attempt in ("first", "last"):
            boot()
            try:
                said = read_report(hypervisor.console_text(name, " end", timeout_seconds=90))
            except HypervisorError:
                if attempt == "last" or hypervisor.state(name) not in ("gone", "crashed"):
                    raise
                continue
            assert said is not None
            return said
        raise AssertionError

    return boot_and_listen
