"""Looks at everything the status shows, and goes on where something cannot be read.

Reads the store, the state and the definitions through what it's given; changes nothing.
"""

from __future__ import annotations

from typing import Callable, Dict, Iterable, List, Mapping, Optional, Tuple, TypeVar

from anvil_dr import definition, definition_files
from anvil_dr.activation import check_record
from anvil_dr.config import Config
from anvil_dr.definition_files import DefinitionFile
from anvil_dr.errors import AnvilDrError, DefinitionError, ServiceError
from anvil_dr.model import CacheDrive, RunningJob, SourceDefinition
from anvil_dr.ports import Store
from anvil_dr.records.state import State
from anvil_dr.rehearsal import rehearsal_records
from anvil_dr.status.status import DefinitionFacts, Observation, WaitingSet

CacheDriveSource = Callable[[], Tuple[CacheDrive, ...]]
RunningJobSource = Callable[[], Tuple[RunningJob, ...]]
"""Asks the service. Raises ServiceError if it is not there."""

_T = TypeVar("_T")


def observe(
    config: Config,
    store: Store,
    state: Optional[State],
    *,
    running_jobs: RunningJobSource,
    cache_drives: CacheDriveSource,
    waiting: Callable[[Tuple[CacheDrive, ...]], Tuple[WaitingSet, ...]] = lambda drives: (),
    check: Callable[[], None] = lambda: None,
    problems: Iterable[str] = (),
) -> Observation:
    """See everything that can be seen. Raises nothing of ours: what went wrong is among the problems.

    `state` is None where it could not be opened, and `problems` says why. `check` may raise what makes the store's
    answers worthless (its file system is not mounted).
    """
    found: List[str] = list(problems)

    def attempt(read: Callable[[], _T]) -> Optional[_T]:
        try:
            return read()
        except AnvilDrError as error:
            if str(error) not in found:
                found.append(str(error))
            return None

    def usable(read: Callable[[], _T]) -> _T:
        check()
        return read()

    jobs, service_problem = None, None
    try:
        jobs = running_jobs()
    except ServiceError as error:
        service_problem = str(error)
    # The plans first and the records last: a plan that ends meanwhile is then known as one or the other.
    pending = attempt(state.pending) if state else None
    images = attempt(lambda: usable(store.images))
    drives = attempt(cache_drives) or ()
    return Observation(
        target=config.name,
        store_kind=config.store.kind,
        locations=attempt(lambda: usable(store.locations)) or (),
        images=images,
        records=attempt(state.set_records) if state else None,
        pending=pending or (),
        last_jobs=(attempt(state.last_jobs) if state else None) or {},
        activations=(attempt(state.activations) if state else None) or {},
        check=check_record.read(config.state),
        rehearsed=rehearsal_records.last_of_each(config.state),
        definitions=attempt(lambda: _definitions(config.definitions, state)),
        cache_drives=drives,
        waiting=attempt(lambda: waiting(drives)) or (),
        jobs=jobs,
        service_problem=service_problem,
        problems=tuple(found),
    )


def _definitions(directory: str, state: Optional[State]) -> Mapping[str, DefinitionFacts]:
    found: Dict[str, DefinitionFacts] = {}
    for file in definition_files.read_all(directory):
        found[file.server] = facts(file, state.source_definition(file.server) if state else None)
    return found


def facts(file: DefinitionFile, source: Optional[SourceDefinition]) -> DefinitionFacts:
    """What a definition file is worth, and how it differs from the source's. Pure."""
    if file.problem is not None:
        return DefinitionFacts(file.path, file.problem)
    try:
        here = definition.parse(file.xml)
        named = definition.server_name(here)
    except DefinitionError as error:
        return DefinitionFacts(file.path, str(error))
    if named != file.server:
        return DefinitionFacts(file.path, f"it is for a server named {named}")
    if source is None:
        return DefinitionFacts(file.path)
    try:
        return DefinitionFacts(file.path, None, definition.differences(source.xml, file.xml, source.left_out))
    except DefinitionError as error:
        return DefinitionFacts(file.path, None, (f"they cannot be compared: {error}",))
