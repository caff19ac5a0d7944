"""A server that runs, or ran, here before: from which set it goes on, and what its overlays and its domain say to that.

Pure.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Iterable, Iterator, Optional

from anvil_dr.activation.boot_images import set_name
from anvil_dr.activation.boot_plan import Draft, Found
from anvil_dr.model import Activation, ImageSet, OverlaySet
from anvil_dr.ports import Domain
from anvil_dr.preflight.boot_subject import HostView
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
    elif found.overlays.is_spoilt(chosen):
        text = f"it wrote to set {chosen.sequence} itself since it ran on overlays over it: they make no sense any more"
        yield problem(text, _give_up(found))
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


def running(found: Found, draft: Draft, domain: Domain, view: HostView, wanted: Optional[int]) -> Draft:
    """It runs here already: from which set, and whether that is the one of its mark and its overlays, or the wanted.

    `virsh create` takes set 1, whatever was booted here before.
    """
    used = {view.path(path).identity for path in domain.disk_paths} - {""}
    images_used = [sum(view.path(image.path).identity in used for image in one.images) for one in found.sets]
    chosen = found.sets[images_used.index(max(images_used))]
    draft = replace(draft, chosen=chosen, left=None, running=True)
    on_its_overlays = found.overlays is not None and any(
        one.path in domain.disk_paths for one in found.overlays.overlays
    )
    if found.overlays is not None and not on_its_overlays:
        return replace(draft, strayed=True, findings=(_beside_overlays(found, found.overlays, chosen),))
    ran, here = found.activation, set_name(chosen.sequence)
    if ran is not None and ran.sequence != chosen.sequence:
        before = set_name(ran.sequence)
        text = f"it runs from {here}, started by hand, without what it wrote to {before} since {ran.since}"
        return replace(draft, strayed=True, findings=(problem(text, _back(found, before)),))
    findings = []
    if wanted is not None and wanted != chosen.sequence:
        advice = f"to boot that one: virsh shutdown {found.server}; then type the same again"
        findings.append(problem(f"it runs from {here} already, and not from set {wanted}", advice))
    if ran is None:
        advice = f"so that no job writes over it later, mark it: anvil-activate-dr {found.server}"
        findings.append(warning("it runs here, but nobody marked it: it was started by hand", advice))
    return replace(draft, findings=tuple(findings))


def _beside_overlays(found: Found, overlays: OverlaySet, chosen: ImageSet) -> Finding:
    over = f"overlays over set {overlays.sequence}"
    text = f"it runs on {set_name(chosen.sequence)} itself, started by hand, without what it wrote to {over}"
    return problem(text, _give_up(found) if overlays.lies_over(chosen) else _back(found, f"the {over}"))


def _back(found: Found, there: str) -> str:
    return f"to go on with {there}: virsh shutdown {found.server}; then anvil-activate-dr --server {found.server}"


def _give_up(found: Found) -> str:
    folder = posixpath.dirname(found.overlays.overlays[0].path) if found.overlays is not None else ""
    return (
        f"copy them if they are needed ({folder}); shut it down if it runs; then: "
        f"anvil-activate-dr --release {found.server} --discard"
    )


def _release(found: Found) -> str:
    return f"anvil-activate-dr --release {found.server}, with --keep or --discard"
