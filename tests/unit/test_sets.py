"""Sets are what came together in one job, whatever numbers a power cut left on their images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import List, Optional, Sequence, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil_dr.cycling import sets
from anvil_dr.model import (
    INCOMPLETE,
    ImageRecord,
    JournalEntry,
    JournalStep,
    Owner,
    Rename,
    SetRecord,
    StoredImage,
)
from anvil_dr.model import Sequence as Number


def image(disk: str, sequence: Number, identity: str, server: str = "Web01", size_bytes: int = 100) -> StoredImage:
    return StoredImage(Owner(server, disk), sequence, "vg0", identity, size_bytes, f"/store/{identity}")


def record(job: str, *images: Tuple[str, str], server: str = "Web01") -> SetRecord:
    remembered = tuple(ImageRecord(disk, identity, 100, f"sha256:{identity}") for disk, identity in images)
    return SetRecord(server, "2026-11-20T10:00:00+00:00", "an-a05n01", job, remembered)


NEW = record("new", ("d0", "lv:n0"), ("d1", "lv:n1"))
OLD = record("old", ("d0", "lv:o0"), ("d1", "lv:o1"))
WHOLE = [image("d0", 1, "lv:n0"), image("d1", 1, "lv:n1"), image("d0", 2, "lv:o0"), image("d1", 2, "lv:o1")]


def summary(*args: object) -> List[Tuple[Number, bool, object]]:
    found = sets.assemble(*args)  # type: ignore[arg-type]
    return [(one.sequence, one.complete, one.record and one.record.job_id) for one in found]


def test_images_of_one_record_with_one_number_are_a_complete_set() -> None:
    assert summary(WHOLE, [OLD, NEW]) == [(1, True, "new"), (2, True, "old")]


def test_a_set_that_lacks_a_disk_is_not_complete() -> None:
    assert summary(WHOLE[:1] + WHOLE[2:], [OLD, NEW]) == [(1, False, "new"), (2, True, "old")]


def test_images_of_two_jobs_with_one_number_are_not_complete() -> None:
    mixed = [image("d0", 1, "lv:n0"), image("d1", 1, "lv:o1")]
    assert summary(mixed, [OLD, NEW]) == [(1, False, None)]


def test_an_image_that_the_record_does_not_know_makes_a_set_incomplete() -> None:
    assert summary([*WHOLE[:2], image("d2", 1, "lv:x")], [NEW]) == [(1, False, "new")]


def test_one_disk_twice_is_not_complete_with_or_without_a_record() -> None:
    twice = [image("d0", 1, "lv:n0"), image("d0", 1, "lv:x")]
    assert summary(twice, [record("one", ("d0", "lv:n0"))]) == [(1, False, "one")]
    assert summary(twice, []) == [(1, False, None)]


def test_an_image_smaller_than_what_was_received_makes_a_set_incomplete() -> None:
    assert summary([image("d0", 1, "lv:a", size_bytes=99)], [record("r", ("d0", "lv:a"))]) == [(1, False, "r")]
    assert summary([image("d0", 1, "lv:a", size_bytes=128)], [record("r", ("d0", "lv:a"))]) == [(1, True, "r")]


def test_without_any_record_a_set_counts_as_complete_and_has_none() -> None:
    assert summary(WHOLE, []) == [(1, True, None), (2, True, None)]


def test_an_identity_under_another_disk_or_server_is_not_the_recorded_image() -> None:
    assert summary([image("d1", 1, "lv:n0")], [NEW]) == [(1, True, None)]
    assert summary([image("d0", 1, "lv:n0", server="Web02")], [NEW]) == [(1, True, None)]


def test_a_set_whose_image_was_recycled_is_not_complete_though_its_other_image_is_there() -> None:
    assert summary([image("d1", 2, "lv:o1")], [record("old", ("d0", ""), ("d1", "lv:o1"))]) == [(2, False, "old")]


def test_the_image_being_written_is_never_complete_even_if_its_old_record_is_still_there() -> None:
    writing = [image("d0", INCOMPLETE, "lv:o0"), image("d1", INCOMPLETE, "lv:o1")]
    assert summary(writing, [OLD]) == [(INCOMPLETE, False, None)]


def test_the_later_of_two_records_has_the_image() -> None:
    again = record("again", ("d0", "lv:o0"), ("d1", "lv:o1"))
    assert summary([image("d0", 1, "lv:o0"), image("d1", 1, "lv:o1")], [OLD, again]) == [(1, True, "again")]


def promotion(*identities: str) -> JournalEntry:
    owners = [Owner("Web01", f"d{number}") for number in range(len(identities))]
    steps = tuple(JournalStep(Rename(owner, INCOMPLETE, 1), identity) for owner, identity in zip(owners, identities))
    return JournalEntry(1, "Web01", "promote", steps, NEW)


def test_a_promotion_that_stopped_half_way_leaves_no_complete_set_one() -> None:
    half = [image("d0", 1, "lv:n0"), image("d1", INCOMPLETE, "lv:n1")]
    assert summary(half, [], [promotion("lv:n0", "lv:n1")]) == [(1, False, "new"), (INCOMPLETE, False, None)]


def test_a_promotion_whose_renames_are_all_done_is_a_complete_set() -> None:
    assert summary(WHOLE[:2], [], [promotion("lv:n0", "lv:n1")]) == [(1, True, "new")]


def test_half_a_cycling_step_without_records_is_half_a_set() -> None:
    steps = tuple(
        JournalStep(Rename(Owner("Web01", disk), 1, 2), identity) for disk, identity in (("d0", "lv:a"), ("d1", "lv:b"))
    )
    between = [image("d0", 2, "lv:a"), image("d1", 1, "lv:b")]
    entry = JournalEntry(1, "Web01", "cycle", steps)
    assert summary(between, [], [entry]) == [(1, False, None), (2, False, None)]
    assert summary([image("d0", 2, "lv:a"), image("d1", 2, "lv:b")], [], [entry]) == [(2, True, None)]


def test_the_newest_complete_set_is_found_past_a_broken_one() -> None:
    found = sets.assemble(WHOLE[1:], [OLD, NEW])
    newest = sets.newest_complete(found)
    assert newest is not None and newest.sequence == 2
    assert sets.newest_complete(()) is None


def test_a_planner_gets_the_disks_once_each_in_order() -> None:
    found = sets.assemble([image("d1", 1, "lv:b"), image("d0", 1, "lv:a"), image("d0", 1, "lv:c")], [])
    assert sets.to_planner(found[0]).disks == ("d0", "d1")


DISKS = st.sampled_from(["d0", "d1", "d2"])
IDENTITIES = st.sampled_from([f"lv:{letter}" for letter in "abcdef"])
NUMBERS = st.one_of(st.integers(1, 12), st.just(INCOMPLETE))
SERVERS = st.sampled_from(["Web01", "Db01", "web01"])
IMAGES = st.lists(
    st.builds(image, DISKS, NUMBERS, IDENTITIES, SERVERS), max_size=12, unique_by=lambda one: one.identity
)
RECORDS = st.lists(
    st.builds(
        lambda job, images, server: record(job, *images.items(), server=server),
        st.text("xyz", min_size=1, max_size=3),
        st.dictionaries(DISKS, IDENTITIES, min_size=1),
        SERVERS,
    ),
    max_size=4,
)


@given(IMAGES, RECORDS)
def test_every_image_is_in_exactly_one_set_and_the_order_is_by_server_then_number(
    images: Sequence[StoredImage], records: Sequence[SetRecord]
) -> None:
    found = sets.assemble(images, records)
    key = [(one.server, one.sequence == INCOMPLETE, 0 if one.sequence == INCOMPLETE else one.sequence) for one in found]
    assert key == sorted(set(key))
    held = [one for each in found for one in each.images]
    assert sorted(held, key=lambda one: one.identity) == sorted(images, key=lambda one: one.identity)
    assert all((each.owner.server, each.sequence) == (one.server, one.sequence) for one in found for each in one.images)


@given(IMAGES, RECORDS)
def test_a_complete_set_is_exactly_its_record_or_unknown_to_all(
    images: Sequence[StoredImage], records: Sequence[SetRecord]
) -> None:
    claimed = {(one.server, each.disk, each.identity) for one in records for each in one.images}
    for one in sets.assemble(images, records):
        held = {(one.server, each.owner.disk, each.identity) for each in one.images}
        if not one.complete:
            continue
        assert one.sequence != INCOMPLETE
        assert len({disk for _, disk, _ in held}) == len(one.images)
        if one.record is None:
            assert not held & claimed
        else:
            assert one.record in records
            assert held == {(one.server, each.disk, each.identity) for each in one.record.images}


@given(IMAGES, RECORDS, st.randoms())
def test_the_order_in_which_a_store_lists_its_images_does_not_matter(
    images: List[StoredImage], records: Sequence[SetRecord], random: object
) -> None:
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sets.assemble(shuffled, records) == sets.assemble(images, records)


def test_what_has_become_of_a_set_since_counts_also_while_it_is_still_to_be_published() -> None:
    ran = replace(NEW, ran_here_until="2026-11-21T00:00:00+00:00")
    (found, _) = sets.assemble(WHOLE, [OLD, ran], [JournalEntry(1, "Web01", "publish", (), NEW)])
    assert found.complete and found.record == ran


@dataclass(frozen=True)
class OnDrive:
    """Implements sets.Waiting."""

    job_id: str = "on drive"
    received_at: str = "2026-11-22T00:00:00+00:00"
    ran_here_until: Optional[str] = None
    jobs_before: Optional[Tuple[str, ...]] = None
    runs_before: Optional[Tuple[str, ...]] = None


@pytest.mark.parametrize(
    ("until", "waiting", "later"),
    [
        (None, OnDrive(), False),
        ("2026-11-23T00:00:00+00:00", OnDrive(), True),
        ("2026-11-21T00:00:00+00:00", OnDrive(), False),
        ("2026-11-21T00:00:00+00:00", OnDrive(runs_before=("2026-11-21T00:00:00+00:00",)), False),
        # The clock was set back between the two.
        ("2024-01-01T00:00:00+00:00", OnDrive(runs_before=()), True),
        ("2026-11-23T00:00:00+00:00", OnDrive(runs_before=("2026-11-23T00:00:00+00:00",)), False),
        # Both ran.
        ("2026-11-23T00:00:00+00:00", OnDrive(runs_before=(), ran_here_until="2026-11-24T00:00:00+00:00"), False),
        ("2026-11-25T00:00:00+00:00", OnDrive(runs_before=(), ran_here_until="2026-11-24T00:00:00+00:00"), True),
    ],
)
def test_a_set_that_ran_here_later_is_known_by_what_was_noted_and_else_by_its_time(
    until: Optional[str], waiting: OnDrive, later: bool
) -> None:
    own = sets.assemble(WHOLE, [OLD, replace(NEW, ran_here_until=until)])
    found = sets.ran_after(own, waiting)
    assert (found.sequence if found is not None else None) == (1 if later else None)
    assert sets.ran_after(own[1:], waiting) is None
