"""A DR box with one copy and folders that stand for its cache drives, and servers that it has received once."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Dict, List, Optional

from anvil_dr.errors import AnvilDrError
from anvil_dr.receiving.target import Target
from tests.doubles.cache_drives import FolderDrives
from tests.doubles.dr_box import DrBox, Node, Quiet

MIB = 1 << 20


def noise(size_bytes: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def two_disks(seed: int, server: str = "Web01") -> Dict[str, bytes]:
    return {
        f"{server}_0": noise(2 * MIB, seed) + bytes(3 * MIB) + noise(70_001, seed),
        f"{server}_1": noise(MIB, seed + 1000),
    }


class CachingBox:
    """A DR box with one copy, drives, and servers that have been received once."""

    def __init__(self, folder: Path, sizes: Dict[str, int], servers: List[str], **changes: object) -> None:
        self.box = DrBox(folder, copies=1, **changes)
        self.drives = FolderDrives(folder / "drives", sizes)

        def open_drives(state: object) -> FolderDrives:
            self.drives.owners = state.owners  # type: ignore[attr-defined]
            return self.drives

        self.nodes = {name: Node(folder / f"node-{name}", name, disks=two_disks(0, name)) for name in servers}
        with self.box.running():
            for node in self.nodes.values():
                assert self.box.send(node.outgoing()).succeeded
        self.box.open_cache_drives = open_drives

    def change(self, seed: int) -> None:
        for name, node in self.nodes.items():
            node.disks = two_disks(seed, name)

    def send(self, observer: Optional[Quiet] = None) -> List[Optional[AnvilDrError]]:
        outgoing = [node.outgoing() for node in self.nodes.values()]
        return [outcome.error for outcome in self.box.send(*outgoing, observer=observer).servers]

    def stored(self, seed: int) -> bool:
        """True if the store has exactly the sets of this seed, as sequence 1."""
        wanted = {f"{name}_{disk}_1": two_disks(seed, name)[disk] for name in self.nodes for disk in two_disks(0, name)}
        assert self.box.names() == sorted(f"{image}.raw" for image in wanted)
        return all(self.box.image(image) == content for image, content in wanted.items())


def wait(target: Target) -> None:
    """Until everything that was received is in the store, or has failed to get there."""
    deadline = time.monotonic() + 60
    while any(target.is_busy(server) for server in ("Web01", "Db01")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
