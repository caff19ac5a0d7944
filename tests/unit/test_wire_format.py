"""Messages and records survive the wire, and whatever else comes over it is one clear ProtocolError."""

from __future__ import annotations

import json
from typing import List, Type

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from anvil_dr.errors import ProtocolError
from anvil_dr.wire import bulk, protocol
from anvil_dr.wire.compression import Decompressor
from anvil_dr.wire.protocol import DiskOffer, Hello, Job, JobPlan, Message, Refusal, ServerOffer, ServerPlan, Welcome

MESSAGES: List[Message] = [
    Hello((1,), ("blake3", "sha256"), ("zstd",), "an-a01n01", "anvil-dr-send/1"),
    Welcome(1, "sha256", (), "dr01", 16, 10 << 20),
    Job("one", (ServerOffer("Web01", "<domain/>", (DiskOffer("0", 1 << 40, "/dev/vg0/0"),), ("/dev/sr0",)),)),
    Job("with firmware", (ServerOffer("Web01", "<domain/>", (), (), {"nvram": 540_672, "tpm/tpm2-00.permall": 9}),)),
    JobPlan("j1", (ServerPlan("Web01", None, ("careful",)), ServerPlan("Db01", Refusal("ServerBusy", "busy")))),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert protocol.decode(type(message), memoryview(message.encode())) == message


def test_a_field_that_this_version_does_not_know_is_passed_over() -> None:
    encoded = json.dumps({"versions": [1, 2], "digests": ["sha256"], "colour": "blue"}).encode()
    assert protocol.decode(Hello, memoryview(encoded)) == Hello((1, 2), ("sha256",))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff\x00", "HELLO is not valid JSON"),
        (b"[" * 100_000, "HELLO is not valid JSON"),
        (b"[]", "HELLO: an object was expected"),
        (b"{}", "HELLO: versions is missing"),
        (b'{"versions": 1, "digests": []}', "HELLO.versions: a list was expected"),
        (b'{"versions": [true], "digests": []}', r"HELLO.versions\[0\]: int was expected"),
        (b'{"versions": [-1], "digests": []}', r"HELLO.versions\[0\]: -1 is out of range"),
        (b'{"versions": [1], "digests": [{}]}', r"HELLO.digests\[0\]: str was expected"),
        (b'{"versions": [1], "digests": ["%s"]}' % (b"x" * 4097), r"HELLO.digests\[0\]: it is longer than 4096"),
        (b'{"versions": [1], "digests": ["\\ud800"]}', r"HELLO.digests\[0\]: it is not valid Unicode"),
        (b"[" + b"[]," * 125_001 + b"[]]", "HELLO has more than 250000 values"),
        (b'{"versions": [1%s], "digests": []}' % (b"0" * 5000), "HELLO is not valid JSON"),
    ],
)
def test_a_message_that_makes_no_sense_is_named(content: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        protocol.decode(Hello, memoryview(content))


def test_what_is_said_to_a_person_is_shortened_and_not_refused() -> None:
    plan = JobPlan("j1", (ServerPlan("Web01", Refusal("Store", "ä" * 9000), ("short", "long" * 9000)),))
    (server,) = protocol.decode(JobPlan, memoryview(plan.encode())).servers
    assert server.refused is not None and server.refused.message == "ä" * 4095 + "…"
    assert server.warnings == ("short", ("long" * 1024)[:4095] + "…")


def test_a_definition_may_be_long_but_not_without_end() -> None:
    for characters, complaint in ((1 << 20, ""), ((1 << 20) + 1, "JOB.servers\\[0\\].definition: it is longer than")):
        job = Job("nightly", (ServerOffer("Web01", "x" * characters, ()),))
        if not complaint:
            assert protocol.decode(Job, memoryview(job.encode())) == job
            continue
        with pytest.raises(ProtocolError, match=complaint):
            protocol.decode(Job, memoryview(job.encode()))


@pytest.mark.parametrize("name", ["x" * 5000, "\\udcff"])
def test_a_name_in_an_object_is_a_text_like_any_other(name: str) -> None:
    server = '{"name": "s", "definition": "", "disks": [], "firmware": {"NAME": 1}}'.replace("NAME", name)
    said = '{"name": "j", "servers": [' + server + "]}"
    with pytest.raises(ProtocolError, match=r"a name in JOB.servers\[0\].firmware: it is"):
        protocol.decode(Job, memoryview(said.encode()))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["name", "servers", "disks", "size_bytes", "path", "versions"]), inner),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from([Hello, Job, JobPlan, Welcome, protocol.ServerDone, protocol.Firmware]), value=json_values)
@pytest.mark.slow
def test_no_json_raises_anything_but_a_protocol_error(kind: Type[Message], value: object) -> None:
    try:
        decoded = protocol.decode(kind, memoryview(json.dumps(value).encode()))
    except ProtocolError:
        return
    assert isinstance(decoded, kind)


UNPACKERS = [
    bulk.unpack_run, bulk.unpack_segment, bulk.unpack_blocks, bulk.unpack_want_blocks,
    bulk.unpack_want_pages, bulk.unpack_pages, bulk.unpack_want_data, bulk.unpack_data,
]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(which=st.sampled_from(range(len(UNPACKERS))), content=st.binary(max_size=600))
def test_no_record_raises_anything_but_a_protocol_error(which: int, content: bytes) -> None:
    try:
        UNPACKERS[which](memoryview(content))
    except ProtocolError:
        return


entries = st.lists(st.tuples(st.integers(0, 255), st.integers(1, 0xFFFF)), min_size=1, max_size=16).map(
    lambda pairs: tuple(sorted(dict(pairs).items()))
)


@given(segment=st.integers(0, 2**32 - 1), asked=entries)
def test_a_list_of_pages_comes_out_as_it_went_in(segment: int, asked: tuple[tuple[int, int], ...]) -> None:
    assert bulk.unpack_want_data(memoryview(bulk.pack_want_data(segment, asked))) == (segment, asked)
    raw = bytes(bulk.data_bytes(asked))
    header, content = bulk.unpack_data(memoryview(bulk.pack_data_header(segment, bulk.RAW, len(raw), asked) + raw))
    assert (header.segment, header.entries, len(content)) == (segment, asked, len(raw))


@given(mask=st.integers(0, 0xFFFF))
def test_the_runs_of_a_mask_are_its_pages(mask: int) -> None:
    pages = [page for first, count in bulk.page_runs(mask) for page in range(first, first + count)]
    assert pages == [page for page in range(16) if mask >> page & 1]


@given(blocks=st.sets(st.integers(0, 255)))
def test_a_bitmap_comes_out_as_it_went_in(blocks: set[int]) -> None:
    assert bulk.unpack_want_pages(memoryview(bulk.pack_want_pages(7, sorted(blocks)))) == (7, sorted(blocks))


def test_digests_of_blocks_and_pages_come_out_as_they_went_in() -> None:
    digests = [bytes([n]) * 32 for n in range(20)]
    assert bulk.unpack_blocks(memoryview(bulk.pack_blocks(3, 236, digests))) == (3, 236, digests)
    pages = [(5, [bytes([n]) * 16 for n in range(16)]), (9, [bytes([n]) * 16 for n in range(16)])]
    assert bulk.unpack_pages(memoryview(bulk.pack_pages(3, pages))) == (3, pages)
    with pytest.raises(ProtocolError):
        bulk.unpack_blocks(memoryview(bulk.pack_blocks(3, 237, digests)))


def test_a_record_that_promises_other_bytes_than_it_has_is_refused() -> None:
    lying = bulk.pack_data_header(0, bulk.RAW, 8192, [(0, 1)]) + bytes(8192)
    with pytest.raises(ProtocolError, match="8192 bytes where its pages have 4096"):
        bulk.unpack_data(memoryview(lying))


def test_a_bomb_is_not_unpacked() -> None:
    packed = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    decompressor = Decompressor()
    assert len(decompressor.decode(bulk.ZSTD, memoryview(packed), 1 << 20)) == 1 << 20
    with pytest.raises(ProtocolError, match="wrong size"):
        decompressor.decode(bulk.ZSTD, memoryview(packed), 4096)
    with pytest.raises(ProtocolError, match="cannot be decompressed|wrong size"):
        decompressor.decode(bulk.ZSTD, memoryview(b"\x00" * 50), 4096)
