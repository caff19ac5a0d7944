"""What every store promises (ports.Store, ports.Image), tried on each kind.

tests/box tries it on real volume groups and other file systems: it takes these tests, with a `place` of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest

from anvil_dr import naming
from anvil_dr.errors import ImageInUseError, ImageIOError, ImageNameError, StoreError, StoreFullError
from anvil_dr.model import INCOMPLETE, Owner
from anvil_dr.ports import Image
from tests.contract.labs import MAIL, STRANGER, WEB, DirectoryLab, Lab, MemoryLab

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture(params=["memory-fs", "memory-lvm", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    made = DirectoryLab(tmp_path) if request.param == "directory" else MemoryLab(request.param[len("memory-") :])
    yield made
    made.clean()


@pytest.fixture
def opened(place: Lab) -> Iterator[Image]:
    """A new image, open for writing."""
    store = place.store()
    image = store.open(store.create(WEB, SIZE, place.location), writable=True)
    yield image
    image.close()


def read(image: Image, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    image.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def write(image: Image, offset: int, data: bytes) -> None:
    image.write(offset, memoryview(data))


def test_an_image_goes_through_its_names_with_one_identity_and_its_bytes(place: Lab) -> None:
    store = place.store()
    new = store.create(WEB, SIZE, place.location)
    with_bytes = store.open(new, writable=True)
    write(with_bytes, 3, b"kept")
    with_bytes.flush()
    with_bytes.close()

    renamed = store.rename(store.rename(new, 1), 2)

    assert (new.owner, new.sequence, new.location, new.size_bytes) == (WEB, INCOMPLETE, place.location, SIZE)
    assert (renamed.owner, renamed.sequence, renamed.identity) == (WEB, 2, new.identity)
    assert renamed.size_bytes == SIZE
    assert place.store().images() == (renamed,), "a new store object sees the same"
    again = place.store().open(renamed, writable=False)
    assert read(again, 0, 8)[3:7] == b"kept"
    again.close()

    store.remove(renamed)

    assert place.store().images() == ()


def test_of_one_server_only_its_own_images_are_listed(place: Lab) -> None:
    store = place.store()
    web, mail = store.create(WEB, SIZE, place.location), store.create(MAIL, SIZE, place.location)
    assert (store.images(WEB.server), store.images(MAIL.server)) == ((web,), (mail,))
    assert store.images(STRANGER.server) == ()


def test_the_path_that_definitions_say_leads_to_the_image_of_that_sequence(place: Lab) -> None:
    store = place.store()
    assert naming.image_name(WEB, 1) in store.path(WEB, 1)
    assert store.path(WEB, 1) != store.path(WEB, 2) != store.path(MAIL, 2)


def test_a_name_that_is_taken_is_refused_and_nothing_changes(place: Lab) -> None:
    store = place.store()
    first = store.rename(store.create(WEB, SIZE, place.location), 1)
    second = store.create(WEB, SIZE, place.location)
    other = store.create(MAIL, SIZE, place.location)
    before = set(store.images())

    with pytest.raises(StoreError, match="exists"):
        store.rename(second, 1)
    with pytest.raises(StoreError, match="exists"):
        store.create(WEB, SIZE, place.location)

    assert set(store.images()) == before == {first, second, other}


def test_an_image_that_has_been_renamed_meanwhile_is_refused(place: Lab) -> None:
    store = place.store()
    old = store.create(WEB, SIZE, place.location)
    store.rename(old, 1)
    new = store.create(WEB, SIZE, place.location)
    assert new.identity != old.identity

    # `old` names the new image's name now, and must not touch it.
    for action in (
        lambda: store.rename(old, 2),
        lambda: store.remove(old),
        lambda: store.resize(old, MIB),
        lambda: store.open(old, writable=True),
    ):
        with pytest.raises(StoreError):
            action()
    assert new in store.images()


def test_names_that_would_leave_the_store_are_refused(place: Lab) -> None:
    for owner in (Owner("../x", "d"), Owner("s", "../../d"), Owner("s/t", "d"), Owner("-s", "d"), Owner("", "d")):
        with pytest.raises(ImageNameError):
            place.store().create(owner, SIZE, place.location)
    assert place.store().images() == ()


def test_what_does_not_fit_is_refused_with_both_numbers_and_changes_nothing(place: Lab) -> None:
    store = place.store()
    kept = store.create(WEB, SIZE, place.location)
    free_bytes = {one.name: one.free_bytes for one in store.locations()}[place.location]

    with pytest.raises(StoreFullError) as too_big:
        store.create(MAIL, free_bytes * 2, place.location)
    with pytest.raises(StoreFullError) as too_long:
        store.resize(kept, SIZE + free_bytes * 2)

    assert too_big.value.needed_bytes == free_bytes * 2
    assert 0 < too_big.value.available_bytes < free_bytes * 2, "others use the file system meanwhile"
    assert too_long.value.needed_bytes == free_bytes * 2
    assert store.images() == (kept,)


def test_a_place_that_the_store_does_not_have_is_refused(place: Lab) -> None:
    with pytest.raises(StoreError, match="elsewhere"):
        place.store().create(WEB, SIZE, "elsewhere")


def test_resizing_keeps_what_still_fits(place: Lab) -> None:
    store = place.store()
    image = store.create(WEB, SIZE, place.location)
    opened = store.open(image, writable=True)
    write(opened, 0, b"begin")
    write(opened, SIZE - 3, b"end")
    opened.flush()
    opened.close()

    grown = store.resize(image, 2 * SIZE)
    opened = store.open(grown, writable=False)
    assert (grown.size_bytes, opened.size_bytes) == (2 * SIZE, 2 * SIZE)
    assert (read(opened, 0, 5), read(opened, SIZE - 3, 3)) == (b"begin", b"end")
    opened.close()

    shrunk = store.resize(grown, SIZE // 2)
    opened = store.open(shrunk, writable=False)
    assert (shrunk.size_bytes, opened.size_bytes, shrunk.identity) == (SIZE // 2, SIZE // 2, image.identity)
    assert read(opened, 0, 5) == b"begin"
    opened.close()


def test_images_that_somebody_has_open_are_named_and_left_alone(place: Lab) -> None:
    store = place.store()
    image = store.create(WEB, SIZE, place.location)
    assert store.users([image]).get(image) is None

    with place.in_use(image):
        assert store.users([image]).get(image)
        for action in (
            lambda: store.remove(image),
            lambda: store.resize(image, 2 * SIZE),
            lambda: store.open(image, writable=True),
        ):
            with pytest.raises(ImageInUseError) as refused:
                action()
            assert refused.value.user
        store.open(image, writable=False).close()

    assert store.users([image]).get(image) is None
    assert store.images() == (image,)


def test_of_several_images_only_those_that_somebody_has_open_are_named(place: Lab) -> None:
    store = place.store()
    used, free = store.create(WEB, SIZE, place.location), store.create(MAIL, SIZE, place.location)
    with place.in_use(used):
        assert list(store.users((free, used))) == [used]
    assert not store.users((free, used))
    assert not store.users(())


def test_an_image_is_open_for_writing_once(place: Lab, opened: Image) -> None:
    store = place.store()
    (image,) = store.images()
    with pytest.raises(ImageInUseError):
        store.open(image, writable=True)
    reader = store.open(image, writable=False)
    reader.close()

    assert store.users([image]).get(image) is None, "nobody else has it open"
    opened.close()
    opened.close()
    store.open(image, writable=True).close()


def test_what_belongs_to_no_known_owner_is_not_an_image(place: Lab) -> None:
    place.put_foreign()
    store = place.store()
    image = store.create(MAIL, SIZE, place.location)
    assert store.images() == (image,)


def test_bytes_read_back_as_they_were_written_and_zeros_follow_the_end(opened: Image) -> None:
    data = bytes(range(256)) * 40
    write(opened, 4093, data)
    write(opened, SIZE - 5, b"hello")
    assert read(opened, 4093, len(data)) == data
    assert read(opened, SIZE - 5, 12) == b"hello" + bytes(7)
    assert read(opened, SIZE + 4096, 100) == bytes(100)


def test_a_zeroed_range_reads_as_zeros_and_its_neighbours_stay(opened: Image) -> None:
    for offset, length in (0, SIZE), (4096, 8192), (5, 4090), (4000, 10000), (SIZE - 4099, 4099), (700, 0):
        write(opened, 0, b"\x5a" * SIZE)
        opened.zero(offset, length)
        opened.flush()
        expected = bytearray(b"\x5a" * SIZE)
        expected[offset : offset + length] = bytes(length)
        assert read(opened, 0, SIZE) == expected, (offset, length)


def test_nothing_is_written_past_the_end(opened: Image) -> None:
    write(opened, SIZE - 4, b"last")
    for offset, data in (SIZE - 3, b"1234"), (SIZE + 1, b"1"), (-1, b"1"):
        with pytest.raises(ImageIOError) as refused:
            write(opened, offset, data)
        assert (refused.value.path, refused.value.offset_bytes) == (opened.path, offset)
        with pytest.raises(ImageIOError):
            opened.zero(offset, len(data))
    assert read(opened, SIZE - 4, 8) == b"last" + bytes(4)


def test_a_closed_or_a_read_only_image_takes_no_bytes(place: Lab, opened: Image) -> None:
    store = place.store()
    opened.zero(0, SIZE)
    reader = store.open(store.images()[0], writable=False)
    with pytest.raises(ImageIOError):
        write(reader, 0, b"x")
    with pytest.raises(ImageIOError):
        reader.zero(0, 4096)
    reader.close()
    with pytest.raises(ImageIOError):
        read(reader, 0, 1)
    assert read(opened, 0, 4096) == bytes(4096)


def test_between_the_data_ranges_there_is_nothing_but_zeros(opened: Image) -> None:
    opened.zero(0, SIZE)
    for offset, data in (0, b"before"), (MIB + 7, b"one"), (5 * MIB, b"two" * 5000), (SIZE - 1, b"3"):
        write(opened, offset, data)
    opened.flush()

    for start, length in (0, SIZE), (MIB + 5, SIZE - MIB - 5), (4, 5 * MIB), (2 * MIB, 10), (SIZE - 1, 100):
        rebuilt = bytearray(min(length, SIZE - start))
        end_of_last = start
        for offset, size in opened.data_ranges(start, length):
            assert end_of_last <= offset < offset + size <= start + len(rebuilt)
            rebuilt[offset - start : offset - start + size] = read(opened, offset, size)
            end_of_last = offset + size
        assert rebuilt == read(opened, start, len(rebuilt)), (start, length)
    assert list(opened.data_ranges(SIZE, 100)) == []


def test_a_store_that_says_a_new_image_is_zero_tells_the_truth(place: Lab) -> None:
    store = place.store()
    image = store.create(WEB, SIZE, place.location)
    if store.is_known_zero(image):
        opened = store.open(image, writable=True)
        assert not any(read(opened, 0, SIZE))
        write(opened, 12345, b"x")
        opened.flush()
        opened.close()
        assert not store.is_known_zero(image)
    assert store.is_known_zero(image) is False


def test_a_store_in_good_order_passes_its_check_and_says_what_is_free(place: Lab) -> None:
    store = place.store()
    store.check()
    before = {one.name: one for one in store.locations()}[place.location]
    assert 0 < before.free_bytes <= before.size_bytes
    image = store.create(WEB, SIZE, place.location)
    store.check()
    after = {one.name: one for one in store.locations()}[place.location]
    assert image.size_bytes % after.extent_bytes == 0
    if store.kind == "lvm":
        assert before.free_bytes - after.free_bytes == image.size_bytes
