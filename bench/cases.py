"""What is measured: the disks of each case, what the target has before, and who takes part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Tuple

from bench import disks, peers
from bench.peers import Entry, Link

LINK = Link(rate_bytes=12_500_000, round_trip_seconds=0.05)
_SPARSE_BYTES = 40 << 30
_SPARSE_DATA_BYTES = 64 << 20
_JOBS = 4

Version = Tuple[Path, ...]
"""The disks as they are at one time."""


@dataclass(frozen=True)
class Made:
    """The disks of a case."""

    versions: Tuple[Version, ...]
    """Sent in turn, each over the one before it. One alone: every time to a target that has nothing."""
    data_bytes: int
    """How much had to be moved: what the disks hold, or what differs."""


@dataclass(frozen=True)
class Case:
    """One part of the table."""

    name: str
    title: str
    make: Callable[[Path, int], Made]
    entries: Tuple[Entry, ...]
    link: Optional[Link] = None
    share: float = 1.0
    """Of --size, for cases that take long."""


def _alone(disk: Path, data_bytes: int) -> Made:
    return Made(((disk,),), data_bytes)


def _first(folder: Path, size_bytes: int) -> Made:
    return _alone(disks.noise(folder / "disk", size_bytes), size_bytes)


def _half_empty(folder: Path, size_bytes: int) -> Made:
    return _alone(disks.half_empty(folder / "disk", size_bytes), size_bytes // 2)


def _text(folder: Path, size_bytes: int) -> Made:
    return _alone(disks.text(folder / "disk", size_bytes), size_bytes)


def _sparse(folder: Path, size_bytes: int) -> Made:
    return _alone(disks.sparse(folder / "disk", _SPARSE_BYTES, _SPARSE_DATA_BYTES), _SPARSE_DATA_BYTES)


def _unchanged(folder: Path, size_bytes: int) -> Made:
    disk = disks.noise(folder / "disk", size_bytes)
    return Made(((disk,), (disk,)), 0)


def _changed(share: float, run_pages: int = 1) -> Callable[[Path, int], Made]:
    def make(folder: Path, size_bytes: int) -> Made:
        before = disks.noise(folder / "disk", size_bytes)
        after, data_bytes = disks.changed(folder / "disk2", before, share, run_pages=run_pages)
        return Made(((before,), (after,)), data_bytes)

    return make


def _three(folder: Path, size_bytes: int) -> Made:
    base = disks.noise(folder / "disk", size_bytes)
    one, data_bytes = disks.changed(folder / "disk2", base, 0.01)
    other, _ = disks.changed(folder / "disk3", base, 0.01, seed=5)
    return Made(((base,), (one,), (other,)), data_bytes)


def _four(folder: Path, size_bytes: int) -> Made:
    each = size_bytes // _JOBS
    return Made((tuple(disks.noise(folder / f"disk{n}", each, seed=n) for n in range(_JOBS)),), each * _JOBS)


_DELTA = (peers.OURS, peers.RSYNC)

CASES = (
    Case("first", "First image, random data", _first,
         (peers.OURS, peers.CAT, peers.NBDCOPY, peers.QEMU_IMG, peers.RSYNC)),
    Case("half", "First image, every other MiB zeros", _half_empty,
         (peers.OURS, peers.CAT, peers.NBDCOPY, peers.QEMU_IMG, peers.RSYNC_SPARSE)),
    Case("text", "First image, log lines (compressible)", _text,
         (peers.OURS, peers.OURS_RAW, peers.CAT, peers.NBDCOPY)),
    Case("sparse", "First image, 40 GiB with 64 MiB of data", _sparse,
         (peers.OURS, peers.NBDCOPY, peers.QEMU_IMG)),
    Case("unchanged", "Nothing changed", _unchanged, (*_DELTA, peers.CAT)),
    Case("pages-0.1", "0.1 % of pages changed at random", _changed(0.001), _DELTA),
    Case("pages-1", "1 % of pages changed at random", _changed(0.01), (*_DELTA, peers.CAT)),
    Case("pages-10", "10 % of pages changed at random", _changed(0.1), _DELTA),
    Case("runs-1", "1 % of pages changed, in runs of 256", _changed(0.01, 256), _DELTA),
    Case("copies-2", "1 % of pages changed at random, the image before the last written over", _three,
         (peers.OURS_TWO_COPIES,)),
    Case("four", "Four servers, first images, random data", _four, (peers.OURS, peers.OURS_AT_ONCE)),
    Case("ssh", "First image, random data, through ssh on loopback", _first,
         (peers.OURS_BY_SSH, peers.DD_BY_SSH, peers.RSYNC_BY_SSH)),
    Case("ssh-pages-1", "1 % of pages changed at random, through ssh on loopback", _changed(0.01),
         (peers.OURS_BY_SSH, peers.RSYNC_BY_SSH)),
    Case("link", f"First image, random data, {LINK}", _first,
         (peers.OURS, peers.OURS_BY_SSH, peers.NBDCOPY, peers.DD_BY_SSH), LINK, 1 / 16),
    Case("link-pages-1", f"1 % of pages changed at random, {LINK}", _changed(0.01),
         (peers.OURS, peers.OURS_BY_SSH, peers.RSYNC_BY_SSH), LINK, 1 / 2),
)  # fmt: skip
