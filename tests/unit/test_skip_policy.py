"""The policy of tests/conftest.py: a skipped test is always named, and in CI it is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPS = "import pytest\n\ndef test_a():\n    pytest.skip('no drive here')\n\ndef test_b():\n    pass\n"
PASSES = "def test_a():\n    pass\n"


def run(folder: Path, source: str, ci: str, *options: str) -> Tuple[int, str]:
    (folder / "test_it.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "setup.cfg", *options, str(folder)],
        cwd=ROOT,
        env={**os.environ, "CI": ci},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "workers"])
def test_in_ci_a_skipped_test_is_a_failure_that_names_it(tmp_path: Path, options: Tuple[str, ...]) -> None:
    code, out = run(tmp_path, SKIPS, "true", *options)
    assert code == 1
    failed = out.index("failed: CI=true and tests were skipped")
    assert "test_it.py::test_a" in out[failed:]
    assert "1 passed, 1 skipped" in out.strip().splitlines()[-1]


@pytest.mark.slow
def test_elsewhere_a_skipped_test_is_named_with_its_reason(tmp_path: Path) -> None:
    code, out = run(tmp_path, SKIPS, "")
    assert code == 0
    assert "no drive here" in out


@pytest.mark.slow
def test_in_ci_a_run_without_skips_passes(tmp_path: Path) -> None:
    code, _ = run(tmp_path, PASSES, "true")
    assert code == 0
