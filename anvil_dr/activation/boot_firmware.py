"""Puts a set's firmware state where the server that is booted from it finds it, and takes it back (SPEC section 7).

Touches the definition's nvram file and libvirt's folder of TPM states. What is kept with a set is firmware.py's
business, or cached_sets.py's.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import Dict, Final, Mapping, Optional, Tuple

from anvil_dr import durable, firmware
from anvil_dr.caching import cached_sets
from anvil_dr.definition import Requirements
from anvil_dr.errors import SourceError, StateError
from anvil_dr.firmware_files import TPM_FOLDER, FirmwareFiles
from anvil_dr.model import SetRecord

log = logging.getLogger(__name__)

_TPM_MODE: Final = 0o700


@dataclass(frozen=True)
class FirmwarePlaces:
    """Where firmware state lies on this box."""

    state: str
    definitions: str
    tpm: str = TPM_FOLDER

    def nvram(self, server: str) -> str:
        """What definitions name; nothing else is ever written to."""
        return os.path.join(self.definitions, "nvram", f"{server}.fd")

    def tpm_of(self, needs: Requirements) -> Optional[str]:
        """libvirt's folder for this server's TPM; None if it has none, or no UUID to find it by."""
        if needs.tpm is None or needs.tpm.backend != "emulator" or not needs.uuid:
            return None
        version = "tpm1.2" if needs.tpm.version == "1.2" else "tpm2"
        return os.path.join(self.tpm, needs.uuid.lower(), version)


def kept_with(places: FirmwarePlaces, record: Optional[SetRecord]) -> Mapping[str, bytes]:
    """What is kept with a set: `nvram`, `tpm/<file>`. Nothing for a set that nobody remembers. Raise StateError."""
    if record is None:
        return {}
    where = firmware.folder_to_boot(places.state, record)
    try:
        nvram, tpm = os.path.join(where, "nvram"), os.path.join(where, "tpm")
        return FirmwareFiles(nvram if os.path.exists(nvram) else None, tpm if os.path.isdir(tpm) else None).read()
    except SourceError as error:
        raise StateError(str(error)) from error


def put_in_place(
    places: FirmwarePlaces, server: str, needs: Requirements, record: Optional[SetRecord], *, ran_before: bool
) -> Tuple[str, ...]:
    """Make the server find what belongs to this set. What was put there, in words. Raise StateError.

    One that has run here before goes on with what it has changed since; only what is missing is put there.
    """
    kept, done = kept_with(places, record), []
    path = places.nvram(server)
    if "nvram" in kept and needs.nvram == path and not (ran_before and os.path.exists(path)):
        _write(path, kept["nvram"])
        done.append("UEFI variables")
    folder = places.tpm_of(needs)
    files = {name[len("tpm/") :]: content for name, content in kept.items() if name.startswith("tpm/")}
    if files and folder is not None and not (ran_before and os.path.isdir(folder)) and not _has(folder, files):
        put_tpm(folder, files)
        done.append("TPM")
    if done:
        log.info("firmware state in place server=%s what=%s", server, ",".join(done))
    return tuple(done)


def put_tpm(folder: str, files: Mapping[str, bytes]) -> None:
    """Make this the whole content of a TPM's folder; libvirt will give it to swtpm's user. Raise StateError."""
    try:
        if os.path.isdir(folder):
            durable.remove_tree(folder)
        durable.make_directories(os.path.dirname(folder), mode=0o711)
        durable.make_directories(folder, mode=_TPM_MODE)
        for name, content in files.items():
            durable.replace(os.path.join(folder, name), content, mode=0o600)
    except OSError as error:
        raise StateError(f"the TPM's state cannot be put into {folder}: {error.strerror}") from error


def _has(folder: str, files: Mapping[str, bytes]) -> bool:
    """True if this is what is there already."""
    try:
        return {name[len("tpm/") :]: content for name, content in of_folder(folder).items()} == files
    except SourceError:
        return False


def as_it_is(places: FirmwarePlaces, needs: Requirements) -> Mapping[str, bytes]:
    """What the server has made of its firmware state here, as a set keeps it. Raise SourceError."""
    nvram, folder = needs.nvram, places.tpm_of(needs)
    found = dict(FirmwareFiles(nvram if nvram is not None and os.path.exists(nvram) else None, None).read())
    if folder is not None and os.path.isdir(folder):
        found.update(of_folder(folder))
    return found


def take_back(places: FirmwarePlaces, server: str, needs: Requirements, record: SetRecord, nvram: str) -> None:
    """Keep with the set what the server has made of its firmware state here. `nvram` is the file it ran with.

    Raise StateError.
    """
    try:
        files: Dict[str, bytes] = dict(FirmwareFiles(nvram if os.path.exists(nvram) else None, None).read())
        folder = places.tpm_of(needs)
        if folder is not None and os.path.isdir(folder):
            files.update(of_folder(folder))
    except SourceError as error:
        raise StateError(str(error)) from error
    if files:
        firmware.keep(places.state, record, files)


def take_back_cached(
    places: FirmwarePlaces, server: str, needs: Optional[Requirements], nvram: Optional[str], now: str
) -> None:
    """The same for its set on a cache drive: it is no copy of what was received any more, and is copied to the store
    as it is. `nvram` goes before the file that the definition names. Raise StateError."""
    for cached in cached_sets.of_server(places.state, server)[-1:]:
        files = cached_sets.firmware_of(places.state, cached)
        if needs is not None:
            path = nvram or needs.nvram or places.nvram(server)
            try:
                files = as_it_is(places, replace(needs, nvram=path)) or files
            except SourceError as error:
                raise StateError(str(error)) from error
        cached_sets.ran_here(places.state, cached, files, now)


def of_folder(folder: str) -> Mapping[str, bytes]:
    """A TPM's state as a set keeps it: `tpm/<file>`. Raise SourceError."""
    return FirmwareFiles(None, folder).read()


def _write(path: str, content: bytes) -> None:
    """What is right already is left alone: on the day, the disk may be full."""
    try:
        with open(path, "rb") as file:
            if file.read() == content:
                return
    except OSError:
        pass
    try:
        durable.make_directories(os.path.dirname(path))
        durable.replace(path, content, mode=0o600)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}") from error
