"""Bytes that say which job and disk they came from, and a checker of a store that knows only names and bytes.

It shares no code with what it checks: it is told which jobs were sent, and is given what lies there. Used after
simulated crashes, after real power cuts, and by the soak.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Dict, List, Mapping, Optional, Tuple

_PAGE_BYTES = 4096
_STAMP = re.compile(rb"job (\d+) of (\S+) disk (\S+) page (\d+)\n")


@dataclass(frozen=True)
class Push:
    """One job of one server, as it was sent: disk -> bytes."""

    number: int
    disks: Mapping[str, int]
    server: str = "Web01"
    firmware: Tuple[str, ...] = ()
    """Names of the firmware state that came with it."""

    def content(self, disk: str) -> bytes:
        """Every page says whose it is, but for each fifth one after the first, which is empty: images have holes."""
        return _content(self.number, self.server, disk, self.disks[disk])

    def firmware_content(self, name: str) -> bytes:
        return f"job {self.number} of {self.server} firmware {name}\n".encode() * 50


@lru_cache(maxsize=64)
def _content(number: int, server: str, disk: str, size_bytes: int) -> bytes:
    pages = []
    for page in range(-(-size_bytes // _PAGE_BYTES)):
        stamp = f"job {number} of {server} disk {disk} page {page}\n".encode()
        pages.append(bytes(_PAGE_BYTES) if page and (page + number) % 5 == 4 else _filled(stamp))
    return b"".join(pages)[:size_bytes]


def _filled(stamp: bytes) -> bytes:
    return (stamp * (_PAGE_BYTES // len(stamp) + 1))[:_PAGE_BYTES]


@dataclass
class Checker:
    """Knows the pushes; everything else it is shown."""

    pushes: List[Push] = field(default_factory=list)

    def push(self, number: int, server: str) -> Optional[Push]:
        return next((one for one in self.pushes if (one.number, one.server) == (number, server)), None)

    def origin(self, server: str, disk: str, content: bytes) -> Optional[Push]:
        """The push that an image is, to the byte; None if it is none: torn, mixed, another disk's, cut short.

        What a volume has beyond the disk must be zeros.
        """
        found = _STAMP.search(content[:_PAGE_BYTES])
        push = None if found is None else self.push(int(found[1]), server)
        if push is None or disk not in push.disks:
            return None
        size_bytes = push.disks[disk]
        whole = content[:size_bytes] == push.content(disk) and not any(content[size_bytes:])
        return push if whole else None

    def oddity(self, server: str, disk: str, content: bytes) -> str:
        """Of an image that is no push: what its first page says, and the first page that does not go with it."""
        found = _STAMP.search(content[:_PAGE_BYTES])
        push = None if found is None else self.push(int(found[1]), server)
        if push is None or disk not in push.disks:
            return f"it begins with {content[:60]!r}"
        wanted = push.content(disk).ljust(len(content), b"\0")
        odd = [at for at in range(0, len(wanted), 512) if content[at : at + 512] != wanted[at : at + 512]]
        return (
            f"it begins as job {push.number}, {push.disks[disk]} bytes in {len(content)}; {len(odd)} other sectors, "
            f"the first at byte {odd[0]}: {content[odd[0] : odd[0] + 60]!r}, the last at byte {odd[-1]}"
        )

    def sets(self, server: str, images: Mapping[str, bytes]) -> Dict[int, Dict[str, Optional[Push]]]:
        """Number -> disk -> where its bytes came from, by the names of the images alone."""
        disks = {disk for push in self.pushes if push.server == server for disk in push.disks}
        found: Dict[int, Dict[str, Optional[Push]]] = {}
        for disk in disks:
            for name, content in images.items():
                number = name[len(f"{server}_{disk}_") :] if name.startswith(f"{server}_{disk}_") else ""
                if number.isdigit():
                    found.setdefault(int(number), {})[disk] = self.origin(server, disk, content)
        return dict(sorted(found.items()))

    def complete(self, server: str, images: Mapping[str, bytes]) -> List[Tuple[int, int]]:
        """(sequence, job) of each set that is whole: every disk of one push, to the byte, and no other."""
        found = []
        for number, disks in self.sets(server, images).items():
            origins = {None if push is None else push.number for push in disks.values()}
            push = next(iter(disks.values()))
            if len(origins) == 1 and push is not None and set(disks) == set(push.disks):
                found.append((number, push.number))
        return found

    def faults_of_numbers(self, server: str, images: Mapping[str, bytes]) -> List[str]:
        """What no instant may show, a plan half carried out or not: numbered images that are not one job's bytes.

        With one copy the last image is overwritten, but not under a number.
        """
        faults = []
        for number, disks in self.sets(server, images).items():
            if None in disks.values():
                for disk in sorted(disk for disk, push in disks.items() if push is None):
                    oddity = self.oddity(server, disk, images[f"{server}_{disk}_{number}"])
                    faults.append(f"set {number} of {server}: the bytes of {disk} are no job's: {oddity}")
            elif len({push.number for push in disks.values() if push is not None}) > 1:
                jobs = {disk: push.number for disk, push in disks.items() if push is not None}
                faults.append(f"set {number} of {server} is of several jobs: {jobs}")
        return faults

    def faults_of_sets(self, server: str, images: Mapping[str, bytes]) -> List[str]:
        """What may not be once plans have been finished: a number that is not a whole set."""
        whole = {number for number, _ in self.complete(server, images)}
        partly = [number for number in self.sets(server, images) if number not in whole]
        found = {number: sorted(self.sets(server, images)[number]) for number in partly}
        return self.faults_of_numbers(server, images) + [
            f"set {number} of {server} is not whole: it has {', '.join(disks)}" for number, disks in found.items()
        ]

    def faults_of_keeping(
        self, server: str, images: Mapping[str, bytes], before: List[int], new: int, copies: int
    ) -> List[str]:
        """Whether every job that should be kept is kept: `before` were complete, newest first; `new` came or did not.

        While it has not come, one set may be in its images, if there were `copies` of them; with one copy, the last.
        """
        now = [job for _, job in self.complete(server, images)]
        older = [job for job in now if job != new]
        faults = []
        if new in now and now[0] != new:
            faults.append(f"job {new} is not the newest set of {server}: {now}")
        if older != [job for job in before if job in older]:
            faults.append(f"sets of {server} are out of order: {now}, before: {before}")
        lost = [job for job in before if job not in older]
        if new in now:
            wrong = bool(set(lost) & set(before[: copies - 1]))
        else:
            wrong = len(lost) > (1 if len(before) >= copies else 0) or (copies > 1 and bool(before) and not now)
        if wrong:
            faults.append(f"sets of {server} are lost: jobs {lost} of {before}, there are {now}, copies is {copies}")
        return faults
