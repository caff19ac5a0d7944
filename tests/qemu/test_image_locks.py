"""Raw images and QEMU's own locks, with a QEMU: who has one keeps the other off."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from anvil_dr import qemu_lock
from anvil_dr.errors import ImageInUseError, SourceError
from anvil_dr.model import Owner, StoredImage
from anvil_dr.source import open_source
from anvil_dr.stores.directory import DirectoryStore

WEB = Owner("Web01", "Web01_0")


@pytest.fixture(autouse=True)
def qemu_utils() -> None:
    if shutil.which("qemu-io") is None:
        pytest.skip("qemu-utils is not installed")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path), lambda: [WEB])


@pytest.fixture
def image(store: DirectoryStore, tmp_path: Path) -> StoredImage:
    return store.rename(store.create(WEB, 4 << 20, str(tmp_path)), 1)


@contextmanager
def qemu_with(path: str, driver: str) -> Iterator[None]:
    """A QEMU has it open for writing, meanwhile."""
    # The first command says that it is open, on stderr, which is not buffered.
    argv = ["qemu-io", "-f", driver, "-c", "no such command", "-c", "sleep 600000", path]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            assert b"not found" in process.stderr.readline()
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
        assert "qemu-io" in (store.user(image) or "")
        with pytest.raises(ImageInUseError, match="qemu-io"):
            store.open(image, writable=True)
        with pytest.raises(SourceError, match="running server"):
            open_source(image.path)
        assert not is_taken_by_us(image)
    assert is_taken_by_us(image)
    assert store.user(image) is None


def test_an_image_under_an_overlay_is_in_use(store: DirectoryStore, image: StoredImage, tmp_path: Path) -> None:
    overlay = tmp_path / "rehearsal.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.path, str(overlay)], check=True
    )
    with qemu_with(str(overlay), "qcow2"):
        assert "qemu-io" in (store.user(image) or "")
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
