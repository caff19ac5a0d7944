"""A real guest boots from its set on a cache drive, after the copy to the store was cut short."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable, List

import pytest

from anvil_dr.activation import boot
from anvil_dr.caching import cached_sets
from anvil_dr.caching.cached_sets import CachedImage, CachedSet
from anvil_dr.cli import activate, wiring
from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import DemoServer, Report, definition
from anvil_dr.hypervisor import LibvirtHypervisor
from anvil_dr.records.state import State
from tests.doubles.cache_drives import FolderDrives
from tests.doubles.filled_box import FilledBox

DRIVE = "/dev/sdb"

Reporter = Callable[[str, Callable[[], object]], Report]


def test_a_guest_boots_from_the_drive_rehearses_there_and_goes_on_there(
    tmp_path: Path,
    web: DemoServer,
    libvirt: PrivateLibvirt,
    hypervisor: LibvirtHypervisor,
    report: Reporter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    box = FilledBox(tmp_path / "box")
    box.receive("Web01", web.disks, received_at="2026-11-20T01:00:00+00:00")
    path = box.define("Web01", definition(web), web.disks)
    before = path.read_bytes()
    with State.open(str(box.state)) as state:
        (record,) = state.set_records("Web01")
        state.forget_images(image.identity for image in record.images)
    for image in box.images.glob("*_1.raw"):
        image.write_bytes(bytes(image.stat().st_size // 2))
        image.rename(image.with_name(image.name.replace("_1.raw", "_incomplete.raw")))

    drives = FolderDrives(tmp_path / "drives", {DRIVE: 1 << 40})
    drives.mounted[DRIVE] = str(drives.folder(DRIVE))
    images: List[CachedImage] = []
    for number, disk in enumerate(web.disks):
        file = drives.folder(DRIVE) / f"Web01_Web01_{number}_1.raw"
        shutil.copyfile(disk, file)
        images.append(
            CachedImage(f"Web01_{number}", str(disk), file.stat().st_size, "sha256:00", f"uuid-{DRIVE}", DRIVE)
        )
    cached = CachedSet("Web01", "an-a05n01", "job-9", "2026-11-21T01:00:00+00:00", tuple(images), "<domain/>")
    cached_sets.keep(str(box.state), cached, {})
    monkeypatch.setattr(wiring, "open_cache_drives", lambda config, state: drives)
    monkeypatch.setattr(boot, "WATCH_SECONDS", 0.0)

    def run(*arguments: str) -> int:
        return activate.main(["--config", str(box.config), "--connect", libvirt.uri, *arguments])

    originals = [Path(drives.folder(DRIVE) / f"Web01_Web01_{n}_1.raw").read_bytes() for n in (0, 1)]
    assert run("--check") == 0
    assert run("--rehearse", "--wait", "1") == 0, capsys.readouterr().out
    assert [Path(drives.folder(DRIVE) / f"Web01_Web01_{n}_1.raw").read_bytes() for n in (0, 1)] == originals
    said = report("Web01", lambda: run("--yes"))
    assert (said.token, said.checksum, said.boots) == (web.token, web.checksum, 1)
    (domain,) = hypervisor.active()
    assert all(one.startswith(str(drives.folder(DRIVE))) for one in domain.disk_paths)
    hypervisor.destroy("Web01")
    assert report("Web01", lambda: run("--yes")).boots == 2
    assert path.read_bytes() == before
