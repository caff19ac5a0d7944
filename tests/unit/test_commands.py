"""Every command in bin/ answers for itself, from wherever it is called."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import pytest

from anvil_dr import __version__
from anvil_dr.cli import activate, export, import_drive, send, status, verify

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


@pytest.mark.parametrize(
    ("main", "arguments", "code"),
    [
        (activate.main, ["--check"], "Config"),
        (export.main, ["Web01", "--to", "ssh://node1"], "Config"),
        (export.main, ["Web01", "--to", "node1"], "Usage"),
        (import_drive.main, ["/dev/sdb1"], "Config"),
        (send.main, ["--to", "dr01", "Web01"], "Usage"),
        (status.main, [], "Config"),
        (status.main, ["--check"], "Config"),
        (verify.main, [], "Config"),
        (verify.main, ["--share", "0"], "Usage"),
    ],
)
def test_what_ends_a_command_early_is_an_object_too_for_whoever_asked_for_json(
    main: Callable[[List[str]], int], arguments: List[str], code: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main([*arguments, "--config", str(tmp_path / "none.yaml"), "--json"]) == 2
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["code"] == code and told["error"] in said.err
    assert main([*arguments, "--config", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().out == ""


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
