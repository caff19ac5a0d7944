"""A server that runs, or ran, here before: from which set it goes on, and what its overlays and its domain say to that.

Pure.
"""

from __future__ import annotations

from typing import Iterable, Iterator, Optional, Tuple

from anvil_dr.activation.boot_plan import Draft, Found
from anvil_dr.model import Activation, ImageSet
from anvil_dr.preflight.findings import Finding, problem, warning
from anvil_dr.words import listed


def ran_from(found: Found) -> Optional[Activation]:
    """What it ran on here goes before anything newer. Overlays say so too, should the mark be lost."""
    if found.activation is None and found.overlays is not None:
        return Activation(found.server, found.overlays.sequence, found.overlays.made_at, "")
    return found.activation


def left(found: Found, chosen: Optional[ImageSet]) -> Optional[ImageSet]:
    """The other set that it ran from until now; without images if it is gone. None if it goes on with the same."""
    ran = found.activation
    if ran is None or chosen is None or chosen.sequence == ran.sequence:
        return None
    gone = ImageSet(found.server, ran.sequence, (), complete=False)
    return next((one for one in found.sets if one.sequence == ran.sequence), gone)


def on_overlays(found: Found, chosen: Optional[ImageSet]) -> Iterator[Finding]:
    """What booting it from this set means for the overlays that it ran on."""
    if found.overlays is None or chosen is None:
        return
    release = _release(found)
    if found.overlays.removing:
        begun = "--keep" if found.overlays.committing else "--discard"
        yield problem(
            f"a --release {begun} of it was begun, and some of the overlays that it ran on may be gone",
            f"finish that: anvil-activate-dr --release {found.server} {begun}",
        )
    elif not found.overlays.lies_over(chosen):
        text = f"what it wrote here is in overlays over set {found.overlays.sequence}, and this is another set"
        yield problem(text, f"decide what becomes of it: {release}")
    else:
        yield warning("it goes on with the overlays that it ran on; its images stay as they are", f"until: {release}")


def without_overlay(found: Found, disks: Iterable[str]) -> Iterator[Finding]:
    """`disks` are those that it would be booted with: beside overlays, no image may be written to."""
    there = {one.disk for one in found.overlays.overlays} if found.overlays is not None else set(disks)
    missing = sorted(set(disks) - there)
    if missing:
        yield problem(
            f"it goes on with the overlays that it ran on, and {listed(missing)} has none of them",
            f"take it out of {found.definition_path}; or give the server back: {_release(found)}",
        )


def unmarked(draft: Draft) -> Tuple[Finding, ...]:
    """Of a server that runs here already."""
    if draft.activated:
        return ()
    advice = f"so that no job writes over it later, mark it: anvil-activate-dr {draft.server}"
    return (warning("it runs here, but nobody marked it: it was started by hand", advice),)


def _release(found: Found) -> str:
    return f"anvil-activate-dr --release {found.server}, with --keep or --discard"
