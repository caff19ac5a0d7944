"""A second copy of what only the state database knows, for the day on which it is lost or damaged.

One small file for each server, `<state>/servers/<server>.json`: its disks, its sets with their digests and times, and
whether it is activated. Written inside each transaction that changes one of these, so that two processes cannot
overtake each other; read when an empty database is made, and never else: the database is the truth. Names on disk say
the rest (SPEC section 2).
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from dataclasses import asdict
from typing import Any, Dict, Iterable

from anvil_dr import durable, naming
from anvil_dr.errors import ImageNameError
from anvil_dr.model import Activation, Owner
from anvil_dr.records import journal, set_rows

log = logging.getLogger(__name__)

_FOLDER = "servers"
_SUFFIX = ".json"
_VERSION = 1


def folder(directory: str) -> str:
    """Where the files of a state directory are."""
    return os.path.join(directory, _FOLDER)


def write(directory: str, connection: sqlite3.Connection, servers: Iterable[str]) -> None:
    """Bring the files of these servers up to date. What cannot be written is logged: the database has it."""
    where = folder(directory)
    for server in sorted(servers):
        try:
            naming.check_server_name(server)
            durable.make_directories(where, 0o700)
            gathered, path = _gather(connection, server), os.path.join(where, server + _SUFFIX)
            if gathered["disks"] or gathered["activation"] or gathered["sets"]:
                durable.replace(path, json.dumps(gathered, indent=1).encode("utf-8"), mode=0o600)
            elif os.path.exists(path):
                durable.remove(path)
        except ImageNameError as error:
            log.warning("no spare copy is kept: %s", error)
        except OSError as error:
            log.warning("no spare copy can be kept server=%s error=%s", server, error)


def fill(directory: str, connection: sqlite3.Connection, *, level: int = logging.WARNING) -> None:
    """Put what the files say into a database that is empty, and log it at this level.

    A file that makes no sense is logged and left alone.
    """
    where = folder(directory)
    for name in sorted(os.listdir(where)) if os.path.isdir(where) else ():
        if name.startswith(".") or not name.endswith(_SUFFIX):
            continue
        path = os.path.join(where, name)
        try:
            with open(path, encoding="utf-8") as file:
                _restore(connection, json.load(file), level)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, sqlite3.IntegrityError) as error:
            log.warning("the spare copy cannot be used path=%s error=%r", path, error)


def _gather(connection: sqlite3.Connection, server: str) -> Dict[str, Any]:
    disks = connection.execute("SELECT disk FROM owners WHERE server = ? ORDER BY disk", (server,)).fetchall()
    activation = connection.execute(
        "SELECT server, sequence, since, user FROM activations WHERE server = ?", (server,)
    ).fetchone()
    return {
        "version": _VERSION,
        "server": server,
        "disks": [row[0] for row in disks],
        "activation": None if activation is None else asdict(Activation(*activation)),
        "sets": [asdict(record) for record in set_rows.records(connection, server)],
    }


def _restore(connection: sqlite3.Connection, kept: Dict[str, Any], level: int) -> None:
    if kept["version"] != _VERSION:
        raise ValueError(f"its version is {kept['version']!r}")
    server, activation = str(kept["server"]), kept["activation"]
    records = [journal.decode_record(one) for one in kept["sets"]]
    owners = [Owner(server, str(disk)) for disk in kept["disks"]]
    connection.executemany(
        "INSERT OR IGNORE INTO owners (base, server, disk) VALUES (?, ?, ?)",
        [(naming.image_base(one), one.server, one.disk) for one in owners],
    )
    if activation is not None:
        mark = Activation(**activation)
        connection.execute(
            "INSERT OR REPLACE INTO activations (server, sequence, since, user) VALUES (?, ?, ?, ?)",
            (mark.server, mark.sequence, mark.since, mark.user),
        )
    for record in records:
        set_rows.remember(connection, record)
    log.log(
        level, "taken from the spare copy server=%s disks=%d sets=%d activated=%s",
        server, len(owners), len(records), activation is not None,
    )  # fmt: skip
