"""A server's way back to its node, through a real ssh and sshd: anvil-dr-export here, anvil-dr-take-back there."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from anvil_dr.records.state import State
from tests.doubles.ssh_box import ROOT, SshBox, write_job

# anvil-dr-export, whose ssh also gets a configuration: only that of the account's own home would be read.
_EXPORT = """\
import sys
from anvil_dr import command
spawn, ssh_config = command.spawn, sys.argv.pop(1)
command.spawn = lambda argv: spawn((argv[0], "-F", ssh_config, *argv[1:]))
from anvil_dr.cli import export
sys.exit(export.main())
"""


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBox]:
    """One sshd stands for both machines: a node's key may send, the DR box's key may give back."""
    box = SshBox(tmp_path_factory.mktemp("box"))
    box.add_key("node")
    box.add_key("back")
    with box.listening():
        yield box


def allow_import(box: SshBox, job: Path) -> None:
    """What the node's administrator puts before the DR box's key."""
    keys = (box.folder / "authorized_keys").read_text().splitlines()
    key = (box.folder / "back.pub").read_text().strip()
    line = f'restrict,command="{ROOT}/bin/anvil-dr-take-back Web01 --job {job} --state {box.folder}" {key}'
    kept = [one for one in keys if not one.endswith(key)]
    (box.folder / "authorized_keys").write_text("\n".join([*kept, line]) + "\n")


def export(box: SshBox, server: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _EXPORT, box.folder / "ssh_back", "--config", box.config, server,
         "--to", box.destination, "--no-progress", "--json", *more],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


def test_a_server_goes_to_the_dr_box_runs_there_and_comes_back_with_what_it_wrote(
    standing: SshBox, tmp_path: Path
) -> None:
    before = random.Random(1).randbytes(3_000_001)
    job = write_job(tmp_path / "node", {"Web01": {"Web01_0": before}})
    allow_import(standing, job)
    with standing.serving():
        assert standing.send("node", job).returncode == 0
    refused = export(standing, "Web01")
    assert refused.returncode == 2
    assert "not activated" in refused.stderr
    with State.open(str(standing.folder / "state")) as state:
        state.activate("Web01", 1, "alice")
    with open(standing.store / "Web01_Web01_0_1.raw", "r+b") as image:
        image.seek(1_000_000)
        image.write(b"on the DR box")
    done = export(standing, "Web01")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["state"] == "succeeded"
    assert told["wire_bytes"] < 64 << 10
    expected = before[:1_000_000] + b"on the DR box" + before[1_000_013:]
    home = tmp_path / "node" / "Web01_0.img"
    assert home.read_bytes() == expected

    since = b"what it does at home" + expected[20:]
    home.write_bytes(since)
    refused = export(standing, "Web01")
    assert (refused.returncode, home.read_bytes()) == (2, since)
    assert "went home" in refused.stderr and "--again" in refused.stderr
    assert export(standing, "Web01", "--again").returncode == 0
    assert home.read_bytes() == expected
    with State.open(str(standing.folder / "state")) as state:
        state.release("Web01")
        state.activate("Web01", 1, "alice")
    assert export(standing, "Web01").returncode == 0, "it may have run here since"


def test_a_key_for_one_server_brings_back_no_other(standing: SshBox, tmp_path: Path) -> None:
    job = write_job(tmp_path / "node", {"Db01": {"Db01_0": b"as it was"}})
    allow_import(standing, write_job(tmp_path / "other", {"Web01": {"Web01_0": b"x"}}))
    with standing.serving():
        assert standing.send("node", job).returncode == 0
    with State.open(str(standing.folder / "state")) as state:
        state.activate("Db01", 1, "alice")
    done = export(standing, "Db01")
    assert done.returncode == 1
    assert "not allowed to send server Db01" in json.loads(done.stdout)["error"]
    assert (tmp_path / "node" / "Db01_0.img").read_bytes() == b"as it was"
