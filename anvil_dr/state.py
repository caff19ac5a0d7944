"""What must survive a reboot: owners of images, the journal of cycling, received sets, jobs, activations.

May touch the state directory, through database.py. Any number of threads and processes may use one directory;
`State.lock_service` lets one service at a time be the one that changes images.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from dataclasses import astuple, replace
from datetime import datetime, timezone
from typing import Any, Iterable, Mapping, Optional, Tuple

from anvil_dr import journal, naming
from anvil_dr.database import Database
from anvil_dr.errors import NameCollisionError, ServiceError, StateError
from anvil_dr.model import (
    Activation,
    ImageRecord,
    JobRecord,
    JournalEntry,
    JournalStep,
    Owner,
    Purpose,
    SetRecord,
    SourceDefinition,
)

log = logging.getLogger(__name__)

JOBS_KEPT = 100
"""Past jobs remembered for each server."""
_JOBS_KEPT_IN_ALL = 100_000
_TEXT_CHARACTERS = 2000


class State:
    """The state directory. Every method raises StateError when the database cannot be used."""

    def __init__(self, directory: str, database: Database) -> None:
        """Use `State.open`."""
        self._directory, self._database = directory, database
        self._lock: Optional[int] = None

    @classmethod
    def open(cls, directory: str, *, readonly: bool = False) -> State:
        """Open or create the state. A damaged database is moved aside and an empty one used instead.

        `readonly` changes nothing: a database that is missing reads as an empty one, a damaged one is an error.
        """
        database = Database(directory, readonly=readonly)
        database.prepare()
        return cls(directory, database)

    @property
    def database_path(self) -> str:
        """For messages: the file that everything here is kept in."""
        return self._database.path

    def close(self) -> None:
        """Give back the service's lock, if this is the service."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> State:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def lock_service(self) -> None:
        """Be the one service on this directory until `close`. Raise ServiceError naming the pid of the other one."""
        path = os.path.join(self._directory, "lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise ServiceError(f"another anvil-dr-target is at work on {self._directory}: pid {holder}") from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
        self._lock = fd

    # — whose images are whose —

    def claim(self, owner: Owner) -> None:
        """Record that an image name belongs to this server and disk, for good.

        Raise NameCollisionError if another pair builds the same name (SPEC section 2).
        """
        base = naming.image_base(owner)
        with self._database.writing() as connection:
            done = connection.execute(
                "INSERT INTO owners (base, server, disk) VALUES (?, ?, ?) ON CONFLICT (base) DO NOTHING",
                (base, owner.server, owner.disk),
            )
            if done.rowcount:
                log.info("image name claimed base=%s server=%s disk=%s", base, owner.server, owner.disk)
                return
            holder = Owner(*connection.execute("SELECT server, disk FROM owners WHERE base = ?", (base,)).fetchone())
        if holder != owner:
            raise NameCollisionError(base, owner.server, owner.disk, holder.server, holder.disk)

    def owners(self) -> Tuple[Owner, ...]:
        """Every pair that was claimed, in order."""
        with self._database.reading() as connection:
            return tuple(Owner(*row) for row in connection.execute("SELECT server, disk FROM owners ORDER BY 1, 2"))

    # — the journal of cycling, and the sets that come out of it —

    def begin(
        self, server: str, purpose: Purpose, steps: Iterable[JournalStep], record: Optional[SetRecord] = None
    ) -> JournalEntry:
        """Journal a plan. When this returns it is on stable storage, and its first step may be taken."""
        planned = tuple(steps)
        with self._database.writing() as connection:
            done = connection.execute(
                "INSERT INTO journal (server, purpose, steps, record) VALUES (?, ?, ?, ?)",
                (server, purpose, journal.encode_steps(planned), journal.encode_record(record)),
            )
        entry = JournalEntry(int(done.lastrowid or 0), server, purpose, planned, record)
        log.info("plan begun server=%s purpose=%s entry=%d steps=%d", server, purpose, entry.id, len(planned))
        return entry

    def finish(self, entry: JournalEntry) -> None:
        """Every step was taken: in one transaction, forget the plan and remember its set.

        The set's images no longer belong to the sets that they were in before. Doing it twice changes nothing.
        """
        with self._database.writing() as connection:
            connection.execute("DELETE FROM journal WHERE id = ?", (entry.id,))
            if entry.record is not None:
                _forget(connection, (image.identity for image in entry.record.images))
                _remember(connection, entry.record)
        log.info("plan finished server=%s purpose=%s entry=%d", entry.server, entry.purpose, entry.id)

    def pending(self) -> Tuple[JournalEntry, ...]:
        """Plans that were begun and not finished, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT id, server, purpose, steps, record FROM journal ORDER BY id").fetchall()
        return tuple(journal.decode_entry(*row) for row in rows)

    def forget_images(self, identities: Iterable[str]) -> None:
        """These images were recycled or removed: they no longer belong to the set that they were in.

        That set is known to lack them from now on; it is forgotten with its last image.
        """
        with self._database.writing() as connection:
            _forget(connection, identities)

    def set_records(self, server: Optional[str] = None) -> Tuple[SetRecord, ...]:
        """Received sets, of one server or of all, oldest first. An image that is gone has the identity ''."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT id, server, received_at, source, job_id FROM sets WHERE ?1 IS NULL OR server = ?1 ORDER BY id",
                (server,),
            ).fetchall()
            return tuple(
                SetRecord(
                    row[1],
                    row[2],
                    row[3],
                    row[4],
                    tuple(
                        ImageRecord(*image)
                        for image in connection.execute(
                            "SELECT disk, identity, size_bytes, digest FROM images WHERE set_id = ? ORDER BY disk",
                            (row[0],),
                        )
                    ),
                )
                for row in rows
            )

    # — jobs —

    def job_started(self, job: JobRecord) -> None:
        """Remember one server's part of a job. Raise StateError if that id was used for this server before."""
        with self._database.writing() as connection:
            done = connection.execute(
                "INSERT INTO jobs (id, server, node, state, started_at, finished_at, error, wire_bytes, written_bytes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, server) DO NOTHING",
                _job_row(job),
            )
            if not done.rowcount:
                raise StateError(f"job {job.id} of server {job.server} is known already")

    def job_finished(self, job: JobRecord) -> None:
        """Remember what became of it, and forget the oldest jobs of that server."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO jobs (id, server, node, state, started_at, finished_at, error, wire_bytes, written_bytes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, server) DO UPDATE SET state = excluded.state,"
                " finished_at = excluded.finished_at, error = excluded.error, wire_bytes = excluded.wire_bytes,"
                " written_bytes = excluded.written_bytes",
                _job_row(job),
            )
            _prune(connection, JOBS_KEPT)

    def last_jobs(self) -> Mapping[str, JobRecord]:
        """The last job of each server, finished or not."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE number IN (SELECT max(number) FROM jobs GROUP BY server) ORDER BY server"
            ).fetchall()
        return {job.server: job for job in map(_job, rows)}

    def abandon_running_jobs(self, error: str) -> Tuple[JobRecord, ...]:
        """At the service's start: what was running then has failed, for this reason. Those jobs, as they are now."""
        with self._database.writing() as connection:
            rows = connection.execute("SELECT * FROM jobs WHERE state = 'running' ORDER BY number").fetchall()
            now = _now()
            connection.execute(
                "UPDATE jobs SET state = 'failed', finished_at = ?, error = ? WHERE state = 'running'", (now, error)
            )
        jobs = tuple(replace(_job(row), state="failed", finished_at=now, error=error) for row in rows)
        for job in jobs:
            log.info("job abandoned job=%s server=%s started_at=%s", job.id, job.server, job.started_at)
        return jobs

    def prune(self, jobs_kept: int = JOBS_KEPT) -> None:
        """Forget all but the last jobs of each server; running ones stay."""
        with self._database.writing() as connection:
            _prune(connection, jobs_kept)

    # — definitions as the nodes have them —

    def keep_source_definition(self, server: str, xml: str, left_out: Iterable[str] = ()) -> None:
        """Remember the definition that the node sent last, to tell how the one here differs."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO definitions (server, xml, left_out, received_at) VALUES (?, ?, ?, ?)",
                (server, xml, journal.encode_texts(left_out), _now()),
            )

    def source_definition(self, server: str) -> Optional[SourceDefinition]:
        """The definition that the node sent last; None if there was none."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT xml, left_out, received_at FROM definitions WHERE server = ?", (server,)
            ).fetchone()
        return None if row is None else SourceDefinition(server, row[0], journal.decode_texts(row[1]), row[2])

    # — servers that run here —

    def activate(self, server: str, sequence: int, user: str) -> Activation:
        """Mark a server as activated: its images are live disks from now on."""
        activation = Activation(server, sequence, _now(), user)
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO activations (server, sequence, since, user) VALUES (?, ?, ?, ?)",
                (server, sequence, activation.since, user),
            )
        log.info("server marked as activated server=%s sequence=%d user=%s", server, sequence, user)
        return activation

    def release(self, server: str) -> bool:
        """Take the mark away: jobs may write its images again. False if there was none."""
        with self._database.writing() as connection:
            done = connection.execute("DELETE FROM activations WHERE server = ?", (server,))
        if done.rowcount:
            log.info("server released server=%s", server)
        return bool(done.rowcount)

    def activations(self) -> Mapping[str, Activation]:
        """Servers that are marked as activated."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT server, sequence, since, user FROM activations ORDER BY server"
            ).fetchall()
        return {row[0]: Activation(*row) for row in rows}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _forget(connection: sqlite3.Connection, identities: Iterable[str]) -> None:
    connection.executemany("UPDATE images SET identity = '' WHERE identity = ?", [(one,) for one in identities if one])
    connection.execute(
        "DELETE FROM sets WHERE NOT EXISTS (SELECT 1 FROM images WHERE set_id = sets.id AND identity <> '')"
    )


def _remember(connection: sqlite3.Connection, record: SetRecord) -> None:
    done = connection.execute(
        "INSERT INTO sets (server, received_at, source, job_id) VALUES (?, ?, ?, ?)",
        (record.server, record.received_at, record.source, record.job_id),
    )
    connection.executemany(
        "INSERT INTO images (set_id, disk, identity, size_bytes, digest) VALUES (?, ?, ?, ?, ?)",
        [(done.lastrowid, image.disk, image.identity, image.size_bytes, image.digest) for image in record.images],
    )


def _job(row: Tuple[Any, ...]) -> JobRecord:
    # The columns of the table are the fields, in order, behind the row's number.
    return JobRecord(*row[1:])


def _job_row(job: JobRecord) -> Tuple[Any, ...]:
    # These two are a node's words, which can be megabytes long.
    error = None if job.error is None else job.error[:_TEXT_CHARACTERS]
    return astuple(replace(job, node=job.node[:_TEXT_CHARACTERS], error=error))


def _prune(connection: sqlite3.Connection, kept: int) -> None:
    connection.execute(
        "DELETE FROM jobs WHERE state <> 'running' AND number NOT IN (SELECT number FROM (SELECT number,"
        " row_number() OVER (PARTITION BY server ORDER BY number DESC) AS place FROM jobs) WHERE place <= ?)",
        (kept,),
    )
    # A key that may send any server could otherwise fill the disk with jobs of servers that it made up.
    connection.execute(
        "DELETE FROM jobs WHERE state <> 'running' AND number <= (SELECT max(number) FROM jobs) - ?",
        (_JOBS_KEPT_IN_ALL,),
    )
