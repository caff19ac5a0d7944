"""anvil-activate-dr with a complete set that is still on a cache drive, because its copy to the store was cut short."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator, Tuple

import pytest

from anvil_dr.activation import boot
from anvil_dr.activation.boot_xml import with_disk_paths
from anvil_dr.caching import cached_sets
from anvil_dr.caching.cached_sets import CachedImage, CachedSet
from anvil_dr.cli import activate, wiring
from anvil_dr.demo.server import DemoServer, definition
from anvil_dr.hypervisor import LibvirtHypervisor, connect
from anvil_dr.records.state import State
from tests.doubles.cache_drives import FolderDrives
from tests.doubles.filled_box import FilledBox

pytestmark = pytest.mark.slow

URI = "test:///default"
DRIVE = "/dev/sdb"
CONTENT = b"newest".ljust(4096, b"\0")
DIGEST = "sha256:00"

Command = Callable[..., Tuple[int, str, str]]


@pytest.fixture
def hypervisor() -> Iterator[LibvirtHypervisor]:
    with connect(URI) as connected:
        yield connected


@pytest.fixture
def box(tmp_path: Path, hypervisor: LibvirtHypervisor) -> FilledBox:
    """A server with one set in the store."""
    box = FilledBox(tmp_path / "box")
    folder = tmp_path / "node"
    folder.mkdir()
    disks = (folder / "Web01_0.img", folder / "Web01_1.img")
    for disk in disks:
        disk.write_bytes(b"older".ljust(4096, b"\0"))
    box.receive("Web01", disks, received_at="2026-11-20T01:00:00+00:00")
    box.define("Web01", definition(DemoServer("Web01", disks, "", ""), virt_type="test"), disks)
    return box


@pytest.fixture
def drives(box: FilledBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderDrives:
    """A drive, mounted, with a newer complete set; and the state that remembers it."""
    drives = FolderDrives(tmp_path / "drives", {DRIVE: 1 << 30})
    drives.mounted[DRIVE] = str(drives.folder(DRIVE))
    images = []
    for number in (0, 1):
        (drives.folder(DRIVE) / f"Web01_Web01_{number}_1.raw").write_bytes(CONTENT)
        path = str(tmp_path / "node" / f"Web01_{number}.img")
        images.append(CachedImage(f"Web01_{number}", path, 4096, DIGEST, f"uuid-{DRIVE}", DRIVE, f"{DRIVE} (USB, S1)"))
    cached = CachedSet("Web01", "an-a05n01", "job-9", "2026-11-21T01:00:00+00:00", tuple(images), "<domain/>",
                       firmware={"nvram": 4})  # fmt: skip
    cached_sets.keep(str(box.state), cached, {"nvram": b"vars"})
    monkeypatch.setattr(wiring, "open_cache_drives", lambda config, state: drives)
    return drives


@pytest.fixture
def command(box: FilledBox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(boot, "WATCH_SECONDS", 0.0)

    def run(*arguments: str) -> Tuple[int, str, str]:
        code = activate.main(["--config", str(box.config), "--connect", URI, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def cut_short(box: FilledBox) -> None:
    """The copy had begun to write."""
    with State.open(str(box.state)) as state:
        (record,) = state.set_records("Web01")
        state.forget_images(image.identity for image in record.images)
    for path in box.images.glob("*_1.raw"):
        path.rename(path.with_name(path.name.replace("_1.raw", "_incomplete.raw")))


def booted(hypervisor: LibvirtHypervisor) -> Tuple[str, ...]:
    (domain,) = [one for one in hypervisor.active() if one.name == "Web01"]
    return domain.disk_paths


@pytest.mark.parametrize("in_store", [False, True])
def test_the_newest_set_is_booted_from_its_drive_and_the_definition_stays_as_it_is(
    box: FilledBox, drives: FolderDrives, command: Command, hypervisor: LibvirtHypervisor, in_store: bool
) -> None:
    if not in_store:
        cut_short(box)
    before = (box.definitions / "Web01.xml").read_bytes()
    code, out, _ = command("--check")
    assert code == 0 and f"the cache drive that is mounted on {drives.folder(DRIVE)}" in out
    assert "cache" in command("--list")[1]
    code, out, _ = command("--yes")
    assert code == 0, out
    assert booted(hypervisor) == tuple(str(drives.folder(DRIVE) / f"Web01_Web01_{n}_1.raw") for n in (0, 1))
    assert (box.definitions / "Web01.xml").read_bytes() == before
    with State.open(str(box.state), readonly=True) as state:
        assert state.activations()["Web01"].sequence == 0
    assert "activated from its set on a cache drive" in command("--list")[1]


def test_the_set_in_the_store_is_booted_where_it_is_asked_for(
    box: FilledBox, drives: FolderDrives, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    assert command("--yes", "--sequence", "1")[0] == 0
    assert booted(hypervisor) == tuple(str(box.images / f"Web01_Web01_{n}_1.raw") for n in (0, 1))


@pytest.mark.parametrize(
    ("mountpoint", "words"),
    [(None, "mount -o nosuid,nodev,noexec /dev/sdb /mnt"), ("run/cache/sdb", "the service copies it to the store")],
)
def test_a_drive_that_is_not_mounted_to_stay_is_told_with_what_to_type(
    box: FilledBox, drives: FolderDrives, command: Command, mountpoint: str, words: str
) -> None:
    cut_short(box)
    drives.mounted.clear()
    if mountpoint is not None:
        drives.mounted[DRIVE] = str(box.images.parent / mountpoint)
    code, out, _ = command("--check")
    assert code == 1 and "it has no complete set" in out and words in " ".join(out.split())


def test_what_a_node_has_half_written_on_a_drive_that_was_carried_in_is_not_booted(
    box: FilledBox, drives: FolderDrives, command: Command
) -> None:
    (cached,) = cached_sets.of_server(str(box.state), "Web01")
    cached_sets.keep(str(box.state), replace(cached, carried=True), {})
    assert "cache" in command("--list")[1]
    path = drives.folder(DRIVE) / "Web01_Web01_0_1.raw"
    path.rename(path.with_name("Web01_Web01_0_incomplete.raw"))
    out = " ".join(command("--list")[1].split())
    assert "cache " not in out
    assert "the image of disk Web01_0 is not on" in " ".join(command("--check")[1].split())


def test_a_drive_that_was_pulled_is_named(box: FilledBox, drives: FolderDrives, command: Command) -> None:
    drives.pulled.append(DRIVE)
    code, out, _ = command("--check")
    assert code == 0, "the older set is in the store"
    assert "plug in /dev/sdb (USB, S1) to boot from it" in " ".join(out.split())


def test_a_server_that_was_started_by_hand_is_marked_with_the_set_in_the_store_that_it_runs_from(
    box: FilledBox, drives: FolderDrives, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    hypervisor.boot((box.definitions / "Web01.xml").read_text())
    assert command("--yes")[0] == 0
    with State.open(str(box.state), readonly=True) as state:
        assert state.activations()["Web01"].sequence == 1


def test_a_set_that_the_store_has_as_new_is_not_booted_from_a_drive(
    box: FilledBox, drives: FolderDrives, command: Command
) -> None:
    disks = tuple(box.images.parent.parent / "node" / f"Web01_{number}.img" for number in (0, 1))
    box.receive("Web01", disks, sequence=2, received_at="2026-11-22T01:00:00+00:00")
    (server,) = json.loads(command("--check", "--json")[1])["servers"]
    assert server["set"]["sequence"] == 1


def test_a_set_that_was_received_before_the_server_ran_here_is_booted_with_a_warning_and_nobody_has_to_look_for_it(
    box: FilledBox, drives: FolderDrives, command: Command
) -> None:
    with State.open(str(box.state)) as state:
        (record,) = state.set_records("Web01")
        state.ran_here((image.identity for image in record.images), "2026-11-22T00:00:00+00:00")
    out = " ".join(command("--check")[1].split())
    assert "before it ran here; to go on with what it wrote here: --server Web01 --sequence 1" in out
    drives.pulled.append(DRIVE)
    assert "plug in" not in command("--check")[1]


def test_what_it_wrote_goes_to_the_store_once_it_is_released(
    box: FilledBox, drives: FolderDrives, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    cut_short(box)
    assert command("--yes")[0] == 0
    hypervisor.destroy("Web01")
    (box.definitions / "nvram").mkdir(exist_ok=True)
    code, out, _ = command("--release", "Web01")
    assert code == 0 and "the service copies it to the store as its newest" in out
    (cached,) = cached_sets.of_server(str(box.state), "Web01")
    assert [image.digest for image in cached.images] == ["", ""] and cached.ran_here_until is not None
    assert cached_sets.firmware_of(str(box.state), cached) == {"nvram": b"vars"}


def test_it_is_not_called_what_was_received_once_another_set_was_booted_after_it(
    box: FilledBox, drives: FolderDrives, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    assert command("--yes")[0] == 0
    assert booted(hypervisor)[0].startswith(str(drives.root))
    hypervisor.destroy("Web01")
    assert command("--yes", "--sequence", "1")[0] == 0
    assert booted(hypervisor)[0].startswith(str(box.images))
    (cached,) = cached_sets.of_server(str(box.state), "Web01")
    assert [image.digest for image in cached.images] == ["", ""] and cached.ran_here_until is not None


def test_it_goes_on_from_the_drive_the_second_time_and_says_if_that_is_not_there(
    box: FilledBox, drives: FolderDrives, command: Command, hypervisor: LibvirtHypervisor
) -> None:
    cut_short(box)
    assert command("--yes")[0] == 0
    hypervisor.destroy("Web01")
    assert command("--yes")[0] == 0 and booted(hypervisor)[0].startswith(str(drives.root))
    hypervisor.destroy("Web01")
    drives.pulled.append(DRIVE)
    code, out, _ = command("--check")
    assert code == 1 and "it ran here from its set on a cache drive, which is not mounted now" in out


def test_the_volumes_of_a_definition_become_files() -> None:
    text = "<domain><devices><disk type='block'><source dev='/dev/anvil-dr/a_1'/></disk></devices></domain>"
    changed = with_disk_paths(text, {"/dev/anvil-dr/a_1": "/mnt/a_1.raw"}, {"/mnt/a_1.raw"})
    assert '<disk type="file"><source file="/mnt/a_1.raw"/></disk>' in changed
