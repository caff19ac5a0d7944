"""Threads that work ahead: whatever ends them, nobody waits for them for ever."""

from __future__ import annotations

import os
import queue
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, Union

import pytest

from anvil_dr.errors import AnvilDrError, ImageIOError
from anvil_dr.sending.job import OutgoingDisk
from anvil_dr.wire.ahead import Ahead, Ended
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.frames_ahead import FramesAhead
from tests.doubles.dr_box import DrBox, Node

Delivered = Union[int, AnvilDrError, Ended]

# pytest warns of what a thread did not catch; that is what these are about.
unforeseen = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def delivered(items: Iterator[int]) -> List[Delivered]:
    inbox: queue.SimpleQueue[Delivered] = queue.SimpleQueue()
    ahead = Ahead(items, 2, inbox.put, name="ahead")
    found: List[Delivered] = []
    while not found or isinstance(found[-1], int):
        found.append(inbox.get(timeout=30))
        ahead.done()
    ahead.close()
    return found


def broken(error: BaseException) -> Iterator[int]:
    yield 1
    raise error


def test_items_come_in_order_and_then_the_end() -> None:
    *items, last = delivered(iter(range(1, 6)))
    assert items == [1, 2, 3, 4, 5] and isinstance(last, Ended)


def test_what_went_wrong_is_delivered() -> None:
    error = ImageIOError("/dev/x", 0, "read", "Input/output error")
    assert delivered(broken(error)) == [1, error]


@unforeseen
def test_what_nobody_foresaw_is_delivered_too() -> None:
    one, last = delivered(broken(ZeroDivisionError()))
    assert one == 1 and "nobody foresaw" in str(last)


class Defective:
    """A source with a defect of ours in it. Implements job.Source."""

    def __init__(self, disk: OutgoingDisk) -> None:
        self._source = disk.open()

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        raise AttributeError("read_into")


@unforeseen
def test_a_defect_while_a_disk_is_read_fails_its_server_and_does_not_hang(tmp_path: Path) -> None:
    box = DrBox(tmp_path)
    web = Node(tmp_path / "node", disks={"Web01_0": os.urandom(70_000)}).outgoing()
    (disk,) = web.disks
    with box.running():
        (outcome,) = box.send(replace(web, disks=(replace(disk, open=lambda: Defective(disk)),))).servers
    assert "nobody foresaw" in str(outcome.error)


@unforeseen
def test_a_defect_while_frames_are_received_ends_whoever_waits_for_them() -> None:
    class Broken(Channel):
        def receive(self, *unused: object, **also: object) -> object:  # type: ignore[override]
            raise ZeroDivisionError

    reading, writing = os.pipe()
    channel = Broken(reading, writing)
    ahead = FramesAhead(channel, 30)
    with pytest.raises(AnvilDrError, match="nobody foresaw"):
        ahead.receive()
    ahead.close()
    channel.close()
