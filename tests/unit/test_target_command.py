"""anvil-dr-target as a person starts it by hand, in a terminal of a session that systemd began."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Dict, Iterator

import pytest

TARGET = Path(__file__).resolve().parents[2] / "bin" / "anvil-dr-target"

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for folder in ("store", "definitions"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "target.yaml"
    path.write_text(
        f"name: dr01\nstore: fs:{tmp_path}/store\ndefinitions: {tmp_path}/definitions\n"
        f"state: {tmp_path}/state\nruntime: {tmp_path}/run\nactivation:\n  connect: test:///default\n"
    )
    return path


def check_config(config: Path) -> str:
    done = subprocess.run([TARGET, "--config", config, "--check-config"], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


@pytest.fixture
def serving(config: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    surroundings: Dict[str, str] = request.param
    service = subprocess.Popen(
        [str(TARGET), "--config", str(config)],
        env={**os.environ, **surroundings},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield service
    finally:
        service.kill()
        service.wait()


@pytest.mark.parametrize(
    "serving", [{}, {"JOURNAL_STREAM": "8:12345"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}], indirect=True
)
def test_what_was_meant_for_another_process_does_not_lead_the_service_astray(
    serving: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert serving.stderr is not None
    said = ""
    while "serving name=dr01" not in said:
        line = serving.stderr.readline()
        assert line, said
        said += line
    assert (tmp_path / "run" / "target.sock").is_socket()
    serving.send_signal(signal.SIGTERM)
    _, rest = serving.communicate(timeout=60)
    assert serving.returncode == 0
    assert "stopped name=dr01" in rest


@pytest.mark.parametrize(
    ("folder", "mode", "who"), [("definitions", 0o777, "everybody"), ("definitions/nvram", 0o770, "group ")]
)
def test_a_folder_of_definitions_that_others_can_write_is_pointed_out(
    config: Path, tmp_path: Path, folder: str, mode: int, who: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    assert "careful" not in check_config(config)
    (tmp_path / folder).chmod(mode)
    assert f"careful: {tmp_path / folder} can be written by {who}" in check_config(config)


def test_a_machine_on_which_nothing_can_be_booted_is_pointed_out_before_the_day(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("test:///default", f"qemu:///system?socket={tmp_path}/none"))
    assert "careful: nothing can be booted on this machine: libvirt" in check_config(config)
