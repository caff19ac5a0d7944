"""Complete sets that wait on cache drives to be copied to the store, as this machine remembers them.

Touches `<state>/cached/<server>/<job>/`: `set.json`, written last and whole, and the firmware state that came with it.
Only a set that is remembered here is copied by itself: what else lies on a drive could be anybody's. A server can have
several: what lies on a drive that is not there is remembered until something newer is complete in the store.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from typing import Dict, Final, FrozenSet, Iterable, List, Mapping, Optional, Tuple

from anvil_dr import durable, naming
from anvil_dr.errors import ImageNameError, ProtocolError, StateError
from anvil_dr.model import SetRecord
from anvil_dr.wire import typed_json
from anvil_dr.wire.protocol import DiskOffer, ServerOffer

log = logging.getLogger(__name__)

_FILE: Final = "set.json"
_DEFINITION_CHARACTERS: Final = 8 << 20


@dataclass(frozen=True)
class CachedImage:
    """One image of such a set."""

    disk: str
    path: str
    """As the server's definition has it."""
    size_bytes: int
    digest: str
    """Empty once the server has run on it."""
    drive: str
    """The identity of the drive that it lies on."""
    device: str
    """What that drive was called then, for people."""
    known_as: str = ""
    """The same, with its model and serial number."""


@dataclass(frozen=True)
class CachedSet:
    """Everything that is needed to make it the newest set in the store without the node."""

    server: str
    source: str
    job_id: str
    received_at: str
    """ISO 8601, UTC."""
    images: Tuple[CachedImage, ...]
    definition: str = field(metadata={"characters": _DEFINITION_CHARACTERS})
    left_out: Tuple[str, ...] = ()
    ran_here_until: Optional[str] = None
    """When the server was given back that had run on it; its images have no digests since then. ISO 8601, UTC."""
    firmware: Mapping[str, int] = field(default_factory=dict)
    jobs_before: Optional[Tuple[str, ...]] = None
    """Those whose sets are older: all that were known when it was complete, and what was carried in since."""
    runs_before: Optional[Tuple[str, ...]] = None
    """The `ran_here_until` of the store's sets when it was complete."""
    carried: bool = False
    """True if it was carried in on its drives: they are somebody's, and nothing is removed from them."""

    @property
    def offer(self) -> ServerOffer:
        """As the node announced it."""
        disks = tuple(DiskOffer(name=one.disk, size_bytes=one.size_bytes, path=one.path) for one in self.images)
        return ServerOffer(self.server, self.definition, disks, self.left_out, dict(self.firmware))

    @property
    def devices(self) -> Tuple[str, ...]:
        """The drives that it lies on, as they were called."""
        return tuple(sorted({one.known_as or one.device for one in self.images}))

    @property
    def drives(self) -> FrozenSet[str]:
        """The identities of those drives."""
        return frozenset(one.drive for one in self.images)


def folder(state_directory: str) -> str:
    """Where they are remembered."""
    return os.path.join(state_directory, "cached")


def keep(state_directory: str, cached: CachedSet, firmware: Mapping[str, bytes]) -> None:
    """Remember a set, durably: from here on it is complete. Those remembered before stay. Raise StateError."""
    where = _place(state_directory, cached)
    try:
        durable.make_directories(where, mode=0o700)
        for name, content in firmware.items():
            durable.make_directories(os.path.dirname(os.path.join(where, name)), mode=0o700)
            durable.replace(os.path.join(where, name), content, mode=0o600)
        durable.replace(os.path.join(where, _FILE), typed_json.write(cached), mode=0o600)
    except OSError as error:
        raise StateError(f"the cached set of server {cached.server} cannot be remembered: {error}") from error


def newer_than(records: Iterable[SetRecord], waiting: Iterable[CachedSet], cached: CachedSet) -> CachedSet:
    """The same set, noted as newer than these, of the store and on cache drives. Touches nothing."""
    stored = tuple(records)
    return replace(
        cached,
        jobs_before=(*(one.job_id for one in stored), *(one.job_id for one in waiting)),
        runs_before=tuple(one.ran_here_until for one in stored if one.ran_here_until is not None),
    )


def put_before(state_directory: str, carried: CachedSet) -> Tuple[CachedSet, ...]:
    """Note with the sets of a server that wait, and are newer than one that is carried in, that it is older.

    Only their times can tell. Returns those. Raise StateError.
    """
    newer = []
    for one in of_server(state_directory, carried.server):
        if one.job_id == carried.job_id or one.received_at <= carried.received_at:
            continue
        newer.append(one)
        if one.jobs_before is not None and carried.job_id not in one.jobs_before:
            keep(state_directory, replace(one, jobs_before=(*one.jobs_before, carried.job_id)), {})
    return tuple(newer)


def forget(state_directory: str, cached: CachedSet) -> None:
    """It is not needed any more. Nothing happens if it is forgotten already. Raise StateError."""
    where = _place(state_directory, cached)
    try:
        if os.path.lexists(os.path.join(where, _FILE)):
            durable.remove(os.path.join(where, _FILE))
        if os.path.isdir(where):
            durable.remove_tree(where)
    except OSError as error:
        raise StateError(f"the cached set of server {cached.server} cannot be forgotten: {error}") from error


def of_server(state_directory: str, server: str) -> Tuple[CachedSet, ...]:
    """The sets of this server that wait, the oldest first. One that can't be read is named in the log.

    Raise StateError.
    """
    found: List[CachedSet] = []
    try:
        naming.check_server_name(server)
        jobs = os.listdir(os.path.join(folder(state_directory), server))
    except (FileNotFoundError, NotADirectoryError, ImageNameError):
        return ()
    except OSError as error:
        raise StateError(f"{folder(state_directory)} cannot be read: {error.strerror}") from error
    for job in jobs:
        path = os.path.join(folder(state_directory), server, job, _FILE)
        try:
            with open(path, "rb") as file:
                cached = typed_json.read(CachedSet, file.read(), path)
            if (cached.server, cached.job_id) == (server, job):
                found.append(cached)
            else:
                log.error("a cached set is not known any more path=%r error=%s", path, "it is about another job")
        except (FileNotFoundError, NotADirectoryError):
            continue  # it never was complete, or has just been forgotten
        except (OSError, ProtocolError) as error:
            log.error("a cached set is not known any more path=%r error=%s", path, error)
    # What one knew when it was complete is older, whatever the clock said then.
    def age(one: CachedSet) -> Tuple[int, str, str]:
        older = sum(other.job_id in (one.jobs_before or ()) for other in found)
        return older, one.received_at, one.job_id

    return tuple(sorted(found, key=age))


def all_of_them(state_directory: str) -> Tuple[CachedSet, ...]:
    """Every set that waits, by server, the oldest first. Raise StateError."""
    try:
        names = sorted(os.listdir(folder(state_directory)))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise StateError(f"{folder(state_directory)} cannot be read: {error.strerror}") from error
    return tuple(cached for name in names for cached in of_server(state_directory, name))


def firmware_of(state_directory: str, cached: CachedSet) -> Mapping[str, bytes]:
    """The firmware state that came with it. Raise StateError."""
    content: Dict[str, bytes] = {}
    for name in cached.firmware:
        path = os.path.join(_place(state_directory, cached), name)
        try:
            with open(path, "rb") as file:
                content[name] = file.read()
        except OSError as error:
            raise StateError(f"{path} cannot be read: {error.strerror}") from error
    return content


def ran_here(state_directory: str, cached: CachedSet, firmware: Mapping[str, bytes], until: str) -> None:
    """The server ran on it until then: its images, and its firmware state, are what it made of them.

    Raise StateError.
    """
    images = tuple(replace(one, digest="") for one in cached.images)
    sizes = {name: len(content) for name, content in firmware.items()}
    keep(state_directory, replace(cached, images=images, firmware=sizes, ran_here_until=until), firmware)


def place(state_directory: str, server: str, job_id: str) -> str:
    """Where one set is remembered, and its firmware state kept."""
    return os.path.join(folder(state_directory), server, job_id)


def _place(state_directory: str, cached: CachedSet) -> str:
    return place(state_directory, cached.server, cached.job_id)
