"""The thread that follows drives, when drives go while it looks at them and when whoever it tells fails."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Dict, Iterator, List, Optional

import pytest

from anvil_dr.cache import watch


@dataclass
class Event:
    """As pyudev gives them, of a drive whose attributes cannot be read any more."""

    sys_name: str
    properties: Dict[str, str] = field(default_factory=lambda: {"ID_FS_TYPE": "ext4"})
    attributes: Dict[str, bytes] = field(default_factory=dict)
    action: str = "add"

    @property
    def device_node(self) -> str:
        return f"/dev/{self.sys_name}"


class Events:
    """Gives the events that it was told, and then none."""

    def __init__(self, *events: Event) -> None:
        self._queue: Queue[Event] = Queue()
        self.empty = threading.Event()
        for event in events:
            self._queue.put(event)

    def poll(self, timeout: float) -> Optional[Event]:
        try:
            return self._queue.get_nowait()
        except Empty:
            self.empty.set()
            return None


@contextmanager
def watched(came: watch.Listener, *events: Event) -> Iterator[None]:
    """Until all of them have been seen."""
    source = Events(*events)
    following = watch.DriveWatch(came, monitor=source)
    following.start()
    try:
        assert source.empty.wait(30), "the thread has ended"
        yield
    finally:
        following.stop()


def test_a_drive_that_goes_while_its_event_is_read_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    came: List[str] = []
    with watched(came.append, Event("anv1"), Event("anv2", attributes={"size": b"8"})):
        pass
    assert came == ["/dev/anv1", "/dev/anv2"]
    assert "drive came device=/dev/anv1 size_bytes=0" in caplog.text
    assert "drive came device=/dev/anv2 size_bytes=4096" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_the_next_drive_is_noticed_after_one_that_could_not_be_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    came: List[str] = []

    def look(device: str) -> None:
        came.append(device)
        if device == "/dev/anv1":
            raise OSError(5, "Input/output error")

    with watched(look, Event("anv1"), Event("anv2")):
        pass
    assert came == ["/dev/anv1", "/dev/anv2"]
    assert "event of a drive failed device=anv1 action=add" in caplog.text


def test_a_drive_that_is_opened_with_its_passphrase_is_noticed_and_the_store_s_volumes_are_not() -> None:
    def mapped(sys_name: str, uuid: str) -> Event:
        return Event(sys_name, {"ID_FS_TYPE": "ext4", "DM_NAME": "some-name", "DM_UUID": uuid}, action="change")

    came: List[str] = []
    with watched(
        came.append,
        mapped("dm-91", "LVM-pYbGLD"),
        mapped("dm-92", "part1-LVM-pYbGLD"),
        Event("dm-93"),
        mapped("dm-93", "CRYPT-LUKS2-5c3b1f0a-usb"),
        Event("dm-93", {}, action="remove"),
        mapped("dm-93", "CRYPT-LUKS2-5c3b1f0a-usb"),
        Event("md127"),
        Event("nbd7"),
        Event("loop97"),
    ):
        pass
    assert came == ["/dev/dm-93", "/dev/dm-93", "/dev/md127"]
