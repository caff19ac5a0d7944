"""What lies on this box and might be booted: definitions, sets, and which servers are activated.

Reads the store, the state and the definitions; changes nothing. Needs neither the service nor a hypervisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from anvil_dr import definition, definition_files, firmware
from anvil_dr.activation.boot_plan import Found
from anvil_dr.activation.overlays import Overlays
from anvil_dr.cycling import sets
from anvil_dr.definition_files import DefinitionFile
from anvil_dr.errors import DefinitionError, StoreError
from anvil_dr.model import OverlaySet, SetRecord, StoredImage
from anvil_dr.ports import Store
from anvil_dr.records.state import State


@dataclass(frozen=True)
class Survey:
    """All that lies here, whatever runs."""

    servers: Tuple[Found, ...]
    images: Tuple[StoredImage, ...]
    store_problem: Optional[str] = None
    """Why the store cannot be looked at."""


def survey(
    store: Store, state: Optional[State], definitions: str, *, overlays: Optional[Overlays] = None, kept: str = "",
    cached: Tuple[SetRecord, ...] = (), without_store: bool = False,
) -> Survey:  # fmt: skip
    """What lies here. Raise StoreError, StateError or DefinitionError where that cannot be read.

    `kept` is the directory that firmware state is kept below. Without a state,
    nothing is known of when a set came, and all the images of one number count as one set. `cached` are the sets on
    cache drives whose images the store has too (cached_boot.py). `without_store`: a store that cannot be read has no
    images, and says why.
    """
    # The plans first and the records last: a plan that ends meanwhile is then known as one or the other.
    pending = state.pending() if state is not None else ()
    images, store_problem = _images(store, without_store)
    records = (*(state.set_records() if state is not None else ()), *cached)
    activations = state.activations() if state is not None else {}
    files = {file.server: file for file in definition_files.read_all(definitions)}
    assembled = sets.assemble(images, records, pending)
    names = sorted({*files, *(image.owner.server for image in images)})
    on_overlays = {server: _overlays(overlays, server) for server in names}
    return Survey(
        tuple(
            Found(
                server,
                definition_files.path_of(definitions, server),
                files[server].xml if server in files else "",
                _problem(files.get(server)),
                sets.of_server(assembled, server),
                activations.get(server),
                on_overlays[server][0],
                firmware.sets_with_nvram(kept, server) if kept else frozenset(),
                _drift(files.get(server), state),
                tuple(entry for entry in pending if entry.server == server),
                on_overlays[server][1],
            )
            for server in names
        ),
        images,
        store_problem,
    )


def _images(store: Store, without_store: bool) -> Tuple[Tuple[StoredImage, ...], Optional[str]]:
    try:
        return store.images(), None
    except StoreError as error:
        if not without_store:
            raise
        return (), str(error)


def _overlays(overlays: Optional[Overlays], server: str) -> Tuple[Optional[OverlaySet], Optional[str]]:
    """What it runs on, or why nobody can tell: that is no reason to keep other servers down."""
    try:
        return (overlays.of(server) if overlays is not None else None), None
    except StoreError as error:
        return None, str(error)


def _drift(file: Optional[DefinitionFile], state: Optional[State]) -> Tuple[str, ...]:
    source = state.source_definition(file.server) if state is not None and file is not None else None
    if file is None or source is None:
        return ()
    try:
        return definition.differences(source.xml, file.xml, source.left_out)
    except DefinitionError:
        # What is wrong with the definition here is said elsewhere; the source's is only a comparison.
        return ()


def _problem(file: Optional[DefinitionFile]) -> Optional[str]:
    if file is None:
        return "it has no definition"
    return None if file.problem is None else f"its definition: {file.problem}"
