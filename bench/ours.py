"""A DR box of the bench's own: the real service, with a file system store, and the real commands to send to it."""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path
from typing import IO, List, Optional, Sequence, Tuple

from bench.measure import End, Meter, Server
from bench.ssh import PUSH

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / "bin"

_XML = """<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{path}'/><target dev='vda' bus='virtio'/>
</disk></devices></domain>
"""


class Box:
    """One DR box, and the node's side of its jobs."""

    def __init__(self, folder: Path, log: IO[str], *, copies: int = 1, settings: str = "") -> None:
        self._folder = folder
        for name in ("store", "jobs"):
            (folder / name).mkdir(parents=True)
        self.config = folder / "target.yaml"
        self.config.write_text(
            f"name: bench\nstore: fs:{folder / 'store'}\ncopies: {copies}\nuse_cache: false\n{settings}"
            f"definitions: {folder / 'definitions'}\nstate: {folder / 'state'}\nruntime: {folder / 'run'}\n"
        )
        self.socket = folder / "run" / "target.sock"
        self._service = Server([str(BIN / "anvil-dr-target"), "--config", str(self.config)], log)
        self._service.wait_for(self.socket)
        self._generation = 0

    @property
    def pid(self) -> int:
        return self._service.pid

    def stop(self) -> None:
        self._service.stop()

    def forget(self) -> None:
        """The next servers are new ones, and what the last ones had has gone."""
        self._generation += 1
        for image in (self._folder / "store").iterdir():
            os.truncate(image, 0)  # not removed: the service takes an empty store for one that is not mounted

    def image(self, number: int = 0) -> Path:
        """The newest image of a server's disk."""
        server = self._server(number)
        return self._folder / "store" / f"{server}_{server}_0_1.raw"

    def send(
        self, meter: Meter, disks: Sequence[Path], *, at_once: bool = False, to: Optional[Path] = None,
        options: Sequence[str] = (),
    ) -> int:  # fmt: skip
        """Send each disk as a server of its own; bytes on the wire. `to`: another socket than the service's."""
        jobs = [[one] for one in enumerate(disks)] if at_once else [list(enumerate(disks))]
        argv = [str(BIN / "anvil-dr-send"), "--to", f"unix:{to or self.socket}", "--json", "--no-progress", *options]
        pipes: List[List[Tuple[Sequence[str], End]]] = []
        for job in jobs:
            pipes.append([([*argv, "--job", str(self._job(job))], "node")])
        return sum(_wire_bytes(printed) for printed in meter.together(pipes))

    def send_by_ssh(self, meter: Meter, disk: Path, ssh_config: Path) -> int:
        """Send one disk through ssh; bytes on the wire, without ssh's own."""
        job = self._job([(0, disk)])
        return _wire_bytes(meter.call([sys.executable, "-s", "-m", "bench.sender", str(ssh_config), PUSH, str(job)]))

    def _server(self, number: int) -> str:
        return f"Web{self._generation}x{number}"

    def _job(self, disks: Sequence[Tuple[int, Path]]) -> Path:
        servers = []
        for number, disk in disks:
            name = self._server(number)
            path = f"/dev/bench_vg0/{name}_0"
            definition = self._folder / "jobs" / f"{name}.xml"
            definition.write_text(_XML.format(name=name, uuid=uuid.uuid5(uuid.NAMESPACE_DNS, name), path=path))
            servers.append({"name": name, "definition": str(definition), "disks": [{"path": path, "image": str(disk)}]})
        job = self._folder / "jobs" / f"{disks[0][0]}.yaml"
        job.write_text(json.dumps({"name": "bench", "servers": servers}))  # YAML has JSON in it
        return job


def _wire_bytes(printed: str) -> int:
    said = json.loads(printed)
    return int(said["wire_bytes"])
