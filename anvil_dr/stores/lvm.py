"""A store of logical volumes in one or more volume groups. Touches LVM and the volumes' device nodes.

Tags say whose a volume is, so ownership lies in the group itself and survives renames and the loss of the state
database. Every volume has the same path whatever its group, by the link that our udev rule makes (SPEC section 4).
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import Dict, Final, Iterable, List, Literal, Optional, Tuple

from anvil_dr import naming
from anvil_dr.errors import ImageInUseError, StoreError
from anvil_dr.model import INCOMPLETE, Location, Owner, Sequence, StoredImage
from anvil_dr.ports import CommandRunner
from anvil_dr.stores import openers
from anvil_dr.stores.lvm_commands import LvmCommands
from anvil_dr.stores.lvm_report import Volume
from anvil_dr.stores.open_image import BlockImage, block_size_bytes

log = logging.getLogger(__name__)

# The characters of LVM's names are all allowed in its tags (lvm(8), TAGS).
_TAG: Final = "anvil-dr"
_SERVER_TAG: Final = "anvil-dr.server="
_DISK_TAG: Final = "anvil-dr.disk="

_PASSING_SECONDS: Final = 10.0
"""How long udev's probing of a volume, on a busy machine, may take before it counts as use."""
_POLL_SECONDS: Final = 0.05


class LvmStore:
    """Implements ports.Store over volume groups, in the order of the configuration."""

    def __init__(
        self,
        group_names: Tuple[str, ...],
        run: CommandRunner,
        *,
        devices: str = "/dev",
        link_timeout_seconds: float = 15.0,
    ) -> None:
        self._lvm, self._run, self._devices = LvmCommands(group_names, run), run, devices
        self._link_timeout_seconds = link_timeout_seconds

    @property
    def kind(self) -> Literal["fs", "lvm"]:
        return "lvm"

    def check(self) -> None:
        """Make every image ready to be opened. Raise StoreError if a group is missing, damaged or read-only.

        After a boot without auto-activation the volumes have no device nodes, so that `virsh create` would find
        none: they are activated here.
        """
        for group in self._lvm.groups():
            if group.problem:
                raise StoreError(f"volume group {group.name}: {group.problem}", store=group.name)
        for volume in self._lvm.volumes():
            image = self._image(volume)
            if image is not None:
                self._wait_for_links(self._activated(volume), image.sequence)

    def in_reach(self) -> Tuple[LvmStore, Tuple[str, ...]]:
        """This store without the groups that are missing, its images made ready, and what is wrong, in words.

        For the day on which a drive has died and the servers on the others are wanted. Raise StoreError if LVM
        cannot be asked.
        """
        groups, said = self._lvm.groups_there()
        there = {group.name: group for group in groups}
        wrong = [f"there is no volume group {name}{said}" for name in self._lvm.group_names if name not in there]
        wrong += [f"volume group {group.name}: {group.problem}" for group in groups if group.problem]
        if not there:
            raise StoreError("; ".join(wrong))
        seconds = self._link_timeout_seconds
        store = LvmStore(tuple(there), self._run, devices=self._devices, link_timeout_seconds=seconds)
        return store, (*wrong, *store.make_ready())

    def make_ready(self) -> Tuple[str, ...]:
        """Activate every image that can be; in words, which could not and why. Raise StoreError.

        A link that does not come is waited for once. Without our udev rule none comes, and time is short.
        """
        wrong: List[str] = []
        missing_links: List[str] = []
        for volume in self._lvm.volumes():
            image = self._image(volume)
            if image is None:
                continue
            try:
                activated = self._activated(volume)
            except StoreError as error:
                wrong.append(str(error))
                continue
            try:
                self._wait_for_links(activated, image.sequence, 0.0 if missing_links else None)
            except StoreError as error:
                missing_links.append(str(error))
        more = f" (and {len(missing_links) - 1} more)" if len(missing_links) > 1 else ""
        return (*wrong, *(text + more for text in missing_links[:1]))

    def locations(self) -> Tuple[Location, ...]:
        """The groups. Raise StoreError."""
        return tuple(
            Location(group.name, group.size_bytes, group.free_bytes, group.extent_bytes)
            for group in self._lvm.groups()
        )

    def images(self, server: Optional[str] = None) -> Tuple[StoredImage, ...]:
        """Every volume with our tags whose name is one of its owner's, or of this server's. Raise StoreError.

        After a crash in the middle of a replacement there can be two incomplete images of one owner, in two groups.
        """
        found = (self._image(volume) for volume in self._lvm.volumes())
        return tuple(image for image in found if image is not None and server in (None, image.owner.server))

    def path(self, owner: Owner, sequence: Sequence) -> str:
        """The link that our udev rule makes. No I/O."""
        return self._link(naming.image_name(owner, sequence))

    def create(
        self, owner: Owner, size_bytes: int, location: str, *, data_bytes: Optional[int] = None
    ) -> StoredImage:
        """A new volume, not wiped, for an incomplete image. Raise StoreFullError, StoreError, ImageNameError.

        An incomplete image of the same owner may be in another group meanwhile: the one that this one replaces.
        """
        naming.check_server_name(owner.server)
        naming.check_disk_name(owner.disk)
        if location not in self._lvm.group_names:
            raise StoreError(f"volume group {location} is not one of this store's", store=location)
        name = naming.image_name(owner, INCOMPLETE)
        self._refuse_taken(self._lvm.volumes(), name, location, owner, INCOMPLETE)
        tags = (_TAG, _SERVER_TAG + owner.server, _DISK_TAG + owner.disk)
        volume = self._lvm.create(location, name, size_bytes, tags)
        self._wait_for_links(volume, INCOMPLETE)
        image = self._stored(volume, owner, INCOMPLETE)
        _log("created", image, f"size_bytes={image.size_bytes}")
        return image

    def resize(self, image: StoredImage, size_bytes: int, *, data_bytes: Optional[int] = None) -> StoredImage:
        """Grow or shrink in its group, to whole extents. Raise ImageInUseError, StoreFullError, StoreError."""
        volume = _current(self._lvm.volumes(), image)
        self._refuse_use(volume)
        resized = self._stored(self._lvm.resize(volume, size_bytes), image.owner, image.sequence)
        _log("resized", resized, f"size_bytes={resized.size_bytes}")
        return resized

    def rename(self, image: StoredImage, sequence: Sequence) -> StoredImage:
        """Give it another sequence. Raise StoreError if any group of the store has a volume of that name."""
        volumes = self._lvm.volumes()
        volume = _current(volumes, image)
        name = naming.image_name(image.owner, sequence)
        self._refuse_taken(volumes, name, volume.group, image.owner, sequence)
        renamed = self._lvm.rename(volume, name)
        if renamed.active:
            self._wait_for_links(renamed, sequence)
        _log("renamed", image, f"to={sequence}")
        return self._stored(renamed, image.owner, sequence)

    def remove(self, image: StoredImage) -> None:
        """Free the volume's extents. Raise ImageInUseError, StoreError."""
        volume = _current(self._lvm.volumes(), image)
        self._refuse_use(volume)
        self._lvm.remove(volume)
        _log("removed", image, f"size_bytes={image.size_bytes}")

    def open(self, image: StoredImage, *, writable: bool) -> BlockImage:
        """Open its bytes; a writable one exclusively, which keeps mounts and other jobs off, though not QEMU.

        Raise ImageInUseError, StoreError.
        """
        volume = self._activated(_current(self._lvm.volumes(), image))
        if writable:
            self._refuse_use(volume)
        path = self._node(volume)
        try:
            fd = os.open(path, (os.O_RDWR | os.O_EXCL if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:  # open(2) says what O_EXCL means for a block device
                raise ImageInUseError(volume.name, self._user(volume) or "this program") from error
            raise self._failure(volume, error) from error
        try:
            if os.fstat(fd).st_rdev != volume.device:
                raise StoreError(f"{path} is not the volume that it should be", store=volume.group, image=volume.name)
            return BlockImage(fd, path, block_size_bytes(fd))
        except OSError as error:
            os.close(fd)
            raise self._failure(volume, error) from error
        except StoreError:
            os.close(fd)
            raise

    def users(self, images: Iterable[StoredImage]) -> Dict[StoredImage, str]:
        """Who else has them open: a process, a mount, a device on top, a snapshot. Raise StoreError."""
        volumes = self._lvm.volumes()
        found = ((image, self._user(_current(volumes, image))) for image in images)
        return {image: user for image, user in found if user is not None}

    def is_known_zero(self, image: StoredImage) -> bool:
        """Never: a new volume holds what its extents held before."""
        return False

    def _image(self, volume: Volume) -> Optional[StoredImage]:
        """The image that a volume is; None if it is not one of ours."""
        if _TAG not in volume.tags:
            return None
        servers, disks = _tagged(volume, _SERVER_TAG), _tagged(volume, _DISK_TAG)
        parsed = naming.parse_image_name(volume.name)
        if len(servers) == len(disks) == 1 and parsed is not None:
            owner, sequence = Owner(servers[0], disks[0]), parsed[1]
            if naming.image_name(owner, sequence) == volume.name:
                return self._stored(volume, owner, sequence)
        log.warning("not an image, ignored: volume=%s/%s tags=%s", volume.group, volume.name, sorted(volume.tags))
        return None

    def _stored(self, volume: Volume, owner: Owner, sequence: Sequence) -> StoredImage:
        return StoredImage(owner, sequence, volume.group, _identity(volume), volume.size_bytes, self._node(volume))

    def _node(self, volume: Volume) -> str:
        return f"{self._devices}/{volume.group}/{volume.name}"

    def _link(self, name: str) -> str:
        return f"{self._devices}/anvil-dr/{name}"

    def _refuse_taken(
        self, volumes: Iterable[Volume], name: str, group: str, owner: Owner, sequence: Sequence
    ) -> None:
        for volume in volumes:
            if volume.name != name:
                continue
            image = self._image(volume)
            if image is not None and image.owner == owner and sequence == INCOMPLETE and volume.group != group:
                continue
            why = "exists already" if image is not None else "is in the way, and it is not one of our images"
            raise StoreError(f"volume {volume.group}/{name} {why}", store=volume.group, image=name)

    def _refuse_use(self, volume: Volume) -> None:
        user = self._user(volume)
        if user is not None:
            raise ImageInUseError(volume.name, user)

    def _user(self, volume: Volume) -> Optional[str]:
        if volume.has_snapshots:
            return "a snapshot of it"
        deadline = time.monotonic() + _PASSING_SECONDS
        while volume.open and volume.device is not None:
            found = openers.of_block_device(volume.device)
            staying = [opener for opener in found if not opener.passing and not opener.harmless]
            if staying:
                return staying[0].words
            if any(opener.harmless for opener in found):
                return None
            if openers.is_block_device_open_here(volume.device):
                return None
            if time.monotonic() > deadline:
                return found[0].words if found else "the kernel, or a program that cannot be seen from here"
            time.sleep(_POLL_SECONDS)
            volume = self._lvm.find(volume.group, volume.name)
        return None

    def _activated(self, volume: Volume) -> Volume:
        return volume if volume.active else self._lvm.activate(volume)

    def _wait_for_links(self, volume: Volume, sequence: Sequence, timeout_seconds: Optional[float] = None) -> None:
        """Wait until udev has made the node of this volume and our link to it. Raise StoreError.

        The link of an incomplete image may lead to the one of the same name in another group, for a while: no
        definition says it. A link that doesn't come means that our udev rule is not installed.
        """
        link = self._link(volume.name)
        deadline = time.monotonic() + (self._link_timeout_seconds if timeout_seconds is None else timeout_seconds)
        while True:
            leads_to = _device_at(link)
            right = leads_to is not None if sequence == INCOMPLETE else leads_to == volume.device
            if right and _device_at(self._node(volume)) == volume.device:
                return
            if time.monotonic() > deadline:
                raise StoreError(
                    f"udev has not made {link} lead to volume {volume.group}/{volume.name}: "
                    "is the udev rule of anvil-dr installed, and triggered since?",
                    store=volume.group,
                    image=volume.name,
                )
            time.sleep(_POLL_SECONDS)

    def _failure(self, volume: Volume, error: OSError) -> StoreError:
        reason = error.strerror or str(error)
        return StoreError(f"cannot open {self._node(volume)}: {reason}", store=volume.group, image=volume.name)


def _current(volumes: Iterable[Volume], image: StoredImage) -> Volume:
    """The volume that an image is now. Raise StoreError if it is gone, renamed, or another one has its name."""
    name = naming.image_name(image.owner, image.sequence)
    for volume in volumes:
        if (volume.group, volume.name, _identity(volume)) == (image.location, name, image.identity):
            return volume
    where = f"{image.location}/{name}"
    raise StoreError(f"volume {where} is gone, or not the image it was", store=image.location, image=name)


def _identity(volume: Volume) -> str:
    return f"lv:{volume.uuid}"


def _tagged(volume: Volume, prefix: str) -> List[str]:
    return [tag[len(prefix) :] for tag in volume.tags if tag.startswith(prefix)]


def _device_at(path: str) -> Optional[int]:
    """The device that a path leads to; None while there is none."""
    try:
        return os.stat(path).st_rdev
    except OSError:
        return None


def _log(what: str, image: StoredImage, detail: str) -> None:
    log.info(
        "%s server=%s disk=%s sequence=%s group=%s %s",
        what, image.owner.server, image.owner.disk, image.sequence, image.location, detail,
    )  # fmt: skip
