"""What must survive a reboot: owners of images, the journal of cycling, received sets, jobs, activations.

May touch the state directory, through database.py, spare.py and service_lock.py. Any number of threads and processes
may use one directory; `State.lock_service` lets one service at a time be the one that changes images.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Collection, Final, Iterable, Mapping, Optional, Tuple

from anvil_dr import naming
from anvil_dr.errors import NameCollisionError, StateError
from anvil_dr.model import (
    Activation,
    JobRecord,
    JournalEntry,
    JournalStep,
    Owner,
    Purpose,
    SetRecord,
    SourceDefinition,
)
from anvil_dr.records import job_rows, journal, service_lock, set_rows, spare
from anvil_dr.records.database import Database

log = logging.getLogger(__name__)

JOBS_KEPT = 100
"""Past jobs remembered for each server."""
_FAILURE_CHARACTERS = 2000
_NO_TEXTS: Final[Mapping[str, str]] = MappingProxyType({})


class State:
    """The state directory. Every method raises StateError when the database cannot be used."""

    def __init__(self, directory: str, database: Database) -> None:
        """Use `State.open`."""
        self._directory, self._database = directory, database
        self._lock: Optional[int] = None

    @classmethod
    def open(cls, directory: str, *, readonly: bool = False) -> State:
        """Open or create the state. A damaged database is moved aside, and a new one made from the spare copy.

        `readonly` changes nothing: a database that is missing reads as the spare copy, a damaged one is an error.
        """
        # Who only reads does so again with each question.
        level = logging.INFO if readonly else logging.WARNING
        database = Database(directory, readonly=readonly, fill=lambda it: spare.fill(directory, it, level=level))
        database.prepare()
        return cls(directory, database)

    @classmethod
    def open_spare(cls, directory: str) -> State:
        """What the spare copy says, for reading, whatever the database is. Raise StateError."""
        database = Database(
            directory, readonly=True, fill=lambda it: spare.fill(directory, it, level=logging.INFO), passed_over=True
        )
        database.prepare()
        return cls(directory, database)

    @property
    def database_path(self) -> str:
        """For messages: the file that everything here is kept in."""
        return self._database.path

    @property
    def rebuilt(self) -> Optional[str]:
        """In words, that the database had to be made anew, and from what; None if it was there and whole."""
        if not self._database.is_new:
            return None
        moved_to = self._database.moved_to
        lost = f"The state database was damaged; see {moved_to}." if moved_to else "There was no state database."
        return (
            f"{lost} A new one was made, from its spare copy and the names of the images. What had been begun, and the "
            "history of jobs, is not known any more."
        )

    def check(self) -> None:
        """Raise StateError if the database is damaged anywhere, also where nobody has looked yet."""
        self._database.check()

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
        self._lock = service_lock.take(self._directory)

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
                spare.write(self._directory, connection, {owner.server})
                log.info("image name claimed base=%s server=%s disk=%s", base, owner.server, owner.disk)
                return
            holder = Owner(*connection.execute("SELECT server, disk FROM owners WHERE base = ?", (base,)).fetchone())
        if holder != owner:
            raise NameCollisionError(base, owner.server, owner.disk, holder.server, holder.disk)

    def disclaim(self, owners: Collection[Owner]) -> None:
        """These names belong to nobody any more: there is nothing of them here."""
        if not owners:
            return
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM owners WHERE server = ? AND disk = ?", [(one.server, one.disk) for one in owners]
            )
            spare.write(self._directory, connection, {owner.server for owner in owners})
        log.info("image names given back disks=%d", len(owners))

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
            entry = _insert_plan(connection, server, purpose, planned, record)
        log.info("plan begun server=%s purpose=%s entry=%d steps=%d", server, purpose, entry.id, len(planned))
        return entry

    def finish(self, entry: JournalEntry) -> Optional[JournalEntry]:
        """Every step was taken: in one transaction, forget the plan and remember its set.

        A promotion is followed by the plan to publish its set, which is returned; an older one of that server is void
        then. The set's images no longer belong to the sets that they were in before. Doing it twice changes nothing.
        """
        follower: Optional[JournalEntry] = None
        with self._database.writing() as connection:
            connection.execute("DELETE FROM journal WHERE id = ?", (entry.id,))
            new = entry.record if entry.purpose == "promote" else None
            if new is not None and not set_rows.is_known(connection, new):
                set_rows.remember(connection, new)
                connection.execute("DELETE FROM journal WHERE server = ? AND purpose = 'publish'", (entry.server,))
                follower = _insert_plan(connection, entry.server, "publish", (), new)
                spare.write(self._directory, connection, {entry.server})
        log.info("plan finished server=%s purpose=%s entry=%d", entry.server, entry.purpose, entry.id)
        return follower

    def note_failure(self, entry: JournalEntry, failure: str) -> None:
        """Remember why a plan could not be finished; it stays pending."""
        with self._database.writing() as connection:
            connection.execute("UPDATE journal SET failure = ? WHERE id = ?", (failure[:_FAILURE_CHARACTERS], entry.id))

    def drop(self, entry: JournalEntry) -> None:
        """Forget a plan without finishing it: what the names say now is right."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM journal WHERE id = ?", (entry.id,))
        log.warning("plan dropped server=%s purpose=%s entry=%d", entry.server, entry.purpose, entry.id)

    def pending(self, server: Optional[str] = None) -> Tuple[JournalEntry, ...]:
        """Plans that were begun and not finished, of one server or of all, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT id, server, purpose, steps, record, failure FROM journal"
                " WHERE ?1 IS NULL OR server = ?1 ORDER BY id",
                (server,),
            ).fetchall()
        return tuple(journal.decode_entry(*row) for row in rows)

    def forget_images(self, identities: Iterable[str]) -> None:
        """These images were recycled or removed: they no longer belong to the set that they were in.

        That set is known to lack them from now on; it is forgotten with its last image.
        """
        with self._database.writing() as connection:
            spare.write(self._directory, connection, set_rows.forget(connection, identities))

    def judge_image(self, identity: str, digest: str, at: str, rotten: Optional[str]) -> None:
        """An image was read again at this time: `rotten` says what is wrong with its bytes, None that nothing is.

        Nothing happens if it is not the image with this digest any more.
        """
        with self._database.writing() as connection:
            spare.write(self._directory, connection, set_rows.judge(connection, identity, digest, at, rotten))

    def ran_here(self, identities: Iterable[str], until: str) -> None:
        """A server that was activated ran on these images until then: they are not what was received any more."""
        with self._database.writing() as connection:
            spare.write(self._directory, connection, set_rows.ran_here(connection, identities, until))

    def set_records(self, server: Optional[str] = None) -> Tuple[SetRecord, ...]:
        """Received sets, of one server or of all, oldest first. An image that is gone has the identity ''."""
        with self._database.reading() as connection:
            return set_rows.records(connection, server)

    # — jobs —

    def job_started(self, job: JobRecord) -> None:
        """Remember one server's part of a job. Raise StateError if that id was used for this server before."""
        with self._database.writing() as connection:
            if not job_rows.started(connection, job):
                raise StateError(f"job {job.id} of server {job.server} is known already")

    def job_finished(self, job: JobRecord) -> None:
        """Remember what became of it, and forget the oldest jobs of that server."""
        with self._database.writing() as connection:
            job_rows.finished(connection, job)
            job_rows.prune(connection, JOBS_KEPT)

    def is_at_work(self, server: str) -> bool:
        """True if a job of this server is running."""
        with self._database.reading() as connection:
            return job_rows.is_running(connection, server)

    def last_jobs(self) -> Mapping[str, JobRecord]:
        """The last job of each server, finished or not."""
        with self._database.reading() as connection:
            return job_rows.last(connection)

    def end_running_jobs(self, error: str) -> Tuple[JobRecord, ...]:
        """At the service's start: what was running then has failed, for this reason, unless its set is complete.

        Those jobs, as they are now.
        """
        with self._database.writing() as connection:
            return job_rows.end_running(connection, error, _now())

    def prune(self, jobs_kept: int = JOBS_KEPT) -> None:
        """Forget all but the last jobs of each server; running ones stay."""
        with self._database.writing() as connection:
            job_rows.prune(connection, jobs_kept)

    # — definitions as the nodes have them —

    def keep_source_definition(
        self, server: str, xml: str, left_out: Iterable[str] = (), disks: Mapping[str, str] = _NO_TEXTS
    ) -> None:
        """Remember the definition that the node sent last: to make ours from it, and to tell how that differs."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO definitions (server, xml, left_out, received_at, disks) VALUES (?, ?, ?, ?, ?)",
                (server, xml, journal.encode_texts(left_out), _now(), journal.encode_map(disks)),
            )

    def source_definition(self, server: str) -> Optional[SourceDefinition]:
        """The definition that the node sent last; None if there was none."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT xml, left_out, received_at, disks FROM definitions WHERE server = ?", (server,)
            ).fetchone()
        if row is None:
            return None
        return SourceDefinition(server, row[0], journal.decode_texts(row[1]), row[2], journal.decode_map(row[3]))

    # — servers that run here —

    def activate(self, server: str, sequence: int, user: str, *, leaves: Iterable[str] = ()) -> Activation:
        """Mark a server as activated: its images are live disks from now on.

        `leaves` are the images that it ran on until now, if those are others: they are not what was received any more.
        """
        activation = Activation(server, sequence, _now(), user)
        with self._database.writing() as connection:
            set_rows.ran_here(connection, leaves, activation.since)
            connection.execute(
                "INSERT OR REPLACE INTO activations (server, sequence, since, user) VALUES (?, ?, ?, ?)",
                (server, sequence, activation.since, user),
            )
            spare.write(self._directory, connection, {server})
        log.info("server marked as activated server=%s sequence=%d user=%s", server, sequence, user)
        return activation

    def release(self, server: str) -> bool:
        """Take the mark away: jobs may write its images again. False if there was none."""
        with self._database.writing() as connection:
            done = connection.execute("DELETE FROM activations WHERE server = ?", (server,))
            spare.write(self._directory, connection, {server})
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


def _insert_plan(
    connection: sqlite3.Connection,
    server: str,
    purpose: Purpose,
    steps: Tuple[JournalStep, ...],
    record: Optional[SetRecord],
) -> JournalEntry:
    done = connection.execute(
        "INSERT INTO journal (server, purpose, steps, record) VALUES (?, ?, ?, ?)",
        (server, purpose, journal.encode_steps(steps), journal.encode_record(record)),
    )
    return JournalEntry(int(done.lastrowid or 0), server, purpose, steps, record)
