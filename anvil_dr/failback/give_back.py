"""What is sent of a server that ran on the DR box, back to its node: a job turned round.

Reads the store, the overlays, the state and the firmware state; changes nothing.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Final, Iterator, Mapping, Optional, Tuple

from anvil_dr import definition, definition_files
from anvil_dr.activation import boot_firmware
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.overlays import Overlays
from anvil_dr.cycling import sets
from anvil_dr.errors import DefinitionError, ImageInUseError, SourceError, UsageError
from anvil_dr.model import CACHED, ImageSet, StoredImage
from anvil_dr.ports import Store
from anvil_dr.records.state import State
from anvil_dr.sending.job import OutgoingDisk, OutgoingServer, Source
from anvil_dr.sending.source import open_source

log = logging.getLogger(__name__)

_SECTOR_BYTES: Final = 512
"""A guest sees whole sectors, so QEMU may write a file's last one whole."""
_CHUNK_BYTES: Final = 1 << 20


class Part:
    """The beginning of an image: a volume is as large as its extents, and the disk on the node may be smaller."""

    def __init__(self, whole: Source, size_bytes: int) -> None:
        self._whole, self.size_bytes = whole, size_bytes

    @property
    def path(self) -> str:
        return self._whole.path

    def changed(self) -> Optional[str]:
        return self._whole.changed()

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer`; past the end it is filled with zeros. Raise ImageIOError."""
        wanted = max(0, min(len(buffer), self.size_bytes - offset_bytes))
        self._whole.read_into(offset_bytes, buffer[:wanted])
        buffer[wanted:] = bytes(len(buffer) - wanted)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        self._whole.write(offset_bytes, data)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        self._whole.zero(offset_bytes, length_bytes)

    def data_ranges(self, offset_bytes: int, length_bytes: int) -> Iterator[Tuple[int, int]]:
        return self._whole.data_ranges(offset_bytes, length_bytes)

    def flush(self) -> None:
        """Nothing to do: nothing is ever written."""

    def forget_cached(self) -> None:
        self._whole.forget_cached()

    def close(self) -> None:
        self._whole.close()


def outgoing(
    server: str, store: Store, state: State, overlays: Overlays, places: FirmwarePlaces
) -> OutgoingServer:
    """The server as it ran here, off now.

    Raise UsageError, ImageInUseError, SourceError, StoreError, StateError, ImageIOError.
    """
    activation = state.activations().get(server)
    if activation is None:
        raise UsageError(
            f"server {server} is not activated here, so its node has nothing to get back; "
            f"what it sent last is in the store all the same (anvil-dr-status)"
        )
    if overlays.of(server) is not None:
        raise UsageError(
            f"what {server} wrote here is in overlays: put it into its images first, with: "
            f"anvil-activate-dr --release {server} --keep"
        )
    known = sets.assemble(store.images(), state.set_records(server), state.pending(server))
    ran_from = next((one for one in sets.of_server(known, server) if one.sequence == activation.sequence), None)
    if ran_from is None and activation.sequence == CACHED:
        raise SourceError(
            f"{server} ran from its set on a cache drive, which is not mounted now: plug it in, mount it, and type the "
            "same again"
        )
    if ran_from is None or not ran_from.complete:
        raise SourceError(f"set {activation.sequence} of {server}, which it ran from, is not complete any more")
    for image, user in store.users(ran_from.images).items():
        raise ImageInUseError(image.path, f"{user}; shut the server down first: virsh shutdown {server}")
    file = definition_files.read(places.definitions, server)
    try:
        needs = definition.requirements(file.xml)
    except DefinitionError as error:
        raise DefinitionError(f"{file.path}: {file.problem or error}", server=server) from error

    extents = {place.name: place.extent_bytes for place in store.locations()}

    def firmware() -> Mapping[str, bytes]:
        return boot_firmware.as_it_is(places, needs)

    return OutgoingServer(
        name=server,
        definition=file.xml,
        disks=tuple(_disk(image, ran_from, extents.get(image.location, 1)) for image in ran_from.images),
        keep_off=nullcontext,
        firmware=firmware(),
        read_firmware=firmware,
    )


def _disk(image: StoredImage, one: ImageSet, extent_bytes: int) -> OutgoingDisk:
    received = {each.identity: each.size_bytes for each in one.record.images} if one.record is not None else {}
    size_bytes = received.get(image.identity, image.size_bytes)
    if _has_more(image, size_bytes, max(extent_bytes, _SECTOR_BYTES)):
        log.info(
            "disk is larger than it was received server=%s disk=%s bytes=%d received_bytes=%d",
            one.server, image.owner.disk, image.size_bytes, size_bytes,
        )  # fmt: skip
        size_bytes = image.size_bytes
    return OutgoingDisk(image.owner.disk, image.path, size_bytes, lambda: Part(open_source(image.path), size_bytes))


def _has_more(image: StoredImage, received_bytes: int, unit_bytes: int) -> bool:
    """True if the server has more of this disk than what was received. Raise SourceError, ImageIOError.

    Because it was made larger here by a whole unit or more; or because the guest wrote into what is there because units
    are whole, which was all zeros: it sees that too, and some guests grow into it by themselves.
    """
    if image.size_bytes - received_bytes >= unit_bytes:
        return True
    if image.size_bytes <= received_bytes:
        return False
    source = open_source(image.path)
    try:
        for start in range(received_bytes, image.size_bytes, _CHUNK_BYTES):
            part = memoryview(bytearray(min(_CHUNK_BYTES, image.size_bytes - start)))
            source.read_into(start, part)
            if part != bytes(len(part)):
                return True
        return False
    finally:
        source.close()
