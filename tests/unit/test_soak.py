"""Job after job on the real service, in its own process: random servers, disks and sizes, with whatever can go wrong.

A model says what must be there after each job, and an independent checker (provenance.py) what is there. Then jobs go
on undisturbed by restarts, and the process must hold as much at their end as at their beginning.

    ANVIL_DR_SOAK=300 ./tests/run tests/unit/test_soak.py      how many rounds; ANVIL_DR_SEED=7: other ones
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import pytest

from anvil_dr.errors import AnvilDrError
from anvil_dr.sending.job import JobOutcome
from anvil_dr.sending.send import JobSender
from anvil_dr.wire.channel import Channel
from tests.doubles.dr_box import Quiet
from tests.doubles.mortal_box import outgoing
from tests.doubles.provenance import Checker, Push
from tests.doubles.service_process import ServiceProcess

JOBS = int(os.environ.get("ANVIL_DR_SOAK") or 30)
SEED = int(os.environ.get("ANVIL_DR_SEED") or 1)
SERVERS = ("Db01", "Mail01", "Web01", "Web01_test")
SIZES = (4096, 70_001, 300_000, 1 << 20, 3 << 20)
BIG = 17 << 20
"""More than a segment."""
TELLS = 14
"""About as often a job's observer is told something."""
WARM_UP = 8
"""Jobs after a start, until everything has been made that is made once."""
GROWTH_BYTES = 10 << 20
"""Of a working set that is not the same for any two jobs; what leaks grows without end, and is seen in 300 of them."""


class Striking(Quiet):
    """Does something in the middle of a job: when it's told for the n-th time."""

    def __init__(self, at: int, strike: Callable[[], object]) -> None:
        super().__init__()
        self._left, self._strike = at, strike

    def _hit(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._strike()

    def server_begun(self, server: str) -> None:
        self._hit()

    def disk_begun(self, server: str, disk: str, size_bytes: int) -> None:
        self._hit()

    def disk_advanced(self, server: str, disk: str, done_bytes: int, wire_bytes: int) -> None:
        self._hit()

    def disk_done(self, server: str, disk: str, written_bytes: int, wire_bytes: int) -> None:
        self._hit()


class Soak:
    """A box, and what must be on it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.service, self.checker = ServiceProcess(folder), Checker()
        self.copies = 2
        self.kept: Dict[str, List[int]] = {server: [] for server in SERVERS}
        """The jobs of which there must be whole sets, newest first."""
        self.number = 0
        self.happened: Counter[str] = Counter()

    def start(self) -> None:
        self.copies = self.chance.choice((1, 2, 2, 3))
        self.service.start(copies=self.copies)

    def round(self, what: str) -> None:
        """One job, or two at once, of different servers."""
        chance = self.chance
        servers = chance.sample(SERVERS, chance.choice((1, 1, 2, 3)))
        parts = (servers[:1], servers[1:]) if len(servers) > 1 and chance.random() < 0.4 else (servers,)
        jobs = [[self._push(server) for server in part] for part in parts]
        outcomes: List[Optional[JobOutcome]] = [None] * len(jobs)
        strike_at, copies = chance.randint(1, TELLS), self.copies

        def send(number: int) -> None:
            outcomes[number] = self._send(jobs[number], what if number == 0 else "", strike_at)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.happened[what or "undisturbed"] += 1
        if not self.service.running:
            self._check_numbers(jobs)
            self.start()
        self.service.wait_until_idle()
        killed, bad = what in ("kill", "stop"), what == "bad disk"
        for number, (job, outcome) in enumerate(zip(jobs, outcomes)):
            struck = killed or (number == 0 and what == "node goes")
            self._check_job(job, outcome, copies, struck, push_that_fails=job[-1] if not number and bad else None)

    def _push(self, server: str) -> Push:
        self.number += 1
        chance = self.chance
        disks = {f"{server}_{disk}": chance.choice(SIZES) for disk in range(3) if not disk or chance.random() < 0.6}
        if chance.random() < 0.03:
            disks[f"{server}_0"] = BIG
        sent = Push(self.number, disks, server, ("nvram",) if chance.random() < 0.3 else ())
        self.checker.pushes.append(sent)
        return sent

    def _send(self, job: List[Push], what: str, strike_at: int) -> Optional[JobOutcome]:
        """None if the node never learned what became of it."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.service.socket)
        fd = connection.detach()
        channel = Channel(fd, fd, silence_seconds=60)
        strikes: Dict[str, Callable[[], object]] = {
            "node goes": channel.abandon,
            "kill": self.service.kill,
            "stop": self._stop,
        }
        observer = Striking(strike_at, strikes[what]) if what in strikes else Quiet()
        servers = tuple(outgoing(push, what == "bad disk" and push is job[-1]) for push in job)
        try:
            with suppress(AnvilDrError):
                return JobSender(channel, node="an-a01n01", observer=observer).run("nightly", servers)
        finally:
            channel.close()
        return None

    def _stop(self) -> None:
        assert self.service.stop() == 0, self.service.log.read_text()[-4000:]

    # — what must be —

    def images(self, server: str) -> Dict[str, bytes]:
        found = self.service.store.glob(f"{server}_{server}_*.raw")
        return {path.name[: -len(".raw")]: path.read_bytes() for path in found}

    def _check_numbers(self, jobs: List[List[Push]]) -> None:
        """Of what a dead service leaves."""
        for push in (push for job in jobs for push in job):
            faults = self.checker.faults_of_numbers(push.server, self.images(push.server))
            assert faults == [], self._told(faults)

    def _check_job(
        self, job: List[Push], outcome: Optional[JobOutcome], copies: int, struck: bool, push_that_fails: Optional[Push]
    ) -> None:
        results = {} if outcome is None else {one.name: one.error for one in outcome.servers}
        for push in job:
            server, before, images = push.server, self.kept[push.server], self.images(push.server)
            found = self.checker.complete(server, images)
            faults = self.checker.faults_of_sets(server, images)
            if server in results and results[server] is None:
                wanted = list(enumerate([push.number, *before][:copies], 1))
                faults += [] if found == wanted else [f"the sets of {server} are {found}, and should be {wanted}"]
                faults += [f"{name} is left" for name in images if name.endswith("incomplete")]
            else:
                faults += self.checker.faults_of_keeping(server, images, before, push.number, copies)
                if not struck and push is not push_that_fails:
                    faults.append(f"job {push.number} of {server} failed by itself: {results.get(server)}")
            assert faults == [], self._told(faults)
            self.kept[server] = [number for _, number in found]

    def check_all(self) -> None:
        """Every server, also those that had no job for long."""
        for server in SERVERS:
            images = self.images(server)
            assert self.checker.faults_of_sets(server, images) == []
            assert [job for _, job in self.checker.complete(server, images)] == self.kept[server]

    def _told(self, faults: List[str]) -> str:
        log = self.service.log.read_text()[-4000:]
        return "\n".join([f"job {self.number}, copies {self.copies}, seed {SEED}:", *faults, log])


DISTURBED = ("", "", "", "bad disk", "node goes", "kill", "stop")
FROM_OUTSIDE = ("", "", "bad disk", "node goes")


def shuffled(chance: random.Random, deck: Tuple[str, ...]) -> Iterator[str]:
    """Each as often as it's in the deck, without end."""
    while True:
        yield from chance.sample(deck, len(deck))


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * JOBS)
def test_job_after_job_everything_is_as_it_must_be_and_the_service_does_not_grow(tmp_path: Path) -> None:
    soak = Soak(tmp_path, SEED)
    soak.start()
    disturbances, others = shuffled(soak.chance, DISTURBED), shuffled(soak.chance, FROM_OUTSIDE)
    try:
        for _ in range(JOBS // 2):
            soak.round(next(disturbances))
        soak.check_all()
        soak.service.kill()
        soak.start()
        for _ in range(WARM_UP):
            soak.round(next(others))
        before = soak.service.held()
        for _ in range(JOBS - JOBS // 2 - WARM_UP):
            soak.round(next(others))
        after = soak.service.held()
        soak.check_all()
    finally:
        soak.service.kill()
    print(f"{JOBS} rounds, {soak.number} pushes, {dict(soak.happened)}; before {before}, after {after}")
    assert (after.threads, after.descriptors) == (before.threads, before.descriptors)
    assert after.memory_bytes - before.memory_bytes < GROWTH_BYTES
