"""What is put up for one rehearsal and taken down after it: overlays, firmware state, and the XML to boot.

Touches a folder of its own for each server, and one of libvirt's folders of TPM states.
"""

from __future__ import annotations

import logging
import os
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Iterator, List, Mapping, Optional

from anvil_dr import durable
from anvil_dr.activation import boot_firmware
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.boot_plan import PlannedServer
from anvil_dr.activation.boot_xml import OverlayPaths, with_overlays
from anvil_dr.activation.overlays import Overlays
from anvil_dr.definition import Requirements
from anvil_dr.errors import SourceError, StateError, StoreError
from anvil_dr.firmware_files import FirmwareFiles
from anvil_dr.rehearsal import rehearsal_xml
from anvil_dr.rehearsal.rehearsal_turns import RehearsalTurns

log = logging.getLogger(__name__)

SUFFIX: Final = "-rehearsal"
_SERIAL: Final = "serial.log"
_TPM_NOTE: Final = "tpm"
"""Where it is written down which of libvirt's folders is ours, for whoever clears up after a crash."""


@dataclass(frozen=True)
class Stage:
    """Ready to boot."""

    name: str
    xml: str
    serial_log: str


@contextmanager
def put_up(
    planned: PlannedServer, overlays: Overlays, places: FirmwarePlaces, now: str, *, with_serial: bool
) -> Iterator[Stage]:
    """Everything that a rehearsal of this server needs; nothing of it is left afterwards. Raise StoreError, StateError,
    DefinitionError."""
    draft, server = planned.draft, planned.server
    if draft.chosen is None or draft.needs is None or draft.xml is None or not isinstance(draft.chosen.sequence, int):
        raise StoreError(f"nothing is known of what {server} is booted from")
    paths, name, identity = dict(draft.disk_paths), server + SUFFIX, str(uuid.uuid4())
    folder = os.path.join(overlays.folder, server)
    images = [(image, paths[image.owner.disk]) for image in draft.chosen.images if image.owner.disk in paths]
    try:
        made = overlays.make(server, draft.chosen.sequence, now, images)
        by_path = {paths[one.disk]: OverlayPaths(one.path, one.base, one.base_kind) for one in made.overlays}
        xml = with_overlays(draft.xml, by_path, thrown_away=True)
        log_path = os.path.join(folder, _SERIAL)
        if with_serial:
            _create(log_path, b"")
        xml = rehearsal_xml.isolated(
            xml, name, identity, [one.path for one in made.overlays], log_path if with_serial else None
        )
        kept = boot_firmware.kept_with(places, draft.chosen.record)
        if draft.needs.is_uefi:
            xml = _own_nvram(xml, folder, draft.needs, kept)
        _own_tpm(folder, draft.needs, kept, places, identity)
        yield Stage(name, xml, log_path)
    finally:
        take_down(server, overlays, places)


def take_down(server: str, overlays: Overlays, places: FirmwarePlaces) -> None:
    """Remove what a rehearsal of this server has put up. What cannot be removed is logged."""
    note = os.path.join(overlays.folder, server, _TPM_NOTE)
    try:
        with open(note, encoding="ascii") as file:
            folder = os.path.join(places.tpm, str(uuid.UUID(file.read().strip())))
        if os.path.isdir(folder):
            durable.remove_tree(folder)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("a TPM's state stays behind note=%s error=%s", note, error)
    try:
        overlays.remove(server)
    except StoreError as error:
        log.warning("a rehearsal's files stay behind: %s", error)


def sweep(overlays: Overlays, places: FirmwarePlaces, turns: RehearsalTurns) -> None:
    """Remove what rehearsals have left behind that were killed."""
    try:
        servers: List[str] = os.listdir(overlays.folder)
    except OSError:
        return
    for server in servers:
        if turns.is_free(server):
            log.info("clearing up after a rehearsal server=%s", server)
            take_down(server, overlays, places)


def _own_nvram(xml: str, folder: str, needs: Requirements, kept: Mapping[str, bytes]) -> str:
    """The set's variables, or else those that the definition names, in a copy: the originals are never written to."""
    content: Optional[bytes] = kept.get("nvram")
    if content is None and needs.nvram is not None and os.path.isfile(needs.nvram):
        try:
            content = FirmwareFiles(needs.nvram, None).read()["nvram"]
        except SourceError as error:
            raise StateError(str(error)) from error
    path = os.path.join(folder, "nvram.fd")
    if content is not None:
        _create(path, content)
    return rehearsal_xml.with_own_nvram(xml, path, is_filled=content is not None)


def _own_tpm(
    folder: str, needs: Requirements, kept: Mapping[str, bytes], places: FirmwarePlaces, identity: str
) -> None:
    files = {name[len("tpm/") :]: content for name, content in kept.items() if name.startswith("tpm/")}
    where = places.tpm_of(needs)
    if where is None:
        return
    # libvirt removes its folder by itself when the domain ends; unless it, or we, are killed before.
    _create(os.path.join(folder, _TPM_NOTE), identity.encode("ascii"))
    if files:
        boot_firmware.put_tpm(os.path.join(places.tpm, identity, os.path.basename(where)), files)


def _create(path: str, content: bytes) -> None:
    try:
        durable.replace(path, content, mode=0o600)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
