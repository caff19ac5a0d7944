"""A server comes home: it ran on the DR box, and its own node's libvirt starts it with what it wrote there."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from anvil_dr import command
from anvil_dr import config as configuration
from anvil_dr.activation import boot
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.overlays import Overlays
from anvil_dr.cli import activate, wiring
from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import DemoServer, Report, definition
from anvil_dr.failback import give_back
from anvil_dr.hypervisor import LibvirtHypervisor
from anvil_dr.records.state import State
from anvil_dr.sending.job import JobOutcome
from anvil_dr.sending.send import JobSender
from anvil_dr.wire.channel import Channel
from tests.doubles.dr_box import Quiet
from tests.doubles.filled_box import FilledBox

COMMAND = Path(__file__).resolve().parents[2] / "bin" / "anvil-dr-take-back"

Reporter = Callable[[str, Callable[[], object]], Report]


def export(box: FilledBox, uri: str) -> JobOutcome:
    """What anvil-dr-export does, without ssh between the two."""
    config = configuration.load(str(box.config))
    with State.open(config.state) as state:
        store = wiring.open_store(config, state)
        overlays, places = Overlays(config.overlays, command.run), FirmwarePlaces(config.state, config.definitions)
        server = give_back.outgoing("Web01", store, state, overlays, places)
    peer = command.spawn((str(COMMAND), "Web01", "--connect", uri, "--state", str(box.state.parent / "node")))
    channel = Channel(*peer.take_pipes())
    try:
        return JobSender(channel, node="dr01", observer=Quiet()).run("back", (server,))
    finally:
        channel.close()
        peer.end(10)


def test_a_server_comes_home_with_what_it_wrote_on_the_dr_box(
    web: DemoServer,
    libvirt: PrivateLibvirt,
    hypervisor: LibvirtHypervisor,
    report: Reporter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(boot, "WATCH_SECONDS", 0.0)
    box = FilledBox(tmp_path / "box")
    box.receive("Web01", web.disks)
    box.define("Web01", definition(web), web.disks)
    here = report(
        "Web01", lambda: activate.main(["--config", str(box.config), "--connect", libvirt.uri, "--yes"])
    )
    assert here.boots == 1
    hypervisor.destroy("Web01")

    stored = tmp_path / "web.xml"
    stored.write_text(definition(web))
    libvirt.run("virsh", "-c", libvirt.uri, "define", str(stored))
    try:
        hypervisor.start("Web01")
        refused = export(box, libvirt.uri)
        assert "is running on this node" in str(refused.servers[0].error)
        hypervisor.destroy("Web01")
        done = export(box, libvirt.uri)
        assert done.succeeded
        assert done.wire_bytes < 4 << 20
        at_home = report("Web01", lambda: hypervisor.start("Web01"))
        assert (at_home.token, at_home.boots) == (web.token, 2)
        hypervisor.destroy("Web01")
    finally:
        libvirt.run("virsh", "-c", libvirt.uri, "undefine", "Web01")
