"""A node that breaks the dialogue about a disk: whatever it sends, no byte is written that its digests do not cover."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from anvil_dr.errors import AnvilDrError, DigestMismatchError, ProtocolError
from anvil_dr.model import Owner
from anvil_dr.receiving.receive_disk import DiskReceiver
from anvil_dr.receiving.recycled import Content, KnownZeros, Recycled, UnknownContent
from anvil_dr.wire import bulk, digest
from anvil_dr.wire.bulk import FULL_BLOCK, RAW, ZSTD
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.digest import BLOCK_BYTES, SEGMENT_BYTES, ImageDigest, block_count, segment_count
from anvil_dr.wire.protocol import Kind
from tests.doubles.wire import Bytes

DIGESTER = digest.digester(digest.available()[0])
NOISE = random.Random(1).randbytes(BLOCK_BYTES)
OTHER = random.Random(2).randbytes(BLOCK_BYTES)
ZERO = DIGESTER.zero_block


@dataclass
class Desk:
    """A receiver at work, the bytes it writes into, and the records that a node might send it."""

    receiver: DiskReceiver
    image: Bytes
    size_bytes: int
    told: Dict[int, bytes] = field(default_factory=dict)
    """The block digests that were announced last."""

    def segment(self, number: int, blocks: List[bytes]) -> None:
        self.receiver.handle(Kind.SEGMENT, memoryview(bulk.pack_segment(number, DIGESTER.segment(blocks))))

    def blocks(self, number: int, first: int, digests: List[bytes]) -> None:
        self.receiver.handle(Kind.BLOCKS, memoryview(bulk.pack_blocks(number, first, digests)))

    def zeros(self, first: int, count: int) -> None:
        self.receiver.handle(Kind.ZEROS, memoryview(bulk.pack_run(first, count)))

    def pages(self, number: int, block: int, content: bytes) -> None:
        digests = DIGESTER.pages(memoryview(content))
        self.receiver.handle(Kind.PAGES, memoryview(bulk.pack_pages(number, [(block, digests)])))

    def data(self, number: int, block: int, content: bytes, mask: int = FULL_BLOCK) -> None:
        header = bulk.pack_data_header(number, RAW, len(content), [(block, mask)])
        self.receiver.handle(Kind.DATA, memoryview(header + content))

    def all_blocks(self, number: int, **those: bytes) -> List[bytes]:
        """Digests of a whole segment: zeros, but for `b0=...`."""
        digests = [ZERO] * block_count(self.size_bytes, number)
        for name, content in those.items():
            digests[int(name[1:])] = DIGESTER.of(content)
        return digests


Sit = Callable[..., Desk]


@pytest.fixture
def sit() -> Iterator[Sit]:
    """Makes desks: `content` is what the recycled image holds; without, the disk is pushed into a new image."""
    closing: List[Callable[[], None]] = []

    def make(
        size_bytes: int = SEGMENT_BYTES, *, content: Optional[bytes] = None, newest: Optional[bytes] = None,
        known_zero: bool = True,
    ) -> Desk:  # fmt: skip
        ours, theirs = socket.socketpair()
        # The desk's answers have to go somewhere; nobody reads them.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        fd = ours.detach()
        channel = Channel(fd, fd, silence_seconds=1)
        image = Bytes(bytes(size_bytes) if content is None else content)
        recycled: Recycled = KnownZeros(DIGESTER) if known_zero else UnknownContent()
        if content is not None:
            recycled = Content(DIGESTER, image, size_bytes)
        closing.extend([recycled.close, theirs.close, channel.close])
        receiver = DiskReceiver(
            channel, DIGESTER, Owner("Web01", "Web01_0"), size_bytes, image=image, recycled=recycled,
            newest=None if newest is None else Bytes(newest), window=4,
        )  # fmt: skip
        return Desk(receiver, image, size_bytes)

    yield make
    for close in closing:
        close()


# — pushed into a new image —


def test_blocks_that_were_announced_are_not_announced_again_as_zeros(sit: Sit) -> None:
    desk = sit()
    desk.blocks(0, 0, [DIGESTER.of(NOISE)])
    desk.data(0, 0, NOISE)
    with pytest.raises(ProtocolError, match="blocks of segment 0 came twice"):
        desk.blocks(0, 0, [ZERO])


def test_blocks_do_not_change_after_the_segment_s_own_digest(sit: Sit) -> None:
    desk = sit()
    desk.blocks(0, 0, [DIGESTER.of(NOISE)])
    desk.segment(0, desk.all_blocks(0, b0=NOISE))
    with pytest.raises(ProtocolError, match="blocks of segment 0 came twice"):
        desk.blocks(0, 1, [DIGESTER.of(OTHER)])


def test_a_segment_that_has_blocks_is_not_zeros(sit: Sit) -> None:
    desk = sit()
    desk.blocks(0, 0, [DIGESTER.of(NOISE)])
    desk.data(0, 0, NOISE)
    with pytest.raises(ProtocolError, match="ZEROS came for segment 0, which has blocks"):
        desk.zeros(0, 1)


def test_a_segment_beyond_the_window_is_not_opened(sit: Sit) -> None:
    desk = sit(8 * SEGMENT_BYTES)
    desk.blocks(3, 0, [DIGESTER.of(NOISE)])
    for number in (4, 7, 8, 2**32 - 1):
        with pytest.raises(ProtocolError, match=f"segment {number}"):
            desk.blocks(number, 0, [DIGESTER.of(NOISE)])


def test_a_segment_digest_that_its_blocks_do_not_have_fails_the_server(sit: Sit) -> None:
    desk = sit()
    desk.blocks(0, 0, [DIGESTER.of(NOISE)])
    desk.data(0, 0, NOISE)
    with pytest.raises(DigestMismatchError, match="server Web01 disk Web01_0 at byte 0: the digests"):
        desk.segment(0, desk.all_blocks(0, b0=OTHER))


def test_data_that_its_digest_does_not_cover_is_asked_for_once_more_and_never_written(sit: Sit) -> None:
    desk = sit()
    desk.blocks(0, 5, [DIGESTER.of(NOISE)])
    desk.data(0, 5, OTHER)
    with pytest.raises(DigestMismatchError, match=f"at byte {5 * BLOCK_BYTES}: the bytes that arrived"):
        desk.data(0, 5, OTHER)
    assert desk.image.written == []


@pytest.mark.parametrize("known_zero", [True, False])
def test_data_is_taken_once(sit: Sit, known_zero: bool) -> None:
    desk = sit(known_zero=known_zero)
    with pytest.raises(ProtocolError, match="segment 0 is not open"):
        desk.data(0, 0, NOISE)
    desk.blocks(0, 0, [DIGESTER.of(NOISE)])
    desk.data(0, 0, NOISE)
    for block in (0, 1, 255):
        with pytest.raises(ProtocolError, match="not asked for"):
            desk.data(0, block, NOISE)
    assert desk.image.written == [(0, BLOCK_BYTES)]


def test_bytes_past_the_end_of_the_disk_are_refused(sit: Sit) -> None:
    desk = sit(BLOCK_BYTES + 100)
    beyond = bytes(100) + b"x" + bytes(BLOCK_BYTES - 101)
    desk.blocks(0, 1, [DIGESTER.of(beyond)])
    with pytest.raises(DigestMismatchError, match=f"at byte {BLOCK_BYTES + 100}: there are bytes past the end"):
        desk.data(0, 1, beyond)
    assert desk.image.written == []


def test_bytes_past_the_end_are_not_taken_from_the_newest_set_either(sit: Sit) -> None:
    desk = sit(100, content=bytes(100), newest=NOISE)
    desk.segment(0, [DIGESTER.of(NOISE)])
    with pytest.raises(DigestMismatchError, match="past the end"):
        desk.blocks(0, 0, [DIGESTER.of(NOISE)])
    assert desk.image.written == []


# — compared with what is there —


def test_a_segment_is_announced_once_and_in_order(sit: Sit) -> None:
    desk = sit(3 * SEGMENT_BYTES, content=bytes(3 * SEGMENT_BYTES))
    for number in (1, 2, 3, 2**32 - 1):
        with pytest.raises(ProtocolError, match=f"segment {number} was announced where 0 was due"):
            desk.segment(number, [])
    desk.segment(0, desk.all_blocks(0, b0=NOISE))
    with pytest.raises(ProtocolError, match="segment 0 was announced where 1 was due"):
        desk.segment(0, desk.all_blocks(0))
    with pytest.raises(ProtocolError, match="segment 0 was announced where 1 was due"):
        desk.zeros(0, 1)


def test_more_segments_than_the_window_are_not_held_open(sit: Sit) -> None:
    desk = sit(9 * SEGMENT_BYTES, content=bytes(9 * SEGMENT_BYTES))
    for number in range(5):
        desk.segment(number, desk.all_blocks(number, b0=NOISE))
    with pytest.raises(ProtocolError, match="more segments are open than was agreed"):
        desk.segment(5, desk.all_blocks(5, b0=NOISE))


@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 3), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1), (2, 1)])
def test_zeros_past_the_end_are_refused(sit: Sit, first: int, count: int) -> None:
    with pytest.raises(ProtocolError, match="ZEROS goes past the end of the disk"):
        sit(2 * SEGMENT_BYTES).zeros(first, count)


def test_blocks_come_whole_and_once(sit: Sit) -> None:
    desk = sit(content=bytes(SEGMENT_BYTES))
    with pytest.raises(ProtocolError, match="segment 0 is not open"):
        desk.blocks(0, 0, desk.all_blocks(0))
    wanted = desk.all_blocks(0, b0=NOISE)
    desk.segment(0, wanted)
    with pytest.raises(DigestMismatchError, match="the digests that arrived do not agree"):
        desk.blocks(0, 0, wanted[:-1])
    with pytest.raises(ProtocolError, match="BLOCKS goes past the end|wrong length"):
        desk.blocks(0, 1, wanted)
    desk.blocks(0, 0, wanted)
    with pytest.raises(ProtocolError, match="the blocks of segment 0 came twice"):
        desk.blocks(0, 0, wanted)


def test_pages_are_taken_only_for_blocks_that_were_asked_for(sit: Sit) -> None:
    desk = sit(content=OTHER + bytes(SEGMENT_BYTES - BLOCK_BYTES))
    desk.segment(0, desk.all_blocks(0, b0=NOISE, b1=NOISE))
    with pytest.raises(ProtocolError, match="PAGES came for a block that was not asked for"):
        desk.pages(0, 0, NOISE)
    desk.blocks(0, 0, desk.all_blocks(0, b0=NOISE, b1=NOISE))
    for block in (1, 2, 255):  # the second is empty here, so all of it was asked for
        with pytest.raises(ProtocolError, match="PAGES came for a block that was not asked for"):
            desk.pages(0, block, NOISE)
    with pytest.raises(ProtocolError, match="DATA came for pages that were not asked for"):
        desk.data(0, 0, NOISE)
    desk.pages(0, 0, NOISE)
    with pytest.raises(ProtocolError, match="PAGES came for a block that was not asked for"):
        desk.pages(0, 0, NOISE)
    desk.data(0, 0, NOISE[:4096], mask=1)  # the other pages are zeros, it says; so all of it is asked for again
    desk.data(0, 0, NOISE)
    desk.data(0, 1, NOISE)
    desk.receiver.finish()
    assert bytes(desk.image.content[: 2 * BLOCK_BYTES]) == NOISE * 2


def test_no_other_pages_are_taken_than_those_that_were_asked_for(sit: Sit) -> None:
    changed = OTHER[:4096] + NOISE[4096:8192] + OTHER[8192:]
    desk = sit(content=OTHER + bytes(SEGMENT_BYTES - BLOCK_BYTES))
    desk.segment(0, desk.all_blocks(0, b0=changed))
    desk.blocks(0, 0, desk.all_blocks(0, b0=changed))
    desk.pages(0, 0, changed)
    for mask in (1, 3, FULL_BLOCK):
        with pytest.raises(ProtocolError, match="DATA came for pages that were not asked for"):
            desk.data(0, 0, changed[: 4096 * bin(mask).count("1")], mask=mask)
    desk.data(0, 0, changed[4096:8192], mask=2)
    desk.receiver.finish()
    assert bytes(desk.image.content[:BLOCK_BYTES]) == changed


def test_page_digests_that_lie_do_not_get_past_the_block_s_digest(sit: Sit) -> None:
    desk = sit(content=OTHER + bytes(SEGMENT_BYTES - BLOCK_BYTES))
    wanted = desk.all_blocks(0, b0=NOISE)
    desk.segment(0, wanted)
    desk.blocks(0, 0, wanted)
    desk.pages(0, 0, OTHER)  # "all of it is there already": the whole block is asked for instead
    with pytest.raises(ProtocolError, match="PAGES came for a block that was not asked for"):
        desk.pages(0, 0, OTHER)
    desk.data(0, 0, NOISE)
    assert bytes(desk.image.content[:BLOCK_BYTES]) == NOISE


def test_a_disk_does_not_end_early(sit: Sit) -> None:
    desk = sit(2 * SEGMENT_BYTES)
    desk.zeros(0, 1)
    with pytest.raises(ProtocolError, match="disk Web01_0 was ended before all of it was sent"):
        desk.receiver.finish()
    desk.blocks(1, 0, [DIGESTER.of(NOISE)])
    desk.segment(1, desk.all_blocks(1, b0=NOISE))
    with pytest.raises(ProtocolError, match="disk Web01_0 was ended before all of it was sent"):
        desk.receiver.finish()


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.JOB, Kind.SERVER_END, Kind.DONE, Kind.WANT_DATA, Kind.FIRMWARE_DATA])
def test_other_frames_do_not_belong_to_a_disk(sit: Sit, kind: Kind) -> None:
    with pytest.raises(ProtocolError, match=f"{kind.name} came in the middle of a disk"):
        sit().receiver.handle(kind, memoryview(b"{}"))


def compressed_bomb() -> bytes:
    """One MiB in the record's header, one GiB in the frame, and hardly a byte on the wire."""
    packed = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    entries = [(block, FULL_BLOCK) for block in range(16)]
    return bulk.pack_data_header(0, ZSTD, 1 << 20, entries) + packed


def endless_bomb() -> bytes:
    """The same, from a frame that does not say how much is in it."""
    packed = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(64 << 20))
    entries = [(block, FULL_BLOCK) for block in range(16)]
    return bulk.pack_data_header(0, ZSTD, 1 << 20, entries) + packed


@pytest.mark.parametrize(
    "record",
    [compressed_bomb(), endless_bomb(), bulk.pack_data_header(0, ZSTD, BLOCK_BYTES, [(0, FULL_BLOCK)]),
     bulk.pack_data_header(0, ZSTD, BLOCK_BYTES, [(0, FULL_BLOCK)]) + b"no zstd at all"],
    ids=["bomb", "endless bomb", "empty", "garbage"],
)  # fmt: skip
def test_compressed_data_makes_no_more_than_its_header_says(sit: Sit, record: bytes) -> None:
    desk = sit()
    desk.blocks(0, 0, [DIGESTER.of(NOISE)] * 16)
    with pytest.raises(ProtocolError, match="DATA record"):
        desk.receiver.handle(Kind.DATA, memoryview(record))
    assert desk.image.written == []


# — anything, in any order —

SIZE_BYTES = 2 * BLOCK_BYTES + 777
NUMBERS = (0,) * 12 + (1, 2**32 - 1)
BLOCKS = (0, 0, 0, 1, 1, 2, 3)
CONTENTS = (bytes(BLOCK_BYTES), NOISE, OTHER, NOISE[:4096] + OTHER[4096:])

Record = Tuple[str, int, int, int, int]
"""What to send, a segment, a block, and the contents of two blocks."""

records = st.tuples(
    st.sampled_from(["blocks", "push", "push", "segment", "whole", "data", "page", "pages", "zeros", "close"]),
    st.sampled_from(NUMBERS),
    st.sampled_from(BLOCKS),
    st.integers(0, len(CONTENTS) - 1),
    st.integers(0, len(CONTENTS) - 1),
)


def act(desk: Desk, record: Record) -> None:
    kind, number, block, one, other = record
    content = CONTENTS[one]
    if kind in ("blocks", "push"):
        desk.told[block] = DIGESTER.of(content)
        desk.blocks(number, block, [desk.told[block]])
        if kind == "push":
            desk.data(number, block, content)
    elif kind == "close":  # with what was said last, as if all had been in order
        desk.segment(number, [desk.told.get(n, ZERO) for n in range(3)])
    elif kind == "segment":
        desk.segment(number, [DIGESTER.of(content), DIGESTER.of(CONTENTS[other]), ZERO])
    elif kind == "whole":
        desk.blocks(number, 0, [DIGESTER.of(content), DIGESTER.of(CONTENTS[other]), ZERO])
    elif kind == "data":
        desk.data(number, block, content)
    elif kind == "page":
        desk.data(number, block, content[:4096], mask=1)
    elif kind == "pages":
        desk.pages(number, block, content)
    else:
        desk.zeros(number, 1 + other)


@settings(max_examples=250)
@given(start=st.sampled_from(["new", "new volume", "recycled"]), sent=st.lists(records, min_size=1, max_size=20))
def test_whatever_comes_a_disk_that_is_done_has_what_its_digest_says(start: str, sent: List[Record]) -> None:
    check(start, sent)


@pytest.mark.slow
@settings(max_examples=1500)
@given(start=st.sampled_from(["new", "new volume", "recycled"]), sent=st.lists(records, min_size=1, max_size=30))
def test_much_more_of_whatever_comes(start: str, sent: List[Record]) -> None:
    check(start, sent)


def check(start: str, sent: List[Record]) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.detach()
    channel = Channel(fd, fd, silence_seconds=1)
    image = Bytes(bytes(SIZE_BYTES) if start == "new" else (OTHER * 3)[:SIZE_BYTES])
    recycled: Recycled = KnownZeros(DIGESTER) if start == "new" else UnknownContent()
    if start == "recycled":
        recycled = Content(DIGESTER, image, SIZE_BYTES)
    receiver = DiskReceiver(
        channel, DIGESTER, Owner("Web01", "Web01_0"), SIZE_BYTES, image=image, recycled=recycled, newest=None, window=4
    )
    desk = Desk(receiver, image, SIZE_BYTES)
    try:
        for record in sent:
            # What is refused ends a session. Here it goes on, which is worse than any node can do.
            try:
                act(desk, record)
            except AnvilDrError:
                continue
        try:
            said = receiver.finish()
        except ProtocolError:
            return
        assert said == digest_of(bytes(image.content))
    finally:
        recycled.close()
        theirs.close()
        channel.close()


def digest_of(content: bytes) -> str:
    whole = ImageDigest(DIGESTER, len(content))
    for number in range(segment_count(len(content))):
        part = content[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES]
        padded = part + bytes(-len(part) % BLOCK_BYTES)
        whole.add(DIGESTER.segment(DIGESTER.blocks(memoryview(padded))))
    return whole.text()
