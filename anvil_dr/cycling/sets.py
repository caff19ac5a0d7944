"""Which images belong together: the images of a store and what is remembered of them, assembled into sets.

Pure. A sequence in a name says where a set stands, but only the identities say that its images came in one job.
"""

from __future__ import annotations

from typing import Dict, FrozenSet, Iterable, List, Optional, Protocol, Tuple

from anvil_dr.model import (
    INCOMPLETE,
    ImageRecord,
    ImageSet,
    JournalEntry,
    Rename,
    Sequence,
    SetOnDisk,
    SetRecord,
    StoredImage,
)


class Waiting(Protocol):
    """A complete set that lies on a cache drive, or is carried in on one."""

    @property
    def job_id(self) -> str: ...

    @property
    def received_at(self) -> str:
        """ISO 8601, UTC."""

    @property
    def ran_here_until(self) -> Optional[str]:
        """When the server was given back that had run on it; ISO 8601, UTC."""

    @property
    def jobs_before(self) -> Optional[Tuple[str, ...]]:
        """The jobs whose sets are older; None if nobody noted that."""

    @property
    def runs_before(self) -> Optional[Tuple[str, ...]]:
        """The `ran_here_until` of the sets that were known when it was complete; None if nobody noted that."""


_Claim = Tuple[SetRecord, ImageRecord]
_Claims = Dict[Tuple[str, str, str], _Claim]


def assemble(
    images: Iterable[StoredImage], records: Iterable[SetRecord], pending: Iterable[JournalEntry] = ()
) -> Tuple[ImageSet, ...]:
    """Every set of every server: by server, numbers ascending, the incomplete one last.

    `records` are ordered oldest first: where two claim one image, the later one has it. A set is complete when it
    has a number and its images are exactly those of one record. Where no record claims any of its images (the
    state database was lost, an image was put there by hand), it counts as complete and its record is None, unless
    a disk is there twice. `pending` are plans that were begun and not finished (SPEC section 3): images that move
    together and have not all arrived are no complete set.
    """
    entries = tuple(pending)
    claims: _Claims = {}
    # A plan has the set as it was received; what has become of it since is in its record, if it has one already.
    for record in (*(entry.record for entry in entries if entry.record is not None), *records):
        for remembered in record.images:
            if remembered.identity:
                claims[record.server, remembered.disk, remembered.identity] = (record, remembered)
    bound = tuple(_bound_together(entries))

    groups: Dict[Tuple[str, Sequence], List[StoredImage]] = {}
    for image in images:
        groups.setdefault((image.owner.server, image.sequence), []).append(image)
    sets = [_set(server, sequence, group, claims, bound) for (server, sequence), group in groups.items()]
    return tuple(sorted(sets, key=lambda one: (one.server, _rank(one.sequence))))


def to_planner(one: ImageSet) -> SetOnDisk:
    """What a planner needs to know of a set. A rotten one is worth no more than one that lacks a disk."""
    disks = tuple(sorted({image.owner.disk for image in one.images}))
    return SetOnDisk(one.sequence, disks, one.complete and not one.rotten)


def of_server(sets: Iterable[ImageSet], server: str) -> Tuple[ImageSet, ...]:
    """One server's sets, in the order given."""
    return tuple(one for one in sets if one.server == server)


def newest_complete(sets: Iterable[ImageSet]) -> Optional[ImageSet]:
    """The complete set with the lowest number, of the sets of one server. None if there is none."""
    complete = [one for one in sets if one.complete]
    return min(complete, key=lambda one: _rank(one.sequence), default=None)


def has_one_as_new(own: Iterable[ImageSet], waiting: Waiting) -> bool:
    """True if a complete set among these is that one, or came after it. Those of one server.

    Where nobody noted which jobs were before it, the times have to tell: a clock that was wrong makes an older set of a
    newer one.
    """
    records = [one.record for one in own if one.complete and not one.rotten and one.record is not None]
    if waiting.jobs_before is not None:
        return any(record.job_id not in waiting.jobs_before for record in records)
    return any(record.job_id == waiting.job_id or record.received_at > waiting.received_at for record in records)


def ran_after(own: Iterable[ImageSet], waiting: Waiting) -> Optional[ImageSet]:
    """The complete set among these that the server ran on here after that one was complete, or ran itself.

    It holds what is nowhere else. None if there is none.
    """
    for one in own:
        until = one.record.ran_here_until if one.complete and one.record is not None else None
        if until is None:
            continue
        if waiting.ran_here_until is not None or waiting.runs_before is None:
            if until > (waiting.ran_here_until or waiting.received_at):
                return one
        elif until not in waiting.runs_before:
            return one
    return None


def _rank(sequence: Sequence) -> Tuple[bool, int]:
    return (True, 0) if sequence == INCOMPLETE else (False, sequence)


def _bound_together(entries: Iterable[JournalEntry]) -> Iterable[FrozenSet[str]]:
    """The identities that each plan brings to one number: half of them there is half a set."""
    for entry in entries:
        moving: Dict[Sequence, List[str]] = {}
        for planned in entry.steps:
            if isinstance(planned.step, Rename):
                moving.setdefault(planned.step.after, []).append(planned.identity)
        for identities in moving.values():
            yield frozenset(identities)


def _set(
    server: str, sequence: Sequence, group: List[StoredImage], claims: _Claims, bound: Tuple[FrozenSet[str], ...]
) -> ImageSet:
    images = tuple(sorted(group, key=lambda image: (image.owner.disk, image.location, image.identity)))
    if sequence == INCOMPLETE:
        # A recycled image may still be claimed by the set that it was in; it is not that set any more.
        return ImageSet(server, sequence, images, complete=False)
    found = [claims.get((server, image.owner.disk, image.identity)) for image in images]
    claimed = [claim for claim in found if claim is not None]
    record = claimed[0][0] if claimed and all(claim[0] == claimed[0][0] for claim in claimed) else None
    identities = {image.identity for image in images}
    whole = (
        _matches(record, images, found) if claimed else len({image.owner.disk for image in images}) == len(images)
    ) and all(together <= identities for together in bound if together & identities)
    return ImageSet(server, sequence, images, whole, record)


def _matches(record: Optional[SetRecord], images: Tuple[StoredImage, ...], found: List[Optional[_Claim]]) -> bool:
    """True if these are all the images of one record, none cut short, and nothing else."""
    return (
        record is not None
        and len(images) == len(record.images)
        and all(claim is not None and image.size_bytes >= claim[1].size_bytes for image, claim in zip(images, found))
    )
