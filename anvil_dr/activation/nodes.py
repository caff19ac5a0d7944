"""Which nodes have sent which server, and from where: on the day, they are asked whether they are still alive.

Reads and writes `<state>/nodes/<server>.json`. Not in the state database: whoever boots the servers of a burnt-down
site needs this also where the database is lost. Names have been checked by naming.py and admission.py.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from dataclasses import asdict
from typing import Dict, Final, Mapping, Tuple

from anvil_dr import durable
from anvil_dr.activation.life_signs import Node

log = logging.getLogger(__name__)

_SUFFIX: Final = ".json"
_KEPT: Final = 8
"""An Anvil! has two nodes; they may have been replaced, or have got other addresses."""
_MAX_BYTES: Final = 64 << 10


def address_of(peer: str) -> str:
    """The address in what is known of a session's peer; empty if there is none, or it is this machine's own."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return ""
    return "" if address.is_loopback else str(address)


def remember(state_directory: str, server: str, node: Node) -> None:
    """Put this node first among those that have sent the server. What cannot be written is logged.

    Each address has one place. By their names, which they choose, one node could push the others out, or be another.
    """
    before = [one for one in _read(_path(state_directory, server)) if one.address != node.address]
    content = json.dumps([asdict(one) for one in (node, *before)[:_KEPT]], indent=1) + "\n"
    path = _path(state_directory, server)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        durable.replace(path, content.encode("utf-8"), mode=0o600)
    except OSError as error:
        log.warning("the node cannot be remembered server=%s error=%s", server, error)


def forget(state_directory: str, server: str) -> None:
    """Nobody asks for this server's nodes any more. What cannot be removed is logged."""
    path = _path(state_directory, server)
    try:
        if os.path.exists(path):
            durable.remove(path)
    except OSError as error:
        log.warning("the nodes of a server cannot be forgotten path=%s error=%s", path, error)


def known(state_directory: str) -> Mapping[str, Tuple[Node, ...]]:
    """By server, the last to send it first. What cannot be read is not known."""
    folder = os.path.join(state_directory, "nodes")
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    found: Dict[str, Tuple[Node, ...]] = {}
    for name in names:
        if name.endswith(_SUFFIX) and not name.startswith("."):
            found[name[: -len(_SUFFIX)]] = _read(os.path.join(folder, name))
    return found


def _path(state_directory: str, server: str) -> str:
    return os.path.join(state_directory, "nodes", server + _SUFFIX)


def _read(path: str) -> Tuple[Node, ...]:
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.loads(file.read(_MAX_BYTES))
        return tuple(Node(str(one["name"]), str(one["address"]), str(one["seen_at"])) for one in kept)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("what is known of nodes cannot be read path=%s error=%r", path, error)
        return ()
