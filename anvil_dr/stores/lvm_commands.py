"""LVM's commands, one method each. Touches volume groups through a CommandRunner.

LVM is asked in JSON only (lvmreport(7)); what it says in English is never parsed, only passed on.
"""

from __future__ import annotations

import logging
from typing import Final, Optional, Tuple

from anvil_dr import durable
from anvil_dr.errors import CommandError, StoreError, StoreFullError
from anvil_dr.ports import CommandRunner
from anvil_dr.stores.lvm_report import FULL_REPORT, GROUP_FIELDS, Group, Volume, groups, volumes

log = logging.getLogger(__name__)

_REPORT: Final = ("--reportformat", "json", "--units", "b", "--nosuffix", "--binary")
_SECTOR_BYTES: Final = 512
"""A size given in bytes must be whole sectors; LVM rounds it up to extents."""
_INVALID_COMMAND_LINE: Final = 3
"""LVM's exit code for an option that it does not know (EINVALID_CMD_LINE in its lib/commands/errors.h)."""


class LvmCommands:
    """The volume groups of one store, in the order of the configuration."""

    def __init__(self, group_names: Tuple[str, ...], run: CommandRunner) -> None:
        self.group_names, self._run = group_names, run

    def groups(self) -> Tuple[Group, ...]:
        """The store's groups. Raise StoreError naming what is missing."""
        found, said = self.groups_there()
        there = {group.name: group for group in found}
        for name in self.group_names:
            if name not in there:
                raise StoreError(f"there is no volume group {name}{said}", store=name)
        return tuple(there[name] for name in self.group_names)

    def groups_there(self) -> Tuple[Tuple[Group, ...], str]:
        """Those of the store's groups that LVM finds, and what it says of the others. Raise StoreError."""
        said = ""
        try:
            report = self._run(("vgs", *_REPORT, "-o", GROUP_FIELDS, *self.group_names)).stdout
        except CommandError as error:  # also for a missing group, after reporting the others
            report, said = error.stdout or b'{"report": []}', f" ({error})"
        found = groups(report)
        return tuple(found[name] for name in self.group_names if name in found), said

    def volumes(self) -> Tuple[Volume, ...]:
        """Every visible volume of the store's groups, ours or not. Raise StoreError."""
        try:
            report = self._run(("lvm", "fullreport", *_REPORT, *FULL_REPORT, *self.group_names)).stdout
        except CommandError as error:
            self.groups()  # names the group that is missing, if it is that
            raise StoreError(f"cannot list the volumes: {error}") from error
        return volumes(report)

    def find(self, group: str, name: str) -> Volume:
        """One volume. Raise StoreError if there is none of that name."""
        for volume in self.volumes():
            if (volume.group, volume.name) == (group, name):
                return volume
        raise StoreError(f"there is no volume {group}/{name}", store=group, image=name)

    def create(self, group: str, name: str, size_bytes: int, tags: Tuple[str, ...]) -> Volume:
        """A new, active, linear volume that holds what its extents held before. Raise StoreFullError, StoreError."""
        tagged = tuple(word for tag in tags for word in ("--addtag", tag))
        size = ("--size", f"{-(-max(size_bytes, 1) // _SECTOR_BYTES) * _SECTOR_BYTES}b")
        unwiped = ("--wipesignatures", "n", "--zero", "n")
        try:
            self._run(("lvcreate", "--yes", "--type", "linear", *unwiped, *tagged, *size, "--name", name, group))
        except CommandError as error:
            raise self._too_full(group, size_bytes) or _refusal(group, name, error) from error
        created = self.find(group, name)
        _settle(created)
        return created

    def resize(self, volume: Volume, size_bytes: int) -> Volume:
        """Make it another number of whole extents. Raise StoreFullError, StoreError."""
        wanted_bytes = -(-max(size_bytes, 1) // volume.extent_bytes) * volume.extent_bytes
        if wanted_bytes == volume.size_bytes:  # which lvresize takes for an error
            return volume
        argv = ("lvresize", "--yes", "--force", "--size", f"{wanted_bytes}b", f"{volume.group}/{volume.name}")
        try:
            if wanted_bytes < volume.size_bytes:
                self._shrink(argv)
            else:
                self._run(argv)
        except CommandError as error:
            too_full = self._too_full(volume.group, wanted_bytes - volume.size_bytes)
            raise too_full or _refusal(volume.group, volume.name, error) from error
        _settle(volume)
        return self.find(volume.group, volume.name)

    def rename(self, volume: Volume, name: str) -> Volume:
        """Give it another name in its group. Raise StoreError."""
        self._change(volume, ("lvrename", volume.group, volume.name, name))
        _settle(volume)
        return volume.renamed(name)

    def remove(self, volume: Volume) -> None:
        """Free its extents. Raise StoreError."""
        self._change(volume, ("lvremove", "--yes", f"{volume.group}/{volume.name}"))
        _settle(volume)

    def activate(self, volume: Volume) -> Volume:
        """Give it its device nodes. Raise StoreError."""
        self._change(volume, ("lvchange", "--yes", "--activate", "y", f"{volume.group}/{volume.name}"))
        log.info("activated volume=%s/%s", volume.group, volume.name)
        return self.find(volume.group, volume.name)

    def _change(self, volume: Volume, argv: Tuple[str, ...]) -> None:
        try:
            self._run(argv)
        except CommandError as error:
            raise _refusal(volume.group, volume.name, error) from error

    def _shrink(self, argv: Tuple[str, ...]) -> None:
        """From 2.03.17 on LVM refuses to shrink below a file system that it sees, unless told to ignore it."""
        try:
            self._run((*argv, "--fs", "ignore"))
        except CommandError as error:
            if error.returncode != _INVALID_COMMAND_LINE:
                raise
            self._run(argv)

    def _too_full(self, group_name: str, needed_bytes: int) -> Optional[StoreFullError]:
        """Why LVM refused, if it is that there are too few free extents."""
        for group in self.groups():
            rounded_bytes = -(-needed_bytes // group.extent_bytes) * group.extent_bytes
            if group.name == group_name and rounded_bytes > group.free_bytes:
                return StoreFullError(rounded_bytes, group.free_bytes, f"volume group {group_name}")
        return None


def _settle(volume: Volume) -> None:
    """Put what LVM has written about a volume's group on stable storage, on each of its drives.

    LVM writes past the page cache, but not past the drives' own: a power cut right after it has said that a
    volume is renamed undoes that (seen with lvm2 2.03.16).
    """
    for drive in volume.drives:
        try:
            durable.sync_device(drive)
        except OSError as error:
            why = f"volume group {volume.group}: cannot flush {drive}: {error.strerror}"
            raise StoreError(why, store=volume.group) from error


def _refusal(group: str, name: str, error: CommandError) -> StoreError:
    return StoreError(str(error), store=group, image=name)
