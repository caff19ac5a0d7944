"""The rows of received sets in the state database. Touches only the connection that it is given."""

from __future__ import annotations

import sqlite3
from typing import Iterable, Optional, Set, Tuple

from anvil_dr.model import ImageRecord, SetRecord


def records(connection: sqlite3.Connection, server: Optional[str] = None) -> Tuple[SetRecord, ...]:
    """Received sets, of one server or of all, oldest first. An image that is gone has the identity ''."""
    rows = connection.execute(
        "SELECT id, server, received_at, source, job_id, ran_here_until FROM sets"
        " WHERE ?1 IS NULL OR server = ?1 ORDER BY id",
        (server,),
    ).fetchall()
    return tuple(SetRecord(row[1], row[2], row[3], row[4], _images(connection, row[0]), row[5]) for row in rows)


def is_known(connection: sqlite3.Connection, record: SetRecord) -> bool:
    """True if this very set, on these images, is remembered already."""
    rows = connection.execute(
        "SELECT disk, identity FROM images JOIN sets ON sets.id = set_id WHERE server = ? AND job_id = ?",
        (record.server, record.job_id),
    ).fetchall()
    return set(rows) == {(one.disk, one.identity) for one in record.images}


def remember(connection: sqlite3.Connection, record: SetRecord) -> None:
    """A new set. Its images no longer belong to the sets that they were in before.

    A job's set is there once: one that is copied from its cache drive again, because the store's has rotted, takes
    the place of that one.
    """
    connection.execute("DELETE FROM sets WHERE server = ? AND job_id = ?", (record.server, record.job_id))
    forget(connection, (image.identity for image in record.images))
    done = connection.execute(
        "INSERT INTO sets (server, received_at, source, job_id, ran_here_until) VALUES (?, ?, ?, ?, ?)",
        (record.server, record.received_at, record.source, record.job_id, record.ran_here_until),
    )
    connection.executemany(
        "INSERT INTO images (set_id, disk, identity, size_bytes, digest, verified_at, rotten)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (done.lastrowid, one.disk, one.identity, one.size_bytes, one.digest, one.verified_at, one.rotten)
            for one in record.images
        ],
    )


def forget(connection: sqlite3.Connection, identities: Iterable[str]) -> Set[str]:
    """These images no longer belong to the set that they were in. Which servers' sets that changes.

    Such a set is known to lack them from now on; it is forgotten with its last image.
    """
    servers: Set[str] = set()
    for identity in identities:
        found = connection.execute(
            "SELECT sets.server FROM images JOIN sets ON sets.id = set_id WHERE identity = ? AND identity <> ''",
            (identity,),
        ).fetchone()
        if found is not None:
            servers.add(found[0])
            connection.execute("UPDATE images SET identity = '' WHERE identity = ?", (identity,))
    if servers:
        connection.execute(
            "DELETE FROM sets WHERE NOT EXISTS (SELECT 1 FROM images WHERE set_id = sets.id AND identity <> '')"
        )
    return servers


def judge(connection: sqlite3.Connection, identity: str, digest: str, at: str, rotten: Optional[str]) -> Set[str]:
    """What reading an image again came to, unless it is another one by now. Which servers' sets that changes."""
    connection.execute(
        "UPDATE images SET verified_at = CASE WHEN ?1 IS NULL THEN ?2 ELSE verified_at END, rotten = ?1"
        " WHERE identity = ?3 AND digest = ?4",
        (rotten, at, identity, digest),
    )
    found = connection.execute(
        "SELECT server FROM sets JOIN images ON sets.id = set_id WHERE identity = ?", (identity,)
    ).fetchall()
    return {row[0] for row in found}


def ran_here(connection: sqlite3.Connection, identities: Iterable[str], until: str) -> Set[str]:
    """The server ran on these images until then, so nothing that was known of their bytes holds. Which servers."""
    servers: Set[str] = set()
    for identity in identities:
        found = connection.execute(
            "SELECT sets.id, sets.server FROM images JOIN sets ON sets.id = set_id WHERE identity = ?", (identity,)
        ).fetchone()
        if found is not None:
            servers.add(found[1])
            connection.execute("UPDATE sets SET ran_here_until = ? WHERE id = ?", (until, found[0]))
            connection.execute(
                "UPDATE images SET digest = '', verified_at = NULL, rotten = NULL WHERE identity = ?", (identity,)
            )
    return servers


def _images(connection: sqlite3.Connection, number: int) -> Tuple[ImageRecord, ...]:
    rows = connection.execute(
        "SELECT disk, identity, size_bytes, digest, verified_at, rotten FROM images WHERE set_id = ? ORDER BY disk",
        (number,),
    )
    return tuple(ImageRecord(*row) for row in rows)
