"""Places where a store can be tried: each makes stores over one place, and does to it what a store can't.

The real volume groups, and other file systems, are there only inside of the box: tests/box tries them.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import ContextManager, Iterator, Protocol, Set, Tuple

from anvil_dr import command, naming
from anvil_dr.model import Location, Owner, StoredImage
from anvil_dr.ports import Store
from anvil_dr.stores.directory import DirectoryStore
from anvil_dr.stores.lvm import LvmStore
from tests.doubles.memory_store import MemoryStore

WEB = Owner("Web01", "Web01_0")
MAIL = Owner("Mail+01", "disk.1")
STRANGER = Owner("Nobody", "knows")


class Lab(Protocol):
    """What a test of the contract needs."""

    location: str
    known: Set[Owner]
    """Whose images count, for the stores that must be told."""

    def store(self) -> Store:
        """A new store object over the same place, as after a restart."""
        ...

    def put_foreign(self) -> None:
        """Put something with the name of STRANGER's newest image there, which is nobody's image."""
        ...

    def in_use(self, image: StoredImage) -> ContextManager[None]:
        """Somebody else has it open meanwhile."""
        ...

    def clean(self) -> None:
        """Leave nothing behind."""
        ...


class MemoryLab:
    location = "memory"

    def __init__(self, kind: str) -> None:
        self.known: Set[Owner] = {WEB, MAIL}
        place = Location("memory", 64 << 20, 64 << 20, 1 if kind == "fs" else 4 << 20)
        self._store = MemoryStore("fs" if kind == "fs" else "lvm", (place,), lambda: self.known)

    def store(self) -> Store:
        return self._store

    def put_foreign(self) -> None:
        self._store.put(STRANGER, 1, b"foreign")

    @contextmanager
    def in_use(self, image: StoredImage) -> Iterator[None]:
        self._store.use(image, "somebody")
        yield
        self._store.use(image, None)

    def clean(self) -> None:
        """It goes with the test."""


class DirectoryLab:
    def __init__(self, directory: Path) -> None:
        self.known: Set[Owner] = {WEB, MAIL}
        self.location = str(directory)

    def store(self) -> DirectoryStore:
        return DirectoryStore(self.location, lambda: self.known)

    def put_foreign(self) -> None:
        Path(self.location, naming.file_name(STRANGER, 1)).write_bytes(b"foreign")

    @contextmanager
    def in_use(self, image: StoredImage) -> Iterator[None]:
        with held_open(image.path):
            yield

    def clean(self) -> None:
        for file in Path(self.location).iterdir():
            file.unlink()


class LvmLab:
    """Real volume groups, that are empty at the start of each test."""

    def __init__(self, groups: Tuple[str, ...]) -> None:
        self.known: Set[Owner] = set()
        self.groups, self.location = groups, groups[0]

    def store(self) -> LvmStore:
        return LvmStore(self.groups, command.run)

    def put_foreign(self) -> None:
        name = naming.image_name(STRANGER, 1)
        command.run(("lvcreate", "-y", "-Wn", "-Zn", "-L", "4m", "-n", name, self.location))

    @contextmanager
    def in_use(self, image: StoredImage) -> Iterator[None]:
        with held_open(image.path):
            yield

    def clean(self) -> None:
        command.run(("lvremove", "-y", *self.groups))


@contextmanager
def held_open(path: str) -> Iterator[None]:
    """Another process has it open for reading."""
    program = "import sys; file = open(sys.argv[1], 'rb'); print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", program, path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.communicate()
