"""The power is cut at any moment of any job, again and again, on real drives whose caches are lost with it.

A chain begins on new drives. The host chooses a step of a job, cuts, boots again, and has everything checked by names
and bytes (provenance.py): before the recovery, after it, and after one more job in the end. Half of the chains are cut
exactly before a step, while the guest waits for it; the others at a moment after it, in whatever is done then.

    ANVIL_DR_CUTS=500   how many cuts, over all the stores (tests/run --cuts 500)
    ANVIL_DR_SEED=7     one chain per store, with this seed. One that failed says its own, and with ANVIL_DR_STORE=ext4
                        is told again: the same jobs, cut at the same steps

Two files have the tests, so that two guests run at a time: test_power_cuts_on_lvm.py and test_power_cuts_on_files.py.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

from tests.box.box import Box, make_drive

ROOT = Path(__file__).resolve().parents[2]
PROPERTY = "power cuts"
"""What a test records of its chain: a line of JSON."""
CUTS_IN_A_CHAIN = 8
_SHARES = {"lvm": 1, "ext4": 2, "xfs": 2}
"""Of five cuts. One on LVM takes longest."""
_STEPS = 60
"""A job has about 40 of them; so some cuts come in the second job of a boot."""
_BOOT_SECONDS = 300

# The loop devices stand for drives with a volatile cache: what was not flushed is in the guest's memory. They begin
# behind the drives' first sectors, so that udev finds no physical volume there to activate without them.
_ATTACH = """
for module in loop dm_mod xfs; do modprobe $module; done
mkdir -p /drives/state /drives/store
for number in 0 1 2; do
    losetup --direct-io=off --offset 1M /dev/loop$number /dev/ubd$(echo $number | tr 012 abc)
done
"""
_LVM = f"""
printf 'devices {{ global_filter = [ "a|^/dev/loop|", "r|.*|" ] }}\\n' >/etc/lvm/lvmlocal.conf
cp {shlex.quote(str(ROOT))}/etc/62-anvil-dr.rules /etc/udev/rules.d/
udevadm control --reload
"""
_MAKE = {
    "lvm": "for n in 0 1; do vgcreate --yes dr01_vg$n /dev/loop$n; done",
    "ext4": "mkfs.ext4 -q /dev/loop0",
    "xfs": "mkfs.xfs -q /dev/loop0",
}


def chains(store: str) -> Tuple[int, ...]:
    """How many cuts each chain of a store has, short enough to be replayed."""
    wanted = os.environ.get("ANVIL_DR_STORE")
    if wanted not in (None, "", store):
        return ()
    if os.environ.get("ANVIL_DR_SEED"):
        return (CUTS_IN_A_CHAIN,)
    cuts = int(os.environ.get("ANVIL_DR_CUTS") or 40)
    mine = cuts * _SHARES[store] // sum(_SHARES.values())
    if store == "ext4":  # and what the division leaves
        mine = cuts - sum(cuts * _SHARES[other] // sum(_SHARES.values()) for other in _SHARES if other != store)
    number = -(-mine // CUTS_IN_A_CHAIN)
    return tuple(mine // number + (one < mine % number) for one in range(number))


def seed() -> int:
    """The one that was asked for, or a new one."""
    return int(os.environ.get("ANVIL_DR_SEED") or random.SystemRandom().randrange(1 << 30))


@dataclass
class Chain:
    """One set of drives, and what is known of it."""

    store: str
    seed: int
    cuts: int
    folder: Path
    copies: int = 0
    begun: int = 0
    before: List[int] = field(default_factory=list)
    """The jobs that were complete before the last one began, newest first."""
    made: int = 0
    log: List[str] = field(default_factory=list)
    _told: int = 0

    def run(self) -> None:
        """Cut after cut, then a last boot. Raise BoxError, or AssertionError with all that is needed to replay it."""
        chance = random.Random(self.seed)
        self.copies, exact = chance.choice((1, 2, 2, 3)), chance.random() < 0.5
        drives = [make_drive(self.folder / name, size) for name, size in (("a", "320M"), ("b", "96M"), ("s", "64M"))]
        for number in range(self.cuts + 1):
            step = chance.randint(1, _STEPS) if number < self.cuts else 0
            moment = 0.0 if exact or not step else chance.uniform(0, 0.3)
            with Box(self.folder / f"boot{number}", drives=drives, read_only=[ROOT, Path(sys.prefix)]) as box:
                box.run(self._mount(new=number == 0))
                self._told = len(box.console)
                try:
                    self._until(box, self._start(box, step, exact), step)
                    time.sleep(moment)
                finally:
                    box.kill()
                self._hear(box, cut=True)
            self.made += step > 0

    def facts(self) -> str:
        """For the report of the whole run."""
        return json.dumps({"store": self.store, "cuts": self.made, "jobs": self.begun, "seed": self.seed})

    def _mount(self, *, new: bool) -> str:
        lines = [_LVM, _ATTACH]
        if new:
            lines += ["mkfs.ext4 -q /dev/loop2", _MAKE[self.store]]
        lines.append("mount /dev/loop2 /drives/state")
        if self.store != "lvm":
            lines.append("mount /dev/loop0 /drives/store")
        if new:
            lines.append("sync")
        return "set -e\n" + "\n".join(lines)

    def _start(self, box: Box, step: int, exact: bool) -> int:
        settings = {
            "kind": "lvm" if self.store == "lvm" else "fs", "folder": "/drives/state", "store": "/drives/store",
            "seed": self.seed, "copies": self.copies, "begun": self.begun, "before": self.before,
            "step": step, "waits": exact,
        }  # fmt: skip
        words = [sys.executable, "-m", "tests.box.receive_until_cut", json.dumps(settings)]
        return box.begin(f"cd {shlex.quote(str(ROOT))}; PYTHONDONTWRITEBYTECODE=1 exec {shlex.join(words)}")

    def _until(self, box: Box, command: int, step: int) -> None:
        """Follow one boot to this step; with 0, to its end."""
        deadline = time.monotonic() + _BOOT_SECONDS
        while True:
            over = box.exit_code(command) is not None or not box.running or time.monotonic() > deadline
            for event in self._hear(box):
                if event.get("ended") or (step and event.get("step", 0) >= step):
                    return
            if over:
                self._fail("the guest stopped by itself, or hangs")
            time.sleep(0.002)

    def _hear(self, box: Box, *, cut: bool = False) -> List[Dict[str, Any]]:
        """What the guest has said since the last time, all of which counts. The cut may have come within a line."""
        lines = box.console[self._told :]
        self._told += len(lines)
        self.log += lines
        events = list(_parsed(lines[:-1] if cut and lines and not lines[-1].endswith("}") else lines))
        for event in events:
            if event.get("faults"):
                self._fail("\n".join(event["faults"]))
            if "found" in event:
                self.before = event["found"]
            if "begun" in event:
                self.begun = event["begun"]
            if "succeeded" in event:
                self.before = [event["succeeded"], *self.before][: self.copies]
        return events

    def _fail(self, what: str) -> None:
        said = "\n".join(self.log[-60:])
        raise AssertionError(
            f"after {self.made} cuts, copies={self.copies}:\n{what}\n"
            f"replay with ANVIL_DR_STORE={self.store} ANVIL_DR_SEED={self.seed}; the guest said last:\n{said}"
        )


def _parsed(lines: List[str]) -> Iterator[Dict[str, Any]]:
    for line in lines:
        if line.startswith("{"):
            yield json.loads(line)


def in_words(facts: List[str]) -> str:
    """What all the chains of a run came to."""
    found = [json.loads(one) for one in facts]
    cuts = {store: sum(one["cuts"] for one in found if one["store"] == store) for store in _SHARES}
    jobs = sum(one["jobs"] for one in found)
    counts = ", ".join(f"{store} {number}" for store, number in cuts.items())
    seeds = " ".join(f"{one['store']}:{one['seed']}" for one in found)
    return f"{sum(cuts.values())} ({counts}) in {jobs} jobs; seeds {seeds}"
