"""A DR box that can be killed at any step: the real session, receiver and state, whose every effect is counted.

The steps are those of a store, of opened images, of each transaction, and of durable.py down to its system calls.
A `Fate` (memory_store.py) strikes one of them; after that the dead process has no effect any more. What it had open
is closed, as the kernel does; what it had only in memory is gone with it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import sqlite3
import tempfile
import threading
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Protocol, Sequence, Tuple

from anvil_dr import config, durable
from anvil_dr.cli import wiring
from anvil_dr.errors import AnvilDrError, ImageIOError
from anvil_dr.model import Location, StoredImage
from anvil_dr.ports import OwnerSource, Store
from anvil_dr.receiving.recover import recover
from anvil_dr.receiving.session import Peer, Session
from anvil_dr.receiving.target import Target
from anvil_dr.records.database import Database
from anvil_dr.records.state import State
from anvil_dr.sending.job import JobOutcome, OutgoingDisk, OutgoingServer
from anvil_dr.sending.send import JobSender
from anvil_dr.stores.directory import DirectoryStore
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.limits import Limits
from tests.doubles.dr_box import DOMAIN, Quiet, uuid_of
from tests.doubles.memory_store import Fate, FatefulStore, MemoryStore
from tests.doubles.provenance import Push
from tests.doubles.wire import Bytes


class World(Protocol):
    """Where images lie, and outlive the process."""

    def store(self, owners: OwnerSource) -> Store: ...

    def images(self) -> Dict[str, bytes]:
        """Names, without a suffix, and bytes: what the checker may see."""
        ...

    def crash(self) -> None:
        """The process is gone."""
        ...

    def save(self) -> Any: ...

    def load(self, saved: Any) -> None: ...


class MemoryWorld:
    """A store in memory. A crash is a power cut: what was not flushed is lost."""

    def __init__(self, places: Tuple[Location, ...] = ()) -> None:
        self._store = MemoryStore(places=places) if places else MemoryStore()

    def store(self, owners: OwnerSource) -> Store:
        return self._store

    def images(self) -> Dict[str, bytes]:
        return {
            f"{one.owner.server}_{one.owner.disk}_{one.sequence}": bytes(one.content)
            for one in self._store.held.values()
        }

    def crash(self) -> None:
        self._store.restart(power_cut=True)

    def use(self, image: StoredImage, user: Optional[str]) -> None:
        """Somebody else opens it, or closes it again."""
        self._store.use(image, user)

    def use_number(self, number: int, user: str) -> None:
        """Somebody else opens a set."""
        for one in self._store.held.values():
            one.user = user if one.sequence == number else one.user

    def save(self) -> Any:
        return {
            identity: replace(one, content=bytearray(one.content), stable=bytearray(one.stable), writers=0)
            for identity, one in self._store.held.items()
        }

    def load(self, saved: Any) -> None:
        self._store.held.clear()
        for identity, one in saved.items():
            self._store.held[identity] = replace(one, content=bytearray(one.content), stable=bytearray(one.stable))


class _UnusedDirectoryStore(DirectoryStore):
    """Nobody else has its files open, which would take seconds to find out in /proc again and again."""

    def users(self, images: Iterable[StoredImage]) -> Dict[StoredImage, str]:
        return {}


class DirectoryWorld:
    """A directory store. A crash is the end of the process: what was written stays."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._saved = folder / "store", folder / "saved"
        self.folder.mkdir()
        self._numbers = itertools.count()

    def store(self, owners: OwnerSource) -> Store:
        return _UnusedDirectoryStore(str(self.folder), owners)

    def images(self) -> Dict[str, bytes]:
        return {path.name[: -len(".raw")]: path.read_bytes() for path in self.folder.iterdir()}

    def crash(self) -> None: ...

    def save(self) -> Any:
        """Hard links: an image is known by its inode, so a copy would be another image."""
        where = self._saved / str(next(self._numbers))
        where.mkdir(parents=True)
        for path in self.folder.iterdir():
            os.link(path, where / path.name)
        return where, self.images()

    def load(self, saved: Any) -> None:
        where, contents = saved
        for path in self.folder.iterdir():
            path.unlink()
        for path in where.iterdir():
            os.link(path, self.folder / path.name)
            path.write_bytes(contents[path.name[: -len(".raw")]])


class _Kept:
    """A connection that goes on after a transaction. To open one for each is a third of what a swept job takes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def close(self) -> None:
        """End the transaction, as closing does."""
        if self._connection.in_transaction:
            self._connection.rollback()

    def end(self) -> None:
        """With the process."""
        self._connection.close()


class _FatefulDatabase(Database):
    def __init__(self, directory: str, fate: Fate) -> None:
        super().__init__(directory, readonly=False)
        self._fate = fate
        self._kept: Optional[_Kept] = None

    def _connect(self) -> Any:
        self._kept = self._kept or _Kept(super()._connect())
        return self._kept

    def end(self) -> None:
        if self._kept is not None:
            self._kept.end()

    @contextmanager
    def writing(self) -> Iterator[Any]:
        # Struck before its end, the transaction is undone; struck after, it is on stable storage.
        with self._fate.step("commit"), super().writing() as connection:
            yield connection


class _Steps:
    """A module whose named functions are steps of a fate."""

    def __init__(self, module: Any, fate: Fate, effects: Sequence[str]) -> None:
        self._module, self._fate, self._effects = module, fate, effects

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        if name not in self._effects:
            return function

        def step(*args: Any, **kwargs: Any) -> Any:
            with self._fate.step(f"{name} {[one for one in args if isinstance(one, (str, bytes))]}"):
                return function(*args, **kwargs)

        return step


@contextmanager
def _mortal_durable(fate: Fate) -> Iterator[None]:
    """durable.py is the gateway to these system calls, so this is where they are counted."""
    real = durable.os, durable._libc, durable.tempfile, durable.shutil
    effects = ("fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir", "write")
    durable.os = _Steps(os, fate, effects)  # type: ignore[assignment]
    durable._libc = _Steps(durable._libc, fate, ("renameat2",))  # type: ignore[assignment]
    durable.tempfile = _Steps(tempfile, fate, ("mkstemp",))  # type: ignore[assignment]
    durable.shutil = _Steps(shutil, fate, ("rmtree",))  # type: ignore[assignment]
    try:
        yield
    finally:
        durable.os, durable._libc, durable.tempfile, durable.shutil = real  # type: ignore[assignment]


class _Source(Bytes):
    """A node's disk."""

    def changed(self) -> Optional[str]:
        return None


class _BadSource(_Source):
    """One that can't be read."""

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        raise ImageIOError(self.path, offset_bytes, "read", "Input/output error")


def outgoing(push: Push, fails: bool) -> OutgoingServer:
    """What a node has of it. Where it is to fail, that is at the last disk; what is before it has been written."""
    last = list(push.disks)[-1]

    def disk(name: str) -> OutgoingDisk:
        kind = _BadSource if fails and name == last else _Source
        return OutgoingDisk(name, f"/dev/vg/{name}", push.disks[name], lambda: kind(push.content(name), holes=True))

    disks = "\n".join(
        f"<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/{name}'/>"
        f"<target dev='vd{chr(97 + number)}' bus='virtio'/></disk>"
        for number, name in enumerate(push.disks)
    )
    return OutgoingServer(
        push.server,
        DOMAIN.format(name=push.server, uuid=uuid_of(push.server), disks=disks),
        tuple(disk(name) for name in push.disks),
        nullcontext,
        firmware={name: push.firmware_content(name) for name in push.firmware},
    )


class MortalBox:
    """Everything but the images lies below one folder."""

    def __init__(self, folder: Path, world: World, **changes: object) -> None:
        self.folder, self.world = folder, world
        for name in ("state", "definitions"):
            (folder / name).mkdir(exist_ok=True)
        self.config = replace(
            config.Config(name="dr01", store=config.StoreConfig("fs", (str(folder / "store"),))),
            definitions=str(folder / "definitions"), state=str(folder / "state"), runtime=str(folder / "run"),
            **changes,  # type: ignore[arg-type]
        )  # fmt: skip
        self.minutes = 0

    def now(self) -> str:
        return (datetime(2026, 11, 20, tzinfo=timezone.utc) + timedelta(minutes=self.minutes)).isoformat()

    @contextmanager
    def process(self, fate: Optional[Fate] = None) -> Iterator[Target]:
        """A process of the service: at its end, whatever that is, nothing of it is left but what it put down."""
        fate = fate or Fate()
        State.open(self.config.state).close()
        database = _FatefulDatabase(self.config.state, fate)
        state = State(self.config.state, database)
        store = FatefulStore(self.world.store(wiring.owner_source(self.config, state)), fate)
        try:
            with _mortal_durable(fate):
                yield Target(self.config, store, state, now=self.now)
        finally:
            store.bury()
            state.close()
            database.end()
            if fate.dead:
                self.world.crash()

    def push(self, *pushes: Push, fate: Optional[Fate] = None, fails: bool = False) -> JobOutcome:
        """Receive one job. Raise Died if the process died of it."""
        self.minutes += 60
        ends = [Channel(fd, fd, silence_seconds=20) for fd in (one.detach() for one in socket.socketpair())]
        outcomes: List[JobOutcome] = []

        def send() -> None:
            sender = JobSender(ends[0], node="an-a01n01", observer=Quiet(), compress=False)
            with suppress(AnvilDrError):
                outcomes.append(sender.run("nightly", tuple(outgoing(push, fails) for push in pushes)))
            ends[0].abandon()

        node = threading.Thread(target=send)
        try:
            with self.process(fate) as target:
                node.start()
                Session(target, ends[1], Peer("test"), Limits()).run()
        finally:
            ends[1].abandon()
            ends[1].close()
            node.join()
            ends[0].close()
        return outcomes[0]

    def mark(self) -> Any:
        """Everything as it is now, to rewind to."""
        return self.world.save(), _files(self.folder), self.minutes

    def rewind(self, mark: Any) -> None:
        """Put everything back, the images with the identities that they had."""
        images, files, self.minutes = mark
        self.world.load(images)
        _put_back(self.folder, files)

    def recover(self, fate: Optional[Fate] = None) -> None:
        """What the next process does first."""
        with self.process(fate) as target:
            recover(target)


def _files(folder: Path) -> Dict[str, Optional[bytes]]:
    """Everything below the state and the definitions."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for name in ("state", "definitions")
        for path in sorted((folder / name).rglob("*"))
    }


def _put_back(folder: Path, files: Mapping[str, Optional[bytes]]) -> None:
    for name in ("state", "definitions"):
        for path in sorted((folder / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    for name, content in files.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
