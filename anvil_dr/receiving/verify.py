"""Reads images again and compares them with the digests that were kept with their sets (SPEC section 6).

Touches the store for reading, and the state, which remembers the verdicts. Runs beside the service: it lets go of an
image as soon as a job wants it, and is never in a job's way (stores/openers.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, List, Literal, Optional, Protocol, Tuple

from anvil_dr.cycling import sets
from anvil_dr.errors import AnvilDrError, ProtocolError, StoreError, UsageError
from anvil_dr.model import ImageRecord, ImageSet, StoredImage
from anvil_dr.ports import Store
from anvil_dr.receiving import reread
from anvil_dr.receiving.target import utc_now
from anvil_dr.records.state import State
from anvil_dr.wire.pace import Pace
from anvil_dr.words import listed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One image, and what was received of it."""

    image: StoredImage
    record: ImageRecord
    received_at: str


@dataclass(frozen=True)
class Verdict:
    """What became of a check."""

    check: Check
    state: Literal["right", "rotten", "skipped"]
    reason: str = ""
    at: str = ""
    """When it was known; ISO 8601, UTC."""


class Observer(Protocol):
    """Told how it goes."""

    def begun(self, check: Check) -> None: ...

    def advanced(self, check: Check, done_bytes: int) -> None: ...

    def ended(self, verdict: Verdict) -> None: ...


class _InTheWay(AnvilDrError):
    """A job wants the image."""


def look(store: Store, state: State) -> Tuple[ImageSet, ...]:
    """The sets that are here. Raise StoreError, StateError."""
    # The plans first and the records last: a plan that ends meanwhile is then known as one or the other.
    pending = state.pending()
    images = store.images()
    return sets.assemble(images, state.set_records(), pending)


def plan(
    present: Iterable[ImageSet], servers: Tuple[str, ...] = (), sequence: Optional[int] = None, share_percent: int = 100
) -> Tuple[Check, ...]:
    """Which images to read, those first that were not for the longest time. Pure.

    Of the chosen sets with `share_percent` below 100 only so many that this share of their bytes is read. Raise
    UsageError for a server, or a set, that isn't there.
    """
    numbered = [one for one in present if isinstance(one.sequence, int)]
    unknown = sorted(set(servers) - {one.server for one in numbered})
    if unknown:
        raise UsageError(f"there is no set of a server named {listed(unknown)}")
    chosen = [
        one
        for one in numbered
        if (not servers or one.server in servers) and (sequence is None or one.sequence == sequence)
    ]
    if not chosen and sequence is not None:
        raise UsageError(f"there is no set {sequence}" + (f" of {listed(servers)}" if servers else ""))
    checks = sorted(_checks(chosen), key=_urgency)
    left_bytes = -(-sum(check.record.size_bytes for check in checks) * share_percent // 100)
    taken: List[Check] = []
    for check in checks:
        if left_bytes <= 0:
            break
        taken.append(check)
        left_bytes -= check.record.size_bytes
    return tuple(taken)


def without_digest(present: Iterable[ImageSet], servers: Tuple[str, ...] = ()) -> Tuple[ImageSet, ...]:
    """Sets of which nobody knows what was received: the state was lost, or they have run here since. Pure."""
    return tuple(
        one
        for one in present
        if isinstance(one.sequence, int)
        and (not servers or one.server in servers)
        and (one.record is None or not any(image.digest for image in one.record.images))
    )


class Verifier:
    """Carries out checks, one after the other."""

    def __init__(
        self, store: Store, state: State, observer: Observer, *,
        pace: Optional[Pace] = None, now: Callable[[], str] = utc_now,
    ) -> None:  # fmt: skip
        self._store, self._state, self._observer, self._pace, self._now = store, state, observer, pace, now

    def run(self, checks: Iterable[Check]) -> Iterator[Verdict]:
        """Check after check. Raise StateError."""
        for check in checks:
            self._observer.begun(check)
            verdict = self._verdict(check)
            log.info(
                "verified server=%s disk=%s sequence=%s state=%s reason=%r",
                check.image.owner.server, check.image.owner.disk, check.image.sequence, verdict.state, verdict.reason,
            )  # fmt: skip
            self._observer.ended(verdict)
            yield verdict

    def _verdict(self, check: Check) -> Verdict:
        image, record = check.image, check.record
        try:
            self._refuse(check)
            reason = self._what_is_wrong(check)
            if reason is not None:
                self._refuse(check)  # whoever has begun to use it meanwhile may have written to it
        except (_InTheWay, StoreError, ProtocolError) as error:
            return Verdict(check, "skipped", str(error), self._now())
        at = self._now()
        self._state.judge_image(image.identity, record.digest, at, reason)
        if reason is not None and not self._is_still_there(check):
            return Verdict(check, "skipped", "a job has begun to write over it", at)
        return Verdict(check, "right" if reason is None else "rotten", reason or "", at)

    def _what_is_wrong(self, check: Check) -> Optional[str]:
        opened = self._store.open(check.image, writable=False)
        done = 0

        def advanced(done_bytes: int) -> None:
            nonlocal done
            if self._pace is not None:
                self._pace.wait(done_bytes - done)
            done = done_bytes
            self._observer.advanced(check, done_bytes)
            self._give_way(check)

        try:
            return reread.what_is_wrong(opened, check.record.digest, check.record.size_bytes, advanced)
        finally:
            opened.close()

    def _give_way(self, check: Check) -> None:
        server = check.image.owner.server
        if self._state.is_at_work(server):
            raise _InTheWay(f"a job of server {server} is running")
        if server in self._state.activations():
            raise _InTheWay(f"server {server} is activated, and writes to its images")

    def _refuse(self, check: Check) -> None:
        """Raise _InTheWay, StoreError if its bytes may be another's by now."""
        self._give_way(check)
        user = self._store.users((check.image,)).get(check.image)
        if user is not None:
            raise _InTheWay(f"it is in use by {user}")

    def _is_still_there(self, check: Check) -> bool:
        """Whether its set still has it: a job forgets that before it writes its first byte."""
        wanted = check.image.identity
        records = self._state.set_records(check.image.owner.server)
        return any(image.identity == wanted for record in records for image in record.images)


def _checks(chosen: Iterable[ImageSet]) -> Iterator[Check]:
    for one in chosen:
        if one.record is None:
            continue
        known = {image.identity: image for image in one.record.images}
        for image in one.images:
            record = known.get(image.identity)
            if record is not None and record.digest:
                yield Check(image, record, one.record.received_at)


def _urgency(check: Check) -> Tuple[bool, str, str, str, str]:
    """What is rotten comes first, to see whether it still is; a set that was never read again is as old as it is."""
    owner = check.image.owner
    return check.record.rotten is None, check.record.verified_at or check.received_at, owner.server, owner.disk, str(
        check.image.sequence
    )
