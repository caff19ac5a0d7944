"""The rows of jobs in the state database, and how many are kept. Touches only the connection that it is given."""

from __future__ import annotations

import sqlite3
from dataclasses import astuple, replace
from typing import Any, Mapping, Tuple

from anvil_dr.model import JobRecord

_TEXT_CHARACTERS = 2000
_KEPT_IN_ALL = 100_000

_INSERT = (
    "INSERT INTO jobs (id, server, node, state, started_at, finished_at, error, wire_bytes, written_bytes)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, server) "
)


def started(connection: sqlite3.Connection, job: JobRecord) -> bool:
    """Remember one server's part of a job. False if that id was used for this server before."""
    return bool(connection.execute(_INSERT + "DO NOTHING", _row(job)).rowcount)


def finished(connection: sqlite3.Connection, job: JobRecord) -> None:
    """Remember what became of it."""
    connection.execute(
        _INSERT + "DO UPDATE SET state = excluded.state,"
        " finished_at = excluded.finished_at, error = excluded.error, wire_bytes = excluded.wire_bytes,"
        " written_bytes = excluded.written_bytes",
        _row(job),
    )


def is_running(connection: sqlite3.Connection, server: str) -> bool:
    """True if a job of this server is."""
    found = connection.execute("SELECT 1 FROM jobs WHERE server = ? AND state = 'running'", (server,))
    return found.fetchone() is not None


def last(connection: sqlite3.Connection) -> Mapping[str, JobRecord]:
    """The last job of each server, finished or not."""
    rows = connection.execute(
        "SELECT * FROM jobs WHERE number IN (SELECT max(number) FROM jobs GROUP BY server) ORDER BY server"
    ).fetchall()
    return {job.server: job for job in map(_job, rows)}


def end_running(connection: sqlite3.Connection, error: str, at: str) -> Tuple[JobRecord, ...]:
    """Jobs that are running have failed, for this reason, unless their set is complete. Those, as they are now."""
    running = connection.execute("SELECT number FROM jobs WHERE state = 'running' ORDER BY number").fetchall()
    connection.execute(
        "UPDATE jobs SET finished_at = ?, state = 'failed', error = ? WHERE state = 'running'", (at, error)
    )
    connection.executemany(
        "UPDATE jobs SET state = 'succeeded', error = NULL WHERE number = ? AND EXISTS"
        " (SELECT 1 FROM sets WHERE sets.job_id = jobs.id AND sets.server = jobs.server)",
        running,
    )
    rows = [connection.execute("SELECT * FROM jobs WHERE number = ?", row).fetchone() for row in running]
    return tuple(_job(row) for row in rows)


def prune(connection: sqlite3.Connection, kept: int) -> None:
    """Forget all but so many of each server; running ones stay."""
    connection.execute(
        "DELETE FROM jobs WHERE state <> 'running' AND number NOT IN (SELECT number FROM (SELECT number,"
        " row_number() OVER (PARTITION BY server ORDER BY number DESC) AS place FROM jobs) WHERE place <= ?)",
        (kept,),
    )
    # A key that may send any server could otherwise fill the disk with jobs of servers that it made up.
    connection.execute(
        "DELETE FROM jobs WHERE state <> 'running' AND number <= (SELECT max(number) FROM jobs) - ?",
        (_KEPT_IN_ALL,),
    )


def _job(row: Tuple[Any, ...]) -> JobRecord:
    # The columns of the table are the fields, in order, behind the row's number.
    return JobRecord(*row[1:])


def _row(job: JobRecord) -> Tuple[Any, ...]:
    # These two are a node's words, which can be megabytes long.
    error = None if job.error is None else job.error[:_TEXT_CHARACTERS]
    return astuple(replace(job, node=job.node[:_TEXT_CHARACTERS], error=error))
