"""The SQLite file below the state: how it is opened, made durable, created, and moved aside when it is damaged.

Nobody else opens a connection. Each transaction has one of its own, so threads and processes need no more
care than SQLite takes by itself, and a database that was replaced is never written to by an old handle.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import urllib.parse
from datetime import datetime, timezone
from typing import Callable, Iterator, Optional, Tuple

from anvil_dr import durable
from anvil_dr.errors import StateError

log = logging.getLogger(__name__)

FILE_NAME = "state.sqlite"
_SCHEMA_VERSION = 1
_BUSY_SECONDS = 30.0

# What SQLite says of a file that no later attempt will be able to read (SQLITE_CORRUPT, SQLITE_NOTADB).
_DAMAGE = ("malformed", "not a database")

_SCHEMA: Tuple[str, ...] = (
    "CREATE TABLE owners (base TEXT PRIMARY KEY, server TEXT NOT NULL, disk TEXT NOT NULL)",
    "CREATE TABLE journal (id INTEGER PRIMARY KEY AUTOINCREMENT, server TEXT NOT NULL, purpose TEXT NOT NULL,"
    " steps TEXT NOT NULL, record TEXT, failure TEXT)",
    "CREATE TABLE sets (id INTEGER PRIMARY KEY AUTOINCREMENT, server TEXT NOT NULL, received_at TEXT NOT NULL,"
    " source TEXT NOT NULL, job_id TEXT NOT NULL, ran_here_until TEXT)",
    # An image that is gone keeps its row, with no identity: its set is known to lack it.
    "CREATE TABLE images (set_id INTEGER NOT NULL REFERENCES sets(id) ON DELETE CASCADE, disk TEXT NOT NULL,"
    " identity TEXT NOT NULL, size_bytes INTEGER NOT NULL, digest TEXT NOT NULL, verified_at TEXT, rotten TEXT,"
    " PRIMARY KEY (set_id, disk))",
    "CREATE UNIQUE INDEX images_identity ON images (identity) WHERE identity <> ''",
    "CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, server TEXT NOT NULL,"
    " node TEXT NOT NULL, state TEXT NOT NULL, started_at TEXT NOT NULL, finished_at TEXT, error TEXT,"
    " wire_bytes INTEGER NOT NULL, written_bytes INTEGER NOT NULL, UNIQUE (id, server))",
    "CREATE INDEX jobs_server ON jobs (server, number)",
    "CREATE TABLE definitions (server TEXT PRIMARY KEY, xml TEXT NOT NULL, left_out TEXT NOT NULL,"
    " received_at TEXT NOT NULL, disks TEXT NOT NULL)",
    "CREATE TABLE activations (server TEXT PRIMARY KEY, sequence INTEGER NOT NULL, since TEXT NOT NULL,"
    " user TEXT NOT NULL)",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)


class Database:
    """One database file. Every error of SQLite or of the file system leaves as StateError."""

    def __init__(
        self, directory: str, *, readonly: bool, fill: Callable[[sqlite3.Connection], None] = lambda connection: None,
        passed_over: bool = False,
    ) -> None:  # fmt: skip
        """`fill` puts into an empty database what is known from elsewhere, in the transaction that makes it.

        `passed_over`, only for reading: as if there were no file.
        """
        self.path = os.path.join(directory, FILE_NAME)
        self._directory, self._readonly, self._fill = directory, readonly, fill
        self._passed_over = passed_over
        self.is_new = False
        """True if it was made now: there was none, or it was damaged."""
        self.moved_to: Optional[str] = None
        """Where the damaged one lies."""

    def prepare(self) -> None:
        """Create what is missing; move aside what is damaged and start anew. Raise StateError.

        A read-only database is left as it is, whatever it is.
        """
        with self._errors():
            if self._readonly:
                self._connect().close()
                return
            _make_directory(self._directory)
            with _exclusive(self._directory):
                if os.path.exists(self.path) and self._is_damaged():
                    self._move_aside()
                self._connect().close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view. Raise StateError."""
        with self._errors(), contextlib.closing(self._connect()) as connection:
            connection.execute("BEGIN")
            yield connection

    def check(self) -> None:
        """Raise StateError if it is damaged anywhere, also where nobody has looked yet."""
        with self.reading() as connection:
            said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if said != "ok":
            raise StateError(f"state database {self.path}: it is damaged: {said.splitlines()[-1]}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on stable storage when the block is left, undone if it raises. Raise StateError."""
        if self._readonly:
            raise StateError(f"{self.path}: opened for reading only")
        with self._errors(), contextlib.closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(f"state database {self.path}: {error}") from error
        except OSError as error:
            raise StateError(f"state database {self.path}: {error.strerror or error}") from error
        except (UnicodeEncodeError, OverflowError) as error:
            # A lone surrogate, or a number that takes more than 64 bits: only a peer makes up such values.
            raise StateError(f"state database {self.path}: a value cannot be kept: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        if self._readonly:
            return self._connect_readonly()
        # SQLite would create it readable by everyone, and definitions can hold passwords. O_EXCL also keeps us
        # from opening and closing a file that SQLite has locked: that would drop the locks (fcntl(2)).
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            durable.sync_directory(self._directory)
        connection = self._attach("rw")
        try:
            # EXTRA is FULL that also syncs the directory when the rollback journal is deleted. Without that, a
            # power cut soon after a commit can bring the journal back and undo it (sqlite.org/pragma.html).
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("PRAGMA foreign_keys = ON")
            if not self._version(connection):
                self._create(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_readonly(self) -> sqlite3.Connection:
        try:
            empty = self._passed_over or os.stat(self.path).st_size == 0
        except FileNotFoundError:
            empty = True
        if not empty:
            # After a crash, the first reader must roll the journal back, which takes write access where there is.
            writable = os.access(self.path, os.W_OK) and os.access(self._directory, os.W_OK)
            connection = self._attach("rw" if writable else "ro")
            try:
                connection.execute("PRAGMA query_only = ON")
                if self._version(connection):
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()
        connection = sqlite3.connect(":memory:", isolation_level=None)
        for statement in _SCHEMA:
            connection.execute(statement)
        self._fill(connection)
        return connection

    def _attach(self, mode: str) -> sqlite3.Connection:
        uri = f"file:{urllib.parse.quote(self.path)}?mode={mode}"
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)

    def _version(self, connection: sqlite3.Connection) -> int:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > _SCHEMA_VERSION:
            raise StateError(f"state database {self.path}: made by a newer version of anvil-dr ({version})")
        return version

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if not self._version(connection):
            for statement in _SCHEMA:
                connection.execute(statement)
            self._fill(connection)
            self.is_new = True
            log.info("state database created path=%s", self.path)
        connection.execute("COMMIT")

    def _is_damaged(self) -> bool:
        try:
            with contextlib.closing(self._attach("rw")) as connection:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
        except sqlite3.DatabaseError as error:
            if any(word in str(error) for word in _DAMAGE):
                return True
            raise

    def _move_aside(self) -> None:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = f"{FILE_NAME}.damaged-{stamp}"
        # The database first: SQLite discards a journal that has no database. Kept under the name that belongs to
        # the moved file, because together they may be repairable.
        durable.rename_exclusively(self._directory, FILE_NAME, aside)
        with contextlib.suppress(FileNotFoundError):
            durable.rename_exclusively(self._directory, f"{FILE_NAME}-journal", f"{aside}-journal")
        self.moved_to = os.path.join(self._directory, aside)
        log.warning(
            "state database damaged; moved aside, a new one is made path=%s kept_as=%s lost=journal,job-history",
            self.path,
            os.path.join(self._directory, aside),
        )


def _make_directory(path: str) -> None:
    if not os.path.isdir(path):
        os.makedirs(path, mode=0o700, exist_ok=True)
        durable.sync_directory(os.path.dirname(path))


@contextlib.contextmanager
def _exclusive(directory: str) -> Iterator[None]:
    """Keep other processes from repairing the same directory meanwhile (flock(2) works on directories)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
