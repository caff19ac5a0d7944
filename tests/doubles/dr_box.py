"""A DR box in this process: the real service on a real socket, a real store, a state database, in one folder."""

from __future__ import annotations

import socket
import threading
import uuid
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple

from anvil_dr import config, service
from anvil_dr.caching import cached_copy
from anvil_dr.cli import wiring
from anvil_dr.ports import CacheDrives, Store
from anvil_dr.receiving.recover import recover
from anvil_dr.receiving.target import Target
from anvil_dr.records.state import State
from anvil_dr.sending import source
from anvil_dr.sending.job import JobOutcome, OutgoingDisk, OutgoingServer, ServerOutcome
from anvil_dr.sending.send import JobSender
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.limits import Limits
from anvil_dr.wire.protocol import JobPlan

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
{disks}
    <disk type='file' device='cdrom'><source file='/mnt/shared/files/install.iso'/>
      <target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:1d:2e:3f'/><source bridge='ifn1_bridge1'/></interface>
  </devices>
</domain>
"""


def uuid_of(server: str) -> str:
    """A UUID for each name, always the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, server))


@dataclass
class Quiet:
    """Implements job.Observer: remembers what it was told."""

    told: List[Tuple[object, ...]] = field(default_factory=list)
    when_advanced: Callable[[], None] = lambda: None

    def job_planned(self, plan: JobPlan) -> None:
        self.told.append(("planned", plan))

    def server_begun(self, server: str) -> None:
        self.told.append(("begun", server))

    def disk_begun(self, server: str, disk: str, size_bytes: int) -> None:
        self.told.append(("disk", server, disk, size_bytes))

    def disk_advanced(self, server: str, disk: str, done_bytes: int, wire_bytes: int) -> None:
        self.when_advanced()
        self.told.append(("advanced", server, disk, done_bytes, wire_bytes))

    def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None:
        self.told.append(("done", server, disk, written_bytes, wire_bytes))

    def server_ended(self, outcome: ServerOutcome) -> None:
        self.told.append(("ended", outcome.name))


class Breaking(Quiet):
    """Ends the connection in the middle of a disk, as a node does that loses its power."""

    def __init__(self, after_bytes: int, channel: Channel) -> None:
        super().__init__()
        self._after_bytes, self._channel = after_bytes, channel

    def disk_advanced(self, server: str, disk: str, done_bytes: int, wire_bytes: int) -> None:
        if done_bytes >= self._after_bytes:
            self._channel.abandon()


class DrBox:
    """Everything lies below one folder; a box can be stopped and started again on it."""

    def __init__(self, folder: Path, *, copies: int = 2, groups: Tuple[str, ...] = (), **changes: object) -> None:
        """With `groups` the store is these volume groups, otherwise a directory."""
        self.folder, self.store_folder = folder, folder / "store"
        self.store_folder.mkdir(exist_ok=True)
        store = config.StoreConfig("lvm", groups) if groups else config.StoreConfig("fs", (str(self.store_folder),))
        self.config = replace(
            config.Config(name="dr01", store=store, copies=copies),
            definitions=str(folder / "definitions"), state=str(folder / "state"), runtime=str(folder / "run"),
            **changes,  # type: ignore[arg-type]
        )  # fmt: skip
        (folder / "state").mkdir(exist_ok=True)
        self.limits = Limits()
        self.direct_users: Optional[FrozenSet[int]] = None
        self.open_cache_drives: Callable[[State], Optional[CacheDrives]] = lambda state: None

    @contextmanager
    def running(self) -> Iterator[Target]:
        state = State.open(self.config.state)
        state.lock_service()
        store = self.open_store(state)
        store.check()
        target = Target(self.config, store, state, cache_drives=self.open_cache_drives(state))
        recover(target)
        cached_copy.resume(target)
        listener = service.listen(self.config.socket)
        served = service.Service(
            target, listener, lambda message: None, limits=self.limits, direct_users=self.direct_users
        )
        thread = threading.Thread(target=served.run)
        thread.start()
        try:
            yield target
        finally:
            served.stop()
            thread.join()
            listener.close()
            cached_copy.stop(target)
            state.close()

    def open_store(self, state: State) -> Store:
        return wiring.open_store(self.config, state)

    def connect(self) -> Channel:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.config.socket)
        fd = connection.detach()
        return Channel(fd, fd, silence_seconds=30)

    def send(
        self,
        *servers: OutgoingServer,
        observer: Optional[Quiet] = None,
        node: str = "an-a01n01",
        break_after_bytes: Optional[int] = None,
    ) -> JobOutcome:
        """Send one job; with `break_after_bytes` the connection breaks when that much of a disk is right."""
        channel = self.connect()
        if break_after_bytes is not None:
            observer = Breaking(break_after_bytes, channel)
        try:
            sender = JobSender(channel, node=node, observer=observer or Quiet(), compress=False)
            return sender.run("nightly", servers)
        finally:
            channel.close()

    def names(self) -> List[str]:
        return sorted(path.name for path in self.store_folder.iterdir())

    def image(self, name: str) -> bytes:
        return (self.store_folder / f"{name}.raw").read_bytes()


@dataclass
class Node:
    """A node's server: disks as files in a folder, and the definition that has them."""

    folder: Path
    name: str = "Web01"
    uuid: str = ""
    """Empty for one of its own."""
    disks: Dict[str, bytes] = field(default_factory=dict)

    def outgoing(self, disks: Optional[Sequence[str]] = None) -> OutgoingServer:
        names = list(self.disks) if disks is None else disks
        self.folder.mkdir(exist_ok=True)
        outgoing = []
        for name in names:
            path = self.folder / f"{name}.img"
            path.write_bytes(self.disks[name])
            outgoing.append(self._disk(name, str(path)))
        return OutgoingServer(self.name, self.definition(names), tuple(outgoing), nullcontext)

    def definition(self, names: Sequence[str]) -> str:
        disks = "\n".join(
            f"    <disk type='file' device='disk'><driver name='qemu' type='raw'/>"
            f"<source file='{self.folder / name}.img'/><target dev='vd{chr(97 + n)}' bus='virtio'/></disk>"
            for n, name in enumerate(names)
        )
        return DOMAIN.format(name=self.name, uuid=self.uuid or uuid_of(self.name), disks=disks)

    def _disk(self, name: str, path: str) -> OutgoingDisk:
        return OutgoingDisk(name, path, len(self.disks[name]), lambda: source.open_source(path))
