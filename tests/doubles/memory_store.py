"""A store in memory that keeps ports.Store's promises, and a fate that can strike any step of it.

`MemoryStore` is kind "lvm" or "fs" as the test wants: the first holds garbage where nothing was written, like a
volume that was somebody else's; the second holds zeros, like a sparse file. `restart` is what a crash leaves.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, Iterator, List, Literal, Optional, Tuple

from anvil_dr import naming
from anvil_dr.errors import ImageInUseError, ImageIOError, StoreError, StoreFullError
from anvil_dr.model import INCOMPLETE, Location, Owner, Sequence, StoredImage
from anvil_dr.ports import Image, Store

GARBAGE = 0xA5
_BLOCK_BYTES = 4096


@dataclass
class _Held:
    """One image: what it reads as now, and what a power cut would leave of it."""

    owner: Owner
    sequence: Sequence
    location: str
    content: bytearray
    stable: bytearray
    writers: int = 0
    user: Optional[str] = None


@dataclass
class MemoryStore:
    """Implements ports.Store."""

    store_kind: Literal["fs", "lvm"] = "lvm"
    places: Tuple[Location, ...] = (Location("memory", 1 << 30, 1 << 30, _BLOCK_BYTES),)
    """`free_bytes` is what is free while the store is empty."""
    known: Optional[Callable[[], Iterable[Owner]]] = None
    """Whose images count; everybody's where it is None, as with tags."""
    broken: Optional[str] = None
    """Why the store cannot be used; `check` says it."""
    held: Dict[str, _Held] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def kind(self) -> Literal["fs", "lvm"]:
        return self.store_kind

    def check(self) -> None:
        if self.broken:
            raise StoreError(self.broken)

    def locations(self) -> Tuple[Location, ...]:
        return tuple(
            Location(place.name, place.size_bytes, place.free_bytes - self._used_bytes(place), place.extent_bytes)
            for place in self.places
        )

    def images(self, server: Optional[str] = None) -> Tuple[StoredImage, ...]:
        owners = None if self.known is None else set(self.known())
        return tuple(
            self._stored(identity)
            for identity, one in self.held.items()
            if (owners is None or one.owner in owners) and server in (None, one.owner.server)
        )

    def path(self, owner: Owner, sequence: Sequence) -> str:
        return f"/memory/{naming.image_name(owner, sequence)}"

    def create(
        self, owner: Owner, size_bytes: int, location: str, *, data_bytes: Optional[int] = None
    ) -> StoredImage:
        naming.check_server_name(owner.server)
        naming.check_disk_name(owner.disk)
        place = self._place(location)
        self._refuse_taken(owner, INCOMPLETE, location)
        rounded_bytes = self._rounded(place, size_bytes)
        self._need(place, rounded_bytes)
        identity = f"memory:{next(self._numbers)}"
        fill = b"\0" if self.store_kind == "fs" else bytes([GARBAGE])
        content = bytearray(fill * rounded_bytes)
        self.held[identity] = _Held(owner, INCOMPLETE, location, content, bytearray(content))
        return self._stored(identity)

    def resize(self, image: StoredImage, size_bytes: int, *, data_bytes: Optional[int] = None) -> StoredImage:
        one = self._current(image)
        self._refuse_use(image, one)
        place = self._place(one.location)
        rounded_bytes = self._rounded(place, size_bytes)
        self._need(place, rounded_bytes - len(one.content))
        fill = b"\0" if self.store_kind == "fs" else bytes([GARBAGE])
        for content in (one.content, one.stable):
            content[:] = content[:rounded_bytes].ljust(rounded_bytes, fill)
        return self._stored(image.identity)

    def rename(self, image: StoredImage, sequence: Sequence) -> StoredImage:
        one = self._current(image)
        self._refuse_taken(one.owner, sequence, one.location)
        one.sequence = sequence
        return self._stored(image.identity)

    def remove(self, image: StoredImage) -> None:
        self._refuse_use(image, self._current(image))
        del self.held[image.identity]

    def open(self, image: StoredImage, *, writable: bool) -> MemoryImage:
        one = self._current(image)
        if writable:
            self._refuse_use(image, one)
            if one.writers:
                raise ImageInUseError(image.path, "this program")
            one.writers += 1
        return MemoryImage(one, image.path, writable, holes=self.store_kind == "fs")

    def users(self, images: Iterable[StoredImage]) -> Dict[StoredImage, str]:
        found = ((image, self._current(image).user) for image in images)
        return {image: user for image, user in found if user is not None}

    def is_known_zero(self, image: StoredImage) -> bool:
        return self.store_kind == "fs" and not any(self._current(image).content)

    # — what a test does to it —

    def use(self, image: StoredImage, user: Optional[str]) -> None:
        """Let somebody else have it open, or nobody any more."""
        self._current(image).user = user

    def restart(self, *, power_cut: bool = False) -> None:
        """The process is gone, and everything that it had open; with a power cut, what was not flushed too."""
        for one in self.held.values():
            one.writers = 0
            if power_cut:
                one.content[:] = one.stable

    def put(self, owner: Owner, sequence: Sequence, content: bytes, location: str = "") -> StoredImage:
        """An image that is there already, with this content."""
        place = self._place(location or self.places[0].name)
        whole = bytearray(content.ljust(self._rounded(place, len(content)), b"\0"))
        identity = f"memory:{next(self._numbers)}"
        self.held[identity] = _Held(owner, sequence, place.name, whole, bytearray(whole))
        return self._stored(identity)

    def content(self, owner: Owner, sequence: Sequence) -> bytes:
        """What this image reads as. Raise KeyError if there is none."""
        for one in self.held.values():
            if (one.owner, one.sequence) == (owner, sequence):
                return bytes(one.content)
        raise KeyError(naming.image_name(owner, sequence))

    # —

    def _stored(self, identity: str) -> StoredImage:
        one = self.held[identity]
        path = self.path(one.owner, one.sequence)
        return StoredImage(one.owner, one.sequence, one.location, identity, len(one.content), path)

    def _current(self, image: StoredImage) -> _Held:
        one = self.held.get(image.identity)
        if one is None or (one.owner, one.sequence, one.location) != (image.owner, image.sequence, image.location):
            raise StoreError(f"{image.path} is gone, or not the image it was", image=image.path)
        return one

    def _refuse_use(self, image: StoredImage, one: _Held) -> None:
        if one.user is not None:
            raise ImageInUseError(image.path, one.user)

    def _refuse_taken(self, owner: Owner, sequence: Sequence, location: str) -> None:
        name = naming.image_name(owner, sequence)
        for one in self.held.values():
            if naming.image_name(one.owner, one.sequence) != name:
                continue
            if one.owner == owner and sequence == INCOMPLETE and one.location != location:
                continue  # the one that this one replaces
            raise StoreError(f"{name} exists already", image=name)

    def _place(self, name: str) -> Location:
        for place in self.places:
            if place.name == name:
                return place
        raise StoreError(f"there is no location {name}", store=name)

    def _need(self, place: Location, needed_bytes: int) -> None:
        available_bytes = place.free_bytes - self._used_bytes(place)
        if needed_bytes > available_bytes:
            raise StoreFullError(needed_bytes, available_bytes, place.name)

    def _used_bytes(self, place: Location) -> int:
        return sum(len(one.content) for one in self.held.values() if one.location == place.name)

    @staticmethod
    def _rounded(place: Location, size_bytes: int) -> int:
        return -(-max(size_bytes, 1) // place.extent_bytes) * place.extent_bytes


class MemoryImage:
    """Implements ports.Image."""

    def __init__(self, held: _Held, path: str, writable: bool, *, holes: bool) -> None:
        self._held, self._path, self._writable, self._holes = held, path, writable, holes
        self._open = True

    @property
    def size_bytes(self) -> int:
        return len(self._held.content)

    @property
    def path(self) -> str:
        return self._path

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        self._check("read", offset_bytes, 0, writing=False)
        buffer[:] = bytes(self._held.content[offset_bytes : offset_bytes + len(buffer)]).ljust(len(buffer), b"\0")

    def write(self, offset_bytes: int, data: memoryview) -> None:
        self._check("write", offset_bytes, len(data), writing=True)
        self._held.content[offset_bytes : offset_bytes + len(data)] = data

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        self._check("zero", offset_bytes, length_bytes, writing=True)
        self._held.content[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)

    def data_ranges(self, offset_bytes: int, length_bytes: int) -> Iterator[Tuple[int, int]]:
        end = min(offset_bytes + length_bytes, self.size_bytes)
        if not self._holes:
            if offset_bytes < end:
                yield offset_bytes, end - offset_bytes
            return
        for block in range(offset_bytes // _BLOCK_BYTES * _BLOCK_BYTES, end, _BLOCK_BYTES):
            if any(self._held.content[block : block + _BLOCK_BYTES]):
                start, stop = max(block, offset_bytes), min(block + _BLOCK_BYTES, end)
                yield start, stop - start

    def flush(self) -> None:
        self._check("flush", 0, 0, writing=False)
        self._held.stable[:] = self._held.content

    def forget_cached(self) -> None:
        self._check("drop the cached pages", 0, 0, writing=False)

    def close(self) -> None:
        if self._open and self._writable:
            self._held.writers = max(0, self._held.writers - 1)
        self._open = False

    def _check(self, action: str, offset_bytes: int, length_bytes: int, *, writing: bool) -> None:
        reason = ""
        if not self._open:
            reason = "it is closed"
        elif writing and not self._writable:
            reason = "it is open read-only"
        elif writing and not 0 <= offset_bytes <= offset_bytes + length_bytes <= self.size_bytes:
            reason = "it would go past the end"
        if reason:
            raise ImageIOError(self._path, offset_bytes, action, reason)


class Died(BaseException):
    """The process ends here. Nobody catches it: it is no Exception."""


class Fate:
    """Counts steps, and strikes one of them, before or after its effect.

    With an `error`, that step raises it and everything goes on. Without one the process dies there: that step and
    every later one raise Died, so that not even a `finally` has any effect any more. One fate can be shared by
    several wrappers; whoever has no wrapper puts `with fate.step("name"):` around the effect.
    """

    def __init__(self, at: int = 0, *, after: bool = False, error: Optional[Exception] = None) -> None:
        """`at` is the number of the step, from 1 on; 0 strikes never and only counts."""
        self._at, self._after, self._error = at, after, error
        self.steps: List[str] = []
        self.dead = False

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Around one effect."""
        if self.dead:
            raise Died(name)
        self.steps.append(name)
        struck = self.strikes(name)
        if struck and not self._after:
            self._strike(name)
        yield
        if struck and self._after:
            self._strike(name)

    def strikes(self, name: str) -> bool:
        """Whether the step that begins now is the one."""
        return len(self.steps) == self._at

    def watch(self) -> None:
        """Where something is only read: a dead process doesn't."""
        if self.dead:
            raise Died

    def _strike(self, name: str) -> None:
        if self._error is not None:
            raise self._error
        self.dead = True
        raise Died(name)


class FatefulStore:
    """Implements ports.Store: another store whose every effect is a step of a fate.

    `images_too` makes the effects on opened images steps as well: each write, zero and flush.
    """

    def __init__(self, store: Store, fate: Fate, *, images_too: bool = True) -> None:
        self._store, self._fate, self._images_too = store, fate, images_too
        self._opened: List[Image] = []

    def bury(self) -> None:
        """Close what the process has open, as the kernel does when it is gone."""
        for opened in self._opened:
            opened.close()

    @property
    def kind(self) -> Literal["fs", "lvm"]:
        return self._store.kind

    def check(self) -> None:
        self._fate.watch()
        self._store.check()

    def locations(self) -> Tuple[Location, ...]:
        self._fate.watch()
        return self._store.locations()

    def images(self, server: Optional[str] = None) -> Tuple[StoredImage, ...]:
        self._fate.watch()
        return self._store.images(server)

    def path(self, owner: Owner, sequence: Sequence) -> str:
        return self._store.path(owner, sequence)

    def create(
        self, owner: Owner, size_bytes: int, location: str, *, data_bytes: Optional[int] = None
    ) -> StoredImage:
        with self._fate.step(f"create {naming.image_name(owner, INCOMPLETE)}"):
            return self._store.create(owner, size_bytes, location, data_bytes=data_bytes)

    def resize(self, image: StoredImage, size_bytes: int, *, data_bytes: Optional[int] = None) -> StoredImage:
        with self._fate.step(f"resize {_name(image)}"):
            return self._store.resize(image, size_bytes, data_bytes=data_bytes)

    def rename(self, image: StoredImage, sequence: Sequence) -> StoredImage:
        with self._fate.step(f"rename {_name(image)} {sequence}"):
            return self._store.rename(image, sequence)

    def remove(self, image: StoredImage) -> None:
        with self._fate.step(f"remove {_name(image)}"):
            self._store.remove(image)

    def open(self, image: StoredImage, *, writable: bool) -> Image:
        self._fate.watch()
        opened = self._store.open(image, writable=writable)
        self._opened.append(opened)
        return FatefulImage(opened, self._fate, _name(image)) if self._images_too else opened

    def users(self, images: Iterable[StoredImage]) -> Dict[StoredImage, str]:
        self._fate.watch()
        return self._store.users(images)

    def is_known_zero(self, image: StoredImage) -> bool:
        self._fate.watch()
        return self._store.is_known_zero(image)


class FatefulImage:
    """Implements ports.Image: another image whose every effect is a step of a fate."""

    def __init__(self, image: Image, fate: Fate, name: str) -> None:
        self._image, self._fate, self._name = image, fate, name

    @property
    def size_bytes(self) -> int:
        return self._image.size_bytes

    @property
    def path(self) -> str:
        return self._image.path

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        self._fate.watch()
        self._image.read_into(offset_bytes, buffer)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        with self._fate.step(f"write {self._name} {offset_bytes} {len(data)}"):
            self._image.write(offset_bytes, data)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        with self._fate.step(f"zero {self._name} {offset_bytes} {length_bytes}"):
            self._image.zero(offset_bytes, length_bytes)

    def data_ranges(self, offset_bytes: int, length_bytes: int) -> Iterator[Tuple[int, int]]:
        self._fate.watch()
        return self._image.data_ranges(offset_bytes, length_bytes)

    def flush(self) -> None:
        with self._fate.step(f"flush {self._name}"):
            self._image.flush()

    def forget_cached(self) -> None:
        self._fate.watch()
        self._image.forget_cached()

    def close(self) -> None:
        self._fate.watch()
        self._image.close()


def _name(image: StoredImage) -> str:
    return naming.image_name(image.owner, image.sequence)
