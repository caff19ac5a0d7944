"""The service's socket where systemd's unit and the configuration differ about its place."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Tuple

import pytest

from anvil_dr.cli import target_socket
from anvil_dr.errors import CommandError, ServiceError
from anvil_dr.ports import Completed

OF_SYSTEMD = "/run/anvil-dr/target.sock"


class Systemctl:
    """What it says of the unit."""

    def __init__(self, said: str) -> None:
        self._said = said

    def __call__(self, argv: Tuple[str, ...], *, timeout_seconds: float = 120.0, stdin: bytes = b"") -> Completed:
        if not self._said:
            raise CommandError(argv, 1, b"", b"System has not been booted with systemd as init system", "")
        return Completed(argv, f"{self._said}\n".encode(), b"")


def bound(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    found.bind(str(path))
    return found


def test_a_socket_that_is_not_where_nodes_look_for_it_is_refused_with_what_to_type(tmp_path: Path) -> None:
    handed = bound(tmp_path / "one.sock")
    with pytest.raises(ServiceError) as caught:
        target_socket.handed_over(handed, "/srv/run/target.sock")
    assert f"systemd listens on {tmp_path}/one.sock, and nodes are led to /srv/run/target.sock" in str(caught.value)
    assert "systemctl edit anvil-dr-target.socket" in str(caught.value)
    assert "ListenStream=/srv/run/target.sock" in str(caught.value)
    assert handed.fileno() == -1


def test_the_same_place_by_another_path_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var-run").symlink_to("run")
    with bound(tmp_path / "run" / "target.sock") as handed:
        assert target_socket.handed_over(handed, f"{tmp_path}/var-run/target.sock") is handed


@pytest.mark.parametrize(
    ("said", "path", "expected"),
    [
        (f"{OF_SYSTEMD} (Stream)", OF_SYSTEMD, ""),
        (f"{OF_SYSTEMD} (Stream)", "/srv/run/target.sock", f"systemd listens on {OF_SYSTEMD}, and nodes are led"),
        (" ", "/srv/run/target.sock", ""),
        ("", "/srv/run/target.sock", ""),
    ],
    ids=["the same", "elsewhere", "no such unit", "no systemd"],
)
def test_the_check_of_a_configuration_asks_systemd_where_its_socket_is(said: str, path: str, expected: str) -> None:
    found = target_socket.warning(path, Systemctl(said))
    assert found.startswith(expected) and bool(found) == bool(expected)
