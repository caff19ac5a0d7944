"""A server that ran on the DR box comes back to its node: as a delta over its old disks, and only if it is off."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional

import pytest

from anvil_dr import command
from anvil_dr import config as configuration
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.overlays import Overlays
from anvil_dr.cli import wiring
from anvil_dr.errors import AnvilDrError, ImageInUseError, SourceError, UsageError
from anvil_dr.failback import give_back
from anvil_dr.failback.half_back import HalfBack
from anvil_dr.failback.take_back import Home, TakeBack
from anvil_dr.model import CACHED
from anvil_dr.records.state import State
from anvil_dr.sending.job import JobOutcome, OutgoingServer
from anvil_dr.sending.off_notes import OffNotes
from anvil_dr.sending.send import JobSender
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.limits import Limits
from tests.doubles.dr_box import Breaking, Quiet
from tests.doubles.filled_box import FilledBox

pytestmark = pytest.mark.slow

MIB = 1 << 20
COMMAND = Path(__file__).resolve().parents[2] / "bin" / "anvil-dr-take-back"
XML = """<domain type='kvm'><name>Web01</name><uuid>5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4c</uuid><memory>1</memory>
<os><type>hvm</type><nvram>{nvram}</nvram></os><devices>{disks}</devices></domain>"""


@dataclass
class NodeSide:
    """A node's disks, as files, and what became of the session there."""

    folder: Path
    contents: Dict[str, bytes]
    running: bool = False
    firmware: Dict[str, bytes] = field(default_factory=dict)
    ended: List[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for name, content in self.contents.items():
            self.path(name).write_bytes(content)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.img"

    def home(self) -> Home:
        def put(files: Mapping[str, bytes]) -> None:
            self.firmware.update(files)

        def check_off() -> None:
            if self.running:
                raise SourceError("server Web01 is running on this node")

        paths = {name: str(self.path(name)) for name in self.contents}
        return Home("Web01", paths, put, check_off, HalfBack(str(self.folder)))

    def refuse_half_back(self) -> None:
        """What anvil-dr-send asks on this node before it takes an image."""
        HalfBack(str(self.folder)).refuse("Web01")

    def serve(self, channel: Channel) -> None:
        try:
            self.ended.append(TakeBack(self.home(), channel, "an-a05n01", Limits()).run())
        except AnvilDrError as error:
            self.ended.append(error)
        finally:
            channel.close()


@pytest.fixture
def old() -> Dict[str, bytes]:
    content = random.Random(1)
    return {"Web01_0": content.randbytes(20 * MIB), "Web01_1": bytes(MIB) + content.randbytes(MIB)}


@pytest.fixture
def box(tmp_path: Path, old: Dict[str, bytes]) -> FilledBox:
    """Web01 came from a node, ran here, and has written something."""
    made = FilledBox(tmp_path / "box")
    disks = []
    for name, content in old.items():
        disks.append(tmp_path / f"{name}.src")
        disks[-1].write_bytes(content)
    paths = made.receive("Web01", disks, firmware_state={"nvram": b"as it came"})
    with State.open(str(made.state)) as state:
        state.activate("Web01", 1, "alice")
    with open(paths[0], "r+b") as image:
        image.seek(5 * MIB)
        image.write(b"written on the DR box")
    nvram = made.definitions / "nvram" / "Web01.fd"
    nvram.write_bytes(b"as it became here")
    xml = "".join(f"<disk type='file' device='disk'><source file='{path}'/><target dev='vd{letter}'/></disk>"
                  for letter, path in zip("ab", paths))  # fmt: skip
    (made.definitions / "Web01.xml").write_text(XML.format(nvram=nvram, disks=xml))
    return made


def outgoing(box: FilledBox, server: str = "Web01") -> OutgoingServer:
    config = configuration.load(str(box.config))
    with State.open(config.state) as state:
        return give_back.outgoing(
            server, wiring.open_store(config, state), state, Overlays(config.overlays, command.run),
            FirmwarePlaces(config.state, config.definitions, str(box.state / "tpm")),
        )  # fmt: skip


def send(box: FilledBox, node: NodeSide, observer: Optional[Quiet] = None, break_at: int = 0) -> JobOutcome:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=node.serve, args=(Channel(theirs.fileno(), theirs.detach()),))
    thread.start()
    channel = Channel(ours.fileno(), ours.detach())
    try:
        watching = Breaking(break_at, channel) if break_at else observer or Quiet()
        return JobSender(channel, node="dr01", observer=watching).run("back", (outgoing(box),))
    finally:
        channel.close()
        thread.join()


def test_only_what_the_server_wrote_here_goes_back(box: FilledBox, tmp_path: Path, old: Dict[str, bytes]) -> None:
    node = NodeSide(tmp_path / "node", old)
    done = send(box, node)
    assert done.succeeded and node.ended == [True]
    node.refuse_half_back()
    wanted = bytearray(old["Web01_0"])
    wanted[5 * MIB : 5 * MIB + 21] = b"written on the DR box"
    assert node.path("Web01_0").read_bytes() == bytes(wanted)
    assert node.path("Web01_1").read_bytes() == old["Web01_1"]
    (server,) = done.servers
    assert server.done is not None
    assert server.done.written_bytes <= 64 << 10
    assert done.wire_bytes < 64 << 10
    assert node.firmware["nvram"] == b"as it became here"


def test_a_disk_that_was_lost_comes_back_whole(box: FilledBox, tmp_path: Path, old: Dict[str, bytes]) -> None:
    node = NodeSide(tmp_path / "node", {name: bytes(len(content)) for name, content in old.items()})
    assert send(box, node).succeeded
    assert node.path("Web01_1").read_bytes() == old["Web01_1"]


def test_a_larger_disk_keeps_what_it_has_behind_the_end(box: FilledBox, tmp_path: Path, old: Dict[str, bytes]) -> None:
    node = NodeSide(tmp_path / "node", {**old, "Web01_1": old["Web01_1"] + b"behind"})
    assert send(box, node).succeeded
    assert node.path("Web01_1").read_bytes() == old["Web01_1"] + b"behind"


def test_a_server_that_runs_at_home_is_not_written_over(box: FilledBox, tmp_path: Path, old: Dict[str, bytes]) -> None:
    node = NodeSide(tmp_path / "node", old, running=True)
    done = send(box, node)
    assert "is running on this node" in str(done.servers[0].error)
    node.refuse_half_back()
    assert node.path("Web01_0").read_bytes() == old["Web01_0"]


def test_disks_are_not_called_whole_if_the_server_was_started_while_they_were_written(
    box: FilledBox, tmp_path: Path, old: Dict[str, bytes]
) -> None:
    node = NodeSide(tmp_path / "node", old)

    class Starter(Quiet):
        def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None:
            node.running = True

    done = send(box, node, Starter())
    assert "is running on this node" in str(done.servers[0].error)
    with pytest.raises(SourceError, match="Don't start it"):
        node.refuse_half_back()


def test_nothing_is_written_that_could_not_be_noted_as_unfinished(
    box: FilledBox, tmp_path: Path, old: Dict[str, bytes]
) -> None:
    node = NodeSide(tmp_path / "node", old)
    (node.folder / "coming-back").write_text("in the way")
    done = send(box, node)
    assert "cannot be written" in str(done.servers[0].error)
    assert node.path("Web01_0").read_bytes() == old["Web01_0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"Web01_1": b"small"}, "make it larger first"), ({"Web01_1": None}, "has no disk Web01_1 on this node")],
)
def test_disks_that_do_not_fit_are_named_before_anything_is_written(
    changes: Dict[str, Optional[bytes]], said: str, box: FilledBox, tmp_path: Path, old: Dict[str, bytes]
) -> None:
    contents = {name: content for name, content in {**old, **changes}.items() if content is not None}
    node = NodeSide(tmp_path / "node", contents)
    done = send(box, node)
    assert said in str(done.servers[0].error)
    assert node.path("Web01_0").read_bytes() == old["Web01_0"]


def test_a_disk_that_was_made_larger_here_goes_back_whole_and_only_into_one_as_large(
    box: FilledBox, tmp_path: Path, old: Dict[str, bytes]
) -> None:
    grown_bytes = 3 * MIB
    with open(box.images / "Web01_Web01_1_1.raw", "r+b") as image:
        image.truncate(grown_bytes)
        image.seek(grown_bytes - 4)
        image.write(b"tail")
    node = NodeSide(tmp_path / "node", old)
    said = str(send(box, node).servers[0].error)
    assert all(word in said for word in (str(2 * MIB), str(grown_bytes), "make it larger first"))
    assert node.path("Web01_0").read_bytes() == old["Web01_0"]
    with open(node.path("Web01_1"), "r+b") as disk:
        disk.truncate(grown_bytes)
    assert send(box, node).succeeded
    assert node.path("Web01_1").read_bytes() == old["Web01_1"] + bytes(MIB - 4) + b"tail"


def test_what_an_image_has_because_units_are_whole_is_sent_only_if_the_guest_wrote_there(box: FilledBox) -> None:
    with open(box.images / "Web01_Web01_1_1.raw", "ab") as image:
        image.write(bytes(99))
        image.flush()
        assert [disk.size_bytes for disk in outgoing(box).disks] == [20 * MIB, 2 * MIB]
        image.write(b"x")
        image.flush()
        assert [disk.size_bytes for disk in outgoing(box).disks] == [20 * MIB, 2 * MIB + 100]


def test_a_connection_that_breaks_costs_only_time(box: FilledBox, tmp_path: Path, old: Dict[str, bytes]) -> None:
    node = NodeSide(tmp_path / "node", {name: bytes(len(content)) for name, content in old.items()})
    with pytest.raises(AnvilDrError):
        send(box, node, break_at=16 * MIB)
    assert node.ended and node.ended[0] is not True
    with pytest.raises(SourceError, match="part old and part new.*anvil-dr-export Web01"):
        node.refuse_half_back()
    again = send(box, node)
    assert again.succeeded
    assert again.wire_bytes < 15 * MIB, "what had arrived is not sent again"
    node.refuse_half_back()
    assert node.path("Web01_1").read_bytes() == old["Web01_1"]


def test_only_a_server_that_ran_here_and_is_off_is_given_back(box: FilledBox, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not activated"):
        outgoing(box, "Db01")
    image = box.images / "Web01_Web01_0_1.raw"
    with open(image, "rb") as opened, subprocess.Popen(["sleep", "600"], stdin=opened) as holder:
        try:
            with pytest.raises(ImageInUseError, match="virsh shutdown Web01"):
                outgoing(box)
        finally:
            holder.kill()


def test_a_server_that_ran_from_a_cache_drive_needs_that_drive(box: FilledBox) -> None:
    with State.open(str(box.state)) as state:
        state.activate("Web01", CACHED, "alice")
    with pytest.raises(SourceError, match="ran from its set on a cache drive, which is not mounted now: plug it in"):
        outgoing(box)


def test_what_is_in_overlays_must_be_decided_first(box: FilledBox) -> None:
    folder = box.state.parent / "state-overlays" / "Web01"
    folder.mkdir(parents=True)
    (folder / "overlays.json").write_text(
        '{"server": "Web01", "sequence": 1, "made_at": "x", "overlays": [], "nvram": null}'
    )
    with pytest.raises(UsageError, match="--keep"):
        outgoing(box)


def test_a_server_that_a_job_keeps_off_for_its_image_is_not_written_over(
    box: FilledBox, tmp_path: Path, old: Dict[str, bytes]
) -> None:
    """The command itself, as it runs on a node whose job file says where the disks are."""
    node, notes = NodeSide(tmp_path / "node", old), OffNotes(str(tmp_path / "node"))
    entries = "".join(f"      - {{name: {name}, path: {node.path(name)}}}\n" for name in old)
    job = tmp_path / "job.yaml"
    job.write_text(f"servers:\n  - name: Web01\n    definition: web01.xml\n    disks:\n{entries}")

    def export() -> JobOutcome:
        argv = (str(COMMAND), "Web01", "--job", str(job), "--state", str(tmp_path / "node"))
        peer = command.spawn(argv)
        channel = Channel(*peer.take_pipes())
        try:
            return JobSender(channel, node="dr01", observer=Quiet()).run("back", (outgoing(box),))
        finally:
            channel.close()
            peer.end(10)

    notes.keep("Web01", "<domain/>", transient=False)
    refused = export()
    assert "is being imaged by another run of anvil-dr-send" in str(refused.servers[0].error)
    node.refuse_half_back()
    assert node.path("Web01_0").read_bytes() == old["Web01_0"]
    notes.forget("Web01")
    assert export().succeeded
