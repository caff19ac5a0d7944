"""Folders that stand for cache drives: they have a size, and can be pulled, plugged in again, and fail."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from anvil_dr.cache import cache_rules
from anvil_dr.errors import CacheDriveError, ImageIOError
from anvil_dr.model import CacheDrive, Location, StoredImage
from anvil_dr.ports import Image, OwnerSource, Store
from anvil_dr.records import carried_job
from anvil_dr.stores.directory import DirectoryStore


class FailingImage:
    """A port Image of which nothing can be read."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image, name)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        raise ImageIOError(self._image.path, offset_bytes, "read", "Input/output error")


class ReadOnlyImage(FailingImage):
    """A port Image that takes no writes."""

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        self._image.read_into(offset_bytes, buffer)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        raise ImageIOError(self._image.path, offset_bytes, "write", "Input/output error")


class SmallStore(DirectoryStore):
    """A directory that has only so much room, and files of which nothing can be read."""

    def __init__(self, folder: Path, owners: OwnerSource, size_bytes: int, unreadable: List[int],
                 *, writable: bool = True) -> None:  # fmt: skip
        super().__init__(str(folder), owners)
        self._folder, self._size_bytes, self._unreadable = folder, size_bytes, unreadable
        self._takes_writes = writable

    def open(self, image: StoredImage, *, writable: bool) -> Any:
        opened = super().open(image, writable=writable)
        if writable and not self._takes_writes:
            return ReadOnlyImage(opened)
        return FailingImage(opened) if os.stat(image.path).st_ino in self._unreadable else opened

    def remove(self, image: StoredImage) -> None:
        number = os.stat(image.path).st_ino
        super().remove(image)
        if number in self._unreadable:  # the next file may get it
            self._unreadable.remove(number)

    def locations(self) -> Tuple[Location, ...]:
        used = sum(path.stat().st_size for path in self._folder.glob("*.raw"))
        return (Location(str(self._folder), self._size_bytes, max(0, self._size_bytes - used), 1),)


@dataclass
class FolderInUse:
    """Implements ports.CacheFolder."""

    drive: CacheDrive
    folder: str
    store: Store
    drives: FolderDrives

    def check(self) -> None:
        self.drives.checks += 1
        self.drives.when_checked(self.drives.checks)
        if self.drive.device in self.drives.pulled:
            raise CacheDriveError(self.drive.device, "it is gone")


@dataclass
class FolderDrives:
    """Implements ports.CacheDrives: one folder for each device name."""

    root: Path
    sizes: Dict[str, int]
    pulled: List[str] = field(default_factory=list)
    in_use: List[str] = field(default_factory=list)
    when_checked: Callable[[int], None] = lambda count: None
    checks: int = 0
    owners: Optional[OwnerSource] = None
    unreadable: List[int] = field(default_factory=list)
    """Inodes."""
    unwritable: List[str] = field(default_factory=list)
    """Devices that give EIO for every write."""
    mounted: Dict[str, str] = field(default_factory=dict)
    """Where somebody has mounted them."""

    def folder(self, device: str) -> Path:
        folder = self.root / os.path.basename(device)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def survey(self) -> Tuple[CacheDrive, ...]:
        return cache_rules.ranked(
            CacheDrive(
                device, self.mounted.get(device), "ext4", size, size, f"uuid-{device}", "USBDRIVE", f"S-{device}",
                signed=True, carries=carried_job.in_words(str(self.folder(device))),
            )  # fmt: skip
            for device, size in self.sizes.items()
            if device not in self.pulled
        )

    @contextmanager
    def use(self, drive: CacheDrive) -> Iterator[FolderInUse]:
        if drive.device in self.pulled:
            raise CacheDriveError(drive.device, "it is gone")
        assert self.owners is not None
        folder = self.folder(drive.device)
        self.in_use.append(drive.device)
        try:
            store = SmallStore(folder, self.owners, self.sizes[drive.device], self.unreadable,
                               writable=drive.device not in self.unwritable)  # fmt: skip
            yield FolderInUse(drive, str(folder), store, self)
        finally:
            self.in_use.remove(drive.device)

    def tidy(self) -> None:
        """Nothing is ever left mounted."""

    def names(self) -> List[str]:
        return sorted(path.name for device in self.sizes for path in self.folder(device).iterdir())

    def make_unreadable(self, device: str) -> None:
        """What lies on it now gives nothing but EIO from here on."""
        self.unreadable += [path.stat().st_ino for path in self.folder(device).glob("*.raw")]
