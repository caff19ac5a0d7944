"""The service when the machine has nothing left to give, and when it is stopped: it neither spins nor dies."""

from __future__ import annotations

import errno
import logging
import resource
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from anvil_dr import service
from anvil_dr.receiving.target import JobProgress, Target
from anvil_dr.records.state import State
from anvil_dr.status import inquiry
from anvil_dr.status.jobs_line import jobs_line
from anvil_dr.wire.limits import Limits
from anvil_dr.wire.pace import Pace
from anvil_dr.wire.protocol import Kind
from tests.doubles.dr_box import DrBox
from tests.doubles.intruder import Intruder, offer


class Starved(socket.socket):
    """A listener that cannot be accepted from for some time."""

    times = 0
    tried = 0

    def accept(self) -> Tuple[socket.socket, object]:
        self.tried += 1
        if self.tried <= self.times:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@contextmanager
def starved(tmp_path: Path, times: int, limits: Limits) -> Iterator[Tuple[DrBox, Starved, service.Service]]:
    box = DrBox(tmp_path)
    with State.open(box.config.state) as state:
        target = Target(box.config, box.open_store(state), state)
        with service.listen(box.config.socket) as ours, Starved(fileno=ours.detach()) as listener:
            listener.times = times
            served = service.Service(target, listener, lambda message: None, limits=limits)
            running = threading.Thread(target=served.run)
            running.start()
            try:
                yield box, listener, served
            finally:
                served.stop()
                running.join(30)
                assert not running.is_alive()


def test_without_descriptors_it_waits_and_then_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with starved(tmp_path, 3, Limits(pause_seconds=0.02)) as (box, listener, _):
        assert inquiry.running_jobs(box.config.socket) == ()
        assert listener.tried == 4
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["a connection could not be accepted error=[Errno 24] Too many open files"] * 3


def test_while_it_waits_it_does_not_spin_and_can_be_stopped(tmp_path: Path) -> None:
    with starved(tmp_path, 10**9, Limits(pause_seconds=60)) as (box, listener, _):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(box.config.socket)
            deadline = time.monotonic() + 20
            while not listener.tried and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.1)
            assert listener.tried == 1


def test_it_takes_as_many_descriptors_as_it_may_have(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(900, before[1]), before[1]))
        with DrBox(tmp_path).running():
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


def test_the_bandwidth_limit_is_one_for_all_sessions_and_no_node_can_pass_it(tmp_path: Path) -> None:
    clock, box = Clock(), DrBox(tmp_path)
    with State.open(box.config.state) as state, service.listen(box.config.socket) as listener:
        target = Target(box.config, box.open_store(state), state)
        pace = Pace(100_000, clock=clock, sleep=clock.sleep)
        served = service.Service(target, listener, lambda message: None, pace=pace)
        running = threading.Thread(target=served.run)
        running.start()
        for _ in range(2):
            with Intruder(box) as node:
                node.hello()
                node.record(Kind.JOB, b" " * 500_000)
                assert node.error() == "JOB is not valid JSON"
        served.stop()
        running.join()
    assert clock.now >= 9


def test_what_systemd_is_told_of_a_job_is_one_line(tmp_path: Path) -> None:
    told: List[str] = []
    box = DrBox(tmp_path)
    with State.open(box.config.state) as state, service.listen(box.config.socket) as listener:
        target = Target(box.config, box.open_store(state), state)
        served = service.Service(target, listener, told.append)
        with target.running(JobProgress("j", "node\nMAINPID=1", ("Web01",), 100)):
            running = threading.Thread(target=served.run)
            running.start()
            inquiry.running_jobs(box.config.socket)
            served.stop()
            running.join()
    assert told[0] == "READY=1\nSTATUS=Receiving Web01 from node\\nMAINPID=1: 0 %"
    assert all("\nMAINPID" not in message for message in told)


def test_no_node_can_make_systemd_miss_that_the_service_is_alive(tmp_path: Path) -> None:
    """It drops a message of more than 4096 bytes (NOTIFY_BUFFER_MAX), and ends a service that it hears nothing of."""
    told: List[str] = []
    box = DrBox(tmp_path)
    servers = tuple(f"Customer{number:03d}-production-webserver" for number in range(128))
    with State.open(box.config.state) as state, service.listen(box.config.socket) as listener, ExitStack() as jobs:
        target = Target(box.config, box.open_store(state), state)
        served = service.Service(target, listener, told.append)
        for number in range(64):
            jobs.enter_context(target.running(JobProgress(f"j{number}", "\U0001f525" * 255, servers, 100)))
        running = threading.Thread(target=served.run)
        running.start()
        inquiry.running_jobs(box.config.socket)
        served.stop()
        running.join()
    assert "WATCHDOG=1" in told
    assert max(len(message.encode()) for message in told) < 2048


def test_what_systemd_is_told_of_many_jobs_names_some_and_counts_the_others() -> None:
    jobs = [JobProgress("j", f"node{number}", ("Web01", "Db01", "Mail01", "Dns01"), 100).snapshot() for number in "123"]
    assert jobs_line([]) == "Ready, no job is running"
    assert jobs_line(jobs[:1]) == "Receiving Web01, Db01 and 2 more from node1: 0 %"
    assert jobs_line([*jobs, *jobs[:2]]).endswith("; Web01, Db01 and 2 more from node3: 0 %; 2 more jobs")


def test_stopping_waits_for_nobody_who_has_said_nothing(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    box.limits = replace(box.limits, greeting_seconds=3600, announcement_seconds=3600, silence_seconds=3600)
    reasons: List[str] = []
    with box.running():
        mute, greeted, busy = Intruder(box), Intruder(box), Intruder(box)
        greeted.hello()
        busy.begin(offer())
        inquiry.running_jobs(box.config.socket)
        listening = [
            threading.Thread(target=lambda node=node: reasons.append(node.error())) for node in (mute, greeted, busy)
        ]
        for one in listening:
            one.start()
    for one in listening:
        one.join(30)
    assert reasons == ["the DR service was stopped"] * 3
    for node in (mute, greeted, busy):
        node.__exit__(None, None, None)
