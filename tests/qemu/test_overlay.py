"""A server on overlays: its images stay as they were received until somebody decides."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Callable, List, Tuple

import pytest

from anvil_dr.activation import boot
from anvil_dr.cli import activate
from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import DemoServer, Report, definition
from anvil_dr.hypervisor import LibvirtHypervisor
from tests.doubles.filled_box import FilledBox

Activate = Callable[..., Tuple[int, str, str]]
Reporter = Callable[[str, Callable[[], object]], Report]


@pytest.fixture
def box(tmp_path: Path, web: DemoServer) -> FilledBox:
    made = FilledBox(tmp_path / "box")
    made.receive(web.name, web.disks)
    made.define(web.name, definition(web), web.disks)
    return made


@pytest.fixture
def run(
    box: FilledBox, libvirt: PrivateLibvirt, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Activate:
    monkeypatch.setattr(boot, "WATCH_SECONDS", 0.0)

    def main(*arguments: str) -> Tuple[int, str, str]:
        code = activate.main(["--config", str(box.config), "--connect", libvirt.uri, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return main


def checksums(box: FilledBox) -> List[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(box.images.glob("*.raw"))]


def test_what_a_server_wrote_on_overlays_is_thrown_away_or_put_into_its_images(
    box: FilledBox, run: Activate, report: Reporter, hypervisor: LibvirtHypervisor
) -> None:
    received = checksums(box)
    assert report("Web01", lambda: run("--yes", "--overlay")).boots == 1
    assert run("--check")[0] == 0, "it runs on what it should run on"
    code, _, err = run("--release", "Web01", "--discard")
    assert (code, "shut the server down first" in err) == (1, True)
    hypervisor.destroy("Web01")
    # Without the option too: whoever ran on overlays goes on with them.
    assert report("Web01", lambda: run("--yes")).boots == 2
    hypervisor.destroy("Web01")
    assert checksums(box) == received

    code, _, err = run("--release", "Web01")
    assert (code, "--keep" in err and "--discard" in err) == (2, True)
    assert run("--release", "Web01", "--discard")[0] == 0
    assert checksums(box) == received

    assert report("Web01", lambda: run("--yes", "--overlay")).boots == 1
    hypervisor.destroy("Web01")
    assert run("--release", "Web01", "--keep")[0] == 0
    assert checksums(box) != received
    assert list((box.state.parent / "state-overlays").iterdir()) == []
    assert report("Web01", lambda: run("--yes")).boots == 2
