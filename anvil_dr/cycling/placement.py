"""Which place of a store each image of a job gets, decided before anything is renamed or created (SPEC section 4).

Pure: touches nothing. Bytes are counted in whole extents of the place that they lie in.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Dict, Final, List, Mapping, Optional, Tuple

from anvil_dr.errors import StoreFullError
from anvil_dr.model import Allocation, Create, Demand, Keep, Location, Replace, Resize

_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


def plan_placement(
    locations: Tuple[Location, ...],
    demands: Tuple[Demand, ...],
    freed_bytes: Mapping[str, int] = _NOTHING,
    reserved_bytes: Mapping[str, int] = _NOTHING,
) -> Tuple[Allocation, ...]:
    """What to do for each demand, in an order in which there is room for each when its turn comes.

    A recycled image of the right size is kept; a smaller or larger one is resized where it lies or, if it can't grow
    there, replaced in another place, without counting on the bytes that it will leave behind. A new image goes to
    the place with the most free bytes, on a tie to the first in alphabetical order. This is done in the job's order
    and, if that does not fit, once more with the largest need first.

    `freed_bytes`, by location, will have been freed before anything is created; `reserved_bytes` are promised to
    other jobs. What a recycled image has counts as paid for, but for its holes where it is known how much data will
    come. Every `existing_location` must be one of `locations`. Raise StoreFullError, with the bytes needed and
    available, if it does not fit.
    """
    places = {place.name: place for place in locations}
    # Less than nothing where more is promised than there is: what is given back goes to the promises first.
    free = {
        name: place.free_bytes + freed_bytes.get(name, 0) - reserved_bytes.get(name, 0)
        for name, place in places.items()
    }
    settled: List[Allocation] = []
    kept: List[Demand] = []
    growing: List[Demand] = []
    new: List[Demand] = []
    for demand in demands:
        if demand.existing_location is None:
            new.append(demand)
            continue
        place = places[demand.existing_location]
        size_bytes = _whole_extents(demand.size_bytes, place)
        if size_bytes > demand.existing_bytes:
            growing.append(demand)
            continue
        kept.append(demand)
        if size_bytes == demand.existing_bytes:
            settled.append(Keep(demand.owner, place.name))
        else:
            settled.append(Resize(demand.owner, place.name, size_bytes))
            free[place.name] += max(0, demand.existing_bytes - demand.holes_bytes - size_bytes)
    _fill_holes(kept, free)

    # What has no choice of place goes first.
    job_order = (*growing, *new)
    largest_first = sorted(job_order, key=lambda demand: _needed_bytes(demand, places), reverse=True)
    for order in (job_order, tuple(largest_first)):
        placed = _place(order, places, dict(free))
        if placed is not None:
            return (*settled, *placed)
    raise _full(job_order, places, free)


def _fill_holes(kept: List[Demand], free: Dict[str, int]) -> None:
    """Use up what will be written into the holes of images that stay where they are."""
    for demand in kept:
        if demand.existing_location is not None and demand.data_bytes is not None:
            needed_bytes = _taken_bytes(demand, demand.size_bytes, here=True)
            available_bytes = max(0, free[demand.existing_location])
            if needed_bytes > available_bytes:
                detail = f"image {demand.owner.disk} of {demand.owner.server} has holes that will be filled"
                raise StoreFullError(needed_bytes, available_bytes, detail)
            free[demand.existing_location] -= needed_bytes


def _place(
    demands: Tuple[Demand, ...], places: Mapping[str, Location], free: Dict[str, int]
) -> Optional[Tuple[Allocation, ...]]:
    """Give each demand its place, one after the other; None as soon as one has none. Uses up `free`."""
    placed: List[Allocation] = []
    for demand in demands:
        home = demand.existing_location
        if home is not None:
            size_bytes = _whole_extents(demand.size_bytes, places[home])
            growth_bytes = _taken_bytes(demand, size_bytes, here=True)
            if growth_bytes <= free[home]:
                free[home] -= growth_bytes
                placed.append(Resize(demand.owner, home, size_bytes))
                continue
        roomy = [
            place
            for name, place in places.items()
            if name != home and _taken_bytes(demand, _whole_extents(demand.size_bytes, place)) <= free[name]
        ]
        if not roomy:
            return None
        chosen = min(roomy, key=lambda place: (-free[place.name], place.name))
        size_bytes = _whole_extents(demand.size_bytes, chosen)
        free[chosen.name] -= _taken_bytes(demand, size_bytes)
        placed.append(
            Create(demand.owner, chosen.name, size_bytes)
            if home is None
            else Replace(demand.owner, chosen.name, size_bytes, home)
        )
    return tuple(placed)


def _full(demands: Tuple[Demand, ...], places: Mapping[str, Location], free: Mapping[str, int]) -> StoreFullError:
    needed_bytes = sum(_needed_bytes(demand, places) for demand in demands)
    largest_bytes = max(_needed_bytes(demand, places) for demand in demands)
    available = {name: max(0, free[name]) for name in sorted(free)}
    rooms = ", ".join(f"{name} has {there_bytes}" for name, there_bytes in available.items())
    detail = f"the largest image needs {largest_bytes} in one place; {rooms}" if rooms else "it has no place at all"
    return StoreFullError(needed_bytes, sum(available.values()), detail)


def _needed_bytes(demand: Demand, places: Mapping[str, Location]) -> int:
    """The fewest new bytes that a demand can be met with."""
    if demand.existing_location is not None:
        return _taken_bytes(demand, _whole_extents(demand.size_bytes, places[demand.existing_location]), here=True)
    sizes = (_whole_extents(demand.size_bytes, place) for place in places.values())
    return _taken_bytes(demand, min(sizes, default=demand.size_bytes))


def _taken_bytes(demand: Demand, size_bytes: int, *, here: bool = False) -> int:
    """The new bytes that an image of this size takes; `here` is where the recycled one lies."""
    if demand.data_bytes is None:
        return size_bytes - (demand.existing_bytes if here else 0)
    return max(0, min(size_bytes, demand.data_bytes) - (demand.existing_bytes - demand.holes_bytes if here else 0))


def _whole_extents(size_bytes: int, place: Location) -> int:
    return -(-size_bytes // place.extent_bytes) * place.extent_bytes
