"""What `systemctl status` shows of the jobs that run: one short line, whatever the nodes call things. Pure."""

from __future__ import annotations

from typing import Final, Sequence

from anvil_dr.model import RunningJob
from anvil_dr.words import count, printable

_JOBS: Final = 3
_SERVERS: Final = 2
_NAME_LENGTH: Final = 40
# Even if each character takes 4 bytes, that is far below the 4096 over which systemd drops a message unread.


def jobs_line(jobs: Sequence[RunningJob]) -> str:
    """Some of them with their servers, node and progress, and how many more there are."""
    if not jobs:
        return "Ready, no job is running"
    more = [count(len(jobs) - _JOBS, "more job")] if len(jobs) > _JOBS else []
    return "Receiving " + "; ".join([*map(_job, jobs[:_JOBS]), *more])


def _job(job: RunningJob) -> str:
    share = 100 * job.bytes_done // job.bytes_total if job.bytes_total else 100
    more = f" and {len(job.servers) - _SERVERS} more" if len(job.servers) > _SERVERS else ""
    return f"{', '.join(map(_short, job.servers[:_SERVERS]))}{more} from {_short(job.node)}: {share} %"


def _short(name: str) -> str:
    # A line of its own would be a message of its own to systemd (sd_notify(3)).
    shown = printable(name)
    return shown if len(shown) <= _NAME_LENGTH else shown[: _NAME_LENGTH - 1] + "…"
