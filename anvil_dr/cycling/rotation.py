"""What is there + copies -> the renames of a job's start and end, and what a recovery has left to do (SPEC section 3).

Pure: touches nothing. The rules:

- All disks of a server move together, and only numbers that must move do. Every plan lists its steps in an order in
  which each rename's destination is free.
- An incomplete set is written into, whoever began it. `_incomplete` images of disks that the job doesn't have are
  removed at its start.
- With N = `copies` >= 2, a job needs sequence 1 to be free. If it is, nothing moves. If not, the sets below the first
  gap move up into it. Where 1 to N are all there, a set is recycled into `_incomplete` to make the gap: the highest
  one that is not complete, because nothing is lost with it; or else the newest of those that are too young to cost an
  older one its place; or else N. Sets above N stay.
- If there is a set 1 and an incomplete one (an admin's doing), nothing is recycled, and the sets move up into the
  first gap, be it above N: the next success brings them back to N.
- At the end, a set 1 that is there all the same moves up first, and goes only once the new one is there.
- With N = 1, set 1 becomes `_incomplete` only when the bytes start going into it (`plan_overwrite`); if there is an
  incomplete set already, that one is written into and set 1 goes when it succeeds.
- Only success removes sets above N.

A plan is made once, bound to the images (`bind`), journaled, and carried out. The names alone don't say how far it
came: what a plan leaves can look like what it began with. The identities do (`remaining`, `withdrawal`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Collection, Counter, Dict, Iterable, List, Mapping, Optional, Tuple, TypeVar

from anvil_dr.model import INCOMPLETE, JournalStep, Owner, Removal, Rename, Sequence, SetOnDisk, Step, StoredImage

_Numbered = Mapping[int, SetOnDisk]
_Thing = TypeVar("_Thing")


def plan_start(
    server: str, sets: Iterable[SetOnDisk], disks: Collection[str], copies: int, young: Collection[Sequence] = ()
) -> Tuple[Step, ...]:
    """The start of a job with these disks: afterwards `_incomplete` can be written, and with N >= 2 no set 1 is there.

    `sets` are all the sets of the server, whatever their disks; `young` are the numbers of those that are too young to
    cost an older one its place (`min_set_age`). To be called before any image is created. With N = 1, `plan_overwrite`
    does the rest. Raise ValueError if `copies` is below 1.
    """
    if copies < 1:
        raise ValueError(f"copies is {copies}")
    incomplete, numbered = _sorted(sets)
    stale = _removals(server, INCOMPLETE, (disk for disk in incomplete if disk not in disks))
    if copies == 1 or 1 not in numbered:
        return stale
    gap = _first_gap(numbered)
    if incomplete or gap <= copies:
        return (*stale, *_shift(server, numbered, gap))
    victim = _victim(numbered, copies, young)
    return (*_recycle(server, numbered[victim], disks), *_shift(server, numbered, victim))


def plan_overwrite(server: str, sets: Iterable[SetOnDisk], disks: Collection[str]) -> Tuple[Step, ...]:
    """With N = 1, the moment before the first byte goes into the store, and before any image is created in it."""
    incomplete, numbered = _sorted(sets)
    begun = any(disk in disks for disk in incomplete)
    if begun or 1 not in numbered:
        return ()
    steps = _recycle(server, numbered[1], disks)
    # Nothing moves up into its place, so what cannot be taken back can come last.
    return (*(one for one in steps if isinstance(one, Rename)), *(one for one in steps if isinstance(one, Removal)))


def plan_end(server: str, sets: Iterable[SetOnDisk], disks: Collection[str], copies: int) -> Tuple[Step, ...]:
    """The end of a job whose every disk is received, checked and on stable storage: its images become set 1.

    Only then do the sets above `copies` go, the highest first. Raise ValueError if a disk has no `_incomplete` image.
    """
    incomplete, numbered = _sorted(sets)
    missing = [disk for disk in disks if disk not in incomplete]
    if missing or not disks or copies < 1:
        raise ValueError(f"server {server} cannot be promoted: disks={disks!r} missing={missing!r} copies={copies}")
    gap = _first_gap(numbered)
    standing = {number + 1 if number < gap else number: one.disks for number, one in numbered.items()}
    excess = sorted((number for number in standing if number > copies), reverse=True)
    return (
        *_removals(server, INCOMPLETE, (disk for disk in incomplete if disk not in disks)),
        *_shift(server, numbered, gap),
        *(Rename(Owner(server, disk), INCOMPLETE, 1) for disk in disks),
        *(step for number in excess for step in _removals(server, number, standing[number])),
    )


def split_end(steps: Tuple[Step, ...]) -> Tuple[Tuple[Step, ...], Tuple[Step, ...]]:
    """A job's end in two: what makes its images set 1, and the removal of the sets that are too many then.

    The new set must not wait for an old one that can't be removed, because somebody has it open.
    """
    promoted = max(number for number, step in enumerate(steps, 1) if isinstance(step, Rename))
    return steps[:promoted], steps[promoted:]


def leaves_no_complete_set(sets: Iterable[SetOnDisk], steps: Tuple[Step, ...]) -> bool:
    """True if there is a complete set now, and none after these steps (all of one server).

    This is what SPEC section 3 warns of for N = 1 without a cache drive, and `require_cache` refuses.
    """
    complete = [one for one in sets if one.complete and one.sequence != INCOMPLETE]
    if not complete or not steps:
        return False
    server = steps[0].owner.server
    holders: Dict[Tuple[Owner, Sequence], List[Sequence]] = {}
    for one in complete:
        for disk in one.disks:
            holders[Owner(server, disk), one.sequence] = [one.sequence]
    for step in steps:
        _take(holders, step)
    together = Counter((origin, now) for (_, now), origins in holders.items() for origin in origins)
    return not any(
        origin == one.sequence and now != INCOMPLETE and count == len(one.disks)
        for (origin, now), count in together.items()
        for one in complete
    )


def outcome(images: Iterable[StoredImage], steps: Iterable[Step]) -> Tuple[StoredImage, ...]:
    """The images that are there after these steps, with their new sequences (paths and places are those of now).

    What placement.py must know beforehand: an image that is then `_incomplete` is the one to write into, and one
    that isn't there any more has freed its bytes.
    """
    holders = _held((image, image) for image in images)
    for step in steps:
        _take(holders, step)
    return tuple(replace(image, sequence=sequence) for (_, sequence), held in holders.items() for image in held)


def bind(steps: Iterable[Step], images: Iterable[StoredImage]) -> Tuple[JournalStep, ...]:
    """Say which image each step is about, for the journal. Raise ValueError if a step is about none."""
    holders = _held((image, image.identity) for image in images)
    bound: List[JournalStep] = []
    for step in steps:
        identities = _take(holders, step)
        if not identities:
            raise ValueError(f"no image for {step}")
        bound += (JournalStep(step, identity) for identity in identities)
    return tuple(bound)


def remaining(steps: Iterable[JournalStep], images: Iterable[StoredImage]) -> Tuple[JournalStep, ...]:
    """Those steps of a journaled plan that are still to be taken, by what is there now; none if all were.

    An image that isn't where the plan left it (an admin moved or removed it since) is left alone.
    """
    now: Dict[Tuple[Owner, str], Sequence] = {(image.owner, image.identity): image.sequence for image in images}
    left: List[JournalStep] = []
    for planned in steps:
        step, key = planned.step, (planned.step.owner, planned.identity)
        if key not in now or now[key] != (step.before if isinstance(step, Rename) else step.sequence):
            continue
        left.append(planned)
        if isinstance(step, Rename):
            now[key] = step.after
    return tuple(left)


def withdrawal(
    steps: Iterable[JournalStep], images: Iterable[StoredImage]
) -> Optional[Tuple[JournalStep, ...]]:
    """The steps that take back those of a journaled plan that were taken, last one first; none if none was.

    None instead of a plan if the image of a numbered set was removed: that cannot be taken back. An image that isn't
    where the plan left it is left alone.
    """
    planned, present = tuple(steps), tuple(images)
    left = remaining(planned, present)
    now: Dict[Tuple[Owner, str], Sequence] = {(image.owner, image.identity): image.sequence for image in present}
    back: List[JournalStep] = []
    for one in reversed([one for one in planned if one not in left]):
        step, key = one.step, (one.step.owner, one.identity)
        if isinstance(step, Removal):
            if step.sequence != INCOMPLETE and key not in now:
                return None
        elif now.get(key) == step.after:
            back.append(replace(one, step=Rename(step.owner, step.after, step.before)))
    return tuple(back)


def begun_removals(steps: Iterable[JournalStep], images: Iterable[StoredImage]) -> Tuple[JournalStep, ...]:
    """What is left to be removed of sets that lack an image already, because a journaled plan has removed it."""
    planned = tuple(steps)
    left = remaining(planned, images)
    begun = {one.step.sequence for one in planned if one not in left and isinstance(one.step, Removal)}
    return tuple(one for one in left if isinstance(one.step, Removal) and one.step.sequence in begun)


def _sorted(sets: Iterable[SetOnDisk]) -> Tuple[Tuple[str, ...], _Numbered]:
    """The disks of the incomplete set, and the numbered ones. A set without images is none."""
    incomplete: Tuple[str, ...] = ()
    numbered: Dict[int, SetOnDisk] = {}
    for one in sets:
        if one.sequence == INCOMPLETE:
            incomplete = one.disks
        elif one.disks:
            numbered[one.sequence] = one
    return incomplete, numbered


def _first_gap(numbered: _Numbered) -> int:
    gap = 1
    while gap in numbered:
        gap += 1
    return gap


def _victim(numbered: _Numbered, copies: int, young: Collection[Sequence]) -> int:
    """Which of the sets 1 to N to recycle. Nothing ever frees the last complete one: there is more than one set."""
    broken = [number for number in range(1, copies + 1) if not numbered[number].complete]
    replaced = [number for number in range(1, copies + 1) if number in young]
    return max(broken) if broken else min(replaced, default=copies)


def _shift(server: str, numbered: _Numbered, gap: int) -> Tuple[Step, ...]:
    """Every set below the gap moves up by one, the highest first, so that each finds its place free."""
    return tuple(
        Rename(Owner(server, disk), number, number + 1)
        for number in range(gap - 1, 0, -1)
        for disk in numbered[number].disks
    )


def _recycle(server: str, one: SetOnDisk, disks: Collection[str]) -> Tuple[Step, ...]:
    """A set's images become `_incomplete`; the server has lost the disks of the others."""
    return (
        *_removals(server, one.sequence, (disk for disk in one.disks if disk not in disks)),
        *(Rename(Owner(server, disk), one.sequence, INCOMPLETE) for disk in one.disks if disk in disks),
    )


def _removals(server: str, sequence: Sequence, disks: Iterable[str]) -> Tuple[Step, ...]:
    return tuple(Removal(Owner(server, disk), sequence) for disk in disks)


def _held(things: Iterable[Tuple[StoredImage, _Thing]]) -> Dict[Tuple[Owner, Sequence], List[_Thing]]:
    """Things by the name of their image. A name can be held twice: volume groups have names of their own."""
    holders: Dict[Tuple[Owner, Sequence], List[_Thing]] = {}
    for image, thing in things:
        holders.setdefault((image.owner, image.sequence), []).append(thing)
    return holders


def _take(holders: Dict[Tuple[Owner, Sequence], List[_Thing]], step: Step) -> List[_Thing]:
    """Carry out one step on paper, and say what it was about."""
    if isinstance(step, Removal):
        return holders.pop((step.owner, step.sequence), [])
    moved = holders.pop((step.owner, step.before), [])
    if moved:
        holders.setdefault((step.owner, step.after), []).extend(moved)
    return moved
