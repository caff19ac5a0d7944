"""What LVM's JSON reports say, as values. Pure: text in, values out.

Fields and their meaning: `lvs -o help`, `vgs -o help`, lvs(8). All values are strings in this format, numbers too.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, Dict, Final, FrozenSet, List, Optional, Tuple, TypeVar

from anvil_dr.errors import StoreError

_T = TypeVar("_T")

GROUP_FIELDS: Final = "vg_name,vg_size,vg_free,vg_extent_size,vg_missing_pv_count,vg_permissions,vg_exported"
_VOLUME_FIELDS: Final = (
    "lv_uuid,lv_name,vg_name,lv_size,lv_tags,lv_attr,lv_active_locally,lv_device_open,"
    "lv_kernel_major,lv_kernel_minor,vg_extent_size"
)
# A full report has all five, and each must have a field.
FULL_REPORT: Final = tuple(
    word
    for kind, fields in (
        ("vg", "vg_name"), ("pv", "pv_name"), ("lv", _VOLUME_FIELDS), ("pvseg", "pvseg_start"), ("seg", "seg_start"),
    )
    for word in ("--configreport", kind, "-o", fields)
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """One volume group."""

    name: str
    size_bytes: int
    free_bytes: int
    extent_bytes: int
    problem: str
    """Why no image can be created or changed in it; empty if all is well."""


@dataclass(frozen=True)
class Volume:
    """One logical volume."""

    uuid: str
    name: str
    group: str
    size_bytes: int
    extent_bytes: int
    tags: FrozenSet[str]
    active: bool
    open: bool
    """True also while it is not known."""
    device: Optional[int]
    """Its number, as st_rdev has it; None while it is not active."""
    has_snapshots: bool
    drives: Tuple[str, ...]
    """Those of its group, without any that are missing: LVM's metadata lies on each of them."""

    def renamed(self, name: str) -> Volume:
        """The same volume with another name: everything else stays."""
        return replace(self, name=name)


def groups(report: bytes) -> Dict[str, Group]:
    """What `vgs -o GROUP_FIELDS` says, by name. Raise StoreError for what LVM would not say."""
    return {group.name: group for part in _parts(report) for group in _rows(part, "vg", _group)}


def volumes(report: bytes) -> Tuple[Volume, ...]:
    """What `lvm fullreport` with FULL_REPORT says. Raise StoreError for what LVM would not say."""
    found: List[Volume] = []
    for part in _parts(report):
        names = _rows(part, "pv", lambda row: row["pv_name"])
        # "[unknown]" stands for one that is missing.
        drives = tuple(name for name in names if name.startswith("/"))
        found += _rows(part, "lv", partial(_volume, drives=drives))
    return tuple(found)


def _group(row: Dict[str, str]) -> Group:
    problem = ""
    if row["vg_missing_pv_count"] != "0":
        problem = f"{row['vg_missing_pv_count']} of its physical volumes are missing"
    elif row["vg_exported"] == "1":
        problem = "it is exported"
    elif row["vg_permissions"] != "writeable":
        problem = "it is read-only"
    return Group(row["vg_name"], int(row["vg_size"]), int(row["vg_free"]), int(row["vg_extent_size"]), problem)


def _volume(row: Dict[str, str], drives: Tuple[str, ...]) -> Volume:
    active = row["lv_active_locally"] == "1"
    major, minor = int(row["lv_kernel_major"]), int(row["lv_kernel_minor"])
    return Volume(
        uuid=row["lv_uuid"],
        name=row["lv_name"],
        group=row["vg_name"],
        size_bytes=int(row["lv_size"]),
        extent_bytes=int(row["vg_extent_size"]),
        tags=frozenset(tag for tag in row["lv_tags"].split(",") if tag),
        active=active,
        open=active and row["lv_device_open"] != "0",
        device=os.makedev(major, minor) if active and major >= 0 else None,
        has_snapshots=row["lv_attr"][:1] in ("o", "O"),
        drives=drives,
    )


def _parts(report: bytes) -> List[Any]:
    try:
        return list(json.loads(report)["report"])
    except (ValueError, KeyError, TypeError) as error:
        raise _not_understood(error) from error


def _rows(part: Any, kind: str, make: Callable[[Dict[str, str]], _T]) -> List[_T]:
    """One value for each row; where LVM is told to log its commands, there are parts of other kinds between them."""
    try:
        return [make(row) for row in part.get(kind, [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_understood(error) from error


def _not_understood(error: Exception) -> StoreError:
    return StoreError(f"LVM's report cannot be understood: {error!r}")
