"""Every command in bin/ answers for itself, from wherever it is called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Dict, Optional, Tuple

import pytest

from anvil_dr import __version__

pytestmark = pytest.mark.slow

BIN = Path(__file__).resolve().parents[2] / "bin"
COMMANDS = sorted(path.name for path in BIN.iterdir())


def call(
    program: Path, *arguments: str, cwd: Path, environment: Optional[Dict[str, str]] = None
) -> Tuple[int, str, str]:
    done = subprocess.run(
        [str(program), *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_commands_are_those_of_the_manual() -> None:
    assert COMMANDS == [
        "anvil-activate-dr",
        "anvil-dr-demo",
        "anvil-dr-export",
        "anvil-dr-import",
        "anvil-dr-receive",
        "anvil-dr-send",
        "anvil-dr-status",
        "anvil-dr-take-back",
        "anvil-dr-target",
        "anvil-dr-verify",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself(command: str, tmp_path: Path) -> None:
    code, out, _ = call(BIN / command, "--help", cwd=tmp_path)
    assert code == 0
    assert f"usage: {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_its_version(command: str, tmp_path: Path) -> None:
    code, out, _ = call(BIN / command, "--version", cwd=tmp_path)
    assert (code, __version__ in out) == (0, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_a_usage_error_that_names_it(command: str, tmp_path: Path) -> None:
    code, out, err = call(BIN / command, "--confg", "/etc/anvil-dr/target.yaml", cwd=tmp_path)
    assert (code, out) == (2, "")
    wrong, more = err.splitlines()
    assert wrong == f"{command}: there is no option --confg (did you mean --config?)"
    assert f"{command} --help" in more


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_not_led_astray_by_its_surroundings(command: str, tmp_path: Path) -> None:
    """Through a symlink, another python3 first in PATH, and modules that shadow ours here and in PYTHONPATH."""
    (tmp_path / "python3").write_text("#!/bin/sh\necho wrong interpreter >&2\nexit 70\n")
    (tmp_path / "python3").chmod(0o755)
    for name in ("anvil_dr", "yaml", "argparse", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(71)\n")
    link = tmp_path / "link"
    link.symlink_to(BIN / command)
    surroundings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    code, out, err = call(link, "--version", cwd=tmp_path, environment=surroundings)
    assert (code, err, __version__ in out) == (0, "", True)
