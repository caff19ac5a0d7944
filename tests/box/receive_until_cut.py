"""What runs in the guest between two power cuts: recover, look at what is there, then receive jobs until the end.

    python -m tests.box.receive_until_cut SETTINGS      a JSON object; see `Settings`

Says everything in lines of JSON on standard output: what it found, each step of a job before it's taken (which is what
the host chooses its moment by), and each job that the node was told had succeeded. It must not be lost after that.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Tuple

from anvil_dr import command, config
from anvil_dr.ports import OwnerSource, Store
from anvil_dr.receiving.recover import recover
from anvil_dr.stores.directory import DirectoryStore
from anvil_dr.stores.lvm import LvmStore
from tests.doubles.memory_store import Fate
from tests.doubles.mortal_box import MortalBox
from tests.doubles.provenance import Checker, Push
from tests.doubles.tidy import untidy

SERVER = "Web01"
GROUPS = ("dr01_vg0", "dr01_vg1")
_SIZES = (4096, 70_001, 300_000, 1 << 20, 3 << 20)


@dataclass(frozen=True)
class Settings:
    """What the host decides. A push is made from the seed and its number alone, so that every boot knows them all."""

    kind: Literal["fs", "lvm"]
    folder: str
    """Where the drive with the state is mounted."""
    store: str
    """Where the drive with the store is mounted, if it is of kind fs."""
    seed: int
    copies: int
    begun: int
    """Jobs that were begun so far."""
    before: Tuple[int, ...]
    """Those that were complete before the last of them, newest first."""
    step: int
    """Where the cut comes; 0: none does, and after one job everything must be as if nothing had happened."""
    waits: bool
    """Whether nothing more is done until it comes."""


def push_of(seed: int, number: int) -> Push:
    """Disks come and go and change their sizes."""
    chance = random.Random(f"{seed} {number}")
    names = [f"{SERVER}_{disk}" for disk in range(3)]
    disks = {name: chance.choice(_SIZES) for name in names if name == names[0] or chance.random() < 0.7}
    return Push(number, disks, SERVER, ("nvram",) if chance.random() < 0.3 else ())


def fails(seed: int, number: int) -> bool:
    """Some jobs fail by themselves, because a disk of the node can't be read."""
    return random.Random(f"{seed} {number} fails").random() < 0.15


class _World:
    """Implements mortal_box.World on what is mounted here."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._images = Path("/dev/anvil-dr" if settings.kind == "lvm" else settings.store)

    def store(self, owners: OwnerSource) -> Store:
        if self._settings.kind == "lvm":
            return LvmStore(GROUPS, command.run, link_timeout_seconds=120)
        return DirectoryStore(self._settings.store, owners, fstab="/dev/null")

    def images(self) -> Dict[str, bytes]:
        paths = self._images.glob("*" if self._settings.kind == "lvm" else "*.raw")
        return {path.name[: -len(".raw")] if path.suffix == ".raw" else path.name: path.read_bytes() for path in paths}

    def crash(self) -> None: ...

    def save(self) -> Any: ...

    def load(self, saved: Any) -> None: ...


class _Told(Fate):
    """Tells each step before it is taken. What is written to one image without a break is one step."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.number = 0
        self._settings, self._before = settings, [""]

    def strikes(self, name: str) -> bool:
        words, self._before = self._before, name.split()[:2]
        if words[0] == "write" and words == self._before:
            return False
        self.number += 1
        tell(step=self.number, name=name)
        if self._settings.waits and self.number == self._settings.step:
            threading.Event().wait()
        return False


def tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


class Run:
    """One boot."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        store = config.StoreConfig("lvm", GROUPS) if settings.kind == "lvm" else None
        self.box = MortalBox(
            Path(settings.folder), _World(settings), copies=settings.copies, **({"store": store} if store else {})
        )
        self.checker = Checker([push_of(settings.seed, number) for number in range(1, settings.begun + 1)])
        self.box.minutes = 60 * settings.begun

    def look(self) -> None:
        """What names and bytes say, before the recovery and after it."""
        with self.box.process() as target:
            target.store.check()
        images, checker = self.box.world.images(), self.checker
        faults = checker.faults_of_numbers(SERVER, images)
        with self.box.process() as target:
            faults += recover(target).problems
        images, settings = self.box.world.images(), self.settings
        faults += checker.faults_of_sets(SERVER, images)
        before = list(settings.before)
        faults += checker.faults_of_keeping(SERVER, images, before, settings.begun, settings.copies)
        tell(found=self.complete(), faults=faults, names=sorted(images))

    def complete(self) -> List[int]:
        return [job for _, job in self.checker.complete(SERVER, self.box.world.images())]

    def receive(self, fate: Optional[Fate] = None) -> None:
        """The next job."""
        sent = push_of(self.settings.seed, len(self.checker.pushes) + 1)
        bad = fails(self.settings.seed, sent.number) and self.settings.step > 0
        self.checker.pushes.append(sent)
        tell(begun=sent.number)
        outcome = self.box.push(sent, fate=fate, fails=bad)
        if bad:
            tell(failed=sent.number, found=self.complete())
        elif outcome.succeeded:
            tell(succeeded=sent.number)
        else:
            tell(faults=[f"job {sent.number} failed: {outcome.servers[0].error}"])

    def end(self) -> None:
        """One job that nobody disturbs, and everything is in order."""
        before = self.complete()
        self.receive()
        images, newest = self.box.world.images(), len(self.checker.pushes)
        faults = self.checker.faults_of_sets(SERVER, images) + untidy(self.box, self.checker, SERVER)
        wanted = [newest, *before][: self.settings.copies]
        if self.checker.complete(SERVER, images) != list(enumerate(wanted, 1)):
            faults.append(f"the sets are {self.checker.complete(SERVER, images)}, and should be {wanted}")
        tell(faults=faults, ended=True)


def main() -> None:
    """Receive until the power goes."""
    given = json.loads(sys.argv[1])
    run = Run(Settings(**{**given, "before": tuple(given["before"])}))
    run.look()
    if run.settings.step == 0:
        run.end()
        return
    fate = _Told(run.settings)
    while True:
        run.receive(fate)


if __name__ == "__main__":
    main()
