"""Tests that run inside of a guest, and look on the host as if they ran there.

A module says what it needs:  pytestmark = pytest.mark.in_guest(drives=("2G", "1G"))

The host collects its tests as usual. When the first one's turn comes, a guest is booted and pytest runs in it, with
the same node ids; each report is handed over as it is made, through a shared file, and replayed on the host.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterable, List, Union

import pytest

from tests.box.box import Box, BoxError, make_drive

VARIABLE = "ANVIL_DR_IN_BOX"
"""Set inside of the guest: the file that reports go to."""
ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.02
_EXIT_CODES_OF_A_RUN = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


class Reporter:
    """Inside: writes each report to the shared file."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self._config, self._file = config, file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        # Closed after each line: only then the host has it for sure (hostfs writes back on close).
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


class GuestRun:
    """On the host: one guest, with the tests of one module in it."""

    def __init__(
        self, items: List[pytest.Item], *, drives: Iterable[str] = (), systemd: bool = False, memory: str = "512M"
    ) -> None:
        self._config, self._last = items[0].config, items[-1].nodeid
        self._reports: Dict[str, List[pytest.TestReport]] = {}
        self._seen_bytes = 0
        self._folder = tempfile.TemporaryDirectory(prefix="anvil-dr-box-")
        folder = Path(self._folder.name)
        self._shared = folder / "reports"
        self._shared.mkdir()
        self._file = self._shared / "reports"
        images = [make_drive(folder / f"drive{number}", size) for number, size in enumerate(drives)]
        self._box = Box(
            folder / "boot",
            drives=images,
            read_only=[ROOT, Path(sys.prefix)],
            writable=[self._shared],
            systemd=systemd,
            memory=memory,
        )
        self._box.start()
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout"]
        words += [item.nodeid for item in items]
        variables = {name: value for name, value in os.environ.items() if name.startswith("ANVIL_DR_")}
        variables.update({VARIABLE: str(self._file), "PYTHONDONTWRITEBYTECODE": "1"})
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        lines += [f"cd {shlex.quote(str(ROOT))}", f"exec {shlex.join(words)}"]
        self._command = self._box.begin("\n".join(lines))

    def reports_of(self, item: pytest.Item) -> List[pytest.TestReport]:
        """The reports of one test, once it is through. Raise BoxError if the guest never reports it."""
        while True:
            ended = self._box.exit_code(self._command)
            self._read()
            found = self._reports.get(item.nodeid, [])
            if found and found[-1].when == "teardown":
                if item.nodeid == self._last:
                    self._finish()
                return found
            if ended is not None or not self._box.running:
                output = self._box.wait(self._command, timeout_seconds=1, check=False).output
                raise BoxError(f"the guest did not run this test (exit code {ended})\n{output}")
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Cut the guest's power and remove its drives."""
        self._box.kill()
        self._folder.cleanup()

    def _finish(self) -> None:
        result = self._box.wait(self._command, timeout_seconds=60, check=False)
        self.close()
        if result.exit_code not in _EXIT_CODES_OF_A_RUN:
            raise BoxError(f"pytest in the guest ended with exit code {result.exit_code}\n{result.output}")

    def _read(self) -> None:
        if not self._file.exists():
            return
        with open(self._file, "rb") as file:
            file.seek(self._seen_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._seen_bytes += len(line)
                data = {name: _tuple_again(value) for name, value in json.loads(line).items()}
                report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
                self._reports.setdefault(report.nodeid, []).append(report)


def _tuple_again(value: object) -> object:
    """JSON has no tuples; pytest insists on them where it says why a test was skipped."""
    return tuple(value) if isinstance(value, list) else value


_RUNS: pytest.StashKey[Dict[Path, Union[GuestRun, BoxError]]] = pytest.StashKey()


def run_in_guest(item: pytest.Item) -> None:
    """Take the place of pytest's own run of one test: boot if need be, then say what the guest reports."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def close_all(session: pytest.Session) -> None:
    """Leave no guest behind, whatever ended the session."""
    for run in session.stash.get(_RUNS, {}).values():
        if isinstance(run, GuestRun):
            run.close()


def _reports(item: pytest.Item) -> List[pytest.TestReport]:
    try:
        return _run_of(item).reports_of(item)
    except BoxError as error:
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", str(error), "call")]


def _run_of(item: pytest.Item) -> GuestRun:
    """The guest of this test's module, booted once. Raise BoxError if that failed, for each of its tests."""
    runs = item.session.stash.setdefault(_RUNS, {})
    if item.path not in runs:
        marker = item.get_closest_marker("in_guest")
        assert marker is not None
        try:
            mine = [other for other in item.session.items if other.path == item.path]
            runs[item.path] = GuestRun(mine, **marker.kwargs)
        except BoxError as error:
            runs[item.path] = error
    run = runs[item.path]
    if isinstance(run, BoxError):
        raise run
    return run
