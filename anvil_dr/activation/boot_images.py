"""Which set a server boots from, and which path of its definition each image stands in for.

Pure. The definition file is never changed (SPEC section 7): other paths go into a copy in memory (boot_xml.py).
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Callable, Dict, Final, Iterable, List, Mapping, Optional, Tuple

from anvil_dr.cycling import sets
from anvil_dr.definition import DiskRequirement
from anvil_dr.model import CACHED, Activation, ImageSet, JournalEntry, Owner, Sequence, StoredImage
from anvil_dr.preflight.findings import Finding, problem, warning
from anvil_dr.words import listed

_MOUNT: Final = "plug that drive in, mount it (mount -o nosuid,nodev,noexec DEVICE /mnt), and type the same again"

PathOf = Callable[[Owner, Sequence], str]


@dataclass(frozen=True)
class Binding:
    """The images behind the disks of a definition."""

    images: Mapping[str, StoredImage]
    """By the path that the definition has."""
    findings: Tuple[Finding, ...]


def choose_set(
    own: Tuple[ImageSet, ...], wanted: Optional[int], activation: Optional[Activation]
) -> Tuple[Optional[ImageSet], Tuple[Finding, ...]]:
    """The set to boot, of one server's sets: the wanted one, else the one it ran from, else the newest complete.

    None, with the problem, if there is no such set or it is not complete.
    """
    complete = [str(one.sequence) for one in own if one.complete]
    there = f"complete sets: {listed(complete)}" if complete else "look at anvil-dr-status for why"
    findings: List[Finding] = []
    if activation is not None and wanted is not None and wanted != activation.sequence:
        findings.append(
            warning(
                f"it ran here from {set_name(activation.sequence)} since {activation.since}",
                f"what it wrote since then is not in set {wanted}",
            )
        )
    number = wanted if wanted is not None else activation.sequence if activation is not None else None
    if number is None:
        sound = tuple(one for one in own if not one.rotten)
        chosen = sets.newest_complete(sound) or sets.newest_complete(own)
        if chosen is None:
            return None, (problem("it has no complete set", there),)
        if chosen.sequence == CACHED:
            findings.append(_from_cache(chosen))
        elif chosen.sequence != 1:
            why = "damaged" if any(one.sequence == 1 and one.complete for one in own) else "missing or not complete"
            findings.append(warning(f"set 1 is {why}, so set {chosen.sequence} is used"))
    else:
        chosen = next((one for one in own if one.sequence == number), None)
        ran = " (it ran here from that one)" if number != wanted else ""
        if chosen is None and number == CACHED:
            missing = problem("it ran here from its set on a cache drive, which is not mounted now", _MOUNT)
            return None, (*findings, missing)
        if chosen is None:
            return None, (*findings, problem(f"it has no set {number}{ran}", there))
        if chosen.sequence == CACHED:
            findings.append(_from_cache(chosen))
        if not chosen.complete:
            return None, (*findings, problem(f"its set {number} is not complete{ran}", there))
    if chosen.rotten:
        findings.append(
            Finding(
                f"what lies on disk is not what was received: disk {listed(chosen.rotten)} of set {chosen.sequence}",
                "choose another set with --sequence; --force boots this one all the same",
                forceable=True,
            )
        )
    if chosen.record is None:
        findings.append(warning("when this set was received is not known: the state database has nothing of it"))
    return chosen, tuple(findings)


def in_the_way(pending: Iterable[JournalEntry], chosen: Optional[ImageSet]) -> Tuple[Finding, ...]:
    """Plans of this server that were begun and not finished: finishing them would change its images under the guest.

    Old sets that could not be removed yet stop nobody, unless one of them is to be booted.
    """
    identities = {image.identity for image in chosen.images} if chosen is not None else set()
    return tuple(
        problem(
            f"plan {entry.id} ({entry.purpose}) for its images was begun and is not finished"
            + (f": {entry.failure}" if entry.failure else ""),
            _way_out(entry),
        )
        for entry in pending
        if entry.purpose not in ("publish", "trim") or not identities.isdisjoint(one.identity for one in entry.steps)
    )


def _way_out(entry: JournalEntry) -> str:
    if entry.purpose == "trim":
        return f"it removes the set that you chose; to keep that one: anvil-dr-target --forget {entry.id}"
    return "if no job is at work, finish it: systemctl stop anvil-dr-target; anvil-dr-target --recover"


def set_name(sequence: Sequence) -> str:
    """What a person calls it."""
    return "its set on a cache drive" if sequence == CACHED else f"set {sequence}"


def _from_cache(chosen: ImageSet) -> Finding:
    folders = listed(sorted({image.location for image in chosen.images}))
    return warning(
        f"it boots from its newest set, on the cache drive that is mounted on {folders}: it is not in the store yet",
        "leave that drive plugged in and mounted as long as it runs",
    )


def bind(
    server: str,
    disks: Iterable[DiskRequirement],
    chosen: ImageSet,
    stored: Iterable[StoredImage],
    path_of: PathOf,
) -> Binding:
    """Which image of `chosen` each disk of the server's definition stands for.

    `stored` are all the images of the store, of every server, so that a wrong one is called by its name.
    """
    known: Dict[str, Tuple[Owner, Sequence]] = {}
    for image in stored:
        known[path_of(image.owner, 1)] = (image.owner, 1)
    for image in stored:
        for path in (image.path, path_of(image.owner, image.sequence)):
            known[path] = (image.owner, image.sequence)
    by_disk = {image.owner.disk: image for image in chosen.images}
    images: Dict[str, StoredImage] = {}
    findings: List[Finding] = []
    for disk in disks:
        if disk.path is None or disk.device not in ("disk", "lun"):
            continue
        where = f"disk {disk.target} ({disk.path})"
        owner, sequence = known.get(posixpath.normpath(disk.path), (None, 0))
        if owner is None:
            findings.append(warning(f"{where} is not one of its images", "it is used as it is"))
        elif owner.server != server:
            findings.append(
                problem(f"{where} is an image of server {owner.server}", "correct the path in its definition")
            )
        elif sequence != 1:
            findings.append(
                problem(
                    f"{where} is an image of set {sequence}, and definitions name set 1",
                    f"correct it to {path_of(owner, 1)}; older sets are booted with --sequence",
                )
            )
        elif owner.disk not in by_disk:
            findings.append(
                problem(f"set {chosen.sequence} has no image of {where}", "choose a set that has it, with --sequence")
            )
        else:
            images[disk.path] = by_disk[owner.disk]
    unused = sorted(set(by_disk) - {image.owner.disk for image in images.values()})
    if not images:
        findings.append(problem("its definition names none of its images", "correct the paths of its disks"))
    elif unused:
        findings.append(warning(f"set {chosen.sequence} also has {listed(unused)}, which the definition doesn't name"))
    return Binding(images, tuple(findings))

