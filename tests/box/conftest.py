"""What the tests with a guest need: `make_box`, and the marker `in_guest` for tests that run inside of one.

    def test_...(make_box):                         on the host, with its hand on the power switch
        box = make_box(drives=[...])                box.py says what it can do

    pytestmark = pytest.mark.in_guest(drives=("2G",))     the whole module inside of one guest; inside.py says how

Where no guest can be booted, these tests are skipped, with the reason.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest

from tests.box import box, inside

HERE = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "in_guest(drives=(), systemd=False, memory='512M'): runs inside of a guest")
    if inside.VARIABLE in os.environ:
        config.pluginmanager.register(inside.Reporter(config, Path(os.environ[inside.VARIABLE])))


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    reason = None if inside.VARIABLE in os.environ else box.missing()
    if reason is not None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f"no user-mode Linux: {reason}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: Optional[pytest.Item]) -> Optional[bool]:
    on_the_host = inside.VARIABLE not in os.environ
    if on_the_host and item.get_closest_marker("in_guest") and not item.get_closest_marker("skip"):
        inside.run_in_guest(item)
        # As pytest's own run of a test does: what the test before this one left for its folder must not meet another's.
        item.session._setupstate.teardown_exact(nextitem)
        return True
    return None


def pytest_sessionfinish(session: pytest.Session) -> None:
    inside.close_all(session)


@pytest.fixture
def make_box(tmp_path: Path) -> Iterator[Callable[..., box.Box]]:
    """Boot guests, with `Box`'s own arguments after the folder; all of them are off again when the test ends."""
    boxes: List[box.Box] = []

    def make(**arguments: Any) -> box.Box:
        boxes.append(box.Box(tmp_path / f"boot{len(boxes)}", **arguments))
        return boxes[-1].start()

    yield make
    for one in boxes:
        one.kill()
