"""One job onto a drive, on the node: for a first copy that goes by car, not over the wire.

Touches the root of the drive, and through ports the source disks. The drive gets the images as ordinary sparse files,
and then its record. A server is off the record for as long as its images are written. What lies there of an earlier
job is written over where it differs.
"""

from __future__ import annotations

import logging
import os
import shlex
import threading
import uuid
from contextlib import ExitStack
from typing import Callable, Dict, List, Tuple

from anvil_dr import naming
from anvil_dr.caching.difference import Difference, scan
from anvil_dr.errors import AnvilDrError, DriveRefusedError, JobInterruptedError, NameCollisionError, StoreError
from anvil_dr.model import INCOMPLETE, Owner, StoredImage
from anvil_dr.ports import Store
from anvil_dr.records import carried_job
from anvil_dr.records.carried_job import CarriedDisk, CarriedJob, CarriedServer
from anvil_dr.sending.job import (
    JobOutcome,
    Observer,
    OutgoingDisk,
    OutgoingServer,
    ServerOutcome,
    Source,
    check_unchanged,
)
from anvil_dr.wire import digest
from anvil_dr.wire.protocol import JobPlan, ServerDone, ServerPlan

log = logging.getLogger(__name__)

SIGNATURE = ".dr_cache"
"""What the DR box knows a drive of its by, unless its configuration says otherwise."""

StoreIn = Callable[[str, Callable[[], Tuple[Owner, ...]]], Store]
"""Images as ordinary files in a folder, of these owners."""


class DriveSender:
    """The node's side, without a DR box at the other end."""

    def __init__(
        self,
        folder: str,
        store_in: StoreIn,
        *,
        node: str,
        observer: Observer,
        now: Callable[[], str],
        signature: str = SIGNATURE,
    ) -> None:
        self._folder, self._node, self._observer, self._now = folder, node, observer, now
        self._signature = signature
        self._owners: Tuple[Owner, ...] = ()
        self._store = store_in(folder, lambda: self._owners)
        self._interrupted = threading.Event()

    def interrupt(self) -> None:
        """Make `run` end with JobInterruptedError for the server that is being written."""
        self._interrupted.set()

    def run(self, name: str, servers: Tuple[OutgoingServer, ...]) -> JobOutcome:
        """Write the servers one after the other. Raise StoreError if the drive cannot be used at all, ProtocolError if
        its record cannot be understood."""
        if not os.path.lexists(os.path.join(self._folder, self._signature)):
            raise DriveRefusedError(
                f"{self._folder} is no drive for the DR box: there is no {self._signature} in it. Is it mounted? "
                f"To make it one: touch {os.path.join(self._folder, self._signature)}"
            )
        self._store.check()
        self._job = carried_job.read(self._folder) or CarriedJob()
        job_id = f"{self._now()[:19].replace(':', '').replace('-', '')}-{uuid.uuid4().hex[:8]}"
        log.info("job begun job=%s name=%r drive=%s", job_id, name, self._folder)
        self._observer.job_planned(JobPlan(job_id, tuple(ServerPlan(server.name) for server in servers)))
        outcomes = tuple(self._one(server, job_id) for server in servers)
        return JobOutcome(job_id, outcomes, 0)

    def _one(self, server: OutgoingServer, job_id: str) -> ServerOutcome:
        self._observer.server_begun(server.name)
        try:
            self._go_on()
            outcome = ServerOutcome(server.name, None, self._write(server, job_id))
        except AnvilDrError as error:
            log.warning("server failed server=%s code=%s error=%s", server.name, error.code, error)
            outcome = ServerOutcome(server.name, error)
        except OSError as error:
            failed = StoreError(f"{self._folder}: {error.strerror}", store=self._folder)
            log.warning("server failed server=%s error=%s", server.name, failed)
            outcome = ServerOutcome(server.name, failed)
        self._observer.server_ended(outcome)
        return outcome

    def _write(self, server: OutgoingServer, job_id: str) -> ServerDone:
        self._check_names(server)
        others = tuple(one for one in self._job.servers if one.name != server.name)
        if len(others) < len(self._job.servers):
            self._record(others)
        else:
            self._refuse_what_waits(server.name)
        with ExitStack() as opened:
            images = {disk.name: self._begin(server, disk) for disk in server.disks}
            opened.enter_context(server.keep_off())
            firmware = server.firmware_now()
            sources: List[Tuple[OutgoingDisk, Source]] = []
            for disk in server.disks:
                sources.append((disk, disk.open()))
                opened.callback(sources[-1][1].close)
            disks, written_bytes = [], 0
            for disk, source in sources:
                carried, written = self._disk(server.name, disk, source, images[disk.name])
                disks.append(carried)
                written_bytes += written
                check_unchanged(sources)
        for image in images.values():
            self._store.rename(image, 1)
        at = self._now()
        carried_server = CarriedServer(
            server.name, job_id, self._node, at, server.definition, tuple(disks), server.left_out,
            carried_job.firmware_of(firmware),
        )  # fmt: skip
        self._record((*others, carried_server))
        log.info("server is on the drive server=%s job=%s written_bytes=%d", server.name, job_id, written_bytes)
        return ServerDone(server.name, at, 0, written_bytes, "", False)

    def _refuse_what_waits(self, server: str) -> None:
        """A drive that was pulled from a DR box as its cache may have the only complete set of a server.

        What we began and did not end has at least one incomplete image. Raise StoreError, DriveRefusedError.
        """
        there = self._store.images(server)
        complete = [image.path for image in there if image.sequence == 1]
        if complete and len(complete) == len(there):
            raise DriveRefusedError(
                f"{complete[0]} is complete and not on the drive's record, so a DR box may wait for it: plug the drive "
                f"in there first, until anvil-dr-status names no set that waits on it; if nobody needs it: "
                f"rm {shlex.join(complete)}",
                store=self._folder,
            )

    def _check_names(self, server: OutgoingServer) -> None:
        """Raise ImageNameError, NameCollisionError."""
        naming.check_server_name(server.name)
        others = [Owner(one.name, disk.name) for one in self._job.servers for disk in one.disks]
        own = [Owner(server.name, disk.name) for disk in server.disks]
        for owner in own:
            naming.check_disk_name(owner.disk)
            holder = naming.find_collision(owner, (*others, *own))
            if holder is not None:
                raise NameCollisionError(
                    naming.image_base(owner), owner.server, owner.disk, holder.server, holder.disk
                )
        self._owners = tuple(own)

    def _begin(self, server: OutgoingServer, disk: OutgoingDisk) -> StoredImage:
        """The file to write: what is there of an earlier job, or a new one. Raise StoreError, StoreFullError."""
        owner = Owner(server.name, disk.name)
        there = {image.sequence: image for image in self._store.images(server.name) if image.owner == owner}
        image = there.get(INCOMPLETE)
        if image is not None and 1 in there:
            self._store.remove(there[1])
        elif image is None and 1 in there:
            image = self._store.rename(there[1], INCOMPLETE)
        if image is None:
            place = self._store.locations()[0].name
            return self._store.create(owner, disk.size_bytes, place, data_bytes=disk.data_bytes)
        if image.size_bytes != disk.size_bytes:
            return self._store.resize(image, disk.size_bytes, data_bytes=disk.data_bytes)
        return image

    def _disk(
        self, server: str, disk: OutgoingDisk, source: Source, image: StoredImage
    ) -> Tuple[CarriedDisk, int]:
        self._observer.disk_begun(server, disk.name, disk.size_bytes)
        opened = self._store.open(image, writable=True)
        done: Dict[str, int] = {"bytes": 0}

        def advanced(length_bytes: int) -> None:
            done["bytes"] += length_bytes
            self._observer.disk_advanced(server, disk.name, done["bytes"], 0)
            self._go_on()

        try:
            difference = Difference(source, opened)
            found = scan(source, disk.size_bytes, digest.digester(carried_job.DIGEST), advanced, difference)
            opened.flush()
        finally:
            opened.close()
        self._observer.disk_done(server, disk.name, difference.written_bytes, 0)
        carried = CarriedDisk(disk.name, disk.path, disk.size_bytes, found, disk.data_bytes)
        return carried, difference.written_bytes

    def _go_on(self) -> None:
        if self._interrupted.is_set():
            raise JobInterruptedError("a signal")

    def _record(self, servers: Tuple[CarriedServer, ...]) -> None:
        self._job = CarriedJob(servers=servers)
        carried_job.write(self._folder, self._job)
