"""Bytes, job descriptions and definitions that somebody has tampered with: each ends in one clear line, or in order.

    ANVIL_DR_FUZZ=100000 ./tests/run tests/unit/test_fuzz.py     as long as one likes, with new examples each time
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Iterator, List, Mapping, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from anvil_dr import definition
from anvil_dr.errors import DefinitionError
from anvil_dr.receiving.target import Target
from anvil_dr.records.state import State
from anvil_dr.stores.directory import DirectoryStore
from anvil_dr.wire import bulk, digest
from anvil_dr.wire.protocol import (
    FRAME_HEADER,
    DiskBegin,
    DiskEnd,
    Firmware,
    Hello,
    Job,
    JobEnd,
    Kind,
    Message,
    ServerBegin,
    ServerEnd,
)
from tests.doubles.dr_box import DrBox, Node
from tests.doubles.intruder import Intruder, offer, zero_digest

pytestmark = pytest.mark.slow

MANY = int(os.environ.get("ANVIL_DR_FUZZ") or 0)
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "definitions"


def fuzzing(examples: int) -> Callable[[Any], Any]:
    """The same examples in each run of the suite; by hand others, and more."""
    return settings(
        max_examples=MANY or examples,
        derandomize=not MANY,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# — a session's bytes —


def frame(kind: Kind, content: bytes) -> bytes:
    return FRAME_HEADER.pack(kind, len(content)) + content


def message(one: Message) -> bytes:
    return frame(one.kind, one.encode())


SERVER = offer("Db01", {"Db01_0": 9000, "Db01_1": 70_000}, firmware={"nvram": 5})
HONEST: Tuple[bytes, ...] = (
    message(Hello((1,), digest.available(), ("zstd",), "an-a01n01")),
    message(Job("nightly", (SERVER,))),
    message(ServerBegin("Db01")),
    message(Firmware("nvram", 5)),
    frame(Kind.FIRMWARE_DATA, b"12345"),
    *(
        part
        for disk in SERVER.disks
        for part in (
            message(DiskBegin(disk.name)),
            frame(Kind.ZEROS, bulk.pack_run(0, 1)),
            message(DiskEnd(disk.name, zero_digest(disk.size_bytes))),
        )
    ),
    message(ServerEnd("Db01")),
    message(JobEnd()),
)
"""All that a node says in a job, as it may be said without listening."""


@st.composite
def tampered(draw: st.DrawFn) -> bytes:
    """An honest session with a few bytes changed, cut out, put in or said again."""
    content = b"".join(HONEST)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 40))
        new = draw(st.one_of(st.just(b""), st.binary(max_size=12), st.just(content[at : at + length] * 2)))
        content = content[:at] + new + content[at + length :]
    return content


class Unwatched(DrBox):
    """Where nobody else has images open."""

    def open_store(self, state: State) -> DirectoryStore:
        store = DirectoryStore(str(self.store_folder), state.owners)
        store.users = lambda images: {}  # type: ignore[method-assign]
        return store


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuple[DrBox, Target, Node]]:
    """A box with a good set, to which a good job is sent before and after."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "box").mkdir()
    box, web = Unwatched(folder / "box"), Node(folder / "node", disks={"Web01_0": b"w" * 9000})
    with box.running() as target:
        assert box.send(web.outgoing()).succeeded
        yield box, target, web
        assert box.send(web.outgoing()).succeeded


@pytest.fixture(scope="module")
def outside(standing: Tuple[DrBox, Target, Node]) -> Callable[[], List[str]]:
    """What lies where nothing of a node's choosing may lie: beside the box's folders, and beside the images."""
    box = standing[0]
    ours = {"store", "state", "definitions", "run"}

    def listed() -> List[str]:
        beside = [path.name for path in box.folder.iterdir() if path.name not in ours]
        odd = [name for name in box.names() if not name.startswith(("Web01_", "Db01_")) or not name.endswith(".raw")]
        return sorted([*beside, *odd, *(path.name for path in box.folder.parent.iterdir())])

    return listed


def play(standing: Tuple[DrBox, Target, Node], content: bytes) -> str:
    """Say it, hang up, and hear how it ends."""
    box, target, web = standing
    with Intruder(box) as node:
        node.raw(content)
        node.hang_up()
        said = node.error()
    assert "\n" not in said and "foresaw" not in said and len(said) < 10_000, said
    assert box.image("Web01_Web01_0_1") == web.disks["Web01_0"]
    return said


@fuzzing(250)
@given(content=tampered())
def test_no_bytes_do_harm(
    standing: Tuple[DrBox, Target, Node], outside: Callable[[], List[str]], content: bytes
) -> None:
    play(standing, content)
    for record in standing[1].state.set_records("Db01"):
        assert all(image.digest == zero_digest(image.size_bytes) for image in record.images)
    assert outside() == ["box", "node"]


def test_what_is_tampered_with_is_a_session_that_succeeds(standing: Tuple[DrBox, Target, Node]) -> None:
    assert play(standing, b"".join(HONEST)) == ""
    assert standing[1].state.set_records("Db01") != ()


# — a job's description —

NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "..", "../x", "/etc/passwd", "a/b", "a\0b", "x" * 5000, "_incomplete", "Web01", "-o"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


def places(value: Any, path: Tuple[Any, ...] = ()) -> Iterator[Tuple[Any, ...]]:
    """Every place in a document."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def put(value: Any, path: Tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


DESCRIPTION = json.loads(Job("nightly", (SERVER,)).encode())


@st.composite
def descriptions(draw: st.DrawFn) -> bytes:
    value = DESCRIPTION
    for _ in range(draw(st.integers(1, 3))):
        value = put(value, draw(st.sampled_from(list(places(value)))), draw(NASTY))
    return json.dumps(value).encode("utf-8", "surrogatepass")


@fuzzing(250)
@given(content=descriptions())
def test_no_description_of_a_job_does_harm(
    standing: Tuple[DrBox, Target, Node], outside: Callable[[], List[str]], content: bytes
) -> None:
    play(standing, HONEST[0] + frame(Kind.JOB, content) + b"".join(HONEST[2:]))
    assert [name for name in outside() if "/" in name or name.startswith(".")] == []
    assert {path.name for path in standing[0].folder.parent.iterdir()} == {"box", "node"}


# — definitions —

SOURCES: Mapping[str, str] = {
    folder.name: (folder / "source.xml").read_text()
    for folder in sorted(GOLDEN.iterdir())
    if (folder / "expected.xml").exists()
}
EVIL = "/evil/place"
PARTS = (
    "<", "&", '"', "\0", f'<!DOCTYPE d [<!ENTITY x SYSTEM "{EVIL}">]>', f"<source file='{EVIL}'/>",
    f"<emulator>{EVIL}</emulator>", f"<kernel>{EVIL}</kernel>", f"<filesystem><source dir='{EVIL}'/></filesystem>",
    f"<log file='{EVIL}'/>", f'<xi:include href="{EVIL}"/>',
)  # fmt: skip


@st.composite
def definitions(draw: st.DrawFn) -> Tuple[str, str]:
    """A real one, parts of which were swapped with those of another, said twice, or changed."""
    name = draw(st.sampled_from(sorted(SOURCES)))
    xml, other = SOURCES[name], SOURCES[draw(st.sampled_from(sorted(SOURCES)))]
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(xml))), draw(st.integers(0, 200))
        start = draw(st.integers(0, len(other)))
        if draw(st.booleans()):  # where an element ends, so that it is still one document
            at = xml.find(">", at) + 1
        part = st.one_of(st.just(other[start : start + length]), st.sampled_from(PARTS), st.text(max_size=8))
        new = draw(part)
        xml = xml[:at] + new + xml[at + (length if draw(st.booleans()) else 0) :]
    return name, xml


@fuzzing(400)
@given(drawn=definitions())
def test_no_definition_does_harm(drawn: Tuple[str, str]) -> None:
    name, xml = drawn
    honest = definition.parse(SOURCES[name])
    disks = {
        disk.path: definition.DiskTarget(f"/srv/dr/{number}.raw", "file")
        for number, disk in enumerate(definition.source_disks(honest))
        if disk.imageable and disk.path is not None
    }
    try:
        server = definition.server_name(honest)
        made = definition.make_dr_definition(xml, server, disks, (EVIL,), "/srv/nvram.fd")
    except DefinitionError as error:
        assert "\n" not in str(error)
        return
    told = etree.tostring(_without_words(etree.fromstring(made.xml.encode())), encoding="unicode")
    assert EVIL not in told, "a path of the node's choosing"
    with suppress(DefinitionError):  # of what makes no sense, such as a size; activation says so
        assert definition.requirements(made.xml).name == server


def _without_words(tree: etree._Element) -> etree._Element:
    """Titles, descriptions and comments are for people, and reach no file."""
    for words in list(tree.iterfind("title")) + list(tree.iterfind("description")) + list(tree.iter(etree.Comment)):
        words.getparent().remove(words)
    return tree
