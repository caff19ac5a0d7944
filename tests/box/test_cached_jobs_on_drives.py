"""Jobs with one copy onto real cache drives: hot-plugged SCSI drives with a model and a serial, pulled while they are
written to, and volume groups that are none the worse for it."""

from __future__ import annotations

import logging
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Dict, Iterator, List, Optional

import pytest

from anvil_dr import command
from anvil_dr.cache.watch import DriveWatch
from anvil_dr.caching import cached_copy
from anvil_dr.cli import wiring
from anvil_dr.errors import AnvilDrError
from anvil_dr.receiving.target import Target
from tests.doubles.dr_box import DrBox, Node, Quiet

pytestmark = pytest.mark.in_guest(drives=("200M", "128M"), memory="768M")

MIB = 1 << 20
RULE = Path(__file__).resolve().parents[2] / "etc" / "99-anvil-dr.rules"
CORE = Path("/sys/kernel/config/target/core/iblock_0/cache1")
PORT = Path("/sys/kernel/config/target/loopback/naa.5001405000000001/tpgt_1")


def run(*argv: str) -> str:
    return command.run(argv, timeout_seconds=300).stdout.decode()


def disks(seed: int) -> Dict[str, bytes]:
    content = random.Random(seed)
    return {
        "Web01_0": content.randbytes(9 * MIB) + bytes(3 * MIB) + content.randbytes(70_001),
        "Web01_1": content.randbytes(2 * MIB),
    }


def plug() -> str:
    """Plug the drive in, and wait until udev knows what is on it. Its device path."""
    (PORT / "lun/lun_0/cache1").symlink_to(CORE)
    deadline = time.monotonic() + 60
    while True:
        run("udevadm", "settle")
        for device in Path("/dev").glob("sd?"):
            if "ID_FS_TYPE=ext4" in run("udevadm", "info", "--query=property", str(device)):
                return str(device)
        assert time.monotonic() < deadline, "the drive did not come"
        time.sleep(0.1)


def pull() -> None:
    link = PORT / "lun/lun_0/cache1"
    if link.is_symlink():
        link.unlink()


@pytest.fixture(scope="module", autouse=True)
def hardware() -> Iterator[None]:
    for module in ("dm_mod", "sd_mod", "configfs", "target_core_mod", "target_core_iblock", "tcm_loop"):
        run("modprobe", module)
    if not Path("/sys/kernel/config/target").exists():
        run("mount", "-t", "configfs", "none", "/sys/kernel/config")
    shutil.copy(RULE, "/etc/udev/rules.d")
    run("udevadm", "control", "--reload")
    run("vgcreate", "-q", "dr01_vg0", "/dev/ubda")
    run("mkfs.ext4", "-q", "/dev/ubdb")
    Path("/mnt/sign").mkdir()
    run("mount", "/dev/ubdb", "/mnt/sign")
    Path("/mnt/sign/.dr_cache").touch()
    run("umount", "/mnt/sign")
    CORE.mkdir(parents=True)
    (CORE / "control").write_text("udev_path=/dev/ubdb")
    (CORE / "wwn/vpd_unit_serial").write_text("ANV-0001")
    (CORE / "wwn/vendor_id").write_text("ANVIL")
    (CORE / "wwn/product_id").write_text("USBDRIVE")
    (CORE / "udev_path").write_text("/dev/ubdb")
    (CORE / "enable").write_text("1")
    (PORT / "lun/lun_0").mkdir(parents=True)
    (PORT / "nexus").write_text("naa.5001405000000002")
    yield
    pull()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[DrBox]:
    command.run(("lvremove", "-q", "-y", "dr01_vg0"))
    box = DrBox(tmp_path, copies=1, groups=("dr01_vg0",))
    box.open_cache_drives = lambda state: wiring.open_cache_drives(box.config, state)
    yield box
    pull()


def wait(target: Target) -> None:
    deadline = time.monotonic() + 300
    while target.is_busy("Web01"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def send(box: DrBox, node: Node, observer: Optional[Quiet] = None) -> Optional[AnvilDrError]:
    return box.send(node.outgoing(), observer=observer).servers[0].error


def stored(target: Target, seed: int) -> bool:
    """True if the store has the whole set of this seed as sequence 1, and nothing else."""
    images = target.store.images()
    if {image.sequence for image in images} != {1}:
        return False
    for image in images:
        content = Path(image.path).read_bytes()
        wanted = disks(seed)[image.owner.disk]
        if content[: len(wanted)] != wanted or any(content[len(wanted) :]):
            return False
    return len(images) == 2


def test_a_set_goes_through_the_drive_which_is_unmounted_afterwards(box: DrBox, tmp_path: Path) -> None:
    web = Node(tmp_path / "node", disks=disks(0))
    device = plug()
    with box.running() as target:
        assert send(box, web) is None and stored(target, 0)
        web.disks = disks(1)
        seen: List[str] = []
        mounts = Quiet(when_advanced=lambda: seen.append(Path("/proc/mounts").read_text()))
        assert send(box, web, mounts) is None
        wait(target)
        assert stored(target, 1)
        assert any(f"{device} {tmp_path}/run/cache/" in table for table in seen)
        assert device not in Path("/proc/mounts").read_text()
        assert target.cache_drives is not None
        (drive,) = [one for one in target.cache_drives.survey() if one.problem is None]
        assert drive.contents == () and "USBDRIVE" in drive.model


@pytest.mark.parametrize("seed", range(6))
def test_a_drive_that_is_pulled_at_any_moment_costs_no_set_and_the_next_job_works(
    box: DrBox, tmp_path: Path, seed: int
) -> None:
    web = Node(tmp_path / "node", disks=disks(0))
    with box.running() as target:
        assert send(box, web) is None
        device = plug()
        web.disks = disks(1)
        delay = random.Random(seed).uniform(0.05, 4.0)
        puller = threading.Timer(delay, pull)
        puller.start()
        error = send(box, web)
        wait(target)
        puller.join()
        if error is not None:
            assert device in str(error) or "cache drive" in str(error), error
            assert stored(target, 0), "the store is as it was"
        plug()
        for thread in cached_copy.resume(target):
            thread.join()
        if error is None:
            assert stored(target, 1)
        web.disks = disks(2)
        assert send(box, web) is None
        wait(target)
        assert stored(target, 2)


def test_drives_that_come_and_go_are_in_the_log_with_model_and_serial(caplog: pytest.LogCaptureFixture) -> None:
    came: List[str] = []
    watch = DriveWatch(came.append)
    watch.start()
    with caplog.at_level(logging.INFO):
        device = plug()
        deadline = time.monotonic() + 60
        while device not in came:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pull()
        while not any("drive went" in message for message in caplog.messages):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    watch.stop()
    for what in ("drive came", "drive went"):
        (line,) = [message for message in caplog.messages if message.startswith(f"{what} device={device}")]
        assert "USBDRIVE" in line and "ext4" in line and "serial=''" not in line
