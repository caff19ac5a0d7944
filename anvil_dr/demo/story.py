"""The demo up to the disaster: a server, a DR box, four jobs, a definition. Each scene says what it does and why.

Touches what lies in the stage's folder, directly and through the project's own commands.
"""

from __future__ import annotations

import difflib
import filecmp
import json
import shlex
import time
from pathlib import Path
from typing import Any, Dict, Final, List

from lxml import etree

from anvil_dr import naming
from anvil_dr.demo import server as demo_server
from anvil_dr.demo.server import DemoServer, Markers
from anvil_dr.demo.stage import Stage, programs_folder
from anvil_dr.errors import ServiceError, SourceError, StoreError
from anvil_dr.model import Owner
from anvil_dr.status import inquiry
from anvil_dr.words import size

SERVER: Final = "Web01"
COPIES: Final = 3
JOBS: Final = COPIES + 1
CONFIG: Final = "target.yaml"

_NODE, _STORE, _DEFINITIONS, _SOCKET = Path("node"), Path("store"), Path("definitions"), Path("run/target.sock")
_SOURCE_DEFINITION: Final = _NODE / f"{SERVER}.xml"
_DEFINITION: Final = _DEFINITIONS / f"{SERVER}.xml"
_START_SECONDS: Final = 20.0
_NODE_MIB, _DR_MIB = 256, 128

_CONFIG_TEXT: Final = """\
name: dr01
store: fs:{folder}/store
copies: {copies}
use_cache: false
definitions: {folder}/definitions
state: {folder}/state
runtime: {folder}/run
activation: {{check: false}}
"""
_JOB_TEXT: Final = """\
name: nightly
servers:
  - name: {server}
    definition: {server}.xml
    disks:
{disks}"""


class Story:
    """What the demo shows before anything is booted, and what of it the boot must match."""

    def __init__(self, stage: Stage, *, bootable: bool) -> None:
        self._stage, self._tell, self._bootable = stage, stage.narrator, bootable
        self._sent: List[Markers] = []
        self._server: DemoServer

    @property
    def newest(self) -> Markers:
        """What the last job sent."""
        return self._sent[-1]

    def play(self) -> None:
        """Everything up to the disaster. Raise AnvilDrError where something does not go as told."""
        self._build()
        self._start_the_box()
        self._first_job()
        self._show_the_definition()
        self._more_jobs()
        self._edit_the_definition()
        self._last_job()
        self._look_back()

    def lose_the_site(self) -> None:
        """The source is no more."""
        self._tell.chapter("The disaster: the building has burnt down")
        for place in (_NODE / f"{SERVER}_0.raw", _NODE / f"{SERVER}_1.raw"):
            if not filecmp.cmp(place, self._image(place.stem, 1), shallow=False):
                raise StoreError(f"{self._image(place.stem, 1)} is not equal to {place}")
        self._tell.say("Web01's node is gone, and its disks with it. All that is left of them is in the store.")
        self._tell.typed(f"rm -r {_NODE}")
        for path in _NODE.iterdir():
            path.unlink()
        _NODE.rmdir()

    # — scenes —

    def _build(self) -> None:
        self._tell.chapter("A server with two disks")
        self._server = demo_server.build(_NODE, SERVER, bootable=self._bootable)
        self._remember()
        inserted = Path("/isos/install.iso")
        source = demo_server.definition(self._absolute(self._server), memory_mib=_NODE_MIB, medium=inserted)
        _SOURCE_DEFINITION.write_text(_indented(source))
        if self._bootable:
            self._tell.say(
                f"{SERVER} can boot: disk 0 has a boot loader, Debian's kernel and a token, disk 1 a file of random "
                "bytes. When it runs it reads both, and says on its console what it has read."
            )
        else:
            self._tell.say(
                f"{SERVER} has all but a kernel: disk 0 has partitions and a token, disk 1 a file of random bytes."
            )
        folder = programs_folder()
        if folder is not None:
            self._tell.typed(f"PATH=$PATH:{folder}")
        self._tell.typed(f"cd {self._stage.folder}")
        self._tell.table(
            ("disk", "size", "holds"),
            [
                (str(self._server.disks[0]), size(self._size(0)), f"token {self.newest.token}"),
                (str(self._server.disks[1]), size(self._size(1)), f"file with SHA-256 {self.newest.checksum[:16]}..."),
            ],
        )

    def _start_the_box(self) -> None:
        self._tell.chapter("A DR box that keeps three copies")
        Path(CONFIG).write_text(_CONFIG_TEXT.format(folder=self._stage.folder, copies=COPIES))
        for folder in (_STORE, _DEFINITIONS):
            folder.mkdir()
        self._tell.typed(f"cat {CONFIG}")
        self._tell.shown(Path(CONFIG).read_text())
        self._stage.serve("anvil-dr-target", "--config", CONFIG, log="target.log")
        end = time.monotonic() + _START_SECONDS
        while True:
            self._stage.check_server()
            try:
                inquiry.running_jobs(str(_SOCKET))
                break
            except ServiceError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)
        self._tell.say(f"It listens on {_SOCKET}. Real nodes come by ssh; this one is on the same machine.")

    def _first_job(self) -> None:
        self._tell.chapter("Job 1: everything is new")
        disks = "".join(
            f"      - {{name: {path.stem}, path: {path}}}\n" for path in self._absolute(self._server).disks
        )
        job = _NODE / "job.yaml"
        job.write_text(_JOB_TEXT.format(server=SERVER, disks=disks))
        self._tell.typed(f"cat {job}")
        self._tell.shown(job.read_text())
        self._tell.say(
            "Empty blocks are never sent, the others are compressed, and each is checked with a digest. Only a set "
            "that has arrived whole gets a number. The limit only gives you time to see how it goes."
        )
        self._send("8M")
        self._show_sets("What is not empty")

    def _show_the_definition(self) -> None:
        self._tell.chapter("The definition it made")
        self._tell.say(
            "The first job also brought the server's definition. The DR box made its own from it, once: the disks are "
            "now the images with sequence 1, so it boots the newest set, always. The optical drive is empty. It's only "
            "a file: nothing is defined in libvirt. Lines with - are the source's, those with + are here instead:"
        )
        self._tell.typed(f"diff -U99 {_SOURCE_DEFINITION} {_DEFINITION}")
        before, after = (path.read_text().splitlines() for path in (_SOURCE_DEFINITION, _DEFINITION))
        compared = difflib.unified_diff(before, after, n=len(before), lineterm="")
        self._tell.difference(line for line in compared if not line.startswith(("---", "+++", "@@")))

    def _more_jobs(self) -> None:
        for number in range(2, JOBS):
            self._tell.chapter(f"Job {number}: a day later")
            self._change()
            self._send("1M")
            self._show_sets("Only what has changed")
            if number == 2:
                self._tell.say("The rest of the new set was copied on the DR box itself, from the set before it.")

    def _edit_the_definition(self) -> None:
        self._tell.chapter("The DR box has less memory")
        self._tell.say(
            f"The admin gives {SERVER} {_DR_MIB} MiB here instead of {_NODE_MIB}, with an editor or like this. The "
            "file is the admin's: no job will ever write to it."
        )
        self._tell.typed(f"sed -i 's/>{_NODE_MIB}</>{_DR_MIB}</' {_DEFINITION}")
        text = _DEFINITION.read_text()
        _DEFINITION.write_text(text.replace(f">{_NODE_MIB}<", f">{_DR_MIB}<"))
        self._edited = _DEFINITION.read_bytes()

    def _last_job(self) -> None:
        self._tell.chapter(f"Job {JOBS}: the copies are cycled")
        self._change()
        self._send("1M")
        self._show_sets("Only what has changed")
        self._tell.say(
            f"{COPIES} copies are kept, so the oldest set, of job 1, was recycled: its images were written over where "
            "they differ, and became set 1. Had that failed, the sets of jobs 2 and 3 would still be there, and the "
            "next job would go on where this one stopped."
        )

    def _look_back(self) -> None:
        self._tell.chapter("What the admin sees")
        if _DEFINITION.read_bytes() != self._edited:
            raise StoreError(f"{_DEFINITION} was changed by a job")
        self._stage.run("anvil-dr-status", "--config", CONFIG)
        self._tell.gap()
        self._tell.say("Job 4 has left the admin's definition as it was, and the note above tells how it differs.")

    # — their parts —

    def _send(self, limit: str) -> None:
        self._stage.check_server()
        job = ("--job", str(_NODE / "job.yaml"), "--bandwidth-limit", limit)
        shown = f"anvil-dr-send --to unix:$PWD/{_SOCKET} {shlex.join(job)}"
        self._stage.run("anvil-dr-send", "--to", f"unix:{self._stage.folder / _SOCKET}", *job, shown=shown)

    def _change(self) -> None:
        self._server = demo_server.change(self._server)
        self._remember()
        self._tell.say(f"{SERVER} has worked: another token on disk 0 ({self.newest.token}), another file on disk 1.")

    def _remember(self) -> None:
        self._sent.append(demo_server.markers(self._server.disks))

    def _show_sets(self, crossed: str) -> None:
        """The names in the store, and the job that each set is from: what is in the images themselves tells."""
        status = self._status()
        total = self._size(0) + self._size(1)
        self._tell.say(
            f"{crossed} has crossed the wire: {size(status['last_job']['wire_bytes'])} of {size(total)}. The store now "
            "has (the token is read from each image, and tells which job it is from):"
        )
        rows = []
        for one in status["sets"]:
            disks = {image["disk"]: Path(image["path"]) for image in one["images"]}
            found = demo_server.markers((disks[f"{SERVER}_0"], disks[f"{SERVER}_1"]))
            names = "  ".join(path.name for path in sorted(disks.values()))
            rows.append((str(one["sequence"]), self._origin(found), found.token, names))
        self._tell.table(("set", "from", "token", "images"), rows)
        expected = [f"job {number}" for number in range(len(self._sent), max(0, len(self._sent) - COPIES), -1)]
        if [row[1] for row in rows] != expected:
            raise StoreError(f"the sets should be those of {', '.join(expected)}")

    def _origin(self, found: Markers) -> str:
        return f"job {self._sent.index(found) + 1}" if found in self._sent else "no job!"

    def _status(self) -> Dict[str, Any]:
        answer = json.loads(self._stage.ask("anvil-dr-status", "--config", CONFIG, "--json"))
        servers: List[Dict[str, Any]] = [one for one in answer["servers"] if one["name"] == SERVER]
        if not servers:
            raise SourceError(f"anvil-dr-status knows no {SERVER}")
        return servers[0]

    def _image(self, disk: str, sequence: int) -> Path:
        return _STORE / naming.file_name(Owner(SERVER, disk), sequence)

    def _size(self, disk: int) -> int:
        return self._server.disks[disk].stat().st_size

    def _absolute(self, server: DemoServer) -> DemoServer:
        first, second = (self._stage.folder / disk for disk in server.disks)
        return DemoServer(server.name, (first, second), server.token, server.checksum)


def _indented(xml: str) -> str:
    """The same definition, laid out as ours are, so that a diff shows nothing else."""
    root = etree.fromstring(xml, etree.XMLParser(remove_blank_text=True, resolve_entities=False, no_network=True))
    etree.indent(root, space="  ")
    return etree.tostring(root, encoding="unicode") + "\n"
