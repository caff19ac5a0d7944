"""Whole jobs onto real volume groups: names, bytes, the paths that definitions say, and what does not fit."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Dict, Set

import pytest

from anvil_dr import command
from anvil_dr.errors import RemoteError
from tests.doubles.dr_box import DrBox, Node

pytestmark = pytest.mark.in_guest(drives=("300M", "296M"), memory="1G")

MIB = 1 << 20
RULE = Path(__file__).resolve().parents[2] / "etc" / "62-anvil-dr.rules"
LINKS = Path("/dev/anvil-dr")


def disks(seed: int) -> Dict[str, bytes]:
    """Disk 0 is not a whole number of extents, and half empty."""
    content = random.Random(seed)
    return {
        "Web01_0": content.randbytes(5 * MIB) + bytes(6 * MIB) + content.randbytes(70_001),
        "Web01_1": content.randbytes(3 * MIB),
    }


def read(name: str, size_bytes: int) -> bytes:
    with open(LINKS / name, "rb") as device:
        content = device.read()
    assert not any(content[size_bytes:]), "what the volume has beyond the disk reads as zeros"
    return content[:size_bytes]


def links() -> Set[str]:
    return {path.name for path in LINKS.glob("*")}


@pytest.fixture(scope="module", autouse=True)
def groups() -> None:
    shutil.copy(RULE, "/etc/udev/rules.d")
    command.run(("udevadm", "control", "--reload"))
    command.run(("modprobe", "dm_mod"))
    for group, drive in (("dr01_vg0", "/dev/ubda"), ("dr01_vg1", "/dev/ubdb")):
        # Old data everywhere: a new volume that is taken for zeros would show it.
        with open(drive, "r+b") as device:
            device.write(b"\xa5" * (200 * MIB))
        command.run(("vgcreate", "--yes", group, drive))


@pytest.fixture
def box(tmp_path: Path) -> DrBox:
    command.run(("lvremove", "-y", "dr01_vg0", "dr01_vg1"))
    return DrBox(tmp_path, copies=3, groups=("dr01_vg0", "dr01_vg1"))


def test_five_jobs_with_three_copies_over_two_groups(box: DrBox, tmp_path: Path) -> None:
    web = Node(tmp_path / "node")
    definition = tmp_path / "definitions" / "Web01.xml"
    with box.running() as target:
        for job in range(5):
            web.disks = disks(job)
            assert box.send(web.outgoing()).succeeded
            kept = range(1, min(3, job + 1) + 1)
            assert links() == {f"Web01_{disk}_{n}" for disk in web.disks for n in kept}
            for n in kept:
                for disk, content in disks(job + 1 - n).items():
                    assert read(f"Web01_{disk}_{n}", len(content)) == content
            if job == 0:
                made = definition.read_text()
                assert "<source dev=\"/dev/anvil-dr/Web01_Web01_0_1\"" in made.replace("'", '"')
                definition.write_text(made.replace("256", "128") + "<!-- the admin's -->\n")
                edited = definition.read_bytes()
        assert definition.read_bytes() == edited
        assert {image.location for image in target.store.images()} == {"dr01_vg0", "dr01_vg1"}


def test_a_second_image_of_an_unchanged_disk_writes_nothing(box: DrBox, tmp_path: Path) -> None:
    one_copy = DrBox(tmp_path, copies=1, groups=("dr01_vg0", "dr01_vg1"))
    web = Node(tmp_path / "node", disks=disks(1))
    with one_copy.running():
        one_copy.send(web.outgoing())
        outcome = one_copy.send(web.outgoing())
    done = outcome.servers[0].done
    assert done is not None and done.written_bytes == 0, "the recycled volume had it all"
    assert outcome.wire_bytes < 20_000


def test_what_does_not_fit_in_any_group_changes_nothing(box: DrBox, tmp_path: Path) -> None:
    web = Node(tmp_path / "node", disks=disks(1))
    with box.running():
        box.send(web.outgoing())
        before = links()
        huge = replace(web.outgoing().disks[0], size_bytes=301 * MIB)
        (outcome,) = box.send(replace(web.outgoing(), disks=(huge, web.outgoing().disks[1]))).servers
    assert isinstance(outcome.error, RemoteError) and outcome.error.remote_code == "StoreFull"
    assert links() == before


def test_a_disk_that_outgrows_its_group_moves_to_the_other(box: DrBox, tmp_path: Path) -> None:
    few = DrBox(tmp_path, copies=2, groups=("dr01_vg0", "dr01_vg1"))
    web = Node(tmp_path / "node", disks={"Web01_0": bytes(8 * MIB)})
    with few.running() as target:
        for job, size in enumerate((60 * MIB, 60 * MIB, 120 * MIB)):
            if job == 2:  # the image that is due to be recycled lies in the first group
                command.run(("lvcreate", "-y", "-Wn", "-Zn", "-L", "190m", "-n", "filler", "dr01_vg0"))
            web.disks = {"Web01_0": random.Random(job).randbytes(1 * MIB) + bytes(size - MIB)}
            assert few.send(web.outgoing()).succeeded
            assert read("Web01_Web01_0_1", size) == web.disks["Web01_0"]
        assert {(image.sequence, image.location) for image in target.store.images()} == {
            (1, "dr01_vg1"),
            (2, "dr01_vg1"),
        }
    assert links() == {"Web01_Web01_0_1", "Web01_Web01_0_2"}


def test_the_state_database_lost_the_names_and_tags_are_enough_to_go_on(box: DrBox, tmp_path: Path) -> None:
    web = Node(tmp_path / "node", disks=disks(1))
    with box.running():
        box.send(web.outgoing())
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").mkdir()
    web.disks = disks(2)
    with box.running():
        assert box.send(web.outgoing()).succeeded
    assert links() == {f"Web01_{disk}_{n}" for disk in web.disks for n in (1, 2)}
    assert read("Web01_Web01_1_2", 3 * MIB) == disks(1)["Web01_1"]
