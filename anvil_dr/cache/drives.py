"""ports.CacheDrives on the real machine: looks for the signature, mounts for use, unmounts again.

Touches mounts, below `<runtime>/cache` only, through mount(8) and umount(8). Probes with mounts that change nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Callable, Dict, Iterator, Mapping, Optional, Tuple

from anvil_dr.cache import cache_rules, discovery
from anvil_dr.cache.cache_rules import PROBE_OPTIONS, BlockDevice, StorePlaces
from anvil_dr.errors import CacheDriveError, CommandError
from anvil_dr.model import CacheDrive
from anvil_dr.ports import CommandRunner, Store
from anvil_dr.records import carried_job

log = logging.getLogger(__name__)

StoreIn = Callable[[str, int], Store]
"""Makes a store of ordinary files in a folder, which must be on the file system with this st_dev."""

_LOCK = ".lock"
_UNMOUNT_SECONDS = 300.0
"""What a slow drive may take to write back what is left."""


class UsedDrive:
    """Implements ports.CacheFolder."""

    def __init__(self, drive: CacheDrive, folder: str, number: Tuple[int, int], store_in: StoreIn) -> None:
        self.drive, self.folder = drive, folder
        self._number = number
        self._file_system = os.stat(folder).st_dev
        self.store: Store = store_in(folder, self._file_system)

    def check(self) -> None:
        """Raise CacheDriveError if the drive is gone, or cannot be written to any more."""
        try:
            here, facts = os.stat(self.folder).st_dev, os.statvfs(self.folder)
        except OSError as error:
            raise CacheDriveError(self.drive.device, error.strerror or str(error)) from error
        major, minor = self._number
        if here != self._file_system or not os.path.exists(f"/sys/dev/block/{major}:{minor}"):
            raise CacheDriveError(self.drive.device, "it is gone")
        if facts.f_flag & os.ST_RDONLY:
            raise CacheDriveError(self.drive.device, "it has become read-only")


@dataclass
class _Use:
    """A drive that is in use, by how many."""

    folder: UsedDrive
    ours: bool
    users: int = 0


class RealCacheDrives:
    """Implements ports.CacheDrives. `directory` is where drives are mounted: `<runtime>/cache`."""

    def __init__(
        self, directory: str, signature: str, store: Callable[[], StorePlaces], run: CommandRunner, store_in: StoreIn
    ) -> None:
        self._directory, self._signature, self._run, self._store_in = directory, signature, run, store_in
        self._probe_place = os.path.join(directory, ".probe")
        self._store = store
        self._lock = threading.RLock()
        self._used: Dict[str, _Use] = {}

    def survey(self) -> Tuple[CacheDrive, ...]:
        """Every drive that could be one. Raise CacheDriveError."""
        with self._lock:
            devices, places = self._devices(), self._store()
            candidates = [one for one in devices if cache_rules.refusal(one, places) is None]
            same = cache_rules.twins(candidates)
            return cache_rules.ranked(self._judge(one, places, same) for one in devices)

    @contextmanager
    def use(self, drive: CacheDrive) -> Iterator[UsedDrive]:
        """Mount it if need be, as long as somebody uses it. Raise CacheDriveError."""
        with self._lock:
            used = self._used.get(drive.identity) or self._begin(drive)
            self._used[drive.identity] = used
            used.users += 1
        try:
            yield used.folder
        finally:
            with self._lock:
                used.users -= 1
                if not used.users:
                    del self._used[drive.identity]
                    if used.ours:
                        self._unmount(used.folder.folder)
                        log.info("cache drive unmounted device=%s", drive.device)

    def tidy(self) -> None:
        """At the service's start: unmount what one that died left mounted here. Raise CacheDriveError."""
        try:
            with self._machine_lock():
                for path in discovery.mount_points_below(self._directory):
                    log.warning("cache drive was left mounted path=%s", path)
                    self._unmount(path)
        except OSError as error:
            raise CacheDriveError("of any kind", f"{self._directory}: {error.strerror}") from error

    # — looking —

    def _devices(self) -> Tuple[BlockDevice, ...]:
        """As they are while no process of ours probes one. Raise CacheDriveError.

        A probe holds the lock, so what is on its mount point now was left there by one that was ended.
        """
        if os.geteuid() != 0 or not os.path.isdir(self._directory):
            return discovery.block_devices()
        try:
            with self._machine_lock():
                if self._probe_place in discovery.mount_points_below(self._directory):
                    log.warning("cache drive was left mounted path=%s", self._probe_place)
                    self._unmount(self._probe_place)
                return discovery.block_devices()
        except OSError as error:
            raise CacheDriveError("of any kind", f"{self._directory}: {error.strerror}") from error

    def _judge(self, device: BlockDevice, places: StorePlaces, same: Mapping[str, str]) -> CacheDrive:
        drive = CacheDrive(
            device=device.device,
            mountpoint=None,
            filesystem=device.filesystem,
            size_bytes=device.size_bytes,
            free_bytes=0,
            identity=device.uuid or device.device,
            model=device.model,
            serial=device.serial,
            largest_file_bytes=cache_rules.largest_file_bytes(device.filesystem),
        )
        problem = cache_rules.refusal(device, places)
        if problem is None and device.device in same:
            problem = f"it is the same drive as {same[device.device]}"
        if problem is not None:
            return replace(drive, problem=problem)
        try:
            return self._mounted(drive, device) if device.mounts else self._probed(drive, device.filesystem)
        except CommandError as error:
            return replace(drive, problem=f"it cannot be looked at: {_said(error)}")
        except OSError as error:
            return replace(drive, problem=f"it cannot be looked at: {error.strerror}")

    def _mounted(self, drive: CacheDrive, device: BlockDevice) -> CacheDrive:
        path, reason = cache_rules.usable_mount(device.mounts)
        if path is None:
            whole = next((one.path for one in device.mounts if one.whole and one.reachable), None)
            signed = whole is not None and self._is_signed(whole)
            return replace(drive, mountpoint=device.mounts[0].path, signed=signed, problem=reason)
        found = self._looked_at(replace(drive, mountpoint=path), path)
        if found.problem is None and not os.access(path, os.W_OK | os.X_OK):
            return replace(found, problem=f"nobody here may write to {path}")
        return found

    def _probed(self, drive: CacheDrive, filesystem: str) -> CacheDrive:
        if os.geteuid() != 0:
            return replace(drive, problem="only root can look at it")
        with self._machine_lock():
            # The service may have mounted it while this waited; another mount would then share what it writes.
            if any(discovery.mounts_by_device().get(_number(drive.device), ())):
                return replace(drive, problem="it is being used at this moment")
            options = PROBE_OPTIONS[filesystem] + ",nosuid,nodev,noexec"
            self._mount(drive.device, self._probe_place, filesystem, options)
            try:
                return self._looked_at(drive, self._probe_place)
            finally:
                self._unmount(self._probe_place)

    def _looked_at(self, drive: CacheDrive, path: str) -> CacheDrive:
        facts = os.statvfs(path)
        found = replace(drive, free_bytes=facts.f_bavail * facts.f_frsize, signed=self._is_signed(path))
        if not found.signed:
            return replace(found, problem=f"there is no {self._signature} in its root")
        contents = tuple(sorted(name for name in os.listdir(path) if name.endswith(".raw")))
        return replace(found, contents=contents, carries=carried_job.in_words(path))

    def _is_signed(self, path: str) -> bool:
        return os.path.lexists(os.path.join(path, self._signature))

    # — using —

    def _begin(self, drive: CacheDrive) -> _Use:
        """Raise CacheDriveError."""
        device = next((one for one in self._devices() if one.device == drive.device), None)
        if device is None or (device.uuid or device.device) != drive.identity:
            raise CacheDriveError(drive.device, "it is gone")
        problem = cache_rules.refusal(device, self._store())
        if problem is not None:
            raise CacheDriveError(drive.device, problem)
        try:
            if device.mounts:
                path, reason = cache_rules.usable_mount(device.mounts)
                if path is None:
                    raise CacheDriveError(drive.device, reason)
                ours = path.startswith(self._directory + "/")
            else:
                path, ours = self._mount_for_use(device), True
            if not self._is_signed(path):
                if ours:
                    self._unmount(path)
                raise CacheDriveError(drive.device, f"there is no {self._signature} in its root any more")
            return _Use(UsedDrive(replace(drive, mountpoint=path), path, device.number, self._store_in), ours)
        except CommandError as error:
            raise CacheDriveError(drive.device, f"it cannot be mounted: {_said(error)}") from error
        except OSError as error:
            raise CacheDriveError(drive.device, error.strerror or str(error)) from error

    def _mount_for_use(self, device: BlockDevice) -> str:
        path = os.path.join(self._directory, os.path.basename(device.device))
        with self._machine_lock():
            self._mount(device.device, path, device.filesystem, cache_rules.use_options(device.filesystem))
        mounts = discovery.mounts_by_device().get(device.number, [])
        if not any(mount.path == path and mount.reachable for mount in mounts):
            raise CacheDriveError(device.device, f"it was mounted on {path}, and something else is there")
        log.info(
            "cache drive mounted device=%s path=%s filesystem=%s model=%r serial=%r",
            device.device, path, device.filesystem, device.model, device.serial,
        )  # fmt: skip
        return path

    def _mount(self, device: str, path: str, filesystem: str, options: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        self._run(("mount", "-t", filesystem, "-o", options, "--", device, path))

    def _unmount(self, path: str) -> None:
        try:
            self._run(("umount", "--", path), timeout_seconds=_UNMOUNT_SECONDS)
        except CommandError as error:
            # Somebody looks into it, or the drive is gone: it goes as soon as nobody has it open any more.
            log.warning("cannot be unmounted at once path=%s error=%s", path, error)
            try:
                self._run(("umount", "--lazy", "--", path))
            except CommandError as failed:
                log.error("stays mounted path=%s error=%s", path, failed)
                return
        try:
            os.rmdir(path)
        except OSError as error:
            log.warning("a mount point stays path=%s error=%s", path, error.strerror)

    @contextmanager
    def _machine_lock(self) -> Iterator[None]:
        """One process of ours mounts at a time: a probe in another one would make a drive read-only for us."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(self._directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def store_places(groups: Tuple[str, ...] = (), directory: Optional[str] = None) -> Callable[[], StorePlaces]:
    """What belongs to the store: asked for each time, because its file system may be mounted later."""

    def places() -> StorePlaces:
        if directory is None:
            return StorePlaces(groups=frozenset(groups))
        return StorePlaces(directory=os.path.realpath(directory), device=discovery.device_of_folder(directory))

    return places


def _number(device: str) -> Tuple[int, int]:
    facts = os.stat(device)
    return os.major(facts.st_rdev), os.minor(facts.st_rdev)


def _said(error: CommandError) -> str:
    """mount(8) says `mount: PATH: why.` and where to read more; the why is enough."""
    lines = error.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[0].split(": ", 2)[-1].rstrip(".") if lines else str(error)
