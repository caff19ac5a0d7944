"""A DR box in a folder: a directory store, definitions, a state and a configuration, filled as jobs would fill it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Mapping, Optional, Sequence, Tuple

from anvil_dr import firmware, naming
from anvil_dr.model import ImageRecord, Owner, SetRecord
from anvil_dr.records.state import State
from anvil_dr.stores.directory import DirectoryStore


class FilledBox:
    """`disks` are always a server's source disks, in order; disk n of Web01 is Web01_n."""

    def __init__(self, root: Path, *, activation: str = "{}") -> None:
        self.images, self.definitions, self.state = root / "store", root / "definitions", root / "state"
        for folder in (self.images, self.definitions, self.state):
            folder.mkdir(parents=True)
        self.config = root / "target.yaml"
        self.config.write_text(
            f"name: dr01\nstore: fs:{self.images}\ndefinitions: {self.definitions}\nstate: {self.state}\n"
            f"runtime: {root / 'run'}\nactivation: {activation}\n"
        )

    def receive(
        self,
        server: str,
        disks: Sequence[Path],
        *,
        sequence: int = 1,
        received_at: str = "2026-11-20T01:02:03+00:00",
        firmware_state: Optional[Mapping[str, bytes]] = None,
    ) -> Tuple[Path, ...]:
        """A complete set, as it is after a job."""
        owners = [Owner(server, f"{server}_{number}") for number, _ in enumerate(disks)]
        paths = tuple(self.images / naming.file_name(owner, sequence) for owner in owners)
        for disk, path in zip(disks, paths):
            shutil.copyfile(disk, path)
        with State.open(str(self.state)) as state:
            for owner in owners:
                state.claim(owner)
            stored = DirectoryStore(str(self.images), state.owners).images()
            images = tuple(
                ImageRecord(image.owner.disk, image.identity, image.size_bytes, "sha256:00")
                for image in stored
                if image.owner in owners and image.sequence == sequence
            )
            record = SetRecord(server, received_at, "an-a05n01", f"job-{sequence}", images)
            firmware.keep(str(self.state), record, firmware_state or {})
            published = state.finish(state.begin(server, "promote", (), record))
            if sequence == 1:
                firmware.publish_nvram(str(self.state), record, str(self.definitions / "nvram" / f"{server}.fd"))
            if published is not None:
                state.finish(published)
        return paths

    def define(self, server: str, source_xml: str, disks: Sequence[Path]) -> Path:
        """The source's definition with the store's paths for set 1, as the first job makes it."""
        for number, disk in enumerate(disks):
            image = self.images / naming.file_name(Owner(server, f"{server}_{number}"), 1)
            source_xml = source_xml.replace(str(disk), str(image))
        path = self.definitions / f"{server}.xml"
        path.write_text(source_xml)
        return path

    def remove(self, server: str, *, sequence: int) -> None:
        """What an admin does to a set."""
        for path in self.images.glob(f"{server}_*_{sequence}.raw"):
            path.unlink()
