"""What holds for every test: the package is found without being installed, and no test is skipped silently."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from hypothesis import settings

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))

# No deadline: it is a timing assert. The same examples every time, so that a red run can be repeated; to look for
# new ones, run pytest with --hypothesis-profile=explore. tests/run --fast tries a quarter of them.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.register_profile("fast", deadline=None, derandomize=True, database=None, max_examples=25)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("repeatable")


_WHOLE = ("box", "qemu", "ssh")
"""Folders whose files have a guest, a libvirtd or an sshd of their own. They take longest, too."""

_LONGEST_OF_THE_FAST = "test_checks.py"

_MEMORY = "/dev/shm"  # noqa: S108


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest) -> Iterator[Path]:
    """In memory for tests of this process alone: thousands of fsyncs cost nothing there, and what they are good for is
    tested where the power is cut. Guests, QEMU and disk names want a path that is not below /dev.
    """
    alone = request.path.relative_to(TESTS).parts[0] in ("unit", "contract")
    roomy = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 << 30
    place = _MEMORY if alone and roomy and not request.node.get_closest_marker("on_disk") else None
    with tempfile.TemporaryDirectory(prefix="adr-test-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command that is called in this process logs to a standard error that is gone when its test is."""
    before, level = list(logging.root.handlers), logging.root.level
    yield
    for handler in [one for one in logging.root.handlers if one not in before]:
        logging.root.removeHandler(handler)
    logging.root.setLevel(level)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """A test's folder says what it needs.

    What takes longest comes first, so that both workers end at the same time, with tests of milliseconds.
    """
    for item in items:
        if _folder(item) in ("box", "qemu"):
            item.add_marker(_folder(item))
    items.sort(key=_turn)


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0] if TESTS in item.path.parents else ""


def _turn(item: pytest.Item) -> int:
    if item.path.name == _LONGEST_OF_THE_FAST:
        return -1
    if _folder(item) in _WHOLE:
        return _WHOLE.index(_folder(item))
    return len(_WHOLE) if item.get_closest_marker("slow") else len(_WHOLE) + 1


@pytest.hookimpl(optionalhook=True)  # there is no xdist in a guest
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whoever runs a file of `_WHOLE` runs all of it: on two workers each would start what it needs.

    Not by xdist's own groups: its 3.8 hands them over in a test's id, which has no room for them since pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return file if set(file.split("/")) & set(_WHOLE) else nodeid

    return ByFile(config, log)


def _skipped(config: pytest.Config) -> List[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("skipped", []) if reporter else []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skipped test is a failure; xdist's workers leave that to the one that started them."""
    if not hasattr(session.config, "workerinput") and in_ci() and _skipped(session.config) and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Above the closing line: what makes the run a failure besides its tests."""
    skipped = _skipped(config)
    if in_ci() and skipped:
        terminalreporter.section("failed: CI=true and tests were skipped", red=True)
        for report in skipped:
            terminalreporter.write_line(report.nodeid)
    _tell_of_power_cuts(terminalreporter)


def _tell_of_power_cuts(terminalreporter: pytest.TerminalReporter) -> None:
    """How often the power was cut, and how each chain of cuts is replayed. Here, because xdist's controller, which
    prints the end, collects nothing and so has no other conftest.
    """
    from tests.box import cut_chain

    reports = [one for outcome in ("passed", "failed") for one in terminalreporter.stats.get(outcome, [])]
    facts = [str(value) for one in reports for name, value in one.user_properties if name == cut_chain.PROPERTY]
    if facts:
        terminalreporter.write_line(f"{cut_chain.PROPERTY}: {cut_chain.in_words(facts)}")
