"""One disk across the wire: the result is the source to the byte, and no more is sent or written than must be."""

from __future__ import annotations

import random
from typing import List, Optional, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anvil_dr.errors import DigestMismatchError
from anvil_dr.receiving.recycled import Content, KnownZeros, Recycled, UnknownContent
from anvil_dr.wire import digest
from anvil_dr.wire.digest import BLOCK_BYTES, PAGE_BYTES, SEGMENT_BYTES
from anvil_dr.wire.protocol import Kind
from tests.doubles.wire import Bytes, cross

DIGESTER = digest.digester(digest.available()[0])
MIB = 1 << 20


Edits = List[Tuple[int, int, str]]


def noise(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def edited(base: bytes, edits: Edits) -> bytes:
    """A copy of `base` with (offset, length, how) edits, clipped to it."""
    content = bytearray(base)
    for offset, length, how in edits:
        offset %= max(1, len(content))
        piece = content[offset : offset + length]
        if how == "moved":
            new = bytes(content[: len(piece)])
        else:
            new = noise(len(piece), offset) if how == "noise" else bytes(len(piece))
        content[offset : offset + len(new)] = new
    return bytes(content)


def content_of(image: Bytes, size_bytes: int) -> Recycled:
    return Content(DIGESTER, image, size_bytes)


edits = st.lists(
    st.tuples(
        st.integers(0, 40 * MIB),
        st.sampled_from([1, 511, 4096, 5000, 65536, 200_000]),
        st.sampled_from(["noise", "zeros", "moved"]),
    ),
    max_size=6,
)  # fmt: skip
sizes = st.sampled_from([1, 4095, 4096, 65536, 65537, 700_001, 3 * MIB, 16 * MIB + 1, 17 * MIB + 777])


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    size=sizes, seed=st.integers(0, 5), empty=st.booleans(), source_edits=edits, image_edits=edits, newest_edits=edits,
    kind=st.sampled_from(["content", "zeros", "unknown"]), has_newest=st.booleans(), newest_cut=st.booleans(),
    extra=st.sampled_from([0, 5000, 4 * MIB]), compress=st.booleans(), holes=st.booleans(),
    window=st.sampled_from([1, 3, 16]),
)  # fmt: skip
def test_whatever_was_there_before_the_image_equals_the_source(
    size: int, seed: int, empty: bool, source_edits: Edits, image_edits: Edits, newest_edits: Edits, kind: str,
    has_newest: bool, newest_cut: bool, extra: int, compress: bool, holes: bool, window: int,
) -> None:  # fmt: skip
    base = bytes(size) if empty else noise(size, seed)
    source = Bytes(edited(base, source_edits), holes=holes)
    newest: Optional[Bytes] = None
    if has_newest:
        newest = Bytes(edited(base, newest_edits)[: size // 2 if newest_cut else size], holes=holes)
    image = Bytes(bytes(size + extra) if kind == "zeros" else edited(base, image_edits) + noise(extra))
    recycled = {
        "content": lambda: content_of(image, size), "zeros": lambda: KnownZeros(DIGESTER), "unknown": UnknownContent
    }[kind]()  # fmt: skip

    crossing = cross(DIGESTER, source, image, recycled, newest, compress=compress, window=window)

    assert image.content[:size] == source.content
    assert not any(image.content[size : -(-size // BLOCK_BYTES) * BLOCK_BYTES]), "the rest of the last block is zeros"
    segments = -(-size // SEGMENT_BYTES)
    blocks = -(-size // BLOCK_BYTES)
    assert crossing.wire_bytes <= blocks * BLOCK_BYTES + blocks * 700 + segments * 200 + 100


def test_an_unchanged_disk_costs_a_digest_a_segment_and_writes_nothing() -> None:
    content = noise(64 * MIB)
    image = Bytes(content)
    crossing = cross(DIGESTER, Bytes(content), image, content_of(image, len(content)), None)
    assert crossing.written_bytes == 0
    assert image.written == []
    assert crossing.wire_bytes <= 4 * 100 + 50


def test_a_changed_page_costs_about_a_page() -> None:
    before = noise(32 * MIB)
    after = edited(before, [(5 * MIB + 8192, PAGE_BYTES, "noise")])
    image = Bytes(before)
    crossing = cross(DIGESTER, Bytes(after), image, content_of(image, len(before)), None)
    assert image.written == [(5 * MIB + 8192, PAGE_BYTES)]
    assert crossing.wire_bytes < PAGE_BYTES + 256 * 32 + 1200


def test_what_the_newest_set_has_is_not_sent_again() -> None:
    old, new = noise(20 * MIB, 1), noise(20 * MIB, 2)
    image = Bytes(old)
    crossing = cross(DIGESTER, Bytes(new), image, content_of(image, len(new)), Bytes(new))
    assert image.content == new
    assert crossing.wire_bytes < 2 * 256 * 32 + 1000


def test_a_job_that_broke_does_not_send_again_what_arrived() -> None:
    content = noise(48 * MIB)
    image = Bytes(content[: 24 * MIB] + bytes(24 * MIB))
    crossing = cross(DIGESTER, Bytes(content), image, content_of(image, len(content)), None)
    assert image.content == content
    assert crossing.wire_bytes < 24 * MIB * 1.01
    assert all(offset >= 24 * MIB for offset, _ in image.written)


@pytest.mark.slow
def test_a_sparse_disk_costs_what_it_holds() -> None:
    source = Bytes(bytes(500 * MIB), holes=True)
    source.data_ranges = lambda offset, length: iter([(MIB, 8192)] if offset == 0 else [])  # type: ignore[method-assign]
    source.content[MIB : MIB + 8192] = noise(8192)
    image = Bytes(bytes(500 * MIB))
    crossing = cross(DIGESTER, source, image, KnownZeros(DIGESTER), None)
    assert image.content == source.content
    assert crossing.wire_bytes < BLOCK_BYTES + 1500


def test_zeros_over_old_data_are_not_sent_and_read_back_as_zeros() -> None:
    image = Bytes(noise(20 * MIB))
    crossing = cross(DIGESTER, Bytes(bytes(20 * MIB)), image, content_of(image, 20 * MIB), None)
    assert not any(image.content)
    assert crossing.wire_bytes < 200


def flip_once(kind: Kind, at: int) -> tuple[List[int], object]:
    seen: List[int] = []

    def disturb(arrived: Kind, content: memoryview) -> None:
        if arrived is kind and not seen:
            seen.append(1)
            content[at] ^= 4

    return seen, disturb


@pytest.mark.parametrize("recycled", ["zeros", "content"])
def test_a_bit_that_flips_on_the_way_is_caught_before_it_is_written_and_asked_for_again(recycled: str) -> None:
    content, before = noise(2 * MIB), noise(2 * MIB, 9)
    image = Bytes(before if recycled == "content" else bytes(2 * MIB))
    known = content_of(image, 2 * MIB) if recycled == "content" else KnownZeros(DIGESTER)
    seen, disturb = flip_once(Kind.DATA, 5000)
    cross(DIGESTER, Bytes(content), image, known, None, disturb=disturb)  # type: ignore[arg-type]
    assert seen and image.content == content


def test_a_bit_that_flips_every_time_fails_the_disk_and_names_the_byte() -> None:
    image = Bytes(bytes(2 * MIB))

    def disturb(kind: Kind, content: memoryview) -> None:
        if kind is Kind.DATA:
            content[-1] ^= 1

    with pytest.raises(DigestMismatchError, match=r"server Web01 disk Web01_0 at byte \d+"):
        cross(DIGESTER, Bytes(noise(2 * MIB)), image, KnownZeros(DIGESTER), None, disturb=disturb)


@pytest.mark.parametrize("kind", [Kind.BLOCKS, Kind.SEGMENT])
def test_a_bit_that_flips_in_a_digest_is_caught(kind: Kind) -> None:
    image = Bytes(noise(2 * MIB, 3))
    _, disturb = flip_once(kind, 9)
    with pytest.raises(DigestMismatchError):
        cross(DIGESTER, Bytes(noise(2 * MIB)), image, content_of(image, 2 * MIB), None, disturb=disturb)  # type: ignore[arg-type]


def test_a_bit_that_rotted_on_the_target_is_healed_by_the_next_job() -> None:
    content = noise(20 * MIB)
    rotten = bytearray(content)
    rotten[17 * MIB + 5] ^= 1
    image = Bytes(bytes(rotten))
    crossing = cross(DIGESTER, Bytes(content), image, content_of(image, len(content)), None)
    assert image.content == content
    assert crossing.written_bytes == PAGE_BYTES


@pytest.mark.parametrize("name", digest.available())
def test_every_digest_algorithm_moves_an_image(name: str) -> None:
    algorithm, content = digest.digester(name), noise(3 * MIB)
    image = Bytes(bytes(3 * MIB))
    assert cross(algorithm, Bytes(content), image, KnownZeros(algorithm), None).digest.startswith(f"{name}:")
    assert image.content == content


@pytest.mark.parametrize("segments", [1, 4, 5, 9])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_an_empty_disk_ends_whatever_the_window(segments: int, window: int) -> None:
    source = Bytes(bytes(segments * SEGMENT_BYTES - 5))
    source.data_ranges = lambda offset, length: iter([])  # type: ignore[method-assign]
    image = Bytes(bytes(segments * SEGMENT_BYTES))
    assert cross(DIGESTER, source, image, KnownZeros(DIGESTER), None, window=window).written_bytes == 0
