"""The socket that the service listens on: the one that systemd hands over, or else one of its own.

Touches that socket, and asks systemctl where the unit's is.
"""

from __future__ import annotations

import os
import socket
from typing import List

from anvil_dr import service
from anvil_dr.config import Config
from anvil_dr.errors import CommandError, ServiceError
from anvil_dr.ports import CommandRunner

_UNIT = "anvil-dr-target.socket"


def listener(settings: Config) -> socket.socket:
    """systemd's (sd_listen_fds(3)), or else one of our own. Raise ServiceError."""
    if "LISTEN_FDS" not in os.environ:
        return service.listen(settings.socket)
    import systemd.daemon as daemon

    handed: List[int] = daemon.listen_fds()
    if not handed:  # they were meant for another process
        return service.listen(settings.socket)
    if len(handed) > 1:
        raise ServiceError(f"systemd handed over {len(handed)} sockets; one was expected")
    return handed_over(socket.socket(fileno=handed[0]), settings.socket)


def handed_over(found: socket.socket, path: str) -> socket.socket:
    """That socket, which is closed if nodes and commands look for it elsewhere, at `path`. Raise ServiceError."""
    place = found.getsockname()
    if _is_same(place, path):
        return found
    found.close()
    raise ServiceError(_elsewhere(place, path))


def warning(path: str, run: CommandRunner) -> str:
    """What is wrong with systemd's unit for a service that is to be found at `path`; empty if nothing is known."""
    try:
        shown = run(("systemctl", "show", "--property", "Listen", "--value", _UNIT), timeout_seconds=10).stdout
    except CommandError:  # there is no systemd here, or it is busy
        return ""
    place, _, kind = shown.decode("utf-8", "replace").partition("\n")[0].rpartition(" ")
    return _elsewhere(place, path) if kind == "(Stream)" and not _is_same(place, path) else ""


def _is_same(place: object, path: str) -> bool:
    return isinstance(place, str) and os.path.realpath(place) == os.path.realpath(path)


def _elsewhere(place: object, path: str) -> str:
    return (
        f"systemd listens on {place}, and nodes are led to {path}, because of `runtime` in the configuration: no job "
        f"would get through. Leave `runtime` out, or type `systemctl edit {_UNIT}`, write the three lines [Socket], "
        f"ListenStream= and ListenStream={path}, and type `systemctl restart {_UNIT}`"
    )
