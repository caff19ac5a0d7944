"""What of a job's space is still to be written, by what its files have taken so far."""

from __future__ import annotations

from typing import Optional

from anvil_dr.model import INCOMPLETE, Owner, StoredImage
from anvil_dr.receiving import space
from anvil_dr.wire.protocol import DiskOffer


def offer(disk: str, size_bytes: int, data_bytes: Optional[int] = None) -> DiskOffer:
    return DiskOffer(disk, size_bytes, f"/dev/vg/{disk}", data_bytes)


def file(disk: str, size_bytes: int, taken_bytes: int) -> StoredImage:
    owner = Owner("Web01", disk)
    return StoredImage(owner, INCOMPLETE, "/srv/dr", disk, size_bytes, f"/srv/dr/{disk}", size_bytes - taken_bytes)


def test_a_disk_needs_what_it_may_hold_but_for_what_its_file_has_taken() -> None:
    offers = (offer("Web01_0", 1000, 600), offer("Web01_1", 500))
    images = (file("Web01_0", 1000, 250), file("Web01_1", 500, 100))
    assert space.left(offers, (), images) == {"/srv/dr": 600 - 250 + 500 - 100}


def test_a_disk_that_has_arrived_needs_nothing_more_however_little_it_took() -> None:
    offers = (offer("Web01_0", 1000, 600), offer("Web01_1", 500))
    images = (file("Web01_0", 1000, 0), file("Web01_1", 500, 0))
    assert space.left(offers, ("Web01_0",), images) == {"/srv/dr": 500}


def test_a_file_that_took_more_than_was_announced_gives_nothing_to_the_others() -> None:
    offers = (offer("Web01_0", 1000, 100), offer("Web01_1", 500))
    images = (file("Web01_0", 1000, 700), file("Web01_1", 500, 0))
    assert space.left(offers, (), images) == {"/srv/dr": 500}
