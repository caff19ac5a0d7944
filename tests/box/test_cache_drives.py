"""Cache drives on real file systems: what is found, what is left alone, what a probe changes, what a mount guards."""

from __future__ import annotations

import fcntl
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Dict, Iterator

import pytest

from anvil_dr import command
from anvil_dr.cache.cache_rules import usable
from anvil_dr.cache.drives import RealCacheDrives, store_places
from anvil_dr.cache.watch import DriveWatch
from anvil_dr.errors import CacheDriveError, StoreError
from anvil_dr.model import CacheDrive, Owner
from anvil_dr.stores.directory import DirectoryStore

pytestmark = pytest.mark.in_guest(
    drives=("64M", "96M", "400M", "160M", "96M", "64M", "64M", "64M", "64M", "64M", "64M"), memory="768M"
)

OWNER = Owner("Web01", "Web01_0")
EXT4, EXT4_TWIN_SIZE, XFS, BTRFS, EXT3, FAT_DRIVE = (f"/dev/ubd{letter}" for letter in "abcdef")
VFAT = f"{FAT_DRIVE}1"  # mkfs.fat(8) makes a partition table that has the whole drive as its only partition
STORE_PV, OTHER_PV, SWAP, PARTITIONED, UNSIGNED = (f"/dev/ubd{letter}" for letter in "ghijk")


def run(*argv: str) -> str:
    return command.run(argv, timeout_seconds=300).stdout.decode()


@contextmanager
def mounted(device: str, path: str, *options: str) -> Iterator[Path]:
    os.makedirs(path, exist_ok=True)
    run("mount", *options, device, path)
    try:
        yield Path(path)
    finally:
        run("umount", path)


def sign(device: str) -> None:
    with mounted(device, "/mnt/sign") as folder:
        (folder / ".dr_cache").touch()


def digest(device: str) -> str:
    found = hashlib.sha256()
    with open(device, "rb") as file:
        # O_DIRECT would be the drive itself; a probe is over by now, and this drops what the kernel remembers.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


@pytest.fixture(scope="module", autouse=True)
def drives() -> None:
    for module in ("dm_mod", "xfs", "btrfs", "vfat", "loop"):
        run("modprobe", module)
    run("mkfs.ext4", "-q", EXT4)
    run("mkfs.ext4", "-q", EXT4_TWIN_SIZE)
    run("mkfs.xfs", "-q", XFS)
    run("mkfs.btrfs", "-q", BTRFS)
    run("mkfs.ext3", "-q", EXT3)
    run("mkfs.vfat", FAT_DRIVE)
    run("udevadm", "settle")
    run("mkfs.ext4", "-q", UNSIGNED)
    for device in (EXT4, EXT4_TWIN_SIZE, XFS, BTRFS, EXT3, VFAT):
        sign(device)
    for group, device in (("dr01_vg0", STORE_PV), ("other_vg", OTHER_PV)):
        run("vgcreate", "-q", group, device)
        run("lvcreate", "-q", "-y", "-L", "32m", "-n", "Web01_Web01_0_1", group)
        run("mkfs.ext4", "-q", f"/dev/{group}/Web01_Web01_0_1")
        sign(f"/dev/{group}/Web01_Web01_0_1")
    run("mkswap", SWAP)
    command.run(("sfdisk", "-q", PARTITIONED), stdin=b"label: gpt\n,40M\n,\n")
    run("udevadm", "settle")
    run("mkfs.ext4", "-q", f"{PARTITIONED}1")
    sign(f"{PARTITIONED}1")
    # udev passes over a device that a program has locked, as some mkfs do until they end.
    run("udevadm", "trigger", "--settle", "--action=change", "--subsystem-match=block")


def put_luks_header(device: str) -> None:
    """What blkid knows a LUKS container by (cryptsetup's LUKS1 format): magic, version, UUID."""
    header = bytearray(592)
    header[:8] = b"LUKS\xba\xbe\x00\x01"
    header[168:204] = b"5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4c"
    with open(device, "r+b") as file:
        file.write(header)


@pytest.fixture
def cache(tmp_path: Path) -> RealCacheDrives:
    return RealCacheDrives(
        str(tmp_path / "cache"),
        ".dr_cache",
        store_places(groups=("dr01_vg0",)),
        command.run,
        lambda folder, file_system: DirectoryStore(folder, lambda: [OWNER], file_system=file_system),
    )


def found(cache: RealCacheDrives) -> Dict[str, CacheDrive]:
    return {drive.device: drive for drive in cache.survey()}


def test_drives_are_found_largest_first_and_by_device_path_and_nothing_is_left_mounted(cache: RealCacheDrives) -> None:
    before = run("findmnt", "-rn", "-o", "TARGET")
    assert [drive.device for drive in usable(cache.survey())] == [
        XFS, BTRFS, EXT4_TWIN_SIZE, EXT3, EXT4, VFAT, f"{PARTITIONED}1"
    ]  # fmt: skip
    drive = found(cache)[XFS]
    assert drive.filesystem == "xfs" and drive.mountpoint is None and 0 < drive.free_bytes < drive.size_bytes
    assert run("findmnt", "-rn", "-o", "TARGET") == before


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (STORE_PV, "member of a RAID"),
        (OTHER_PV, "member of a RAID"),
        ("/dev/dm-0", "a volume of the store"),
        ("/dev/dm-1", "only where it is mounted"),
        (SWAP, "swap"),
        (PARTITIONED, "partitions"),
        (f"{PARTITIONED}2", "no file system"),
        (UNSIGNED, "no .dr_cache"),
    ],
)
def test_what_is_no_cache_drive_says_why(cache: RealCacheDrives, device: str, reason: str) -> None:
    assert reason in str(found(cache)[device].problem)


def test_a_luks_container_is_left_alone(cache: RealCacheDrives) -> None:
    put_luks_header(f"{PARTITIONED}2")
    run("udevadm", "trigger", "--settle", "--action=change", f"--name-match={PARTITIONED}2")
    try:
        before = digest(f"{PARTITIONED}2")
        assert "LUKS container" in str(found(cache)[f"{PARTITIONED}2"].problem)
        assert digest(f"{PARTITIONED}2") == before
    finally:
        run("wipefs", "-q", "-a", f"{PARTITIONED}2")
        run("udevadm", "trigger", "--settle", "--action=change", f"--name-match={PARTITIONED}2")


def test_a_volume_of_another_group_is_used_where_it_is_mounted_and_the_store_s_own_never(
    cache: RealCacheDrives,
) -> None:
    with mounted("/dev/other_vg/Web01_Web01_0_1", "/mnt/other"):
        drive = found(cache)["/dev/dm-1"]
        assert (drive.problem, drive.mountpoint) == (None, "/mnt/other")
        with cache.use(drive) as used:
            assert used.folder == "/mnt/other"
    with mounted("/dev/dr01_vg0/Web01_Web01_0_1", "/mnt/own"):
        assert "a volume of the store" in str(found(cache)["/dev/dm-0"].problem)


def test_a_mount_that_became_read_only_is_not_used(cache: RealCacheDrives) -> None:
    with mounted(EXT4, "/mnt/usb"):
        assert found(cache)[EXT4].problem is None
        run("mount", "-o", "remount,ro", "/mnt/usb")
        assert "mounted read-only on /mnt/usb" in str(found(cache)[EXT4].problem)


@pytest.mark.parametrize("device", [EXT4, EXT3, XFS, BTRFS, VFAT])
def test_a_probe_changes_no_byte_of_a_drive(cache: RealCacheDrives, device: str) -> None:
    before = digest(device)
    assert found(cache)[device].problem is None
    assert digest(device) == before


@pytest.mark.parametrize("device", [EXT4, EXT3, XFS, BTRFS])
def test_a_probe_of_a_dirty_journal_changes_no_byte(cache: RealCacheDrives, device: str) -> None:
    """The drive as it was in the middle of writes: what a pulled cable leaves."""
    with mounted(device, "/mnt/plain") as folder:
        for number in range(50):
            with open(folder / f"file{number}", "w") as file:
                file.write("x" * 1000)
                os.fsync(file.fileno())
        run("dd", f"if={device}", "of=/run/dirty", "bs=1M", "iflag=direct", "conv=sparse", "status=none")
        for number in range(50):
            (folder / f"file{number}").unlink()
    run("dd", "if=/run/dirty", f"of={device}", "bs=1M", "oflag=direct", "status=none")
    os.unlink("/run/dirty")
    before = digest(device)
    assert found(cache)[device].problem is None
    assert digest(device) == before
    with mounted(device, "/mnt/plain") as folder:
        for path in folder.glob("file*"):
            path.unlink()
    assert digest(device) != before, "a mount for use replays the journal"


def test_an_image_file_with_a_signature_in_it_is_not_mounted(cache: RealCacheDrives) -> None:
    run("truncate", "-s", "32M", "/run/image.raw")
    run("mkfs.ext4", "-q", "/run/image.raw")
    loop = run("losetup", "--find", "--show", "/run/image.raw").strip()
    run("udevadm", "settle")
    try:
        assert "an image is used only" in str(found(cache)[loop].problem)
    finally:
        run("losetup", "--detach", loop)


def test_one_drive_under_two_names_is_used_once(cache: RealCacheDrives) -> None:
    sectors = run("blockdev", "--getsz", UNSIGNED).strip()
    sign(UNSIGNED)
    run("dmsetup", "create", "second-path", "--table", f"0 {sectors} linear {UNSIGNED} 0")
    run("udevadm", "settle")
    try:
        seen = found(cache)
        assert "held by second-path" in str(seen[UNSIGNED].problem)
        assert [one.device for one in usable(seen.values()) if one.identity == seen[UNSIGNED].identity] == ["/dev/dm-2"]
    finally:
        run("dmsetup", "remove", "--retry", "second-path")
        with mounted(UNSIGNED, "/mnt/sign") as folder:
            (folder / ".dr_cache").unlink()


def test_a_drive_is_mounted_for_use_only_and_unmounted_by_the_last_user(cache: RealCacheDrives, tmp_path: Path) -> None:
    drive = found(cache)[EXT4]
    with cache.use(drive) as first:
        options = run("findmnt", "-n", "-o", "OPTIONS", first.folder).strip().split(",")
        assert {"rw", "nosuid", "nodev", "noexec"} <= set(options)
        assert first.folder.startswith(str(tmp_path / "cache"))
        with cache.use(drive) as second:
            assert second.folder == first.folder
        first.check()
        assert found(cache)[EXT4].mountpoint == first.folder
        image = first.store.create(OWNER, 1 << 20, first.store.locations()[0].name)
        assert Path(image.path).parent == Path(first.folder)
        first.store.remove(image)
    assert not _is_mounted(EXT4)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_drive_that_is_mounted_is_used_there_and_stays(cache: RealCacheDrives) -> None:
    with mounted(EXT4, "/mnt/usb stick"):
        drive = found(cache)[EXT4]
        assert (drive.problem, drive.mountpoint) == (None, "/mnt/usb stick")
        with cache.use(drive) as used:
            assert used.folder == "/mnt/usb stick"
        assert _is_mounted(EXT4)


def test_a_mount_that_takes_no_writes_or_shows_a_part_or_is_hidden_is_not_used(cache: RealCacheDrives) -> None:
    with mounted(EXT4, "/mnt/usb", "-o", "ro"):
        assert "read-only" in str(found(cache)[EXT4].problem)
    with mounted(EXT4, "/mnt/usb") as folder:
        (folder / "part").mkdir(exist_ok=True)
        run("mkdir", "-p", "/mnt/part")
        with mounted("/mnt/usb/part", "/mnt/part", "--bind"):
            assert found(cache)[EXT4].mountpoint == "/mnt/usb", "the whole of it counts, not the part"
        with mounted(UNSIGNED, "/mnt/usb"):
            assert "something else is mounted over" in str(found(cache)[EXT4].problem)
        (folder / "part").rmdir()


def test_nothing_is_written_where_the_drive_has_gone_from_its_mount_point(cache: RealCacheDrives) -> None:
    with cache.use(found(cache)[EXT4]) as used:
        run("umount", "--lazy", used.folder)
        with pytest.raises(CacheDriveError, match="it is gone"):
            used.check()
        with pytest.raises(StoreError, match="has gone"):
            used.store.create(OWNER, 4096, used.folder)
        assert os.listdir(used.folder) == []
        run("mount", "-t", "tmpfs", "other", used.folder)
        with pytest.raises(StoreError, match="has gone"):
            used.store.create(OWNER, 4096, used.folder)
        assert os.listdir(used.folder) == []


def test_a_drive_that_becomes_read_only_is_noticed(cache: RealCacheDrives) -> None:
    with cache.use(found(cache)[EXT4]) as used:
        run("mount", "-o", "remount,ro", used.folder)
        with pytest.raises(CacheDriveError, match="read-only"):
            used.check()


def test_what_a_service_that_died_left_mounted_is_unmounted(cache: RealCacheDrives, tmp_path: Path) -> None:
    (tmp_path / "cache" / "ubda").mkdir(parents=True)
    run("mount", EXT4, str(tmp_path / "cache" / "ubda"))
    cache.tidy()
    assert not _is_mounted(EXT4)


def test_what_a_probe_that_was_ended_left_mounted_is_unmounted_and_the_drive_can_be_used(
    cache: RealCacheDrives, tmp_path: Path
) -> None:
    drive = found(cache)[EXT4]
    for look in lambda: found(cache)[EXT4].problem, lambda: _use(cache, drive):
        (tmp_path / "cache" / ".probe").mkdir()
        run("mount", "-o", "ro,noload", EXT4, str(tmp_path / "cache" / ".probe"))
        assert look() is None
        assert not _is_mounted(EXT4)


def test_a_drive_that_another_program_probes_is_judged_when_that_is_over(
    cache: RealCacheDrives, tmp_path: Path
) -> None:
    place = tmp_path / "cache" / ".probe"
    place.mkdir(parents=True)
    with (tmp_path / "cache" / ".lock").open("w") as lock, ThreadPoolExecutor() as other:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("mount", "-o", "ro,noload", EXT4, str(place))
        judged = other.submit(lambda: found(cache)[EXT4].problem)
        with suppress(TimeoutError):
            judged.result(1)  # the time in which it would be judged wrongly
        run("umount", str(place))
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert judged.result(120) is None


def _use(cache: RealCacheDrives, drive: CacheDrive) -> None:
    with cache.use(drive):
        pass


def test_an_opened_luks_drive_is_noticed_and_used_and_a_new_volume_is_not_noticed(cache: RealCacheDrives) -> None:
    came: Queue[str] = Queue()
    watch = DriveWatch(came.put)
    watch.start()
    try:
        run("lvcreate", "-q", "-y", "-L", "8m", "-n", "Db01_Db01_0_1", "other_vg")
        run("mkfs.ext4", "-q", "/dev/other_vg/Db01_Db01_0_1")
        run("udevadm", "settle")
        run("lvremove", "-q", "-y", "other_vg/Db01_Db01_0_1")
        sectors = run("blockdev", "--getsz", EXT4).strip()
        for _ in range(2):
            # As cryptsetup names it; what is beneath makes no difference to udev.
            table = f"0 {sectors} linear {EXT4} 0"
            run("dmsetup", "create", "usb", "--uuid", "CRYPT-LUKS2-5c3b1f0a-usb", "--table", table)
            device = came.get(timeout=60)
            assert device == os.path.realpath("/dev/mapper/usb")
            assert found(cache)[device].problem is None
            run("dmsetup", "remove", "--retry", "usb")
            run("udevadm", "settle")
    finally:
        watch.stop()
    assert came.empty()


def test_a_drive_that_was_exchanged_for_another_is_not_used(cache: RealCacheDrives) -> None:
    drive = found(cache)[UNSIGNED]
    with pytest.raises(CacheDriveError, match="no .dr_cache"):
        with cache.use(drive):
            pass
    assert not _is_mounted(UNSIGNED)
    run("mkfs.ext4", "-q", "-F", UNSIGNED)
    run("udevadm", "settle")
    with pytest.raises(CacheDriveError, match="it is gone"):
        with cache.use(drive):
            pass


def _is_mounted(device: str) -> bool:
    return any(line.split()[0] == device for line in Path("/proc/mounts").read_text().splitlines())
