"""What must move: the digests of two sides compared. Pure; receive_disk.py acts on the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple


@dataclass(frozen=True)
class BlockPlan:
    """The blocks of a segment that are not right in the recycled image."""

    zeros: Tuple[int, ...]
    """To be zeroed; nothing needs to be asked for."""
    differing: Tuple[int, ...]


@dataclass(frozen=True)
class PagePlan:
    """Where the pages of one block come from, as masks. Pages in none of them are right already."""

    zeros: int
    copied: int
    """From the newest set."""
    asked: int
    """Only the node has them."""

    @property
    def changed(self) -> int:
        return self.zeros | self.copied | self.asked


def plan_blocks(wanted: Sequence[bytes], present: Optional[Sequence[bytes]], zero: bytes) -> BlockPlan:
    """Compare the node's block digests with the recycled image's; None where its content is not known."""
    zeros: List[int] = []
    differing: List[int] = []
    for block, digest in enumerate(wanted):
        if present is not None and present[block] == digest:
            continue
        (zeros if digest == zero else differing).append(block)
    return BlockPlan(tuple(zeros), tuple(differing))


def plan_pages(
    wanted: Sequence[bytes], present: Optional[Sequence[bytes]], newest: Optional[Sequence[bytes]], zero: bytes
) -> PagePlan:
    """Compare one block's page digests with those of the recycled image and of the newest set."""
    zeros = copied = asked = 0
    for page, digest in enumerate(wanted):
        if present is not None and present[page] == digest:
            continue
        if digest == zero:
            zeros |= 1 << page
        elif newest is not None and newest[page] == digest:
            copied |= 1 << page
        else:
            asked |= 1 << page
    return PagePlan(zeros, copied, asked)


def runs(numbers: Sequence[int]) -> List[Tuple[int, int]]:
    """Ascending numbers as (first, count) runs of neighbours."""
    result: List[Tuple[int, int]] = []
    for number in numbers:
        if result and sum(result[-1]) == number:
            result[-1] = (result[-1][0], result[-1][1] + 1)
        else:
            result.append((number, 1))
    return result
