"""Placement: whole extents, the most free place first, everything decided before anything is touched."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anvil_dr.cycling.placement import plan_placement
from anvil_dr.errors import StoreFullError
from anvil_dr.model import Allocation, Create, Demand, Keep, Location, Owner, Replace, Resize

EXTENT = 4


def group(name: str, free: int, extent: int = EXTENT) -> Location:
    return Location(name, 1000, free, extent)


def disk(name: str, size: int, location: Optional[str] = None, existing: int = 0) -> Demand:
    return Demand(Owner("Web01", name), size, location, existing)


def said(plan: Tuple[Allocation, ...]) -> List[Tuple[object, ...]]:
    """(verb, disk, place, size)"""
    return [
        (type(one).__name__, one.owner.disk, one.location, *([] if isinstance(one, Keep) else [one.size_bytes]))
        for one in plan
    ]


def whole(size: int, extent: int) -> int:
    extents, rest = divmod(size, extent)
    return (extents + (rest > 0)) * extent


def carry_out(
    plan: Tuple[Allocation, ...],
    locations: Tuple[Location, ...],
    demands: Tuple[Demand, ...],
    free: Dict[str, int],
) -> None:
    """Create and resize for real, as far as bytes go, and check that each has room when its turn comes."""
    extents = {place.name: place.extent_bytes for place in locations}
    wanted = {demand.owner: demand for demand in demands}
    assert sorted(one.owner for one in plan) == sorted(wanted), "every demand is met once"
    for one in plan:
        demand = wanted[one.owner]
        size = whole(demand.size_bytes, extents[one.location])
        if isinstance(one, Keep):
            assert (one.location, size) == (demand.existing_location, demand.existing_bytes)
            continue
        assert one.size_bytes == size
        taken = size
        if isinstance(one, Resize):
            assert one.location == demand.existing_location and size != demand.existing_bytes
            taken -= demand.existing_bytes
        elif isinstance(one, Replace):
            home = demand.existing_location
            assert home is not None and one.old_location == home and one.location != home
            assert whole(demand.size_bytes, extents[home]) - demand.existing_bytes > free[home], "it could have grown"
        else:
            assert demand.existing_location is None
        assert taken <= 0 or free[one.location] >= taken, f"no room for {one}"
        free[one.location] -= taken


names = st.sampled_from(["vg0", "vg1", "vg2"])
stores = st.lists(
    st.builds(group, names, st.integers(0, 60), st.sampled_from([1, 4, 8])),
    min_size=1,
    max_size=3,
    unique_by=lambda place: place.name,
).map(tuple)
byte_maps = st.dictionaries(names, st.integers(0, 30))


@st.composite
def recycled_demands(draw: st.DrawFn, locations: Tuple[Location, ...]) -> Tuple[Demand, ...]:
    demands = []
    for number in range(draw(st.integers(0, 5))):
        place = draw(st.sampled_from([None, *locations]))
        existing = draw(st.integers(1, 8)) * place.extent_bytes if place else 0
        demands.append(disk(f"d{number}", draw(st.integers(1, 40)), place.name if place else None, existing))
    return tuple(demands)


@given(stores, st.data(), byte_maps, byte_maps)
def test_every_plan_fits_as_it_is_carried_out(
    locations: Tuple[Location, ...], data: st.DataObject, freed: Dict[str, int], reserved: Dict[str, int]
) -> None:
    demands = data.draw(recycled_demands(locations))
    free = {
        place.name: place.free_bytes + freed.get(place.name, 0) - reserved.get(place.name, 0) for place in locations
    }
    try:
        plan = plan_placement(locations, demands, freed, reserved)
    except StoreFullError as error:
        new = [demand for demand in demands if demand.existing_bytes < demand.size_bytes]
        assert new and 0 < error.needed_bytes <= sum(demand.size_bytes + 7 for demand in new)
        assert error.available_bytes >= 0
        assert str(error.needed_bytes) in str(error) and str(error.available_bytes) in str(error)
    else:
        carry_out(plan, locations, demands, free)


@given(stores, st.integers(1, 30), st.integers(1, 8))
def test_images_of_one_size_are_refused_only_if_they_cannot_fit(
    locations: Tuple[Location, ...], size: int, count: int
) -> None:
    demands = tuple(disk(f"d{number}", size) for number in range(count))
    room = sum(place.free_bytes // whole(size, place.extent_bytes) for place in locations)
    try:
        plan_placement(locations, demands)
    except StoreFullError:
        assert room < count
    else:
        assert room >= count


@given(st.integers(0, 200), st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=6))
def test_one_directory_is_full_exactly_when_the_sum_does_not_fit(free: int, sizes: List[Tuple[int, int]]) -> None:
    demands = tuple(
        disk(f"d{number}", size, "/srv/dr" if existing else None, existing)
        for number, (size, existing) in enumerate(sizes)
    )
    shrinks = sum(max(0, existing - size) for size, existing in sizes)
    needed = sum(max(0, size - existing) for size, existing in sizes)
    try:
        plan_placement((group("/srv/dr", free, 1),), demands)
    except StoreFullError as error:
        assert (error.needed_bytes, error.available_bytes) == (needed, free + shrinks)
        assert needed > free + shrinks
    else:
        assert needed <= free + shrinks


@given(stores, st.integers(1, 40))
def test_a_new_image_goes_to_the_most_free_place_and_on_a_tie_to_the_first_by_name(
    locations: Tuple[Location, ...], size: int
) -> None:
    roomy = [place for place in locations if place.free_bytes >= whole(size, place.extent_bytes)]
    assume(roomy)
    most = max(place.free_bytes for place in roomy)
    first = sorted(place.name for place in roomy if place.free_bytes == most)[0]
    for order in (locations, locations[::-1]):
        (made,) = plan_placement(order, (disk("d0", size),))
        assert made.location == first


def test_free_bytes_are_counted_down_in_the_jobs_order() -> None:
    demands = (disk("a", 12), disk("b", 8), disk("c", 1), disk("d", 4))
    # Left in vg0 and vg1: 32 40, 32 28, 24 28, 24 24: a tie.
    assert said(plan_placement((group("vg1", 40), group("vg0", 32)), demands)) == [
        ("Create", "a", "vg1", 12),
        ("Create", "b", "vg0", 8),
        ("Create", "c", "vg1", 4),
        ("Create", "d", "vg0", 4),
    ]


def test_what_does_not_fit_in_the_jobs_order_is_tried_largest_first() -> None:
    demands = (disk("small", 8), disk("middle", 4), disk("large", 20))
    assert said(plan_placement((group("vg0", 20), group("vg1", 12)), demands)) == [
        ("Create", "large", "vg0", 20),
        ("Create", "small", "vg1", 8),
        ("Create", "middle", "vg1", 4),
    ]


def test_a_recycled_image_of_the_right_size_is_kept_though_its_group_is_full() -> None:
    assert said(plan_placement((group("vg0", 0),), (disk("a", 9, "vg0", 12),))) == [("Keep", "a", "vg0")]


def test_a_recycled_image_grows_in_its_own_group_though_another_has_more_room() -> None:
    plan = plan_placement((group("vg0", 4), group("vg1", 100)), (disk("a", 13, "vg0", 12),))
    assert said(plan) == [("Resize", "a", "vg0", 16)]


def test_a_recycled_image_that_cannot_grow_where_it_is_is_replaced_elsewhere() -> None:
    plan = plan_placement((group("vg0", 4), group("vg1", 20)), (disk("a", 20, "vg0", 12),))
    assert plan == (Replace(Owner("Web01", "a"), "vg1", 20, "vg0"),)


def test_a_recycled_image_grows_by_the_last_byte_that_is_free_and_not_by_one_more() -> None:
    grown = (disk("a", 20, "/srv/dr", 12),)
    assert said(plan_placement((group("/srv/dr", 8, 1),), grown)) == [("Resize", "a", "/srv/dr", 20)]
    with pytest.raises(StoreFullError) as caught:
        plan_placement((group("/srv/dr", 7, 1),), grown)
    assert (caught.value.needed_bytes, caught.value.available_bytes) == (8, 7)


def test_what_a_replaced_image_leaves_behind_is_not_counted_on() -> None:
    with pytest.raises(StoreFullError) as caught:
        plan_placement((group("vg0", 4), group("vg1", 20)), (disk("a", 20, "vg0", 12), disk("b", 12)))
    assert (caught.value.needed_bytes, caught.value.available_bytes) == (20, 24)


def test_what_a_shrunk_image_gives_back_is_used_and_shrinking_comes_first() -> None:
    demands = (disk("new", 8), disk("grown", 12, "vg0", 8), disk("shrunk", 4, "vg0", 16))
    assert said(plan_placement((group("vg0", 0),), demands)) == [
        ("Resize", "shrunk", "vg0", 4),
        ("Resize", "grown", "vg0", 12),
        ("Create", "new", "vg0", 8),
    ]


def test_growing_where_it_lies_goes_before_what_could_go_anywhere() -> None:
    plan = plan_placement((group("vg0", 8), group("vg1", 4)), (disk("new", 4), disk("grown", 20, "vg0", 12)))
    assert said(plan) == [("Resize", "grown", "vg0", 20), ("Create", "new", "vg1", 4)]


def test_a_grown_image_makes_way_where_only_that_fits() -> None:
    plan = plan_placement((group("vg0", 12), group("vg1", 8)), (disk("grown", 8, "vg0", 4), disk("new", 12)))
    assert said(plan) == [("Create", "new", "vg0", 12), ("Replace", "grown", "vg1", 8)]


def test_bytes_that_the_start_of_the_job_frees_can_be_used() -> None:
    assert plan_placement((group("vg0", 0),), (disk("a", 8),), {"vg0": 8, "gone": 100}) == (
        Create(Owner("Web01", "a"), "vg0", 8),
    )


def test_bytes_that_were_promised_to_another_job_cannot_be_used() -> None:
    with pytest.raises(StoreFullError) as caught:
        plan_placement((group("vg0", 16), group("vg1", 3)), (disk("a", 8),), reserved_bytes={"vg0": 12})
    assert (caught.value.needed_bytes, caught.value.available_bytes) == (8, 7)


def test_bytes_given_back_go_to_broken_promises_first() -> None:
    demands = (disk("shrunk", 4, "vg0", 12), disk("new", 4))
    with pytest.raises(StoreFullError) as caught:
        plan_placement((group("vg0", 0),), demands, reserved_bytes={"vg0": 8})
    assert caught.value.available_bytes == 0


def test_the_refusal_says_which_image_no_place_has_room_for() -> None:
    said_so = "9 bytes needed, 12 available .*largest image needs 9 in one place; vg0 has 6, vg1 has 6"
    with pytest.raises(StoreFullError, match=said_so):
        plan_placement((group("vg1", 6, 1), group("vg0", 6, 1)), (disk("a", 9),))


def test_a_store_without_a_place_is_full() -> None:
    with pytest.raises(StoreFullError):
        plan_placement((), (disk("a", 1),))


def test_nothing_asked_for_is_nothing_done() -> None:
    assert plan_placement((group("vg0", 0),), ()) == ()


def test_a_sparse_image_needs_room_for_its_data_only() -> None:
    sparse = Demand(Owner("Web01", "a"), 100, data_bytes=6)
    assert said(plan_placement((group("store", 8, 1),), (sparse,))) == [("Create", "a", "store", 100)]
    with pytest.raises(StoreFullError) as caught:
        plan_placement((group("store", 5, 1),), (sparse,))
    assert (caught.value.needed_bytes, caught.value.available_bytes) == (6, 5)


def test_the_data_of_sparse_images_is_counted_down() -> None:
    demands = tuple(Demand(Owner("Web01", name), 100, data_bytes=6) for name in "abc")
    plan_placement((group("store", 18, 1),), demands)
    with pytest.raises(StoreFullError):
        plan_placement((group("store", 17, 1),), demands)


@pytest.mark.parametrize(("existing", "data", "free"), [(100, 60, 20), (80, 60, 20), (120, 60, 20)])
def test_the_holes_of_a_recycled_image_need_room_for_the_data_that_will_fill_them(
    existing: int, data: int, free: int
) -> None:
    recycled = Demand(Owner("Web01", "a"), 100, "store", existing, existing - 40, data)
    plan_placement((group("store", free, 1),), (recycled,))
    with pytest.raises(StoreFullError):
        plan_placement((group("store", free - 1, 1),), (recycled,))


def test_the_holes_of_a_recycled_image_are_not_counted_where_nobody_knows_what_will_come() -> None:
    recycled = Demand(Owner("Web01", "a"), 100, "store", 100, 90)
    assert said(plan_placement((group("store", 0, 1),), (recycled,))) == [("Keep", "a", "store")]
