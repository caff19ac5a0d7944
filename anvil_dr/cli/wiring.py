"""Builds the adapters that a configuration asks for. Beside service.py the only place that names them."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import Callable, Iterator, Optional, Tuple

from anvil_dr import command, definition_files
from anvil_dr.cache.drives import RealCacheDrives, store_places
from anvil_dr.cache.watch import DriveWatch
from anvil_dr.caching import cached_boot, cached_copy, cached_sets, carry_in
from anvil_dr.caching.cached_boot import Bootable, StoreWithCached
from anvil_dr.config import Config
from anvil_dr.cycling import sets
from anvil_dr.errors import AnvilDrError, CacheDriveError, DefinitionError, StoreError
from anvil_dr.model import Owner
from anvil_dr.ports import OwnerSource, Store
from anvil_dr.receiving.target import Target
from anvil_dr.records.state import State
from anvil_dr.stores.directory import DirectoryStore
from anvil_dr.stores.lvm import LvmStore

log = logging.getLogger(__name__)


def open_state(config: Config, *, readonly: bool = False) -> State:
    """The state database. Raise StateError."""
    return State.open(config.state, readonly=readonly)


def open_store(config: Config, state: Optional[State]) -> Store:
    """The store. Without a state, a directory store knows only the images that definitions name. No I/O yet."""
    if config.store.kind == "lvm":
        return LvmStore(config.store.locations, command.run)
    return DirectoryStore(config.store.locations[0], owner_source(config, state))


def open_store_in_reach(config: Config, state: Optional[State]) -> Tuple[Store, Tuple[str, ...]]:
    """What is left of the store, ready to be booted from, and in words what is wrong with it. Raise StoreError."""
    store = open_store(config, state)
    if isinstance(store, LvmStore):
        return store.in_reach()
    try:
        store.check()
        return store, damaged_images(store)
    except StoreError as error:
        return store, (str(error),)


def damaged_images(store: Store) -> Tuple[str, ...]:
    """In words, which images cannot even be looked at, and so are not among the others. Raise StoreError."""
    return store.damaged() if isinstance(store, DirectoryStore) else ()


def open_cache_drives(config: Config, state: Optional[State]) -> Optional[RealCacheDrives]:
    """The drives that may be cache drives; None where they are not looked for. No I/O yet."""
    if not config.use_cache:
        return None
    groups, directory = config.store.locations, None
    if config.store.kind == "fs":
        groups, directory = (), config.store.locations[0]

    def store_in(folder: str, file_system: int) -> Store:
        return DirectoryStore(folder, state.owners if state else tuple, file_system=file_system)

    return RealCacheDrives(
        os.path.join(config.runtime, "cache"),
        config.cache_signature,
        store_places(groups, directory),
        command.run,
        store_in,
    )


def open_cached(config: Config, state: Optional[State], store: Store) -> Bootable:
    """What can be booted: the store's images, and complete sets that wait on cache drives. Raises nothing of ours."""
    try:
        waiting = cached_sets.all_of_them(config.state)
        drives = open_cache_drives(config, state)
        if not waiting or drives is None:
            return Bootable(StoreWithCached(store), (), ())
        records, pending = (state.set_records(), state.pending()) if state is not None else ((), ())
        owners = {Owner(one.server, each.disk) for one in waiting for each in one.images}
        return cached_boot.find(
            waiting,
            sets.assemble(store.images(), records, pending),
            store,
            drives.survey(),
            os.path.join(config.runtime, "cache"),
            lambda folder: DirectoryStore(folder, lambda: owners),
        )
    except AnvilDrError as error:
        return Bootable(StoreWithCached(store), (), (f"sets on cache drives cannot be looked at: {error}",))


@contextmanager
def cache_at_work(target: Target) -> Iterator[None]:
    """Meanwhile sets that wait on cache drives are copied to the store: now, and when their drive is plugged in."""
    if target.cache_drives is None:
        yield
        return
    watch: Optional[DriveWatch] = None
    try:
        target.cache_drives.tidy()
        watch = DriveWatch(lambda device: _came(target, device))
        watch.start()
    except CacheDriveError as error:
        log.error("cache drives that are plugged in are not noticed error=%s", error)
    _resume(target)
    _logged(lambda: carry_in.notice_all(target))
    try:
        yield
    finally:
        if watch is not None:
            watch.stop()
        cached_copy.stop(target)


def _came(target: Target, device: str) -> None:
    target.failing_drives.clear()
    _resume(target)
    _logged(lambda: carry_in.notice(target, device))


def _resume(target: Target) -> None:
    _logged(lambda: cached_copy.resume(target))


def _logged(work: Callable[[], object]) -> None:
    try:
        work()
    except AnvilDrError as error:
        log.error("what is on cache drives cannot be looked at error=%s", error)


def owner_source(config: Config, state: Optional[State]) -> OwnerSource:
    """Whose files may lie in a directory store: what the state knows, then what the definitions name.

    The second is for the day on which the state database is gone and the servers must still be found. Raise
    StateError when it's called.
    """

    def owners() -> Iterator[Owner]:
        if state is not None:
            yield from state.owners()
        try:
            files = definition_files.read_all(config.definitions)
        except DefinitionError:
            return
        yield from definition_files.owners_named(files, config.store.locations[0])

    return owners
