"""Builds the adapters that a configuration asks for. Beside service.py the only place that names them."""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

from anvil_dr import command, definition_files
from anvil_dr.config import Config
from anvil_dr.errors import DefinitionError, StoreError
from anvil_dr.model import Owner
from anvil_dr.ports import OwnerSource, Store
from anvil_dr.state import State
from anvil_dr.stores.directory import DirectoryStore
from anvil_dr.stores.lvm import LvmStore


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
    except StoreError as error:
        return store, (str(error),)
    return store, ()


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
