"""A node that means harm, or is broken: one clear line for each, its session ends, and nothing else is touched."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator, List, Mapping, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anvil_dr.receiving.target import Target
from anvil_dr.records.state import State
from anvil_dr.status import inquiry
from anvil_dr.stores.directory import DirectoryStore
from anvil_dr.wire import bulk, digest
from anvil_dr.wire.channel import KeepAlive
from anvil_dr.wire.digest import BLOCK_BYTES, SEGMENT_BYTES
from anvil_dr.wire.limits import Limits
from anvil_dr.wire.protocol import (
    DiskBegin,
    DiskEnd,
    DiskOffer,
    Error,
    Firmware,
    Hello,
    Job,
    JobEnd,
    Kind,
    Message,
    ServerAbort,
    ServerBegin,
    ServerEnd,
    ServerOffer,
)
from tests.doubles.dr_box import DrBox, Node
from tests.doubles.intruder import DIGESTER, Intruder, offer, state_of, zero_digest

NOISE = os.urandom(BLOCK_BYTES)
THREADS = ("session", "keep-alive", "receive", "recycled")


class Scene:
    """A box that holds a good set of Web01, at work, and its log."""

    def __init__(self, box: DrBox, target: Target, web: Node, log: pytest.LogCaptureFixture) -> None:
        self.box, self.target, self.web, self.log = box, target, web, log

    def complaints(self) -> List[logging.LogRecord]:
        """What was logged as wrong, once every session has ended."""
        wait_for(lambda: not sessions(), "a session did not end")
        return [record for record in self.log.records if record.levelno >= logging.WARNING]


def sessions() -> List[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in THREADS]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


class Unwatched(DrBox):
    """Where nobody else has images open. To look for them takes a tenth of a second where many processes run."""

    def open_store(self, state: State) -> DirectoryStore:
        store = DirectoryStore(str(self.store_folder), state.owners)
        store.users = lambda images: {}  # type: ignore[method-assign]
        return store


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuple[DrBox, Target, Node]]:
    """One service for all of this, to which a good job is sent before and after."""
    folder = tmp_path_factory.mktemp("box")
    box = Unwatched(folder)
    box.limits = replace(box.limits, failures_of_one_node=10**6)  # many tests are one node here
    web = Node(folder / "node", disks={"Web01_0": NOISE + bytes(10_000)})
    with box.running() as target:
        assert box.send(web.outgoing()).succeeded
        yield box, target, web
        assert box.send(web.outgoing()).succeeded
        assert box.image("Web01_Web01_0_1") == web.disks["Web01_0"]


@pytest.fixture
def scene(standing: Tuple[DrBox, Target, Node], caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    """Afterwards the good set is still there, whatever its number, and the service still answers."""
    box, target, web = standing
    yield Scene(box, target, web, caplog)
    wait_for(lambda: not sessions(), "a session did not end")
    assert web.disks["Web01_0"] in state_of(box.store_folder).values()
    assert inquiry.running_jobs(box.config.socket) == ()


def check_line(record: logging.LogRecord, reason: str) -> None:
    line = record.getMessage()
    assert reason in line and "\n" not in line and len(line) < 10_000
    assert record.exc_info is None, "it was foreseen"


Act = Callable[[Intruder], None]


def in_the_disk(*records: Tuple[Kind, bytes]) -> Act:
    """Everything in order up to the first disk's records, and then these."""

    def act(node: Intruder) -> None:
        node.begin(offer())
        for kind, content in records:
            node.record(kind, content)

    return act


def after_the_job(*messages: Message, server: ServerOffer = offer()) -> Act:  # noqa: B008 - a frozen value
    def act(node: Intruder) -> None:
        node.announce(server)
        node.say(*messages)

    return act


def saying(*messages: Message) -> Act:
    return lambda node: node.say(*messages)


def greeting(**changes: object) -> Act:
    hello = Hello((1,), digest.available(), ("zstd",), "an-a01n01")
    return saying(replace(hello, **changes))  # type: ignore[arg-type]


def announcing(*servers: ServerOffer, name: str = "nightly") -> Act:
    def act(node: Intruder) -> None:
        node.hello()
        node.say(Job(name, servers))

    return act


def raw(content: bytes) -> Act:
    return lambda node: node.raw(content)


TINY = ServerOffer("Web01", "", ())
FIRMWARE = offer(firmware={"nvram": 100})
ENDS: Mapping[str, Tuple[Act, str]] = {
    # the greeting
    "another version": (greeting(versions=(2, 3)), "the node speaks protocol version 2, 3, this box version 1"),
    "no version": (greeting(versions=()), "the node speaks protocol version (none), this box version 1"),
    "very many versions": (greeting(versions=tuple(range(2, 900))), "version 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, this"),
    "no common digest": (greeting(digests=("md5",)), "no digest algorithm is common to both ends"),
    "another purpose": (greeting(purpose="format c:\n"), r"'format c:\n' is nothing this box can be asked"),
    "a node's name without end": (greeting(node="n" * 300), "the node's name is too long"),
    "a node's name for systemd": (greeting(node="n\nMAINPID=1"), r"'n\nMAINPID=1' is no name of a node"),
    "another protocol": (raw(b"GET / HTTP/1.1\r\nHost: dr01\r\n\r\n"), "does not speak this protocol (frame type 71)"),
    "a relay that is none": (raw(b"RELAY me\n"), "the relay cannot be understood"),
    "a huge frame": (lambda node: node.frame(Kind.HELLO, length=2**32 - 1), "HELLO frame of 4294967295 bytes is too"),
    "a job at once": (lambda node: node.frame(Kind.JOB, length=8 << 20), "a JOB frame of 8388608 bytes is too large"),
    "data at once": (lambda node: node.frame(Kind.DATA, b"{}"), "DATA came where HELLO was due"),
    "no JSON": (lambda node: node.frame(Kind.HELLO, b"\xff\xfe"), "HELLO is not valid JSON"),
    "nothing to give up": (saying(ServerAbort("Web01", "x", "y")), "server 'Web01' was given up, which is not being"),
    "its own error": (saying(Error("Disk", "I am\non \x1b[31mfire")), r"the node gave up: I am\non \x1b[31mfire"),
    # the job
    "no job": (lambda node: (node.hello(), node.say(ServerBegin("Web01")))[0], "SERVER_BEGIN came where JOB was due"),
    "no servers": (announcing(), "a job has 1 to 256 servers; this one has 0"),
    "300 servers": (announcing(*[TINY] * 300), "a job has 1 to 256 servers; this one has 300"),
    "a server twice": (announcing(TINY, TINY), "server 'Web01' is in the job twice"),
    "a job's name without end": (announcing(offer(), name="n" * 300), "the job's name is too long"),
    "a negative size": (announcing(offer(disks={"d": -1})), "JOB.servers[0].disks[0].size_bytes: -1 is out of range"),
    "a size of 2^60": (announcing(offer(disks={"d": 1 << 60})), "size_bytes: 1152921504606846976 is out of range"),
    "half a character": (
        lambda node: (node.hello(), node.record(Kind.JOB, b'{"name": "\\ud800", "servers": []}'))[0],
        "JOB.name: it is not valid Unicode",
    ),
    "a definition without end": (announcing(offer(xml="x" * ((1 << 20) + 1))), "JOB.servers[0].definition: it is lon"),
    # a server
    "another server": (after_the_job(ServerBegin("Db01")), "server 'Db01' began where 'Web01' was due"),
    "no server": (after_the_job(JobEnd()), "JOB_END came where SERVER_BEGIN was due"),
    "a server given up too soon": (after_the_job(ServerAbort("Web01", "x", "y")), "server 'Web01' was given up"),
    "another server given up": (
        after_the_job(ServerBegin("Web01"), ServerAbort("Db01", "x", "y")),
        "server 'Db01' was given up, which is not being sent",
    ),
    "another disk": (
        after_the_job(ServerBegin("Web01"), DiskBegin("../../etc/passwd")),
        "disk '../../etc/passwd' is not due",
    ),
    "a server without its disks": (
        after_the_job(ServerBegin("Web01"), ServerEnd("Web01")),
        "SERVER_END came where DISK_BEGIN was due",
    ),
    "firmware that was not announced": (
        after_the_job(ServerBegin("Web01"), Firmware("nvram", 10)),
        "FIRMWARE came where DISK_BEGIN was due",
    ),
    "other firmware": (
        after_the_job(ServerBegin("Web01"), Firmware("tpm/x", 10), server=FIRMWARE),
        "firmware state 'tpm/x' is not due",
    ),
    "too much firmware": (
        after_the_job(ServerBegin("Web01"), Firmware("nvram", 65 << 20), server=FIRMWARE),
        "there is too much firmware state: 'nvram' has 68157440 bytes",
    ),
    "no firmware": (
        after_the_job(ServerBegin("Web01"), DiskBegin("Web01_0"), server=FIRMWARE),
        "DISK_BEGIN came where FIRMWARE was due",
    ),
    "firmware in nothing": (
        lambda node: (
            after_the_job(ServerBegin("Web01"), Firmware("nvram", 10), server=FIRMWARE)(node),
            node.record(Kind.FIRMWARE_DATA, b""),
        )[0],
        "firmware state 'nvram' has the wrong length",
    ),
    "more firmware than was said": (
        lambda node: (
            after_the_job(ServerBegin("Web01"), Firmware("nvram", 10), server=FIRMWARE)(node),
            node.record(Kind.FIRMWARE_DATA, bytes(11)),
        )[0],
        "firmware state 'nvram' has the wrong length",
    ),
    # a disk
    "a disk twice": (
        lambda node: (node.begin(offer()), node.say(DiskBegin("Web01_0")))[0],
        "DISK_BEGIN came in the middle of a disk",
    ),
    "a disk sent again": (
        lambda node: (
            node.announce(offer(disks={"Web01_0": 9, "Web01_1": 9})),
            node.say(ServerBegin("Web01"), DiskBegin("Web01_0")),
            node.record(Kind.ZEROS, bulk.pack_run(0, 1)),
            node.say(DiskEnd("Web01_0", zero_digest(9)), DiskBegin("Web01_0")),
        )[0],
        "disk 'Web01_0' is not due",
    ),
    "an early end": (
        lambda node: (node.begin(offer()), node.say(DiskEnd("Web01_0", zero_digest(100_000))))[0],
        "disk Web01_0 was ended before all of it was sent",
    ),
    "another disk's end": (
        lambda node: (node.begin(offer()), node.say(DiskEnd("Web01_1", "")))[0],
        "disk 'Web01_1' is not being sent",
    ),
    "a segment too far": (
        in_the_disk((Kind.SEGMENT, bulk.pack_segment(1, bytes(32)))),
        "segment 1 was announced where 0 was due",
    ),
    "a segment twice": (
        in_the_disk(*[(Kind.SEGMENT, bulk.pack_segment(0, bytes(32)))] * 2),
        "segment 0 was announced where 1 was due",
    ),
    "zeros past the end": (in_the_disk((Kind.ZEROS, bulk.pack_run(0, 2**32 - 1))), "ZEROS goes past the end"),
    "unasked data": (
        in_the_disk((Kind.DATA, bulk.pack_data_header(0, 0, BLOCK_BYTES, [(0, 0xFFFF)]) + NOISE)),
        "segment 0 is not open",
    ),
    "unasked pages": (
        in_the_disk((Kind.PAGES, bulk.pack_pages(0, [(0, [bytes(16)] * 16)]))),
        "segment 0 is not open",
    ),
    "half a record": (in_the_disk((Kind.SEGMENT, b"abc")), "a SEGMENT record has the wrong length"),
    "a record of the target": (in_the_disk((Kind.WANT_BLOCKS, bulk.pack_want_blocks(0))), "WANT_BLOCKS came in the"),
    "another job": (in_the_disk((Kind.JOB, Job("x", (offer(),)).encode())), "JOB came in the middle of a disk"),
    "a huge job in the middle": (
        lambda node: (node.begin(offer()), node.frame(Kind.JOB, length=8 << 20))[0],
        "JOB frame of 8388608 bytes is too large here",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("act", "reason"), list(ENDS.values()), ids=list(ENDS))
def test_a_session_ends_with_a_reason_that_both_ends_are_told(scene: Scene, act: Act, reason: str) -> None:
    with Intruder(scene.box) as node:
        act(node)
        assert reason in node.error()
    (complaint,) = scene.complaints()
    check_line(complaint, reason)


CLOSED = "the connection was closed before the job ended"
GONE: Mapping[str, Tuple[Act, str]] = {
    "at once": (raw(b""), "a connection ended before it said anything"),
    "in a header": (raw(b"\x01\0\0"), CLOSED),
    "after nothing but keep-alives": (raw(bytes(4096)), CLOSED),
    "after the greeting": (greeting(), CLOSED),
    "in a message": (lambda node: node.frame(Kind.HELLO, b"{", 4000), CLOSED),
    "in a disk": (in_the_disk(), CLOSED),
    "in a block": (lambda node: (node.begin(offer()), node.frame(Kind.DATA, b"x", 70_000))[0], CLOSED),
}


@pytest.mark.parametrize(("act", "reason"), list(GONE.values()), ids=list(GONE))
def test_a_node_that_goes_away_is_noticed(scene: Scene, act: Act, reason: str) -> None:
    with Intruder(scene.box) as node:
        act(node)
        node.hang_up()
        node.error()
    (complaint,) = scene.complaints()
    check_line(complaint, reason)


# — a server that is refused; the others of its job go on —

OTHER = offer("Db01", {"Db01_0": 5000})
REFUSED: Mapping[str, Tuple[ServerOffer, str]] = {
    "no disks": (offer("Bad01", {}), "1 to 64 disks were expected, there are 0"),
    "65 disks": (offer("Bad01", {f"d{n}": 1 for n in range(65)}), "1 to 64 disks were expected, there are 65"),
    "a disk twice": (
        replace(offer("Bad01"), disks=(DiskOffer("d", 1, "/a"), DiskOffer("d", 1, "/b"))),
        "two of its disks have the same name or path",
    ),
    "a path twice": (
        replace(offer("Bad01"), disks=(DiskOffer("d", 1, "/a"), DiskOffer("e", 1, "/a"))),
        "two of its disks have the same name or path",
    ),
    "an empty disk": (offer("Bad01", {"d": 0}), "server Bad01 disk d: its size is 0 bytes"),
    "more than there is": (offer("Bad01", {"d": 1 << 45}), "the store is too small: 35184372088832 bytes needed"),
    "a disk without end": (offer("Bad01", {"d": (64 << 40) + 1}), "a disk has at most 64 TiB"),
    "a way out": (offer("Bad01", {"../../etc/shadow": 1}), "the name '../../etc/shadow' has '/' in it"),
    "a server's way out": (offer("../Web01"), "the name '../Web01' has '/' in it"),
    "lines for the log": (offer("Bad01\nlevel=INFO all is well"), r"the name 'Bad01\nlevel=INFO all is well' has"),
    "a terminal's commands": (offer("Bad01\x1b[2J"), r"the name 'Bad01\x1b[2J' has"),
    "another definition": (
        replace(offer("Bad01"), definition=offer("Web01", {"Bad01_0": 1}).definition),
        "it is the definition of server 'Web01'",
    ),
    "no definition": (offer("Bad01", xml=""), "definition of Bad01: "),
    "a way out for firmware": (offer("Bad01", firmware={"tpm/../../../x": 1}), "'tpm/../../../x' is no firmware state"),
    "a folder of firmware": (offer("Bad01", firmware={"tpm/..": 1}), "'tpm/..' is no firmware state"),
    "firmware for the log": (offer("Bad01", firmware={"tpm/a\nb": 1}), r"'tpm/a\nb' is no firmware state"),
    "a root of firmware": (offer("Bad01", firmware={"/etc/shadow": 1}), "'/etc/shadow' is no firmware state"),
    "65 MiB of firmware": (offer("Bad01", firmware={"nvram": 65 << 20}), "there is too much firmware state"),
    "much firmware": (offer("Bad01", firmware={f"tpm/{n}": 1 for n in range(65)}), "there is too much firmware state"),
    "much left out": (offer("Bad01", left_out=("/dev/sdx",) * 300), "it leaves out 300 disks"),
}


@pytest.mark.parametrize(("bad", "reason"), list(REFUSED.values()), ids=list(REFUSED))
def test_a_server_that_cannot_be_is_refused_and_the_others_are_not(
    scene: Scene, bad: ServerOffer, reason: str
) -> None:
    before = scene.box.names()
    with Intruder(scene.box) as node:
        node.announce(bad, OTHER)
        refusals = node.refusals()
        assert list(refusals) == [bad.name] and reason in refusals[bad.name]
        assert scene.box.names() == before, "a plan changes nothing"
        node.say(ServerBegin("Db01"), ServerAbort("Db01", "x", "enough"), JobEnd())
        node.hear(Kind.JOB_DONE)
    (complaint,) = scene.complaints()
    check_line(complaint, reason)


def test_a_key_for_some_servers_is_good_for_no_other(scene: Scene) -> None:
    with Intruder.by_relay(scene.box, allowed=("Web0[12]", "Db*")) as node:
        node.announce(offer("Web03"), offer("Web01"), offer("web01"), OTHER, offer("xDb01"))
        refusals = node.refusals()
        assert set(refusals) == {"Web03", "web01", "xDb01"}
        assert refusals["Web03"] == "this key is not allowed to send server Web03"
        node.say(ServerBegin("Web03"))
        assert node.error() == "server 'Web03' began where 'Web01' was due"


# — a server that fails; the session goes on —


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([(Kind.SEGMENT, bulk.pack_segment(0, bytes(32))), (Kind.BLOCKS, bulk.pack_blocks(0, 0, [bytes(32)] * 2))],
         "server Web01 disk Web01_0 at byte 0: the digests that arrived do not agree"),
        ([(Kind.ZEROS, bulk.pack_run(0, 1)), (Kind.DISK_END, DiskEnd("Web01_0", "sha256:1\n2").encode())],
         r"here and sha256:1\n2 at the node"),
    ],
    ids=["a segment", "an image"],
)  # fmt: skip
def test_a_digest_that_lies_fails_its_server_only(
    scene: Scene, records: List[Tuple[Kind, bytes]], reason: str
) -> None:
    with Intruder(scene.box) as node:
        node.announce(offer(), OTHER)
        node.say(ServerBegin("Web01"), DiskBegin("Web01_0"))
        for kind, content in records:
            node.record(kind, content)
        assert reason in node.failure()
        node.say(ServerAbort("Web01", "x", "understood"))
        node.say(ServerBegin("Db01"))
        node.send_zeros(OTHER)
        node.hear(Kind.SERVER_DONE)
        node.job_end()
        node.hear(Kind.JOB_DONE)
    (complaint,) = scene.complaints()
    check_line(complaint, reason)
    assert scene.target.state.last_jobs()["Web01"].state == "failed"


def test_a_node_that_goes_on_after_its_server_failed_is_cut_off(scene: Scene) -> None:
    scene.target.window = 0
    try:
        with Intruder(scene.box) as node:
            node.begin(offer())
            node.record(Kind.ZEROS, bulk.pack_run(0, 1))
            node.say(DiskEnd("Web01_0", "sha256:0"))
            node.failure()
            for _ in range(2 * SEGMENT_BYTES // (1 << 20) + 1):
                node.record(Kind.DATA, bytes(1 << 20))
            assert node.error() == "the node goes on with server Web01, which has failed"
    finally:
        scene.target.window = 16


def test_a_set_that_is_complete_counts_though_the_node_did_not_wait_to_hear_it(scene: Scene) -> None:
    server = offer("Mail01")
    node = Intruder(scene.box)
    node.announce(server)
    node.say(ServerBegin("Mail01"))
    node.send_zeros(server, end=False)
    node.hear(Kind.DISK_DONE)
    node.say(ServerEnd("Mail01"))
    node.channel.close()
    node.connection.close()
    wait_for(lambda: bool(scene.log.records), "the end of the session was not logged")
    (complaint,) = scene.complaints()
    check_line(complaint, "the connection")
    assert "Mail01_Mail01_0_1.raw" in scene.box.names()
    assert scene.target.state.last_jobs()["Mail01"].state == "succeeded"


def test_no_link_in_the_folder_of_definitions_leads_anywhere_else(scene: Scene, tmp_path: Path) -> None:
    definitions, elsewhere = Path(scene.box.config.definitions), tmp_path / "elsewhere"
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (definitions / "nvram").mkdir(parents=True, exist_ok=True)
    (definitions / "Link01.xml").symlink_to(elsewhere)
    (definitions / "nvram" / "Link01.fd").symlink_to(victim)
    server = offer("Link01", firmware={"nvram": 5, "tpm/.lock": 0})
    with Intruder(scene.box) as node:
        node.announce(server)
        node.say(ServerBegin("Link01"), Firmware("nvram", 5))
        node.record(Kind.FIRMWARE_DATA, b"12345")
        node.say(Firmware("tpm/.lock", 0))
        node.send_zeros(server)
        node.hear(Kind.SERVER_DONE)
        node.job_end()
        node.hear(Kind.JOB_DONE)
    assert not elsewhere.exists() and victim.read_bytes() == b"untouched"
    assert (definitions / "nvram" / "Link01.fd").read_bytes() == b"12345"


# — patience —


@contextmanager
def impatient(tmp_path: Path, **limits: float) -> Iterator[DrBox]:
    box = Unwatched(tmp_path)
    box.limits = replace(Limits(), **limits)  # type: ignore[arg-type]
    with box.running():
        yield box


def test_a_connection_that_says_nothing_is_closed(tmp_path: Path) -> None:
    with impatient(tmp_path, greeting_seconds=0.1) as box, Intruder(box) as node:
        assert node.error() == "a connection did not come to a greeting: timed out"


@pytest.mark.slow
def test_a_greeting_that_comes_byte_by_byte_is_not_waited_for(tmp_path: Path) -> None:
    with impatient(tmp_path, greeting_seconds=0.3) as box, Intruder(box) as node:
        heard: List[str] = []
        listening = threading.Thread(target=lambda: heard.append(node.error()))
        listening.start()
        for byte in b"\x01\0\0\0\0\0\x20\0" + bytes(8192):  # the header of a HELLO of 8192 bytes
            if not listening.is_alive():
                break
            node.raw(bytes([byte]))
            time.sleep(0.005)
        listening.join()
    assert heard == ["HELLO did not come within 0.3 seconds"]


@pytest.mark.slow
def test_keep_alives_are_no_greeting(tmp_path: Path) -> None:
    with impatient(tmp_path, greeting_seconds=0.3) as box, Intruder(box) as node:
        heard: List[str] = []
        listening = threading.Thread(target=lambda: heard.append(node.error()))
        listening.start()
        while listening.is_alive():
            node.frame(Kind.PING)
            time.sleep(0.01)
    assert heard == ["HELLO did not come within 0.3 seconds"]


def test_a_job_that_is_not_announced_is_not_waited_for(tmp_path: Path) -> None:
    with impatient(tmp_path, announcement_seconds=0.1) as box, Intruder(box) as node:
        node.hello()
        assert node.error() == "JOB did not come within 0.1 seconds"


def test_a_node_that_falls_silent_in_a_disk_is_given_up_and_its_server_is_free(tmp_path: Path) -> None:
    with impatient(tmp_path, silence_seconds=0.2) as box:
        with Intruder(box) as node:
            node.begin(offer())
            assert node.error() == "the peer has been silent for 0.2 seconds"
        with Intruder(box) as node:
            node.announce(offer())
            assert node.refusals() == {}


@pytest.mark.slow
def test_a_node_that_only_says_that_it_lives_does_not_keep_its_server_busy_for_ever(tmp_path: Path) -> None:
    with impatient(tmp_path, standstill_seconds=0.3) as box:
        with Intruder(box) as node, KeepAlive(node.channel, every_seconds=0.01):
            node.begin(offer())
            assert node.error() == "the peer has sent nothing but keep-alives for 0.3 seconds"
        with Intruder(box) as node:
            node.announce(offer())
            assert node.refusals() == {}


@pytest.mark.slow
def test_a_node_that_announces_and_then_only_says_that_it_lives_holds_no_space_for_ever(tmp_path: Path) -> None:
    with impatient(tmp_path, idle_seconds=0.3) as box:
        with Intruder(box) as node, KeepAlive(node.channel, every_seconds=0.01):
            node.announce(offer())
            assert node.error() == "the peer has sent nothing but keep-alives for 0.3 seconds"
        with Intruder(box) as node:
            node.announce(offer())
            assert node.refusals() == {}


def test_a_node_that_does_not_read_is_given_up_and_its_session_ends(tmp_path: Path) -> None:
    with impatient(tmp_path, silence_seconds=0.2, farewell_seconds=0.1) as box:
        with Intruder.by_relay(box, pipe_bytes=4096) as node:
            node.announce(*[offer("x" * 200 + str(n)) for n in range(50)])  # the plan says why not, at length
            wait_for(lambda: bool(sessions()), "there is no session")
            wait_for(lambda: not sessions(), "the session did not end")


# — many —


def test_of_two_hundred_idle_connections_most_are_turned_away_and_none_keeps_a_good_job_off_for_long(
    tmp_path: Path,
) -> None:
    with impatient(tmp_path, greeting_seconds=3600) as box:
        idle = [Intruder(box) for _ in range(200)]
        for node in idle[64:]:
            assert node.error() == "the DR box is busy: it has 64 sessions"
        for node in idle:
            node.__exit__(None, None, None)
        wait_for(lambda: not sessions(), "a session did not end")
        web = Node(tmp_path / "node", disks={"Web01_0": NOISE})
        assert box.send(web.outgoing()).succeeded


def held() -> Tuple[int, int]:
    """Threads and descriptors of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def test_a_session_that_has_announced_nothing_costs_little_memory(scene: Scene) -> None:
    nodes = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(16):
            node = Intruder.by_relay(scene.box, peer=f"10.0.1.{number}")
            node._buffer = memoryview(bytearray(1 << 16))
            node.hello()
            node.hear(Kind.WELCOME)
            nodes.append(node)
        ours = 1 << 16  # each node's own buffer, in this process too
        each = (tracemalloc.get_traced_memory()[0] - before) / len(nodes) - ours
    finally:
        tracemalloc.stop()
        for node in nodes:
            node.__exit__(None, None, None)
    assert each < 100_000


def bad_sessions(scene: Scene, count: int) -> None:
    acts = [ENDS[name][0] for name in ("a huge frame", "no JSON", "300 servers", "half a record", "an early end")]
    for number in range(count):
        with Intruder.by_relay(scene.box) if number % 2 else Intruder(scene.box) as node:
            acts[number % len(acts)](node)
            node.error()
    wait_for(lambda: not sessions(), "a session did not end")


@pytest.mark.slow
def test_two_hundred_bad_sessions_leave_no_threads_descriptors_or_memory_behind(scene: Scene) -> None:
    log = logging.getLogger("anvil_dr")
    log.propagate = False  # pytest keeps every record, with its error, and with that all that was in its frames
    tracemalloc.start()
    try:
        bad_sessions(scene, 10)  # for what is made once
        gc.collect()
        before, memory = held(), tracemalloc.get_traced_memory()[0]
        bad_sessions(scene, 200)
        gc.collect()
        after, grown = held(), tracemalloc.get_traced_memory()[0] - memory
    finally:
        tracemalloc.stop()
        log.propagate = True
    assert after == before
    assert grown < 500_000


# — anything, in any order —

HALF = DIGESTER.of(NOISE)
FRAMES: Mapping[str, Act] = {
    "hello": greeting(),
    "hello again": greeting(versions=(9,)),
    "job": saying(Job("nightly", (offer("Db01", {"Db01_0": 9000, "Db01_1": 70_000}),))),
    "jobs": saying(Job("nightly", (offer("Db01", {"Db01_0": 9000}), offer("Mail01", {"Mail01_0": 9000})))),
    "firm": saying(Job("nightly", (offer("Db01", {"Db01_0": 9000}, firmware={"nvram": 5}),))),
    "begin": saying(ServerBegin("Db01")),
    "begin other": saying(ServerBegin("Mail01")),
    "firmware": lambda node: (node.say(Firmware("nvram", 5)), node.record(Kind.FIRMWARE_DATA, b"12345"))[0],
    "disk": saying(DiskBegin("Db01_0")),
    "disk 1": saying(DiskBegin("Db01_1")),
    "disk other": saying(DiskBegin("Mail01_0")),
    "segment": lambda node: node.record(Kind.SEGMENT, bulk.pack_segment(0, DIGESTER.segment([HALF]))),
    "blocks": lambda node: node.record(Kind.BLOCKS, bulk.pack_blocks(0, 0, [HALF])),
    "data": lambda node: node.record(Kind.DATA, bulk.pack_data_header(0, 0, BLOCK_BYTES, [(0, 65535)]) + NOISE),
    "pages": lambda node: node.record(Kind.PAGES, bulk.pack_pages(0, [(0, DIGESTER.pages(memoryview(NOISE)))])),
    "zeros": lambda node: node.record(Kind.ZEROS, bulk.pack_run(0, 1)),
    "end": saying(DiskEnd("Db01_0", zero_digest(9000))),
    "end 1": saying(DiskEnd("Db01_1", zero_digest(70_000))),
    "end other": saying(DiskEnd("Mail01_0", zero_digest(9000))),
    "end wrong": saying(DiskEnd("Db01_0", "sha256:")),
    "done": saying(ServerEnd("Db01")),
    "abort": saying(ServerAbort("Db01", "x", "y")),
    "job end": saying(JobEnd()),
    "error": saying(Error("x", "y")),
    "ping": lambda node: node.frame(Kind.PING),
    "garbage": raw(b"\x17garbage"),
    "half": lambda node: node.frame(Kind.DATA, b"x", 1000),
}
HONEST = ("hello", "job", "begin", "disk", "zeros", "end", "disk 1", "zeros", "end 1", "done", "job end")
orders = st.one_of(
    st.lists(st.sampled_from(sorted(FRAMES)), max_size=12),
    # Honest up to some frame, then anything, then honest again: this gets everywhere.
    st.tuples(
        st.integers(1, len(HONEST)), st.lists(st.sampled_from(sorted(FRAMES)), max_size=3), st.integers(1, len(HONEST))
    ).map(lambda drawn: [*HONEST[: drawn[0]], *drawn[1], *HONEST[drawn[2] :]]),
)


def play(scene: Scene, order: List[str]) -> None:
    scene.log.clear()
    with Intruder(scene.box) as node:
        for name in order:
            FRAMES[name](node)
        node.hang_up()
        node.error()
    for complaint in scene.complaints():
        check_line(complaint, "")
    assert scene.web.disks["Web01_0"] in state_of(scene.box.store_folder).values()
    for server in ("Db01", "Mail01"):
        for record in scene.target.state.set_records(server):
            assert all(image.digest == zero_digest(image.size_bytes) for image in record.images)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=orders)
@pytest.mark.slow
def test_frames_in_any_order_end_their_session_and_nothing_else(scene: Scene, order: List[str]) -> None:
    play(scene, order)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=orders)
def test_many_more_frames_in_any_order(scene: Scene, order: List[str]) -> None:
    play(scene, order)
