"""LvmStore on real volume groups, with udev: the contract of all stores, and what only LVM has."""

from __future__ import annotations

import os
import shutil
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, ContextManager, Dict, Iterator

import pytest

from anvil_dr import command, naming
from anvil_dr.cycling.placement import plan_placement
from anvil_dr.errors import ImageInUseError, StoreError, StoreFullError
from anvil_dr.model import INCOMPLETE, Create, Demand, Keep, Owner, Replace, Sequence, StoredImage
from anvil_dr.stores.lvm import LvmStore
from tests.contract.labs import MAIL, WEB, LvmLab, held_open
from tests.contract.test_stores import *  # noqa: F403  each test of the contract is one of this module too

pytestmark = pytest.mark.in_guest(drives=("300M", "300M", "200M"))

MIB = 1 << 20
GROUPS = ("box_a", "box_b", "box_c")
RULE = Path(__file__).resolve().parents[2] / "etc" / "62-anvil-dr.rules"


def lvm(*argv: str) -> str:
    return command.run(argv).stdout.decode()


@pytest.fixture(scope="module", autouse=True)
def groups() -> None:
    """Three groups of one drive each, and the rule as an administrator would install it."""
    shutil.copy(RULE, "/etc/udev/rules.d")
    lvm("udevadm", "control", "--reload")
    lvm("modprobe", "dm_mod")
    for group, drive in zip(GROUPS, ("/dev/ubda", "/dev/ubdb", "/dev/ubdc")):
        lvm("vgcreate", group, drive)


@pytest.fixture  # type: ignore[no-redef]
def place(groups: None) -> Iterator[LvmLab]:
    lab = LvmLab(GROUPS)
    yield lab
    lab.clean()


def make(store: LvmStore, owner: Owner, sequence: Sequence, group: str, mark: str = "") -> StoredImage:
    """An image that has `mark` as its first bytes."""
    image = store.create(owner, 4 * MIB, group)
    opened = store.open(image, writable=True)
    opened.write(0, memoryview(mark.encode().ljust(512)))
    opened.flush()
    opened.close()
    return image if sequence == INCOMPLETE else store.rename(image, sequence)


def marks() -> Dict[str, str]:
    """What stands at the beginning of each image, by the links that definitions say."""
    return {path.name: path.read_bytes()[:512].decode().rstrip() for path in Path("/dev").glob("anvil-dr/*")}


def test_the_link_follows_a_whole_cycle_over_two_groups_at_every_step(place: LvmLab) -> None:
    store = place.store()
    third = make(store, WEB, 3, "box_a", "oldest")
    second = make(store, WEB, 2, "box_b", "middle")
    first = make(store, WEB, 1, "box_a", "newest")
    base = naming.image_base(WEB)

    recycled = store.rename(third, INCOMPLETE)
    assert marks() == {f"{base}_incomplete": "oldest", f"{base}_2": "middle", f"{base}_1": "newest"}
    store.rename(second, 3)
    assert marks() == {f"{base}_incomplete": "oldest", f"{base}_3": "middle", f"{base}_1": "newest"}
    store.rename(first, 2)
    assert marks() == {f"{base}_incomplete": "oldest", f"{base}_3": "middle", f"{base}_2": "newest"}
    promoted = store.rename(recycled, 1)
    assert marks() == {f"{base}_1": "oldest", f"{base}_3": "middle", f"{base}_2": "newest"}

    assert promoted.identity == third.identity
    tags = lvm("lvs", "--noheadings", "-o", "lv_tags", f"box_a/{base}_1").strip()
    assert set(tags.split(",")) == {"anvil-dr", f"anvil-dr.server={WEB.server}", f"anvil-dr.disk={WEB.disk}"}
    for image in store.images():
        store.remove(image)
    assert marks() == {}


def test_the_link_stays_while_the_volume_is_suspended_and_open(place: LvmLab) -> None:
    store = place.store()
    image = make(store, WEB, 1, "box_a", "here")
    link = Path(store.path(WEB, 1))
    mapped = f"box_a-{naming.image_name(WEB, 1)}"
    with held_open(image.path):
        renamed = store.rename(image, 2)
        assert marks() == {naming.image_name(WEB, 2): "here"}
        store.rename(renamed, 1)
    lvm("dmsetup", "suspend", mapped)
    lvm("udevadm", "trigger", "--settle", "--action=change", os.path.realpath(image.path))
    assert link.is_block_device()
    lvm("dmsetup", "resume", mapped)
    lvm("udevadm", "settle")
    assert marks() == {link.name: "here"}


def raid_member() -> bytes:
    """What makes udev take a device for half of a RAID 1 (struct mdp1_super_block at 4 KiB: version 1.2)."""
    block = bytearray(256)
    struct.pack_into("<II8x16s32sQI8x4xI", block, 0, 0xA92B4EFC, 1, b"u" * 16, b"guest:0", 0, 1, 2)
    struct.pack_into("<Q", block, 144, 8)
    total = sum(struct.unpack("<64I", block))
    struct.pack_into("<I", block, 216, (total + (total >> 32)) & 0xFFFFFFFF)
    return bytes(4096) + bytes(block)


def test_the_host_makes_no_raid_of_what_a_guest_has_on_its_disks(place: LvmLab) -> None:
    store = place.store()
    image = make(store, WEB, INCOMPLETE, "box_a")
    lvm("lvcreate", "-y", "-Wn", "-Zn", "-L", "4M", "-n", "foreign", "box_a")
    for path in (image.path, "/dev/box_a/foreign"):
        with open(path, "r+b") as device:
            device.write(raid_member())
    seen = lvm("blkid", "--probe", image.path)
    assert 'TYPE="linux_raid_member"' in seen, "or this shows nothing"
    image = store.rename(image, 1)
    lvm("udevadm", "trigger", "--settle", "--action=change", os.path.realpath("/dev/box_a/foreign"))
    facts = {path: lvm("udevadm", "info", "--query=property", path) for path in (image.path, "/dev/box_a/foreign")}
    lvm("lvremove", "-y", "box_a/foreign")
    # mdadm's own rule, 64-md-raid-assembly.rules, goes by this alone.
    assert "ID_FS_TYPE=linux_raid_member" in facts["/dev/box_a/foreign"]
    assert "ID_FS_TYPE" not in facts[image.path]
    assert store.path(WEB, 1).rsplit("/", 1)[1] in marks()


def test_a_replaced_image_has_its_successor_in_another_group_before_it_goes(place: LvmLab) -> None:
    store = place.store()
    old = make(store, WEB, INCOMPLETE, "box_c", "old")
    with pytest.raises(StoreFullError) as too_small:
        store.resize(old, 250 * MIB)
    assert too_small.value.available_bytes < too_small.value.needed_bytes

    new = store.create(WEB, 250 * MIB, "box_a")
    assert {image.location for image in store.images()} == {"box_a", "box_c"}
    store.remove(old)

    promoted = store.rename(new, 1)
    assert store.images() == (promoted,)
    assert os.stat(store.path(WEB, 1)).st_rdev == os.stat(promoted.path).st_rdev


def test_what_the_placement_plans_is_what_the_groups_then_hold(place: LvmLab) -> None:
    """Two groups tie at first; a recycled image that can't grow in the small one is replaced in another."""
    store = place.store()
    small = make(store, WEB, INCOMPLETE, "box_c")
    demands = (
        Demand(WEB, 220 * MIB + 1, existing_location="box_c", existing_bytes=small.size_bytes),
        Demand(MAIL, 280 * MIB),
        Demand(Owner("Dns01", "vda"), 60 * MIB),
    )

    plan = plan_placement(store.locations(), demands)

    assert plan == (
        Replace(WEB, "box_a", 224 * MIB, "box_c"),
        Create(MAIL, "box_b", 280 * MIB),
        Create(Owner("Dns01", "vda"), "box_c", 60 * MIB),
    )
    for step in plan:
        assert isinstance(step, (Create, Replace))
        assert store.create(step.owner, step.size_bytes, step.location).size_bytes == step.size_bytes
    store.remove(small)
    assert {(image.owner, image.location, image.size_bytes) for image in store.images()} == {
        (step.owner, step.location, step.size_bytes) for step in plan if not isinstance(step, Keep)
    }
    with pytest.raises(StoreFullError):
        plan_placement(store.locations(), (Demand(Owner("Late", "vda"), 200 * MIB),))


def test_one_number_is_never_given_twice_whatever_the_group(place: LvmLab) -> None:
    store = place.store()
    make(store, WEB, 1, "box_a")
    other = make(store, WEB, INCOMPLETE, "box_b")
    with pytest.raises(StoreError, match="box_a/.* exists already"):
        store.rename(other, 1)


def test_a_volume_that_is_in_the_way_is_named_and_left_alone(place: LvmLab) -> None:
    store = place.store()
    lvm("lvcreate", "-y", "-L", "4m", "-n", naming.image_name(WEB, INCOMPLETE), "box_b")
    with pytest.raises(StoreError, match=f"box_b/{naming.image_name(WEB, INCOMPLETE)} is in the way"):
        store.create(WEB, 4 * MIB, "box_a")
    assert store.images() == ()


def test_sizes_are_rounded_up_to_extents_and_one_that_rounds_to_the_same_is_kept(place: LvmLab) -> None:
    store = place.store()
    image = store.create(WEB, 5 * MIB + 1, "box_a")
    assert image.size_bytes == 8 * MIB
    assert store.resize(image, 7 * MIB) == image
    assert store.resize(image, 9 * MIB).size_bytes == 12 * MIB


def test_a_file_system_in_an_image_does_not_keep_it_from_shrinking(place: LvmLab) -> None:
    store = place.store()
    image = store.create(WEB, 64 * MIB, "box_a")
    lvm("mkfs.ext4", "-q", image.path)
    assert store.resize(image, 8 * MIB).size_bytes == 8 * MIB


def test_after_a_boot_without_activation_the_check_makes_every_path_right(place: LvmLab) -> None:
    store = place.store()
    image = make(store, WEB, 1, "box_a", "asleep")
    make(store, MAIL, 1, "box_b", "asleep too")
    lvm("vgchange", "-an", *GROUPS)
    assert not Path(image.path).exists() and not os.path.exists(store.path(WEB, 1))
    assert image in store.images()
    assert store.users([image]).get(image) is None

    opened = store.open(image, writable=True)
    opened.close()
    assert marks() == {naming.image_name(WEB, 1): "asleep"}
    store.check()
    assert marks() == {naming.image_name(WEB, 1): "asleep", naming.image_name(MAIL, 1): "asleep too"}


def test_an_inactive_image_can_be_renamed_and_removed(place: LvmLab) -> None:
    store = place.store()
    image = make(store, WEB, 1, "box_a")
    lvm("vgchange", "-an", "box_a")
    store.remove(store.rename(image, 2))
    assert store.images() == ()


@contextmanager
def mounted(image: StoredImage) -> Iterator[None]:
    lvm("mkfs.ext4", "-q", image.path)
    Path("/run/here it is").mkdir(exist_ok=True)
    lvm("mount", image.path, "/run/here it is")
    yield
    lvm("umount", "/run/here it is")


@contextmanager
def under_a_device(image: StoredImage) -> Iterator[None]:
    lvm("dmsetup", "create", "on_top", "--table", f"0 8 linear {image.path} 0")
    yield
    lvm("dmsetup", "remove", "--retry", "on_top")


@contextmanager
def on_a_loop(image: StoredImage) -> Iterator[None]:
    lvm("modprobe", "loop")
    device = lvm("losetup", "--find", "--show", image.path).strip()
    yield
    lvm("losetup", "-d", device)


@contextmanager
def under_a_snapshot(image: StoredImage) -> Iterator[None]:
    lvm("lvcreate", "-y", "-s", "-L", "4m", "-n", "snap", image.path)
    yield
    lvm("lvremove", "-y", f"{image.location}/snap")


@pytest.mark.parametrize(
    "use, words",
    [
        (mounted, "the mount at /run/here it is"),
        (under_a_device, "device on_top on top of it"),
        (on_a_loop, "loop device /dev/loop"),
        (under_a_snapshot, "a snapshot of it"),
    ],
    ids=["mounted", "under-a-device", "on-a-loop", "under-a-snapshot"],
)
def test_whoever_holds_an_image_is_named_and_it_is_neither_written_nor_removed(
    place: LvmLab, use: Callable[[StoredImage], ContextManager[None]], words: str
) -> None:
    store = place.store()
    image = store.create(WEB, 16 * MIB, "box_a")
    with use(image):
        assert words in (store.users([image]).get(image) or "")
        with pytest.raises(ImageInUseError):
            store.remove(image)
        with pytest.raises(ImageInUseError):
            store.open(image, writable=True)
    store.remove(image)


def test_a_writer_is_not_disturbed_by_udev_looking_at_the_volume(place: LvmLab) -> None:
    """Closing what was open for writing makes udev look at it again, so the next open must bear with that."""
    store = place.store()
    image = store.create(WEB, 4 * MIB, "box_a")
    for turn in range(5):
        opened = store.open(image, writable=True)
        opened.write(0, memoryview(b"turn %d" % turn))
        opened.close()
    store.remove(image)


def test_a_missing_group_is_named(place: LvmLab) -> None:
    for action in (LvmStore.check, LvmStore.images, LvmStore.locations):
        with pytest.raises(StoreError, match="no volume group box_x"):
            action(LvmStore(("box_a", "box_x"), command.run))


def test_a_damaged_group_fails_the_check(place: LvmLab) -> None:
    lvm("vgexport", "box_c")
    try:
        with pytest.raises(StoreError, match="box_c.*exported"):
            place.store().check()
    finally:
        lvm("vgimport", "box_c")


def test_without_the_rule_the_first_image_says_what_is_missing(place: LvmLab) -> None:
    installed = Path("/etc/udev/rules.d") / RULE.name
    installed.unlink()
    lvm("udevadm", "control", "--reload")
    try:
        store = LvmStore(GROUPS, command.run, link_timeout_seconds=0.5)
        with pytest.raises(StoreError, match="udev rule"):
            store.create(WEB, 4 * MIB, "box_a")
    finally:
        shutil.copy(RULE, installed)
        lvm("udevadm", "control", "--reload")


def test_locations_say_what_the_groups_have_in_the_order_of_the_configuration(place: LvmLab) -> None:
    before = LvmStore(("box_c", "box_a"), command.run).locations()
    assert [one.name for one in before] == ["box_c", "box_a"]
    assert [one.extent_bytes for one in before] == [4 * MIB, 4 * MIB]
    assert [one.free_bytes for one in before] == [one.size_bytes for one in before] == [196 * MIB, 296 * MIB]
