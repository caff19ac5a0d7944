"""May this job be taken? Checks it against what is here, and plans where its images go, before anything changes.

Reads the store and the state; claims names, and has cycle.py finish what was begun; where there is no room, has
removed_sets.py forget what somebody removed. Changes nothing else.
"""

from __future__ import annotations

import fnmatch
import logging
import os
from dataclasses import dataclass
from typing import Collection, Dict, Literal, Mapping, Optional, Sequence, Set, Tuple

from anvil_dr import definition, definition_files, firmware, naming, words
from anvil_dr.activation import nodes, overlays
from anvil_dr.cycling import cycle, lost_sets, placement, rotation, sets
from anvil_dr.errors import (
    DefinitionError,
    ImageInUseError,
    NotAllowedError,
    ServerActivatedError,
    ServiceError,
    StateError,
    StoreError,
)
from anvil_dr.model import (
    INCOMPLETE,
    Allocation,
    Demand,
    ImageSet,
    Owner,
    Step,
    StoredImage,
)
from anvil_dr.model import Sequence as SetNumber
from anvil_dr.receiving import removed_sets
from anvil_dr.receiving.target import Target
from anvil_dr.rehearsal.rehearsal_turns import RehearsalTurns
from anvil_dr.wire.protocol import DiskOffer, ServerOffer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerPlan:
    """How one server's job begins: what is renamed, where its images will be."""

    steps: Tuple[Step, ...]
    demands: Tuple[Demand, ...]
    allocations: Tuple[Allocation, ...]
    warnings: Tuple[str, ...]


@dataclass(frozen=True)
class _Intent:
    """Names only; placement comes once every server of the job has one."""

    server: str
    steps: Tuple[Step, ...]
    demands: Tuple[Demand, ...]
    freed_bytes: Mapping[str, int]
    warnings: Tuple[str, ...]


def check_server(
    target: Target, offer: ServerOffer, allowed: Sequence[str], beside: Sequence[ServerOffer] = ()
) -> Tuple[str, ...]:
    """Raise what is wrong with one server of a job; return warnings about its definition.

    `beside` are the servers of the same job that have been taken already.
    """
    if not any(fnmatch.fnmatchcase(offer.name, pattern) for pattern in allowed):
        raise NotAllowedError(offer.name)
    for disk in offer.disks:
        naming.check_image_names(
            Owner(offer.name, disk.name), target.store.kind, target.config.store.locations, target.config.copies
        )
    warnings = make_definition(target, offer.name, offer.definition, disk_names(offer), offer.left_out).warnings
    _refuse_twin(target, offer, beside)
    check_firmware(target, sum(offer.firmware.values()))
    refuse_if_activated(target, offer.name)
    return warnings


def refuse_if_activated(target: Target, server: str) -> None:
    """Raise ServerActivatedError if the server runs or ran here, and was not given back. Raise StateError."""
    if server in target.state.activations():
        raise ServerActivatedError(server)
    if _has_overlays(target, server):
        raise ServerActivatedError(server, on_overlays=True)


def _has_overlays(target: Target, server: str) -> bool:
    """True if a set must stay as it is, under what its server wrote here: its mark may be lost, or could not be set.

    Overlays that nobody understands count: what becomes of those the admin says too.
    """
    try:
        return overlays.read(target.config.overlays, server) is not None
    except StoreError as error:
        log.warning("server=%s has overlays, as it seems: %s", server, error)
        return True


def check_firmware(target: Target, size_bytes: int) -> None:
    """Raise StateError if there is no room for so much more firmware state, even without that of removed sets."""
    if not size_bytes:
        return
    try:
        firmware.check_room(target.config.state, size_bytes, target.firmware_kept_bytes)
    except StateError:
        removed_sets.forget_all(target)
        firmware.check_room(target.config.state, size_bytes, target.firmware_kept_bytes)


def _refuse_twin(target: Target, offer: ServerOffer, beside: Sequence[ServerOffer]) -> None:
    """Two domains with one UUID can't run on one host, and share one TPM. Who was here first stays.

    Only asked of a server whose definition would be made by this job: an older one is the admin's.
    """
    folder = target.config.definitions
    uuid = definition.uuid_of(definition.parse(offer.definition))
    if uuid is None or os.path.lexists(definition_files.path_of(folder, offer.name)):
        return
    try:
        others = [(one.server, one.xml) for one in definition_files.read_all(folder)]
    except DefinitionError as error:
        log.warning("nobody can tell whose UUID is whose: %s", error)
        others = []
    for server, xml in (*others, *((one.name, one.definition) for one in beside)):
        if _uuid(xml) == uuid:
            raise DefinitionError(
                f"its UUID {uuid} is that of server {server}, so that only one of them could be booted here; if that "
                f"was renamed, remove {definition_files.path_of(folder, server)} on the DR box; if not, give one of "
                "them another UUID on its node",
                server=offer.name,
            )


def _uuid(xml: str) -> Optional[str]:
    try:
        return definition.uuid_of(definition.parse(xml))
    except DefinitionError:
        return None


def claim_names(target: Target, offer: ServerOffer) -> None:
    """Claim a server's names, and finish what earlier jobs of it began. The server is this job's.

    Raise NameCollisionError, ServiceError, StoreError, StateError.
    """
    owners = [Owner(offer.name, disk.name) for disk in offer.disks]
    with target.names:
        lost_sets.refuse_empty(target.store, target.state)
        _make_room_for_names(target, owners)
        for owner in owners:
            target.state.claim(owner)
        cycle.settle(target.store, target.state, offer.name)


def _make_room_for_names(target: Target, wanted: Sequence[Owner]) -> None:
    """A node that may send any server could otherwise make up names until the state has no end."""
    known = set(target.state.owners())
    new = set(wanted) - known
    if not new or len(known | new) <= target.names_known:
        return
    unused = _unused(target, known, wanted[0].server)
    if len((known | new) - unused) > target.names_known:
        removed_sets.forget_all(target)
        unused = _unused(target, known, wanted[0].server)
    target.state.disclaim(unused)
    for server in {owner.server for owner in unused}:
        nodes.forget(target.config.state, server)
    if len((known | new) - unused) > target.names_known:
        raise ServiceError(
            f"server {wanted[0].server} is new, and the DR box knows {len(known) - len(unused)} disks already, as many "
            f"as it takes ({target.names_known}); remove images that nobody needs"
        )


def _unused(target: Target, known: Collection[Owner], wanted: str) -> Set[Owner]:
    """Names of which there is nothing here, but for those of one server."""
    used = {image.owner.server for image in target.store.images()}
    used |= {record.server for record in target.state.set_records()} | set(target.state.activations())
    used |= {entry.server for entry in target.state.pending()} | {wanted}
    return {owner for owner in known if owner.server not in used and not target.is_busy(owner.server)}


def disk_names(offer: ServerOffer) -> Mapping[str, str]:
    """The names of a server's disks, by their paths in its definition."""
    return {disk.path: disk.name for disk in offer.disks}


def make_definition(
    target: Target, server: str, xml: str, disks: Mapping[str, str], left_out: Sequence[str]
) -> definition.Made:
    """The definition for the DR box; `disks` are names by path. Raise DefinitionError. No file is touched."""
    kind: Literal["file", "block"] = "block" if target.store.kind == "lvm" else "file"
    paths = {
        path: definition.DiskTarget(target.store.path(Owner(server, name), 1), kind) for path, name in disks.items()
    }
    return definition.make_dr_definition(xml, server, paths, tuple(left_out), nvram_path(target, server))


def nvram_path(target: Target, server: str) -> str:
    """Where `virsh create` finds the server's UEFI variables (SPEC section 7)."""
    return f"{target.config.definitions}/nvram/{server}.fd"


def plan_servers(
    target: Target, job_id: str, offers: Sequence[ServerOffer], cached: Collection[str] = ()
) -> Dict[str, ServerPlan]:
    """Plan the beginning of some servers of one job together. Changes nothing.

    Of `cached` servers a complete set is on a cache drive by the time that the plan is carried out.
    Raise StoreFullError if they don't all fit; ImageInUseError or StoreError if an image of one cannot be used.
    """
    intents = [_intend(target, offer, offer.name in cached) for offer in offers]
    demands = [demand for intent in intents for demand in intent.demands]
    freed: Dict[str, int] = {}
    for intent in intents:
        for location, size in intent.freed_bytes.items():
            freed[location] = freed.get(location, 0) + size
    promised = target.promised(but=(job_id, offers[0].name)) if len(offers) == 1 else target.promised()
    allocations = placement.plan_placement(target.store.locations(), tuple(demands), freed, promised)
    plans: Dict[str, ServerPlan] = {}
    for intent in intents:
        # In the order that placement gave them: there is room for each when its turn comes.
        mine = tuple(allocation for allocation in allocations if allocation.owner.server == intent.server)
        plans[intent.server] = ServerPlan(intent.steps, intent.demands, mine, intent.warnings)
    return plans


def check_images_free(target: Target, images: Sequence[StoredImage]) -> None:
    """Raise ImageInUseError if anything runs on an image of the server (SPEC section 3).

    A rehearsal gives way at once. Raise HypervisorError if it doesn't.
    """
    for server in sorted({image.owner.server for image in images}):
        if RehearsalTurns(target.config.runtime).end(server):
            log.info("a rehearsal has been ended for a job server=%s", server)
    for image, user in target.store.users(images).items():
        raise ImageInUseError(naming.image_name(image.owner, image.sequence), user)


def server_sets(
    target: Target, server: str, images: Optional[Sequence[StoredImage]] = None
) -> Tuple[ImageSet, ...]:
    """Its sets, of these images or of what the store has now. Raise StoreError, StateError."""
    state = target.state
    if images is None:
        images = cycle.images_of(target.store, server)
    return sets.assemble(images, state.set_records(server), state.pending(server))


def needs_cache(target: Target, offer: ServerOffer) -> bool:
    """True if the job would write over the server's last complete set (SPEC section 3, N = 1). Raise StoreError."""
    if target.config.copies > 1:
        return False
    known = tuple(sets.to_planner(one) for one in server_sets(target, offer.name))
    disks = tuple(disk.name for disk in offer.disks)
    steps = rotation.plan_start(offer.name, known, disks, 1) + rotation.plan_overwrite(offer.name, known, disks)
    return rotation.leaves_no_complete_set(known, steps)


def _intend(target: Target, offer: ServerOffer, cached: bool) -> _Intent:
    present = server_sets(target, offer.name)
    images = [image for one in present for image in one.images]
    check_images_free(target, images)
    disks = tuple(disk.name for disk in offer.disks)
    known = tuple(sets.to_planner(one) for one in present)
    steps = rotation.plan_start(offer.name, known, disks, target.config.copies, _young(target, present))
    warnings: Tuple[str, ...] = ()
    if target.config.copies == 1:
        steps += rotation.plan_overwrite(offer.name, known, disks)
        if not cached and rotation.leaves_no_complete_set(known, steps):
            warnings = (_alone(target, offer.name),)
    afterwards = rotation.outcome(images, steps)
    kept = {image.identity for image in afterwards}
    recycled = {image.owner: image for image in afterwards if image.sequence == INCOMPLETE}
    freed: Dict[str, int] = {}
    for image in images:
        if image.identity not in kept:
            freed[image.location] = freed.get(image.location, 0) + image.size_bytes - image.holes_bytes
    return _Intent(
        offer.name,
        steps,
        tuple(_demand(target, offer.name, disk, recycled) for disk in offer.disks),
        freed,
        warnings,
    )


def _young(target: Target, present: Sequence[ImageSet]) -> Tuple[SetNumber, ...]:
    """The sets that are younger than `min_set_age`. One whose time is not known is not; one of the future is."""
    now = words.moment(target.now())
    least_seconds = target.config.min_set_age
    if not least_seconds or now is None:
        return ()
    received = ((one.sequence, words.moment(one.record.received_at)) for one in present if one.record is not None)
    return tuple(
        number for number, at in received if at is not None and (now - at).total_seconds() < least_seconds
    )


def _demand(target: Target, server: str, disk: DiskOffer, recycled: Mapping[Owner, StoredImage]) -> Demand:
    owner = Owner(server, disk.name)
    image = recycled.get(owner)
    data_bytes = disk.data_bytes if target.store.kind == "fs" else None  # volumes have no holes
    if image is None:
        return Demand(owner, disk.size_bytes, data_bytes=data_bytes)
    return Demand(owner, disk.size_bytes, image.location, image.size_bytes, image.holes_bytes, data_bytes)


def _alone(target: Target, server: str) -> str:
    if target.config.require_cache:
        raise StoreError(
            f"server {server} has one copy and there is no cache drive with room for it meanwhile; "
            "require_cache forbids writing over it"
        )
    return (
        f"server {server} has one copy and no cache drive with room for it: "
        "until this job has succeeded there is no complete set of it"
    )
