"""Firmware state that travels with a server: UEFI variables and TPM state (SPEC section 7).

Touches `<state>/firmware/<server>/<job>/` for what belongs to a set, and the definition's nvram file, which
follows the newest set. Names have been checked by naming.py and admission.py before they come here.
"""

from __future__ import annotations

import glob
import os
from typing import Dict, Final, FrozenSet, Iterable, Mapping

from anvil_dr import durable
from anvil_dr.errors import StateError
from anvil_dr.model import SetRecord
from anvil_dr.words import size

_KINDS: Final = ("firmware", "cached")
"""Folders of the state directory that have firmware state: of the store's sets, and of those on cache drives."""
_RESERVE_BYTES: Final = 32 << 20
"""What the state database needs for itself."""


def folder(state_directory: str, record: SetRecord) -> str:
    """Where the firmware state of one set is kept."""
    return os.path.join(state_directory, "firmware", record.server, record.job_id)


def folder_to_boot(state_directory: str, record: SetRecord) -> str:
    """The same; of a set that is still on its way to the store, where caching/ keeps it."""
    where = folder(state_directory, record)
    cached = os.path.join(state_directory, "cached", record.server, record.job_id)
    return cached if os.path.isdir(cached) and not os.path.isdir(where) else where


def keep(state_directory: str, record: SetRecord, files: Mapping[str, bytes]) -> None:
    """Put a set's firmware state on stable storage, before the set becomes complete. Raise StateError."""
    where = folder(state_directory, record)
    try:
        for name, content in files.items():
            path = os.path.join(where, name)
            durable.make_directories(os.path.dirname(path), mode=0o700)
            durable.replace(path, content, mode=0o600)
    except OSError as error:
        raise StateError(f"the firmware state of server {record.server} cannot be kept: {error}") from error


def check_room(state_directory: str, new_bytes: int, most_bytes: int) -> None:
    """Raise StateError if so much more would be over `most_bytes` of all servers, or fill the state's file system."""
    try:
        kept_bytes = sum(_file_bytes(os.path.join(state_directory, kind)) for kind in _KINDS)
        facts = os.statvfs(state_directory)
    except OSError as error:
        raise StateError(f"the firmware state in {state_directory} cannot be looked at: {error.strerror}") from error
    if kept_bytes + new_bytes > most_bytes:
        raise StateError(
            f"the DR box keeps {size(kept_bytes)} of firmware state in {state_directory}, and with {size(new_bytes)} "
            f"more that is over {size(most_bytes)}: remove images that nobody needs"
        )
    free_bytes = facts.f_bavail * facts.f_frsize
    if free_bytes < new_bytes + _RESERVE_BYTES:
        raise StateError(
            f"the file system of {state_directory} has {size(free_bytes)} free, too little for {size(new_bytes)} of "
            f"firmware state: make room there"
        )


def _file_bytes(folder: str) -> int:
    """Of all files below a folder; one that goes meanwhile counts as none."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                pass
    return total


def sets_with_nvram(state_directory: str, server: str) -> FrozenSet[str]:
    """The jobs of a server whose sets have UEFI variables. What cannot be looked at counts as none."""
    kept = (glob.escape(os.path.join(state_directory, kind, server)) for kind in _KINDS)
    found = (path for where in kept for path in glob.glob(os.path.join(where, "*", "nvram")))
    return frozenset(os.path.basename(os.path.dirname(path)) for path in found)


def kept(state_directory: str) -> Mapping[str, FrozenSet[str]]:
    """The jobs whose firmware state is kept for sets in the store, by server. What cannot be looked at is none."""
    found: Dict[str, FrozenSet[str]] = {}
    for path in glob.glob(os.path.join(glob.escape(state_directory), "firmware", "*", "*")):
        server, job_id = path.split(os.sep)[-2:]
        found[server] = found.get(server, frozenset()) | {job_id}
    return found


def prune(state_directory: str, server: str, records: Iterable[SetRecord]) -> None:
    """Remove firmware state that belongs to no set any more. Raise StateError."""
    kept = {record.job_id for record in records}
    where = os.path.join(state_directory, "firmware", server)
    try:
        for name in os.listdir(where) if os.path.isdir(where) else ():
            if name not in kept:
                durable.remove_tree(os.path.join(where, name))
    except OSError as error:
        raise StateError(f"old firmware state of server {server} cannot be removed: {error}") from error


def publish_nvram(state_directory: str, record: SetRecord, path: str) -> None:
    """Put a set's UEFI variables, if it has any, where the definition names them. Raise StateError."""
    kept = os.path.join(folder(state_directory, record), "nvram")
    try:
        with open(kept, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateError(f"{kept} cannot be read: {error.strerror}") from error
    try:
        durable.make_directories(os.path.dirname(path))
        durable.replace(path, content, mode=0o600)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}") from error
