"""Images and sources on devices and file systems that the host can't offer: 4k sectors, xfs, btrfs, vfat."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest

from anvil_dr import command
from anvil_dr.errors import ImageIOError, StoreError
from anvil_dr.sending.source import open_source
from anvil_dr.stores.directory import DirectoryStore
from anvil_dr.stores.open_image import BlockImage, FileImage, block_size_bytes
from tests.contract.labs import DirectoryLab
from tests.contract.test_stores import *  # noqa: F403  each test of the contract is one of this module too
from tests.contract.test_stores import MAIL, WEB

pytestmark = pytest.mark.in_guest(drives=("400M", "200M", "64M", "64M"))

MIB = 1 << 20


def run(*argv: str) -> str:
    return command.run(argv).stdout.decode()


@pytest.fixture(scope="module")
def file_systems() -> None:
    for kind, drive, options in ("xfs", "ubda", ["-q"]), ("btrfs", "ubdb", ["-q"]), ("vfat", "ubdc", []):
        run(f"mkfs.{kind}", *options, f"/dev/{drive}")
        os.makedirs(f"/mnt/{kind}/store")
        run("mount", f"/dev/{drive}", f"/mnt/{kind}")
        os.makedirs(f"/mnt/{kind}/store", exist_ok=True)


@pytest.fixture(params=["xfs", "btrfs"])  # type: ignore[no-redef]
def place(file_systems: None, request: pytest.FixtureRequest) -> Iterator[DirectoryLab]:
    lab = DirectoryLab(Path(f"/mnt/{request.param}/store"))
    yield lab
    lab.clean()


def test_a_store_whose_file_system_is_not_mounted_fails_its_check(file_systems: None, tmp_path: Path) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_text("/dev/ubda /mnt/xfs xfs defaults 0 2\n")
    store = DirectoryStore("/mnt/xfs/store", list, fstab=str(fstab))
    store.check()
    run("umount", "/mnt/xfs")
    try:
        assert Path("/mnt/xfs/store").is_dir(), "which is the mount point's, below"
        with pytest.raises(StoreError, match="/mnt/xfs, and it is not mounted"):
            store.check()
    finally:
        run("mount", "/dev/ubda", "/mnt/xfs")
    run("mount", "-o", "remount,ro", "/mnt/xfs")
    with pytest.raises(StoreError, match="cannot be written"):
        store.check()
    run("mount", "-o", "remount,rw", "/mnt/xfs")


def test_a_file_that_was_given_the_number_of_another_is_not_that_image(file_systems: None) -> None:
    store = DirectoryStore("/mnt/xfs/store", lambda: [WEB, MAIL])
    first = store.create(WEB, MIB, "/mnt/xfs/store")
    number = os.stat(first.path).st_ino
    store.remove(first)
    second = store.create(MAIL, MIB, "/mnt/xfs/store")
    assert os.stat(second.path).st_ino == number, "or this shows nothing"
    assert second.identity != first.identity
    run("umount", "/mnt/xfs")
    run("mount", "/dev/ubda", "/mnt/xfs")
    assert [image.identity for image in store.images()] == [second.identity]
    store.remove(second)


@pytest.fixture(scope="module")
def big_sectors() -> str:
    """A device with sectors of 4096 bytes."""
    run("modprobe", "sd_mod")
    run("modprobe", "scsi_debug", "sector_size=4096", "dev_size_mb=16", "delay=0", "lbpws=1")
    run("udevadm", "settle")
    name = next(path.name for path in Path("/sys/block").iterdir() if path.name.startswith("sd"))
    assert Path(f"/sys/block/{name}/queue/logical_block_size").read_text() == "4096\n"
    return f"/dev/{name}"


def open_block(path: str, flags: int = os.O_RDWR) -> BlockImage:
    fd = os.open(path, flags | os.O_CLOEXEC)
    return BlockImage(fd, path, block_size_bytes(fd))


def test_odd_ranges_of_a_device_with_big_sectors_are_written_and_zeroed(big_sectors: str) -> None:
    image = open_block(big_sectors)
    size = image.size_bytes
    assert size == 16 * MIB
    for offset, length in (0, size), (4096, 4096), (100, 1000), (4000, 9000), (512, 65536), (size - 5000, 5000):
        image.write(0, memoryview(b"\x5a" * size))
        image.zero(offset, length)
        image.flush()
        found = bytearray(size)
        image.read_into(0, memoryview(found))
        expected = bytearray(b"\x5a" * size)
        expected[offset : offset + length] = bytes(length)
        assert found == expected, (offset, length)
    image.close()
    assert open_block(big_sectors, os.O_RDONLY).size_bytes == size


def test_a_device_that_fails_names_itself_and_the_byte(file_systems: None) -> None:
    run("modprobe", "dm_mod")
    sectors = int(run("blockdev", "--getsz", "/dev/ubdd"))
    table = f"0 2048 linear /dev/ubdd 0\n2048 8 error\n2056 {sectors - 2056} linear /dev/ubdd 2056\n"
    command.run(("dmsetup", "create", "bad"), stdin=table.encode())
    image = open_block("/dev/mapper/bad")
    buffer = memoryview(bytearray(2 * MIB))
    with pytest.raises(ImageIOError) as unreadable:
        image.read_into(0, buffer)
    assert unreadable.value.path == "/dev/mapper/bad"
    assert 0 < unreadable.value.offset_bytes <= 2048 * 512
    with pytest.raises(ImageIOError):
        image.write(0, buffer)
        image.flush()
    image.close()
    run("dmsetup", "remove", "--retry", "bad")


def test_zeros_are_written_where_a_file_system_has_no_holes(file_systems: None) -> None:
    path = "/mnt/vfat/store/file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    image = FileImage(fd, path, 3 * MIB)
    image.write(0, memoryview(b"\x5a" * (3 * MIB)))
    image.zero(1000, 2 * MIB)
    image.flush()
    found = bytearray(3 * MIB)
    image.read_into(0, memoryview(found))
    assert found == b"\x5a" * 1000 + bytes(2 * MIB) + b"\x5a" * (MIB - 1000)
    assert list(image.data_ranges(0, 3 * MIB)) == [(0, 3 * MIB)]
    image.close()


def test_zeroed_parts_of_a_file_give_their_space_back(file_systems: None) -> None:
    path = "/mnt/xfs/sparse"
    image = FileImage(os.open(path, os.O_RDWR | os.O_CREAT), path, 8 * MIB)
    image.write(0, memoryview(b"\x5a" * (8 * MIB)))
    image.flush()
    full = os.stat(path).st_blocks
    image.zero(MIB, 6 * MIB)
    image.flush()
    assert full - os.stat(path).st_blocks == 6 * MIB // 512
    assert list(image.data_ranges(0, 8 * MIB)) == [(0, MIB), (7 * MIB, MIB)]
    image.close()


def test_a_full_file_system_fails_the_write_with_its_reason(file_systems: None) -> None:
    path = "/mnt/vfat/store/big"
    image = FileImage(os.open(path, os.O_RDWR | os.O_CREAT), path, 200 * MIB)
    with pytest.raises(ImageIOError, match="No space left"):
        for offset in range(0, 200 * MIB, MIB):
            image.write(offset, memoryview(bytes(MIB)))
    image.close()
    os.unlink(path)


def test_a_source_device_that_is_written_to_is_noticed(big_sectors: str) -> None:
    link = Path("/run/by-res")
    link.symlink_to(big_sectors)
    source = open_source(str(link))
    source.read_into(0, memoryview(bytearray(MIB)))
    assert source.size_bytes == 16 * MIB
    assert source.changed() is None
    run("dd", "if=/dev/zero", f"of={big_sectors}", "bs=4096", "count=1", "oflag=direct", "status=none")
    assert source.changed()
    source.close()

    again = open_source(str(link))
    assert again.changed() is None
    run("blkdiscard", "--offset", "0", "--length", "4096", big_sectors)
    assert again.changed()
    again.close()


def test_a_source_volume_that_is_written_to_is_noticed() -> None:
    run("modprobe", "dm_mod")
    run("dmsetup", "create", "lv", "--table", "0 2048 linear /dev/ubdd 0")
    source = open_source("/dev/mapper/lv")
    source.read_into(0, memoryview(bytearray(MIB)))
    assert source.changed() is None
    run("dd", "if=/dev/zero", "of=/dev/mapper/lv", "bs=512", "count=1", "oflag=direct", "status=none")
    assert source.changed()
    source.close()
    run("dmsetup", "remove", "--retry", "lv")
