"""Whether a box is as it would be if nothing had ever gone wrong on it: its state, its files, its digests."""

from __future__ import annotations

import os
from typing import Iterator, List, Mapping

from anvil_dr.cycling import sets
from anvil_dr.model import ImageSet
from anvil_dr.records.state import State
from anvil_dr.wire import digest
from tests.doubles.mortal_box import MortalBox
from tests.doubles.provenance import Checker


def untidy(box: MortalBox, checker: Checker, server: str) -> List[str]:
    """What the state and the files say of the sets, and whether anything was left lying about."""
    faults = []
    with State.open(box.config.state, readonly=True) as state:
        if state.pending():
            faults.append(f"the journal is not empty: {state.pending()}")
        records, jobs = state.set_records(), state.last_jobs()
        assembled = sets.assemble(box.world.store(state.owners).images(), records)
    if [one.sequence for one in assembled if not one.complete or one.record is None]:
        faults.append(f"sets are not known as complete: {assembled}")
    if len(records) != len(assembled):
        faults.append(f"there are {len(records)} records of {len(assembled)} sets")
    images = box.world.images()
    for one in assembled:
        faults += _digest_faults(server, one, images)
    if jobs[server].state != "succeeded":
        faults.append(f"the last job is {jobs[server]}")
    folder = box.folder / "state" / "firmware" / server
    kept = set(os.listdir(folder)) if folder.exists() else set()
    complete = checker.complete(server, images)
    newest = checker.push(complete[0][1], server) if complete and complete[0][0] == 1 else None
    if newest is None:
        return [*faults, f"there is no set 1: {complete}"]
    known = {one.record.job_id for one in assembled if one.record is not None}
    if not kept <= known or (newest.firmware and jobs[server].id not in kept):
        faults.append(f"firmware state of {kept} is kept, and the sets are of {known}")
    for name in newest.firmware:
        if (folder / jobs[server].id / name).read_bytes() != newest.firmware_content(name):
            faults.append(f"the firmware state {name} is not the newest set's")
    if "nvram" in newest.firmware:
        published = box.folder / "definitions" / "nvram" / f"{server}.fd"
        if published.read_bytes() != newest.firmware_content("nvram"):
            faults.append("the published variables are not the newest set's")
    if not (box.folder / "definitions" / f"{server}.xml").is_file():
        faults.append("there is no definition")
    for name in ("state", "definitions"):
        left = [str(path) for path in (box.folder / name).rglob("*.tmp")]
        faults += [f"left lying about: {path}" for path in left]
    return faults


def _digest_faults(server: str, one: ImageSet, images: Mapping[str, bytes]) -> Iterator[str]:
    for image in one.record.images if one.record else ():
        name = f"{server}_{image.disk}_{one.sequence}"
        if name not in images:
            continue  # an admin removed it
        content = images[name][: image.size_bytes]
        digester = digest.digester(image.digest.partition(":")[0])
        whole = digest.ImageDigest(digester, image.size_bytes)
        for start in range(0, image.size_bytes, digest.SEGMENT_BYTES):
            segment = content[start : start + digest.SEGMENT_BYTES]
            padded = segment.ljust(-(-len(segment) // digest.BLOCK_BYTES) * digest.BLOCK_BYTES, b"\0")
            whole.add(digester.segment(digester.blocks(memoryview(padded))))
        if whole.text() != image.digest:
            yield f"the digest kept of {image.disk} in set {one.sequence} is not that of its bytes"
