"""What has to be in place under a server before it is booted: its images as planned, its firmware state, its overlays.

A boot.Footing. Touches the overlays, the nvram file of the definition and libvirt's folder of TPM states; looks at the
store and the state.
"""

from __future__ import annotations

import logging
from typing import Callable, Dict, Mapping, Optional, Set, Tuple

from anvil_dr.activation import boot_firmware, boot_images, boot_xml
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.boot_plan import PlannedServer
from anvil_dr.activation.boot_xml import OverlayPaths
from anvil_dr.activation.overlays import Overlays
from anvil_dr.definition import Requirements
from anvil_dr.errors import ImageInUseError, StateError, StoreError
from anvil_dr.model import CACHED, ImageSet, OverlaySet, StoredImage
from anvil_dr.ports import Store
from anvil_dr.records.state import State

log = logging.getLogger(__name__)


class Ground:
    """`on_overlays`: those that have none get them."""

    def __init__(
        self,
        store: Store,
        state: Optional[State],
        overlays: Overlays,
        places: FirmwarePlaces,
        now: Callable[[], str],
        *,
        on_overlays: bool = False,
    ) -> None:
        self._store, self._state, self._overlays, self._places = store, state, overlays, places
        self._now, self._on_overlays = now, on_overlays
        self._made: Set[str] = set()
        """Servers whose overlays are from this activation: nothing has been written to them before."""

    def prepare(self, planned: PlannedServer) -> str:
        draft = planned.draft
        chosen, needs, xml = draft.chosen, draft.needs, draft.xml
        if chosen is None or needs is None or xml is None:
            raise StoreError(f"nothing is known of what {planned.server} is booted from")
        self._verify(planned.server, chosen)
        made = self._overlays.of(planned.server)
        record, ran_before = chosen.record, draft.activated and draft.left is None
        if draft.left is not None:
            self._take_back(planned.server, needs, draft.left)
        if made is None and not self._on_overlays:
            boot_firmware.put_in_place(self._places, planned.server, needs, record, ran_before=ran_before)
            return xml
        if made is None:
            made = self._make_overlays(planned, chosen)
        # The TPM's state has one place only. What is kept with the set stays as it was all the same.
        boot_firmware.put_in_place(self._places, planned.server, needs, record, ran_before=ran_before)
        return with_overlay_set(xml, made, dict(draft.disk_paths))

    def undo(self, planned: PlannedServer) -> None:
        """Overlays that nothing was written to would be taken for what the server wrote. Older ones stay."""
        made = self._overlays.of(planned.server) if planned.server in self._made else None
        if made is not None:
            self._overlays.begin_removal(made)
            self._overlays.remove(planned.server)
            self._made.discard(planned.server)

    def _take_back(self, server: str, needs: Requirements, left: ImageSet) -> None:
        """What it made of the firmware state of the set that it ran from until now, before another set's replaces it.

        Raise StateError."""
        if left.sequence == CACHED:
            boot_firmware.take_back_cached(self._places, server, needs, None, self._now())
        elif left.record is not None:
            nvram = needs.nvram or self._places.nvram(server)
            boot_firmware.take_back(self._places, server, needs, left.record, nvram)

    def _make_overlays(self, planned: PlannedServer, chosen: ImageSet) -> OverlaySet:
        paths = dict(planned.draft.disk_paths)
        images = tuple((image, paths[image.owner.disk]) for image in chosen.images if image.owner.disk in paths)
        sequence = chosen.sequence
        if not isinstance(sequence, int):
            raise StoreError(f"set {sequence} of {planned.server} is not complete")
        job_id = chosen.record.job_id if chosen.record is not None else None
        made = self._overlays.make(planned.server, sequence, self._now(), images, job_id)
        self._made.add(planned.server)
        needs = planned.draft.needs
        kept = boot_firmware.kept_with(self._places, chosen.record)
        if needs is not None and needs.nvram is not None and "nvram" in kept:
            made = self._overlays.keep_nvram(made, kept["nvram"])
        return made

    def _verify(self, server: str, chosen: ImageSet) -> None:
        """No job has changed the images since the plan was made, and none has them open. It is marked already, so
        that none begins. Raise StoreError, StateError."""
        for found in boot_images.in_the_way(self._state.pending(server) if self._state is not None else (), chosen):
            raise StateError(f"{found.text}: {found.advice}")
        there: Dict[Tuple[str, str], StoredImage] = {
            (image.identity, image.path): image for image in self._store.images() if image.owner.server == server
        }
        for image in chosen.images:
            if (image.identity, image.path) not in there:
                raise StoreError(f"a job has changed the images of {server} since you looked: type the same again")
        for image, user in self._store.users(chosen.images).items():
            raise ImageInUseError(image.path, user)


def with_overlay_set(xml: str, made: OverlaySet, booted_paths: Mapping[str, str], *, thrown_away: bool = False) -> str:
    """The XML on overlays, with its own copy of the UEFI variables where there is one. Raise DefinitionError."""
    by_path = {
        booted_paths[one.disk]: OverlayPaths(one.path, one.base, one.base_kind)
        for one in made.overlays
        if one.disk in booted_paths
    }
    changed = boot_xml.with_overlays(xml, by_path, thrown_away=thrown_away)
    return boot_xml.with_nvram(changed, made.nvram) if made.nvram is not None else changed
