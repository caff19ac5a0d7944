"""Commands that are left running."""

from __future__ import annotations

from pathlib import Path

import pytest

from anvil_dr import command
from anvil_dr.errors import CommandError


def test_what_a_started_command_says_is_in_its_file_and_its_exit_code_is_known(tmp_path: Path) -> None:
    process = command.start(("sh", "-c", "echo out; echo err >&2; exit 3"), output=tmp_path / "said")
    assert process.wait(30) == 3
    assert process.exit_code() == 3
    assert (tmp_path / "said").read_text() == "out\nerr\n"


def test_one_that_runs_on_has_no_exit_code_until_it_is_killed(tmp_path: Path) -> None:
    process = command.start(("sleep", "600"), output=tmp_path / "said")
    assert process.exit_code() is None
    with pytest.raises(CommandError, match="sleep 600: still running"):
        process.wait(0.05)
    process.kill()
    assert process.exit_code() == -9


def test_a_program_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no-such-program"):
        command.start(("no-such-program",), output=tmp_path / "said")
