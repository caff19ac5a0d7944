"""Raw images and QEMU's own locks, with a QEMU: who has one keeps the other off."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from anvil_dr.errors import ImageInUseError, SourceError
from anvil_dr.model import Owner, StoredImage
from anvil_dr.sending.source import open_source
from anvil_dr.stores import qemu_lock
from anvil_dr.stores.directory import DirectoryStore

QEMU = "qemu-system-x86_64"
WEB = Owner("Web01", "Web01_0")


@pytest.fixture(autouse=True)
def qemu_is_there() -> None:
    for program in (QEMU, "qemu-img", "qemu-io"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path), lambda: [WEB])


@pytest.fixture
def image(store: DirectoryStore, tmp_path: Path) -> StoredImage:
    return store.rename(store.create(WEB, 4 << 20, str(tmp_path)), 1)


@contextmanager
def qemu_with(path: str, driver: str, share: str = "off") -> Iterator[None]:
    """A server has it as its disk, paused before its first instruction."""
    # With a real device: qemu-io shares its files with writers, which no server does.
    argv = [QEMU, "-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-qmp", "stdio"]
    argv += ["-drive", f"file={path},format={driver},if=none,id=disk"]
    argv += ["-device", f"virtio-blk-pci,drive=disk,share-rw={share}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert b"QMP" in process.stdout.readline()
            process.stdin.write(b'{"execute": "qmp_capabilities"}\n')
            process.stdin.flush()
            assert b"return" in process.stdout.readline()  # now its devices are made
            yield
        finally:
            process.kill()


def is_taken_by_us(image: StoredImage) -> bool:
    """By its locks alone, as where the process can't be seen."""
    fd = os.open(image.path, os.O_RDWR)
    try:
        return qemu_lock.take(fd)
    finally:
        os.close(fd)


def test_an_image_that_a_qemu_writes_is_in_use(store: DirectoryStore, image: StoredImage) -> None:
    with qemu_with(image.path, "raw"):
        assert "qemu-system" in (store.users([image]).get(image) or "")
        with pytest.raises(ImageInUseError, match="qemu-system"):
            store.open(image, writable=True)
        with pytest.raises(SourceError, match="running server"):
            open_source(image.path)
        assert not is_taken_by_us(image)
    assert is_taken_by_us(image)
    assert store.users([image]).get(image) is None


def test_an_image_that_a_qemu_writes_and_shares_is_in_use(image: StoredImage) -> None:
    with qemu_with(image.path, "raw", share="on"):
        assert not is_taken_by_us(image)


def test_an_image_under_an_overlay_is_in_use(store: DirectoryStore, image: StoredImage, tmp_path: Path) -> None:
    overlay = tmp_path / "rehearsal.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.path, str(overlay)], check=True
    )
    with qemu_with(str(overlay), "qcow2"):
        assert "qemu-system" in (store.users([image]).get(image) or "")
        with pytest.raises(ImageInUseError):
            store.open(image, writable=True)
        open_source(image.path).close()
        assert not is_taken_by_us(image)


def test_while_a_job_writes_an_image_no_qemu_opens_it(store: DirectoryStore, image: StoredImage) -> None:
    write = ["qemu-io", "-f", "raw", "-c", "write -P 1 0 512", image.path]
    opened = store.open(image, writable=True)
    refused = subprocess.run(write, capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and 'Failed to get "write" lock' in refused.stderr
    opened.close()
    subprocess.run(write, check=True, capture_output=True)
    assert Path(image.path).read_bytes()[:512] == b"\1" * 512
