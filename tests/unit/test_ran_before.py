"""What the overlays of a server that ran here mean for its next boot."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Optional, Tuple

import pytest

from anvil_dr.activation.boot_plan import Found
from anvil_dr.activation.ran_before import on_overlays, without_overlay
from anvil_dr.model import ImageSet, Overlay, OverlaySet, Owner, SetRecord, StoredImage


def a_set(*disks: str, job_id: Optional[str] = "job-1", recreated: bool = False) -> ImageSet:
    images = tuple(
        StoredImage(Owner("Web01", disk), 1, "/srv/dr", f"inode:{disk}{recreated}", 4096, f"/srv/dr/{disk}")
        for disk in disks
    )
    record = SetRecord("Web01", "2026-11-20T01:02:03+00:00", "an-a05n01", job_id, ()) if job_id is not None else None
    return ImageSet("Web01", 1, images, True, record)


def over(one: ImageSet, *disks: str) -> OverlaySet:
    made = tuple(
        Overlay(image.owner.disk, f"/overlays/{image.owner.disk}", image.path, "file", image.identity)
        for image in one.images
        if not disks or image.owner.disk in disks
    )
    return OverlaySet("Web01", 1, "now", made, job_id=one.record.job_id if one.record is not None else None)


def found(overlays: OverlaySet) -> Found:
    return Found("Web01", "/shared/definitions/Web01.xml", "", None, (), None, overlays)


def problems(overlays: OverlaySet, chosen: ImageSet) -> List[str]:
    return [one.text for one in on_overlays(found(overlays), chosen) if one.fatal]


RAN = a_set("Web01_0", "Web01_1")


@pytest.mark.parametrize(
    ("overlays", "chosen"),
    [
        (over(RAN), RAN),
        (over(RAN, "Web01_0"), RAN),
        (over(RAN), replace(RAN, record=None)),
        (replace(over(RAN), job_id=None), RAN),
    ],
    ids=["the same", "a disk that it was not booted with", "nobody knows its job", "nobody knew its job"],
)
def test_a_server_goes_on_with_overlays_over_the_set_that_they_were_made_over(
    overlays: OverlaySet, chosen: ImageSet
) -> None:
    assert problems(overlays, chosen) == []
    assert [one.text for one in on_overlays(found(overlays), chosen)][0].startswith("it goes on with the overlays")


@pytest.mark.parametrize(
    "chosen",
    [a_set("Web01_0", "Web01_1", job_id="job-3"), a_set("Web01_0", "Web01_1", recreated=True), a_set("Web01_0")],
    ids=["recycled images", "other images", "an image less"],
)
def test_overlays_are_not_booted_over_another_set_even_if_that_has_the_same_images(chosen: ImageSet) -> None:
    (said,) = problems(over(RAN), chosen)
    assert "this is another set" in said


@pytest.mark.parametrize(("disks", "missing"), [(("Web01_0",), []), (("Web01_0", "Web01_1"), ["Web01_1"])])
def test_no_image_is_written_to_beside_the_overlays_of_others(disks: Tuple[str, ...], missing: List[str]) -> None:
    said = " ".join(one.text for one in without_overlay(found(over(RAN, "Web01_0")), disks))
    assert [disk for disk in disks if disk in said] == missing
