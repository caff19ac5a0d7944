"""Which images of a job go to which cache drive, and whether all servers are cached together (SPEC section 5).

Pure: values in, a plan out. Drives are filled in the order given, the largest first; images the largest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Tuple

from anvil_dr.model import CacheDrive, Owner

_MIB = 1 << 20


@dataclass(frozen=True)
class CacheDemand:
    """One image that has to lie on a cache drive for a while."""

    owner: Owner
    size_bytes: int
    present_on: str = ""
    """Identity of the drive that has a part of it already, from a job that broke."""
    present_bytes: int = 0
    """What that part takes there."""
    never_on: FrozenSet[str] = frozenset()
    """Identities of the drives that it may not go to."""


@dataclass(frozen=True)
class CachePlan:
    """How the servers of a job are cached."""

    servers: Tuple[str, ...] = ()
    """Those that are, the largest first."""
    together: bool = True
    """False: each is copied to the store, and its space freed, before the next one is received."""
    too_large: Tuple[str, ...] = ()
    """Those that fit on no drive even alone."""


def space_bytes(size_bytes: int) -> int:
    """What a file of that size may take on a drive, with what the file system keeps about it.

    btrfs has the largest share, a checksum of 4 bytes for each 4 KiB (btrfs(5)), kept twice.
    """
    return size_bytes + size_bytes // 256 + _MIB


def place(demands: Iterable[CacheDemand], drives: Sequence[CacheDrive]) -> Optional[Mapping[Owner, CacheDrive]]:
    """A drive for each image, or None if they don't all fit. What is there in part stays where it is."""
    free: Dict[str, int] = {drive.identity: drive.free_bytes for drive in drives}
    places: Dict[Owner, CacheDrive] = {}
    for demand in sorted(demands, key=lambda one: (not one.present_on, -one.size_bytes, one.owner)):
        for drive in sorted(drives, key=lambda one: one.identity != demand.present_on):
            reused = demand.present_bytes if drive.identity == demand.present_on else 0
            needed = max(0, space_bytes(demand.size_bytes) - reused)
            largest = drive.largest_file_bytes
            if drive.identity in demand.never_on:
                continue
            if needed <= free[drive.identity] and (largest is None or demand.size_bytes <= largest):
                free[drive.identity] -= needed
                places[demand.owner] = drive
                break
        else:
            return None
    return places


def plan_cache(demands: Iterable[CacheDemand], drives: Sequence[CacheDrive]) -> CachePlan:
    """Together if they fit, else one at a time. A server too large for all drives together is left out."""
    by_server: Dict[str, List[CacheDemand]] = {}
    for demand in demands:
        by_server.setdefault(demand.owner.server, []).append(demand)
    held = {name: wanted for name, wanted in by_server.items() if place(wanted, drives) is not None}
    order = sorted(held, key=lambda name: (-sum(demand.size_bytes for demand in held[name]), name))
    everything = [demand for name in order for demand in held[name]]
    return CachePlan(
        servers=tuple(order),
        together=place(everything, drives) is not None,
        too_large=tuple(sorted(set(by_server) - set(held))),
    )
