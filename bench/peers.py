"""Everything that is compared: ours, and the tools that people move disks with. Starts what each of them needs."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, Dict, Optional, Sequence, Tuple

from bench import ssh
from bench.measure import End, FailedError, Meter, Server
from bench.ours import BIN, Box

PACKAGES = {"rsync": "rsync", "nbdkit": "nbdkit", "nbdcopy": "libnbd-bin", "qemu-img": "qemu-utils",
            "ssh": "openssh-client", "sshd": "openssh-server"}  # fmt: skip
"""What Debian calls the package of each program."""


def missing(programs: Sequence[str]) -> Tuple[str, ...]:
    """The packages of those programs that this machine does not have."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return tuple(PACKAGES[one] for one in programs if shutil.which(one, path=path) is None)


@dataclass(frozen=True)
class Link:
    """A slow line between both ends; relay.py makes it."""

    rate_bytes: int
    round_trip_seconds: float

    def __str__(self) -> str:
        return f"{self.rate_bytes * 8 / 1e6:g} Mbit/s, {self.round_trip_seconds * 1000:g} ms round trip"


class Stage:
    """Where a contender works: its folder, the log, the link if there is one, the servers that it has started."""

    def __init__(self, folder: Path, log: IO[str], link: Optional[Link]) -> None:
        self.folder, self.log, self.link = folder, log, link
        folder.mkdir()
        self.stack = ExitStack()
        self.servers: Dict[int, End] = {}

    def serve(self, argv: Sequence[str], ready: Path) -> Server:
        """A server of the target's end that lives as long as the stage."""
        server = Server(argv, self.log)
        self.stack.callback(server.stop)
        server.wait_for(ready)
        return server

    def linked(self, name: str, to: str) -> str:
        """The near end of the link to a socket (a path) or a port; the socket itself where there is no link."""
        if self.link is None:
            return to
        near = str(self.folder / f"{name}.link") if to.startswith("/") else str(ssh.free_port())
        argv = [sys.executable, "-s", "-m", "bench.relay", near, to, str(self.link.rate_bytes),
                str(self.link.round_trip_seconds / 2), str(self.folder / f"{name}.carried")]  # fmt: skip
        server = Server(argv, self.log)
        self.stack.callback(server.stop)
        if near.startswith("/"):
            server.wait_for(Path(near))
        else:
            _wait_for_port(int(near))
        return near

    def sshd(self) -> ssh.Sshd:
        # Only one contender of a stage needs it, so there is no other.
        receive = f"{BIN}/anvil-dr-receive --config {self.folder}/box/target.yaml"
        server = ssh.Sshd(self.folder / "ssh", receive, self.log)
        self.stack.callback(server.stop)
        self.servers[server.pid] = "target"
        return server

    def ssh_config(self) -> Path:
        sshd = self.sshd()
        return sshd.client(int(self.linked("ssh", str(sshd.port))))

    def box(self, *, copies: int = 1, settings: str = "") -> Box:
        box = Box(self.folder / "box", self.log, copies=copies, settings=settings)
        self.stack.callback(box.stop)
        self.servers[box.pid] = "target"
        return box


class Contender:
    """One way to move disks. Made anew for each case."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def forget(self) -> None:
        """Let the target have nothing."""
        for image in self.stage.folder.glob("image*"):
            image.unlink()

    def ready(self, disks: Sequence[Path]) -> None:
        """What must be there before the clock starts, and would be there in real life."""

    def send(self, meter: Meter, disks: Sequence[Path]) -> Optional[int]:
        """Move them; bytes that crossed between both ends, if there is anything between them."""
        raise NotImplementedError

    def image(self, number: int) -> Path:
        """The copy of a disk."""
        return self.stage.folder / f"image{number}"


class Ours(Contender):
    """One job over the unix socket."""

    copies = 1
    options: Tuple[str, ...] = ()
    at_once = False

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._box = stage.box(copies=self.copies)
        self._to = Path(stage.linked("box", str(self._box.socket)))

    def forget(self) -> None:
        self._box.forget()

    def send(self, meter: Meter, disks: Sequence[Path]) -> Optional[int]:
        return self._box.send(meter, disks, at_once=self.at_once, to=self._to, options=self.options)

    def image(self, number: int) -> Path:
        return self._box.image(number)


class OursTwoCopies(Ours):
    """With the default of two copies: what is written into is the image before the last."""

    copies = 2


class OursRaw(Ours):
    """Without compression."""

    options = ("--compression", "none")


class OursAtOnce(Ours):
    """A job for each disk, all at once."""

    at_once = True


class OursBySsh(Contender):
    """As the README sets it up: a key that is good for anvil-dr-receive only."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._box = stage.box()
        self._config = stage.ssh_config()

    def forget(self) -> None:
        self._box.forget()

    def send(self, meter: Meter, disks: Sequence[Path]) -> Optional[int]:
        return sum(self._box.send_by_ssh(meter, disk, self._config) for disk in disks)

    def image(self, number: int) -> Path:
        return self._box.image(number)


class Cat(Contender):
    """The machine's own speed: nothing is checked, nothing is spared."""

    def send(self, meter: Meter, disks: Sequence[Path]) -> Optional[int]:
        for number, disk in enumerate(disks):
            meter.pipe([(("cat", str(disk)), "node"), (("cat",), "target")], output=self.image(number))
        return sum(disk.stat().st_size for disk in disks)


class Rsync(Contender):
    """rsync's own delta, between two processes on this machine."""

    options: Tuple[str, ...] = ("--inplace", "--no-whole-file")

    def send(self, meter: Meter, disks: Sequence[Path]) -> Optional[int]:
        return sum(self._one(meter, disk, str(self.image(number)), ()) for number, disk in enumerate(disks))

    def _one(self, meter: Meter, disk: Path, to: str, shell: Tuple[str, ...]) -> int:
        # --ignore-times: it may not believe size and time, as a disk's device has no time to be believed.
        printed = meter.call(("rsync", *self.options, "--ignore-times", "--stats", *shell, str(disk), to))
        sent, got = (re.search(rf"Total bytes {word}: ([0-9,]+)", printed) for word in ("sent", "received"))
        if sent is None or got is None:
            raise FailedError("rsync printed no statistics")
        return sum(int(found.group(1).replace(",", "")) for found in (sent, got))


class RsyncSparse(Rsync):
    """For a disk that is nearly all holes."""

    options = ("--inplace", "--sparse", "--whole-file")


class RsyncBySsh(Rsync):
    """Through ssh."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._shell = ("-e", f"ssh -F {stage.ssh_config()}")

    def send(self, meter: Meter, disks: Sequence[Path]) -> Optional[int]:
        to = [f"{ssh.SHELL}:{self.image(number)}" for number, _ in enumerate(disks)]
        return sum(self._one(meter, disk, where, self._shell) for disk, where in zip(disks, to))


class Nbdcopy(Contender):
    """nbdcopy to an nbdkit that writes a file: the ordinary way to move an image when there is no base."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._near = ""
        self._socket = stage.folder / "nbd"
        self._stop: Optional[Callable[[], None]] = None

    def ready(self, disks: Sequence[Path]) -> None:
        (disk,) = disks
        self._end()
        with open(self.image(0), "wb") as file:
            file.truncate(disk.stat().st_size)
        argv = ("nbdkit", "-f", "-U", str(self._socket), "--filter=stats", "file", str(self.image(0)),
                f"statsfile={self.stage.folder / 'stats'}")  # fmt: skip
        server = self.stage.serve(argv, self._socket)
        self.stage.servers[server.pid] = "target"
        self._stop = server.stop
        self._near = self._near or self.stage.linked("nbd", str(self._socket))

    def send(self, meter: Meter, disks: Sequence[Path]) -> Optional[int]:
        (disk,) = disks
        meter.call(("nbdcopy", str(disk), f"nbd+unix:///?socket={self._near}"))
        return None

    def forget(self) -> None:
        self._end()
        super().forget()

    def wire_bytes(self) -> int:
        """What was written through it; nbdkit says so when it ends."""
        self._end()
        found = re.search(r"^write: .* s, ([0-9.]+) ([KMG]i?)?B?", (self.stage.folder / "stats").read_text(), re.M)
        if found is None:
            return 0
        return int(float(found.group(1)) * 1024 ** " KMG".index((found.group(2) or " ")[0]))

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
            self.stage.servers.clear()
            self._stop = None
            self._socket.unlink(missing_ok=True)


class QemuImg(Contender):
    """qemu-img convert from file to file: one process, no wire."""

    def send(self, meter: Meter, disks: Sequence[Path]) -> Optional[int]:
        for number, disk in enumerate(disks):
            meter.call(("qemu-img", "convert", "-f", "raw", "-O", "raw", str(disk), str(self.image(number))))
        return None


class DdBySsh(Contender):
    """What is typed when there is nothing else."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._config = stage.ssh_config()

    def send(self, meter: Meter, disks: Sequence[Path]) -> Optional[int]:
        for number, disk in enumerate(disks):
            remote = f"dd of={self.image(number)} bs=1M iflag=fullblock conv=sparse status=none"
            meter.pipe(
                [
                    (("dd", f"if={disk}", "bs=1M", "status=none"), "node"),
                    (("ssh", "-F", str(self._config), ssh.SHELL, remote), "node"),
                ]
            )
        return sum(disk.stat().st_size for disk in disks)


@dataclass(frozen=True)
class Entry:
    """One contender's row."""

    title: str
    make: Callable[[Stage], Contender]
    programs: Tuple[str, ...] = ()


OURS = Entry("anvil-dr", Ours)
OURS_TWO_COPIES = Entry("anvil-dr, copies: 2", OursTwoCopies)
OURS_RAW = Entry("anvil-dr --compression none", OursRaw)
OURS_AT_ONCE = Entry("anvil-dr, 4 jobs at once", OursAtOnce)
OURS_BY_SSH = Entry("anvil-dr by ssh", OursBySsh, ("ssh", "sshd"))
CAT = Entry("cat | cat", Cat)
RSYNC = Entry("rsync --inplace", Rsync, ("rsync",))
RSYNC_SPARSE = Entry("rsync --inplace --sparse", RsyncSparse, ("rsync",))
RSYNC_BY_SSH = Entry("rsync --inplace by ssh", RsyncBySsh, ("rsync", "ssh", "sshd"))
NBDCOPY = Entry("nbdcopy, nbdkit", Nbdcopy, ("nbdkit", "nbdcopy"))
QEMU_IMG = Entry("qemu-img convert", QemuImg, ("qemu-img",))
DD_BY_SSH = Entry("dd | ssh dd", DdBySsh, ("ssh", "sshd"))


def _wait_for_port(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise FailedError(f"nothing listens on port {port}")
