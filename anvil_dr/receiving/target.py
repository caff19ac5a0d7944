"""What the sessions of one service share: who works on which server, what space is promised, what runs now.

Touches nothing but its own memory; the store, the state and the configuration are only held here.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from anvil_dr.config import Config
from anvil_dr.errors import ServerBusyError, ServiceError
from anvil_dr.model import RunningJob
from anvil_dr.ports import CacheDrives, Store
from anvil_dr.records.state import State


def utc_now() -> str:
    """ISO 8601, whole seconds, UTC: how every time is kept."""
    return datetime.now(timezone.utc).replace(microsecond=0).isoformat()


@dataclass
class JobProgress:
    """One running job as `anvil-dr-status` sees it. Written by its session, read by others."""

    id: str
    node: str
    servers: Tuple[str, ...]
    bytes_total: int
    finished_bytes: int = 0
    current_bytes: Callable[[], int] = field(default=lambda: 0)
    state: str = "running"
    wire_bytes: Callable[[], int] = field(default=lambda: 0)
    disk: str = ""
    began: float = field(default_factory=time.monotonic)

    def snapshot(self) -> RunningJob:
        done = min(self.bytes_total, self.finished_bytes + self.current_bytes())
        seconds = int(time.monotonic() - self.began)
        return RunningJob(
            self.id, self.node, self.servers, self.state, done, self.bytes_total, self.wire_bytes(), seconds, self.disk
        )


class Target:
    """One DR box at work."""

    def __init__(
        self,
        config: Config,
        store: Store,
        state: State,
        *,
        now: Callable[[], str] = utc_now,
        window: int = 16,
        cache_drives: Optional[CacheDrives] = None,
        firmware_bytes: int = 256 << 20,
    ) -> None:
        """`firmware_bytes`: how much firmware state all jobs together hold in memory until their sets are complete."""
        self.config, self.store, self.state, self.now, self.window = config, store, state, now, window
        self.cache_drives = cache_drives
        """None: they are not looked for."""
        self.failing_drives: Set[str] = set()
        """Identities of cache drives that have failed in a job since one was plugged in: the last to be used."""
        self.stopping = threading.Event()
        """Set when what runs without a session is to end soon."""
        self.background: List[threading.Thread] = []
        """What runs without a session."""
        self.names_known = 4096
        """How many disks the state may know the names of."""
        self.firmware_kept_bytes = 4 << 30
        """How much firmware state all sets together may have on disk."""
        self.job_ended: Callable[[], None] = lambda: None
        """Told whenever a job has ended; never waits."""
        self.names = threading.Lock()
        """Held while names are planned and changed, so that two jobs never plan on the same space."""
        self._lock = threading.Lock()
        self._busy: Dict[str, str] = {}
        self._promised: Dict[Tuple[str, str], Mapping[str, int]] = {}
        self._left: Dict[Tuple[str, str], Callable[[], Mapping[str, int]]] = {}
        self._firmware: Dict[Tuple[str, str], int] = {}
        self._firmware_bytes = firmware_bytes
        self._jobs: Dict[str, JobProgress] = {}

    # — one job for a server at a time —

    def occupy(self, server: str, job_id: str) -> None:
        """Raise ServerBusyError if another job has this server."""
        with self._lock:
            holder = self._busy.setdefault(server, job_id)
        if holder != job_id:
            raise ServerBusyError(server, holder)

    def vacate(self, server: str, job_id: str) -> None:
        """The job is done with this server, and with the space it was promised."""
        with self._lock:
            if self._busy.get(server) == job_id:
                del self._busy[server]
            self._promised.pop((job_id, server), None)
            self._left.pop((job_id, server), None)

    def is_busy(self, server: str) -> bool:
        """True if a job has this server now."""
        with self._lock:
            return server in self._busy

    # — space that running jobs will still take —

    def promise(self, job_id: str, server: str, bytes_by_location: Mapping[str, int]) -> None:
        with self._lock:
            self._promised[job_id, server] = bytes_by_location

    def vacate_space(self, job_id: str, server: str) -> None:
        """What was promised has been taken."""
        with self._lock:
            self._promised.pop((job_id, server), None)

    def lower_promise(self, job_id: str, server: str, left: Callable[[], Mapping[str, int]]) -> None:
        """What was promised is being taken: `left` says how much of it is still due, whenever somebody asks."""
        with self._lock:
            if (job_id, server) in self._promised:
                self._left[job_id, server] = left

    def promised(self, *, but: Optional[Tuple[str, str]] = None) -> Mapping[str, int]:
        """Bytes by location, of all jobs and servers `but` one. Raise StoreError."""
        with self._lock:
            others = [(size, self._left.get(key)) for key, size in self._promised.items() if key != but]
        total: Dict[str, int] = {}
        for by_location, left in others:
            due = by_location if left is None else left()
            for location, size in by_location.items():
                total[location] = total.get(location, 0) + min(size, due.get(location, 0))
        return total

    # — firmware state that waits in memory —

    def hold_firmware(self, job_id: str, server: str, size_bytes: int) -> None:
        """Raise ServiceError if that is more than all jobs together may hold."""
        with self._lock:
            if sum(self._firmware.values()) + size_bytes > self._firmware_bytes:
                raise ServiceError(
                    f"server {server}: the DR box is busy with as much firmware state of other jobs as it holds "
                    f"({self._firmware_bytes >> 20} MiB); send it again later"
                )
            self._firmware[job_id, server] = self._firmware.get((job_id, server), 0) + size_bytes

    def drop_firmware(self, job_id: str, server: str) -> None:
        """The job is done with this server's."""
        with self._lock:
            self._firmware.pop((job_id, server), None)

    # — what runs —

    @contextmanager
    def running(self, progress: JobProgress) -> Iterator[JobProgress]:
        with self._lock:
            self._jobs[progress.id] = progress
        try:
            yield progress
        finally:
            with self._lock:
                del self._jobs[progress.id]
            self.job_ended()

    def jobs(self) -> Tuple[RunningJob, ...]:
        with self._lock:
            running = tuple(self._jobs.values())
        return tuple(job.snapshot() for job in running)
