"""DirectoryStore: what only files have. Its part of the contract is in tests/contract."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, List

import pytest

from anvil_dr import naming
from anvil_dr.errors import ImageInUseError, StoreError
from anvil_dr.model import INCOMPLETE, Owner, StoredImage
from anvil_dr.stores import qemu_lock
from anvil_dr.stores.directory import DirectoryStore
from tests.contract.labs import held_open
from tests.doubles.bad_inode import unopenable

WEB = Owner("Web01", "Web01_0")
NEWEST, NEW = naming.file_name(WEB, 1), naming.file_name(WEB, INCOMPLETE)
SIZE = 1 << 20


def store_in(folder: Path) -> DirectoryStore:
    return DirectoryStore(str(folder), lambda: [WEB])


def newest_in(folder: Path) -> StoredImage:
    store = store_in(folder)
    return store.rename(store.create(WEB, SIZE, str(folder)), 1)


def test_an_image_is_a_sparse_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    image = newest_in(tmp_path)
    facts = os.stat(image.path)
    assert image.path == str(tmp_path / NEWEST) == store_in(tmp_path).path(WEB, 1)
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert (facts.st_size, facts.st_blocks) == (SIZE, 0)


def test_only_regular_files_are_images_and_nothing_else_is_followed(tmp_path: Path) -> None:
    folder, secret = tmp_path / "store", tmp_path / "secret"
    folder.mkdir()
    secret.write_bytes(b"secret" * 1000)
    (folder / NEW).symlink_to(secret)
    os.mkfifo(folder / NEWEST)
    (folder / naming.file_name(WEB, 2)).mkdir()
    store = store_in(folder)
    facts = os.stat(secret)

    assert store.images() == ()
    with pytest.raises(StoreError, match="exists"):
        store.create(WEB, SIZE, str(folder))
    for sequence in (INCOMPLETE, 1, 2):
        image = StoredImage(WEB, sequence, str(folder), f"inode:{facts.st_ino}", 6000, store.path(WEB, sequence))
        for writable in (False, True):
            with pytest.raises(StoreError):
                store.open(image, writable=writable)
        with pytest.raises(StoreError):
            store.resize(image, 1)
        with pytest.raises(StoreError):
            store.remove(image)
    assert secret.read_bytes() == b"secret" * 1000


def test_another_file_with_the_name_of_an_image_is_not_that_image(tmp_path: Path) -> None:
    image = newest_in(tmp_path)
    imposter = tmp_path / "imposter"
    imposter.write_bytes(b"x" * SIZE)
    os.replace(imposter, image.path)
    with pytest.raises(StoreError, match="not the image it was"):
        store_in(tmp_path).open(image, writable=True)
    with pytest.raises(StoreError, match="not the image it was"):
        store_in(tmp_path).remove(image)
    assert Path(image.path).exists()


def test_an_image_that_cannot_be_opened_is_an_error_for_its_own_server_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mail = Owner("Mail01", "Mail01_0")
    store = DirectoryStore(str(tmp_path), lambda: [WEB, mail])
    other = store.create(mail, SIZE, str(tmp_path))
    image = store.create(WEB, SIZE, str(tmp_path))
    with unopenable(image.path):
        assert store.images() == store.images("Mail01") == (other,)
        assert f"an image is left out: cannot look at {image.path}" in caplog.text
        (said,) = store.damaged()
        assert image.path in said and said.endswith("repair its file system, or remove it")
        with pytest.raises(StoreError, match=image.path):
            store.images("Web01")
    assert (store.images("Web01"), store.damaged()) == ((image,), ())


def test_where_no_image_at_all_can_be_opened_the_store_is_the_problem(tmp_path: Path) -> None:
    image = newest_in(tmp_path)
    with unopenable(image.path), pytest.raises(StoreError, match="cannot look at"):
        store_in(tmp_path).images()


def fail(*unused: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize(
    ("module", "name", "use"),
    [
        (qemu_lock, "writes", lambda store, image: store.users([image])),
        (qemu_lock, "take", lambda store, image: store.open(image, writable=True)),
        (os, "fstatvfs", lambda store, image: store.check()),
        (os, "fstatvfs", lambda store, image: store.locations()),
        (os, "ftruncate", lambda store, image: store.resize(image, 1)),
        (os, "ftruncate", lambda store, image: store.create(Owner("Web01", "new"), 1, image.location)),
    ],
)
def test_what_the_file_system_refuses_is_an_error_of_the_store(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    use: Callable[[DirectoryStore, StoredImage], object],
) -> None:
    image = newest_in(tmp_path)
    monkeypatch.setattr(module, name, fail)
    with pytest.raises(StoreError, match=f"{tmp_path}.*: No locks available"):
        use(store_in(tmp_path), image)


def test_a_directory_that_is_missing_or_is_none_fails_the_check_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(StoreError, match=str(folder)):
            store_in(folder).check()
        with pytest.raises(StoreError, match=str(folder)):
            store_in(folder).images()


@pytest.mark.parametrize("below", ["", "deeper/down"])
def test_a_file_system_of_fstab_that_is_not_mounted_fails_the_check(tmp_path: Path, below: str) -> None:
    folder = tmp_path / "with space" / below
    folder.mkdir(parents=True)
    fstab = tmp_path / "fstab"
    store = DirectoryStore(str(folder), lambda: [WEB], fstab=str(fstab))
    store.check()  # no fstab, as in a container

    escaped = str(tmp_path / "with space").replace(" ", "\\040")
    fstab.write_text(f"# comment\n\nproc /proc proc defaults 0 0\nUUID=1 / ext4 defaults 0 1\n#UUID=2 {escaped} xfs\n")
    store.check()

    fstab.write_text(fstab.read_text() + f"UUID=2 {escaped} xfs defaults,nofail 0 2\n")
    with pytest.raises(StoreError, match="not mounted"):
        store.check()


@pytest.mark.parametrize("written", ["store/", "/store", "link/store", "link/store/"])
def test_however_fstab_writes_the_place_it_is_seen_that_nothing_is_mounted_there(tmp_path: Path, written: str) -> None:
    folder, fstab = tmp_path / "here" / "store", tmp_path / "fstab"
    folder.mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "here")
    fstab.write_text(f"UUID=2 {tmp_path}/here/{written} xfs defaults,nofail 0 2\n")
    with pytest.raises(StoreError, match=f"file system for {folder}, and it is not mounted"):
        DirectoryStore(str(folder), lambda: [WEB], fstab=str(fstab)).check()


def test_while_it_is_written_an_image_carries_the_locks_that_keep_qemu_off(tmp_path: Path) -> None:
    image = newest_in(tmp_path)
    fd = os.open(image.path, os.O_RDWR)
    assert not qemu_lock.writes(fd) and not qemu_lock.denies_writing(fd)

    opened = store_in(tmp_path).open(image, writable=True)
    assert qemu_lock.writes(fd) and qemu_lock.denies_writing(fd)
    opened.close()
    assert not qemu_lock.writes(fd) and not qemu_lock.denies_writing(fd)

    reader = store_in(tmp_path).open(image, writable=False)
    assert not qemu_lock.writes(fd) and not qemu_lock.denies_writing(fd)
    reader.close()
    os.close(fd)


def test_an_image_that_carries_such_a_lock_is_not_opened_for_writing(tmp_path: Path) -> None:
    image = newest_in(tmp_path)
    fd = os.open(image.path, os.O_RDWR)
    assert qemu_lock.take(fd)
    with pytest.raises(ImageInUseError):
        store_in(tmp_path).open(image, writable=True)
    store_in(tmp_path).open(image, writable=False).close()
    os.close(fd)
    store_in(tmp_path).open(image, writable=True).close()


def test_a_lock_whose_holder_cannot_be_seen_counts_as_use(tmp_path: Path) -> None:
    image = newest_in(tmp_path)
    fd = os.open(image.path, os.O_RDWR)
    assert qemu_lock.take(fd)
    # On its way through a socket an open file belongs to no process, as it does to one of another namespace.
    here, there = socket.socketpair()
    socket.send_fds(here, [b"x"], [fd])
    os.close(fd)
    assert "cannot be seen" in (store_in(tmp_path).users([image]).get(image) or "")
    with pytest.raises(ImageInUseError):
        store_in(tmp_path).remove(image)
    here.close()
    there.close()
    assert store_in(tmp_path).users([image]).get(image) is None


def test_who_lets_go_of_an_image_at_once_is_no_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any of our commands does that lists the images, and opens each of them for that."""
    image = newest_in(tmp_path)
    with ExitStack() as opened:
        opened.enter_context(held_open(image.path))
        monkeypatch.setattr(time, "sleep", lambda seconds: opened.close())
        assert store_in(tmp_path).users([image]) == {}
    with held_open(image.path):
        assert "process" in store_in(tmp_path).users([image])[image]


def test_a_command_that_we_are_about_to_run_is_no_user(tmp_path: Path) -> None:
    """Between fork and exec it has everything open that we have; another thread may look just then."""
    image = newest_in(tmp_path)
    opened = store_in(tmp_path).open(image, writable=False)
    go, wait = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wait)
        os.read(go, 1)
        os._exit(0)
    assert store_in(tmp_path).users([image]).get(image) is None
    os.close(wait)
    os.waitpid(child, 0)
    os.close(go)
    opened.close()


def test_an_owner_that_becomes_known_later_has_its_images_from_then_on(tmp_path: Path) -> None:
    owners: List[Owner] = []
    store = DirectoryStore(str(tmp_path), lambda: owners)
    image = store.create(WEB, SIZE, str(tmp_path))
    assert store.images() == ()
    owners.append(WEB)
    assert store.images() == (image,)
