"""Sources: what can be imaged, and that being written to meanwhile is noticed. Devices: tests/box/test_devices.py."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Callable

import pytest

from anvil_dr.errors import ImageIOError, SourceError
from anvil_dr.sending.source import open_source
from anvil_dr.stores import qemu_lock


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"other")


def overwrite_and_set_the_time_back(path: Path) -> None:
    before = os.stat(path)
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def grow(path: Path) -> None:
    os.truncate(path, 20000)


@pytest.mark.parametrize("write", [overwrite, overwrite_and_set_the_time_back, grow])
def test_a_file_that_is_written_to_meanwhile_is_noticed(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"disk" * 4000)
    time.sleep(0.05)  # the kernel's file times have a tick of a few milliseconds
    source = open_source(str(path))
    buffer = bytearray(8)
    source.read_into(0, memoryview(buffer))
    assert (bytes(buffer), source.size_bytes, source.changed()) == (b"diskdisk", 16000, None)

    write(path)

    assert source.changed()
    source.close()


def test_a_source_is_opened_through_links_and_never_written(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"disk")
    (tmp_path / "link").symlink_to("disk")
    source = open_source(str(tmp_path / "link"))
    assert source.path == str(tmp_path / "link")
    assert list(source.data_ranges(0, 4)) == [(0, 4)]
    with pytest.raises(ImageIOError):
        source.write(0, memoryview(b"x"))
    with pytest.raises(ImageIOError):
        source.zero(0, 4)
    source.flush()
    source.close()
    source.close()
    assert (tmp_path / "disk").read_bytes() == b"disk"


def test_what_is_no_disk_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "nothing", Path("/dev/null")):
        with pytest.raises(SourceError, match=str(path)) as refused:
            open_source(str(path))
        assert refused.value.path == str(path)


def test_a_file_that_a_running_server_writes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"disk")
    fd = os.open(path, os.O_RDWR)
    assert qemu_lock.take(fd)
    with pytest.raises(SourceError, match="running server"):
        open_source(str(path))
    os.close(fd)
    open_source(str(path)).close()
