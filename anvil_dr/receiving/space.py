"""How much of the store one server's job takes: what its plan needs, and what of that is still to be written. Pure."""

from __future__ import annotations

from typing import Collection, Dict, Iterable, Mapping, Sequence

from anvil_dr.model import Allocation, Create, Demand, Keep, Replace, StoredImage
from anvil_dr.wire.protocol import DiskOffer


def taken(demands: Iterable[Demand], allocations: Iterable[Allocation]) -> Mapping[str, int]:
    """Bytes that a plan's new and grown images will take, by location."""
    by_owner = {demand.owner: demand for demand in demands}
    total: Dict[str, int] = {}
    for allocation in allocations:
        demand = by_owner[allocation.owner]
        size = demand.existing_bytes if isinstance(allocation, Keep) else allocation.size_bytes
        paid = 0 if isinstance(allocation, (Create, Replace)) else demand.existing_bytes
        if demand.data_bytes is not None:
            size = min(size, demand.data_bytes)
            paid = max(0, paid - demand.holes_bytes)
        total[allocation.location] = total.get(allocation.location, 0) + max(0, size - paid)
    return total


def left(offers: Sequence[DiskOffer], received: Collection[str], images: Iterable[StoredImage]) -> Mapping[str, int]:
    """Bytes that these disks will still take, by location.

    `images` are the sparse files that they go into, as they are now. Disks that are `received` take no more.
    """
    due = {offer.name: offer for offer in offers if offer.name not in received}
    total: Dict[str, int] = {}
    for image in images:
        offer = due.get(image.owner.disk)
        if offer is not None:
            most_bytes = offer.size_bytes if offer.data_bytes is None else offer.data_bytes
            still = max(0, most_bytes - (image.size_bytes - image.holes_bytes))
            total[image.location] = total.get(image.location, 0) + still
    return total
