"""Gives an activated server's images back to the jobs.

Touches the state, its overlays, its firmware state; looks at the store and at its definition.
"""

from __future__ import annotations

import logging
import os
from typing import Final, Iterable, Literal, Optional, Tuple

from anvil_dr import definition, definition_files, firmware
from anvil_dr.activation import boot_firmware
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.overlays import Overlays
from anvil_dr.caching import cached_sets
from anvil_dr.caching.cached_sets import CachedSet
from anvil_dr.cycling import sets
from anvil_dr.definition import Requirements
from anvil_dr.errors import DefinitionError, ImageInUseError, StoreError, UsageError
from anvil_dr.model import CACHED, ImageSet, OverlaySet
from anvil_dr.ports import Store
from anvil_dr.records.state import State
from anvil_dr.words import listed, nearest

log = logging.getLogger(__name__)

Wish = Literal["keep", "discard"]

_KEPT: Final = "released. Set {set} holds what it wrote here, until its next job"
_DISCARDED: Final = "released. What it wrote here is gone; set {set} is as it was received"
_DISCARDED_DAMAGED: Final = "released. Its overlays are gone, and what it wrote here with them"

_STAYS: Final = (
    "; a set that was received {received_at}, before that, waits on cache drive {devices} and stays there until then"
)
_COMES: Final = (
    "; a newer one, received {received_at}, waits on cache drive {devices} and goes to the store once that is there"
)

_DISCARDED_LATER: Final = (
    "released. What it wrote here on overlays is gone; set {set} holds what it wrote when it ran on that itself, "
    "until its next job"
)
_KEPT_CACHED: Final = (
    "released. Its set on the cache drive holds what it wrote here; the service copies it to the store as its newest"
)
_DISCARDED_CACHED: Final = "released. What it wrote here is gone; its set on the cache drive is as it was received"


def release(
    server: str,
    wish: Optional[Wish],
    store: Store,
    state: State,
    overlays: Overlays,
    places: FirmwarePlaces,
    now: str,
) -> str:
    """Take the mark away; what became of what the server wrote, in words. Doing it again after a failure goes on.

    `wish` says what becomes of overlays. Raise UsageError if the server isn't activated, or if there are overlays and
    no wish, or the other way round; ImageInUseError while it runs; StateError, StoreError.
    """
    refuse_others([server], state, overlays)
    activation = state.activations().get(server)
    made, damaged = _overlays(overlays, server, wish)
    wish = "discard" if damaged else _decided(server, wish, made, os.path.join(overlays.folder, server))
    for image, user in store.users(one for one in store.images() if one.owner.server == server).items():
        raise ImageInUseError(image.path, f"{user}; shut the server down first: virsh shutdown {server}")
    sequence = activation.sequence if activation is not None else made.sequence if made is not None else 1
    known = sets.assemble(store.images(), state.set_records(server), state.pending(server))
    own = sets.of_server(known, server)
    ran_from = next((one for one in own if one.sequence == sequence), None)
    if made is not None and wish == "keep" and not made.removing:
        _refuse_another_set(made, ran_from, os.path.join(overlays.folder, server))
        # Half of it in the images is neither what was received nor what it wrote: that is known before the first byte.
        made = overlays.begin_commit(made)
    if wish != "discard" and (made is None or not made.removing):
        needs, nvram = _needs(places, server), made.nvram if made is not None else None
        if sequence == CACHED:
            boot_firmware.take_back_cached(places, server, needs, nvram, now)
        elif ran_from is not None:
            _keep_what_it_wrote(ran_from, state, places, needs, nvram, now)
        if made is not None:
            overlays.commit(made)
    if made is not None:
        overlays.begin_removal(made)
    _publish_nvram(places, server, own)
    # The mark goes before the overlays: one that is left without them says that the server ran on its images.
    state.release(server)
    overlays.remove(server)
    if damaged:
        return _DISCARDED_DAMAGED
    if sequence == CACHED:
        return _DISCARDED_CACHED if wish == "discard" else _KEPT_CACHED
    done = _KEPT
    if wish == "discard":
        wrote_before = ran_from is not None and ran_from.record is not None and ran_from.record.ran_here_until
        done = _DISCARDED_LATER if wrote_before else _DISCARDED
    waiting = cached_sets.of_server(places.state, server)
    return done.format(set=sequence) + _about_waiting(waiting, own, wrote=done is _KEPT)


def _about_waiting(waiting: Iterable[CachedSet], own: Tuple[ImageSet, ...], *, wrote: bool) -> str:
    """`wrote`: what the server wrote here just now is in its set in the store."""
    newer = [one for one in waiting if not sets.has_one_as_new(own, one)][-1:]
    return "".join(
        (_STAYS if wrote or sets.ran_after(own, one) else _COMES).format(
            received_at=one.received_at, devices=listed(one.devices)
        )
        for one in newer
    )


def _decided(server: str, wish: Optional[Wish], made: Optional[OverlaySet], folder: str) -> Optional[Wish]:
    """What becomes of the overlays: what was wished, or what was begun before. Raise UsageError if that contradicts."""
    if made is None:
        if wish == "discard":
            raise UsageError(
                f"{server} ran on its images themselves: what it wrote cannot be told from what was received"
            )
        return wish
    if made.removing:
        begun: Wish = "keep" if made.committing else "discard"
        if wish not in (None, begun):
            raise UsageError(
                f"a --{begun} of {server} was begun, and some of its overlays may be gone: --{begun} goes on with it"
            )
        return begun
    if wish is None:
        raise UsageError(
            f"{server} ran on overlays since {made.made_at}: add --keep to put what it wrote into its images, "
            "or --discard to throw it away"
        )
    if made.committing and wish == "discard":
        raise UsageError(
            f"a --keep of {server} was begun, and some of what it wrote is in its images already: --keep goes on with "
            f"it; to give up the rest: rm -r {folder}, then --release without either"
        )
    return wish


def refuse_others(servers: Iterable[str], state: State, overlays: Overlays) -> None:
    """Raise UsageError for one that is not activated, and has nothing left of it; StateError."""
    activated = sorted(state.activations())
    for server in servers:
        if server not in activated and not overlays.has_any(server):
            there = f"activated: {listed(activated)}" if activated else "no server is"
            raise UsageError(f"server {server} is not activated{nearest(server, activated)}; {there}")


def _overlays(overlays: Overlays, server: str, wish: Optional[Wish]) -> Tuple[Optional[OverlaySet], bool]:
    """Those that it ran on, and whether there are some that nobody can understand any more: they can only be thrown
    away. Raise StoreError if that is not the wish."""
    try:
        return overlays.of(server), False
    except StoreError as error:
        if wish == "discard":
            log.warning("thrown away server=%s error=%s", server, error)
            return None, True
        raise StoreError(
            f"{error}; if nobody needs it: anvil-activate-dr --release {server} --discard"
        ) from error


def _needs(places: FirmwarePlaces, server: str) -> Optional[Requirements]:
    """None where the definition cannot be read: then nobody can say where its firmware state is either."""
    try:
        return definition.requirements(definition_files.read(places.definitions, server).xml)
    except DefinitionError as error:
        log.info("definition not readable server=%s error=%s", server, error)
        return None


def _refuse_another_set(made: OverlaySet, ran_from: Optional[ImageSet], folder: str) -> None:
    """Overlays hold differences: over any other set they are nonsense, and would destroy it. Raise StoreError."""
    if ran_from is None or not made.lies_over(ran_from) or made.is_spoilt(ran_from):
        now = "is gone" if ran_from is None else "is another one now"
        if ran_from is not None and made.is_spoilt(ran_from):
            now = "was written to since then, because the server was started by hand"
        raise StoreError(
            f"set {made.sequence}, which {made.server} has overlays over, {now}: what is in them cannot be put into "
            f"it; copy them if they are needed ({folder}), then --discard"
        )


def _keep_what_it_wrote(
    ran_from: ImageSet,
    state: State,
    places: FirmwarePlaces,
    needs: Optional[Requirements],
    nvram: Optional[str],
    now: str,
) -> None:
    if ran_from.record is not None and needs is not None:
        path = nvram or needs.nvram or places.nvram(ran_from.server)
        boot_firmware.take_back(places, ran_from.server, needs, ran_from.record, path)
    state.ran_here(_identities(ran_from), now)


def _identities(one: ImageSet) -> Tuple[str, ...]:
    return tuple(image.identity for image in one.images)


def _publish_nvram(places: FirmwarePlaces, server: str, own: Iterable[ImageSet]) -> None:
    """The definition's file follows the newest set again (SPEC section 7)."""
    newest = sets.newest_complete(tuple(own))
    if newest is not None and newest.record is not None:
        firmware.publish_nvram(places.state, newest.record, places.nvram(server))
