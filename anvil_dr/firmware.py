"""Firmware state that travels with a server: UEFI variables and TPM state (SPEC section 7).

Touches `<state>/firmware/<server>/<job>/` for what belongs to a set, and the definition's nvram file, which
follows the newest set. Names have been checked by naming.py and admission.py before they come here.
"""

from __future__ import annotations

import glob
import os
from typing import FrozenSet, Iterable, Mapping

from anvil_dr import durable
from anvil_dr.errors import StateError
from anvil_dr.model import SetRecord


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


def sets_with_nvram(state_directory: str, server: str) -> FrozenSet[str]:
    """The jobs of a server whose sets have UEFI variables. What cannot be looked at counts as none."""
    kept = (glob.escape(os.path.join(state_directory, kind, server)) for kind in ("firmware", "cached"))
    found = (path for where in kept for path in glob.glob(os.path.join(where, "*", "nvram")))
    return frozenset(os.path.basename(os.path.dirname(path)) for path in found)


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
