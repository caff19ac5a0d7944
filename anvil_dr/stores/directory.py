"""A store of raw files in one directory. Touches that directory, and reads fstab(5), /proc and /sys.

Names are only ever looked up relative to an open descriptor of the directory, and only regular files count: what
else carries an image's name is never followed.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import contextmanager
from typing import Dict, Final, Iterable, Iterator, List, Literal, Optional, Tuple

from anvil_dr import durable, naming
from anvil_dr.errors import ImageInUseError, StoreError, StoreFullError
from anvil_dr.model import INCOMPLETE, Location, Owner, Sequence, StoredImage
from anvil_dr.ports import OwnerSource
from anvil_dr.stores import file_identity, file_users, mounts, qemu_lock
from anvil_dr.stores.open_image import FileImage

log = logging.getLogger(__name__)

_MODE: Final = 0o600
# O_NONBLOCK, or a fifo with an image's name would block the open until somebody writes to it.
_OPEN_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# What an error of open(2) says of this process, and not of the file.
_OWN_FAULTS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class DirectoryStore:
    """Implements ports.Store. `owners` says whose files may lie there, since files carry no tags.

    With `file_system`, its st_dev, nothing is done in a directory that is on another one: a mount that went.
    """

    def __init__(
        self, directory: str, owners: OwnerSource, *, fstab: str = "/etc/fstab", file_system: Optional[int] = None
    ) -> None:
        self._directory = os.path.abspath(directory)
        self._owners, self._fstab, self._file_system = owners, fstab, file_system
        self._checked: Optional[Tuple[int, int]] = None
        """Device and inode of the directory as it was when it was in good order."""

    @property
    def kind(self) -> Literal["fs", "lvm"]:
        return "fs"

    def check(self) -> None:
        """Raise StoreError if the directory is missing, read-only, or its file system is not mounted.

        From then on nothing is done in another directory of that name: a mount that went, or one that came over it.
        """
        with self._open_directory() as directory:
            facts = os.fstat(directory)
            if os.fstatvfs(directory).f_flag & os.ST_RDONLY or not os.access(self._directory, os.W_OK | os.X_OK):
                raise self._error("it cannot be written to")
            self._refuse_unmounted()
        self._checked = facts.st_dev, facts.st_ino

    def locations(self) -> Tuple[Location, ...]:
        """The one directory. Raise StoreError."""
        with self._open_directory() as directory:
            facts = os.fstatvfs(directory)
        size_bytes, free_bytes = facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize
        return (Location(self._directory, size_bytes, free_bytes, extent_bytes=1),)

    def images(self, server: Optional[str] = None) -> Tuple[StoredImage, ...]:
        """Every regular file that has the name of a known owner's image, or of this server's. Raise StoreError.

        One that cannot be looked at, as with a bad sector under its inode, is an error for whoever asks for its
        server, and for nobody else as long as there are others.
        """
        found, damaged = self._survey(server)
        for error in damaged:
            if server is not None or not found:
                raise error
            log.warning("an image is left out: %s", error)
        return found

    def damaged(self) -> Tuple[str, ...]:
        """In words, which images cannot be looked at. Raise StoreError."""
        return tuple(str(error) for error in self._survey(None)[1])

    def path(self, owner: Owner, sequence: Sequence) -> str:
        """The file's path. No I/O."""
        return self._join(naming.file_name(owner, sequence))

    def create(
        self, owner: Owner, size_bytes: int, location: str, *, data_bytes: Optional[int] = None
    ) -> StoredImage:
        """A new, sparse file for an incomplete image. Raise StoreFullError, StoreError, ImageNameError."""
        naming.check_server_name(owner.server)
        naming.check_disk_name(owner.disk)
        if location != self._directory:
            raise self._error(f"it has no place named {location}")
        self._need(size_bytes if data_bytes is None else data_bytes)
        name = naming.file_name(owner, INCOMPLETE)
        with self._open_directory() as directory:
            try:
                fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS, _MODE, dir_fd=directory)
            except OSError as error:
                raise self._failure("create", name, error) from error
            try:
                try:
                    os.ftruncate(fd, size_bytes)
                    durable.sync_data(fd)
                    image = self._image(owner, INCOMPLETE, fd)
                finally:
                    os.close(fd)
            except OSError as error:
                os.unlink(name, dir_fd=directory)
                if error.errno == errno.ENOSPC:
                    raise StoreFullError(size_bytes, self._free_bytes(), self._directory) from error
                raise self._failure("create", name, error) from error
            try:
                durable.sync_directory(self._directory)
            except OSError as error:
                raise self._failure("create", name, error) from error
        _log("created", image, f"size_bytes={image.size_bytes}")
        return image

    def resize(self, image: StoredImage, size_bytes: int, *, data_bytes: Optional[int] = None) -> StoredImage:
        """Grow or shrink the file. Raise ImageInUseError, StoreFullError, StoreError."""
        self._refuse_use(image)
        self._need(min(size_bytes, size_bytes if data_bytes is None else data_bytes) - image.size_bytes)
        with self._open(image, os.O_RDWR) as fd:
            try:
                os.ftruncate(fd, size_bytes)
                durable.sync_data(fd)
                resized = self._image(image.owner, image.sequence, fd)
            except OSError as error:
                raise self._failure("resize", os.path.basename(image.path), error) from error
        _log("resized", resized, f"size_bytes={resized.size_bytes}")
        return resized

    def rename(self, image: StoredImage, sequence: Sequence) -> StoredImage:
        """Give it another sequence, durably. Raise StoreError if that name is taken."""
        before, after = naming.file_name(image.owner, image.sequence), naming.file_name(image.owner, sequence)
        with self._open(image, os.O_RDONLY) as fd:
            try:
                durable.rename_exclusively(self._directory, before, after)
                renamed = self._image(image.owner, sequence, fd)
            except OSError as error:
                raise self._failure("rename an image to", after, error) from error
        _log("renamed", image, f"to={sequence}")
        return renamed

    def remove(self, image: StoredImage) -> None:
        """Unlink it, durably. Raise ImageInUseError, StoreError."""
        self._refuse_use(image)
        name = naming.file_name(image.owner, image.sequence)
        try:
            durable.remove(self._join(name))
        except OSError as error:
            raise self._failure("remove", name, error) from error
        _log("removed", image, f"size_bytes={image.size_bytes}")

    def open(self, image: StoredImage, *, writable: bool) -> FileImage:
        """Open its bytes. A writable one is locked as QEMU would lock it. Raise ImageInUseError, StoreError."""
        if writable:
            self._refuse_use(image)
        fd = self._open_fd(image, os.O_RDWR if writable else os.O_RDONLY)
        try:
            if writable and not qemu_lock.take(fd):
                raise ImageInUseError(os.path.basename(image.path), "another program that writes to it or relies on it")
            return FileImage(fd, image.path, os.fstat(fd).st_size)
        except OSError as error:
            os.close(fd)
            raise self._failure("open", os.path.basename(image.path), error) from error
        except ImageInUseError:
            os.close(fd)
            raise

    def users(self, images: Iterable[StoredImage]) -> Dict[StoredImage, str]:
        """Who else has them open: a process, a loop device, a QEMU that only its locks show. Raise StoreError."""
        return file_users.of(images, lambda image: self._open(image, os.O_RDONLY))

    def is_known_zero(self, image: StoredImage) -> bool:
        """True if the file has no data at all: a hole reads as zeros. Raise StoreError, ImageIOError."""
        opened = self.open(image, writable=False)
        try:
            return not any(opened.data_ranges(0, opened.size_bytes))
        finally:
            opened.close()

    @contextmanager
    def _open_directory(self) -> Iterator[int]:
        """A descriptor of the directory. What the block cannot do there is a StoreError."""
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error
        try:
            facts = os.fstat(fd)
            if self._file_system not in (None, facts.st_dev):
                raise self._error("what was mounted there has gone")
            if self._checked not in (None, (facts.st_dev, facts.st_ino)):
                self._refuse_unmounted()
                raise self._error(
                    "it is another directory than when it was opened: was something mounted or unmounted there? If it "
                    "is right as it is now: systemctl restart anvil-dr-target"
                )
            yield fd
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error
        finally:
            os.close(fd)

    @contextmanager
    def _open(self, image: StoredImage, flags: int) -> Iterator[int]:
        """A descriptor of the image's file, closed at the end. What the block cannot do with it is a StoreError."""
        fd = self._open_fd(image, flags)
        try:
            yield fd
        except OSError as error:
            raise self._failure("look at", os.path.basename(image.path), error) from error
        finally:
            os.close(fd)

    def _open_fd(self, image: StoredImage, flags: int) -> int:
        """A descriptor of the very file that `image` names. Raise StoreError if another stands there now."""
        name = naming.file_name(image.owner, image.sequence)
        with self._open_directory() as directory:
            try:
                fd = os.open(name, flags | _OPEN_FLAGS, dir_fd=directory)
            except OSError as error:
                raise self._failure("open", name, error) from error
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode) and file_identity.of(fd) == image.identity:
                return fd
        except OSError as error:
            os.close(fd)
            raise self._failure("open", name, error) from error
        os.close(fd)
        raise StoreError(f"{self._join(name)} is not the image it was", store=self._directory, image=name)

    def _survey(self, server: Optional[str]) -> Tuple[Tuple[StoredImage, ...], Tuple[StoreError, ...]]:
        """The images of one server, or of all, and what is wrong with those that cannot be looked at."""
        found: List[StoredImage] = []
        damaged: List[StoreError] = []
        with self._open_directory() as directory:
            for name, (owner, sequence) in sorted(naming.match_files(self._list(directory), self._owners()).items()):
                if server not in (None, owner.server):
                    continue
                try:
                    found += self._look(directory, name, owner, sequence)
                except OSError as error:
                    if error.errno in _OWN_FAULTS:
                        raise self._failure("look at", name, error) from error
                    damaged.append(self._failure("look at", name, error, "; repair its file system, or remove it"))
        return tuple(found), tuple(damaged)

    def _look(self, directory: int, name: str, owner: Owner, sequence: Sequence) -> Tuple[StoredImage, ...]:
        """The image in one file; none if it is not a regular one, or has gone meanwhile. Raise OSError."""
        try:
            if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                log.warning("not an image, ignored: path=%s reason=%r", self._join(name), "not a regular file")
                return ()
            fd = os.open(name, os.O_RDONLY | _OPEN_FLAGS, dir_fd=directory)
        except FileNotFoundError:  # renamed or removed since the directory was listed
            return ()
        try:
            return (self._image(owner, sequence, fd),)
        finally:
            os.close(fd)

    def _list(self, directory: int) -> List[str]:
        try:
            return os.listdir(directory)
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error

    def _refuse_use(self, image: StoredImage) -> None:
        user = self.users((image,)).get(image)
        if user is not None:
            raise ImageInUseError(os.path.basename(image.path), user)

    def _need(self, needed_bytes: int) -> None:
        available_bytes = self._free_bytes()
        if needed_bytes > available_bytes:
            raise StoreFullError(needed_bytes, available_bytes, self._directory)

    def _free_bytes(self) -> int:
        return self.locations()[0].free_bytes

    def _refuse_unmounted(self) -> None:
        try:
            missing = mounts.unmounted_above(self._directory, self._fstab)
        except OSError as error:
            raise self._error(f"{self._fstab} cannot be read: {error.strerror}") from error
        if missing:
            raise self._error(f"{self._fstab} has a file system for {missing}, and it is not mounted")

    def _image(self, owner: Owner, sequence: Sequence, fd: int) -> StoredImage:
        facts, path = os.fstat(fd), self.path(owner, sequence)
        holes_bytes = max(0, facts.st_size - facts.st_blocks * 512)  # stat(2): of 512 bytes, whatever the file system
        return StoredImage(owner, sequence, self._directory, file_identity.of(fd), facts.st_size, path, holes_bytes)

    def _join(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _error(self, reason: str) -> StoreError:
        return StoreError(f"store {self._directory}: {reason}", store=self._directory)

    def _failure(self, action: str, name: str, error: OSError, advice: str = "") -> StoreError:
        reason = error.strerror or str(error)
        return StoreError(f"cannot {action} {self._join(name)}: {reason}{advice}", store=self._directory, image=name)


def _log(what: str, image: StoredImage, detail: str) -> None:
    owner = image.owner
    log.info("%s server=%s disk=%s sequence=%s %s", what, owner.server, owner.disk, image.sequence, detail)
