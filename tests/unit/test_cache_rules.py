"""Which devices are never touched, which stands for its twins, and in which order drives are used."""

from __future__ import annotations

from dataclasses import replace
from typing import FrozenSet

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil_dr.cache.cache_rules import BlockDevice, Mount, StorePlaces, ranked, refusal, twins, usable_mount
from anvil_dr.caching.cache_plan import CacheDemand, place, plan_cache, space_bytes
from anvil_dr.model import CacheDrive, Owner

GIB = 1 << 30
STICK = BlockDevice("/dev/sdb1", (8, 17), 64 * GIB, "filesystem", "ext4", "u-1", "usb-1", "1")
GROUPS = StorePlaces(groups=frozenset({"dr01_vg0"}))
FILES = StorePlaces(directory="/srv/dr", device=(8, 1))


def drive(device: str, size_bytes: int, **more: object) -> CacheDrive:
    return CacheDrive(device, None, "ext4", size_bytes, size_bytes, identity=device, **more)  # type: ignore[arg-type]


def test_a_stick_with_a_file_system_can_be_looked_at() -> None:
    assert refusal(STICK, GROUPS) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"groups": frozenset({"dr01_vg0"})}, "a volume of the store"),
        ({"groups": frozenset({"other_vg"}), "mapping": "LVM-abc"}, "only where it is mounted"),
        ({"usage": "raid", "filesystem": "LVM2_member"}, "member of a RAID"),
        ({"usage": "raid", "filesystem": "mpath_member"}, "multipath"),
        ({"usage": "crypto", "filesystem": "crypto_LUKS"}, "LUKS"),
        ({"usage": "other", "filesystem": "swap"}, "swap"),
        ({"is_swap": True}, "swap"),
        ({"holders": ("backup_crypt",)}, "held by backup_crypt"),
        ({"has_partitions": True}, "partitions"),
        ({"usage": "", "filesystem": ""}, "no file system"),
        ({"read_only": True}, "read-only"),
        ({"filesystem": "ntfs"}, "ntfs file system cannot be looked at"),
        ({"files": frozenset({"/home/admin/disk.img"})}, "an image is used only where"),
        ({"device": "/dev/nbd0"}, "an image is used only where"),
    ],
)
def test_what_is_never_touched_has_its_reason(changes: dict[str, object], reason: str) -> None:
    assert reason in str(refusal(replace(STICK, **changes), GROUPS))  # type: ignore[arg-type]


def test_what_lies_in_an_image_of_a_directory_store_or_beneath_the_store_is_never_touched() -> None:
    mounted = (Mount("/mnt", writable=True, reachable=True, whole=True),)
    inside = replace(STICK, files=frozenset({"/srv/dr/Web01_Web01_0_1.raw"}), mounts=mounted)
    assert "an image of the store" in str(refusal(inside, FILES))
    assert "the store itself" in str(refusal(replace(STICK, number=(8, 1), mounts=mounted), FILES))
    assert refusal(replace(STICK, files=frozenset({"/srv/drives/x"}), mounts=mounted), FILES) is None


def test_a_partition_of_a_volume_of_the_store_is_never_touched_even_when_it_is_mounted() -> None:
    groups: FrozenSet[str] = frozenset({"dr01_vg0"})
    mounted = (Mount("/mnt", writable=True, reachable=True, whole=True),)
    part = replace(STICK, groups=groups, mapping="part1-LVM-abc", mounts=mounted)
    assert "a volume of the store" in str(refusal(part, GROUPS))


def test_the_mount_that_is_used_is_a_whole_and_visible_one_that_takes_writes() -> None:
    good = Mount("/media/usb", writable=True, reachable=True, whole=True)
    others = (
        replace(good, path="/a", whole=False),
        replace(good, path="/b", reachable=False),
        replace(good, path="/c", writable=False),
    )
    assert usable_mount((*others, good)) == ("/media/usb", "")
    for mount, reason in zip(others, ("only a part", "something else", "read-only")):
        path, why = usable_mount((mount,))
        assert path is None and reason in why


def test_one_drive_under_two_paths_is_one_and_two_drives_with_one_file_system_are_two() -> None:
    other_path = replace(STICK, device="/dev/sdc1")
    clone = replace(STICK, device="/dev/sdd1", serial="usb-2")
    assert twins((other_path, STICK, clone)) == {"/dev/sdc1": "/dev/sdb1"}
    nameless = replace(STICK, device="/dev/ubdb", serial=""), replace(STICK, device="/dev/ubda", serial="")
    assert twins(nameless) == {"/dev/ubdb": "/dev/ubda"}
    mounted = replace(other_path, mounts=(Mount("/m", True, True, True),))
    assert twins((STICK, mounted)) == {"/dev/sdb1": "/dev/sdc1"}


def test_the_largest_drive_is_first_and_equal_ones_go_by_their_device_path() -> None:
    drives = [drive("/dev/sdd", 8), drive("/dev/sdb", 8), drive("/dev/sdc", 9), drive("/dev/sda", 99, problem="swap")]
    assert [one.device for one in ranked(drives)] == ["/dev/sdc", "/dev/sdb", "/dev/sdd", "/dev/sda"]


def demand(server: str, disk: str, size_bytes: int) -> CacheDemand:
    return CacheDemand(Owner(server, disk), size_bytes)


def test_servers_that_fit_are_cached_together_the_largest_first() -> None:
    plan = plan_cache([demand("Db01", "0", GIB), demand("Web01", "0", 2 * GIB)], [drive("/dev/sdb", 4 * GIB)])
    assert (plan.servers, plan.together, plan.too_large) == (("Web01", "Db01"), True, ())


def test_servers_that_do_not_fit_together_are_cached_one_at_a_time() -> None:
    plan = plan_cache([demand("Db01", "0", 2 * GIB), demand("Web01", "0", 3 * GIB)], [drive("/dev/sdb", 4 * GIB)])
    assert (plan.servers, plan.together) == (("Web01", "Db01"), False)


def test_a_server_too_large_for_the_pool_is_named_and_does_not_stop_the_others() -> None:
    demands = [demand("Big", "0", 5 * GIB), demand("Web01", "0", GIB)]
    plan = plan_cache(demands, [drive("/dev/sdb", 4 * GIB), drive("/dev/sdc", 4 * GIB)])
    assert (plan.servers, plan.together, plan.too_large) == (("Web01",), True, ("Big",))


def test_several_drives_are_one_pool_and_each_image_lies_on_one() -> None:
    drives = [drive("/dev/sdc", 4 * GIB), drive("/dev/sdb", 3 * GIB)]
    places = place([demand("Web01", "0", 3 * GIB), demand("Web01", "1", 2 * GIB)], drives)
    assert places is not None
    assert {owner.disk: one.device for owner, one in places.items()} == {"0": "/dev/sdc", "1": "/dev/sdb"}


def test_a_file_system_with_small_files_only_does_not_get_a_large_image() -> None:
    fat = drive("/dev/sdb", 64 * GIB, largest_file_bytes=4 * GIB - 1)
    assert plan_cache([demand("Web01", "0", 4 * GIB)], [fat]).too_large == ("Web01",)
    assert plan_cache([demand("Web01", "0", 4 * GIB - 1)], [fat]).servers == ("Web01",)


def test_what_arrived_in_part_is_gone_on_with_where_it_lies() -> None:
    drives = [drive("/dev/sdb", 8 * GIB), drive("/dev/sdc", GIB)]
    begun = CacheDemand(Owner("Web01", "0"), 2 * GIB, "/dev/sdc", 2 * GIB)
    places = place([begun], drives)
    assert places is not None and places[begun.owner].device == "/dev/sdc"


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 50 * GIB)), max_size=8),
    st.lists(st.integers(0, 60 * GIB), max_size=4),
)
def test_no_plan_puts_more_on_a_drive_than_it_holds(wanted: list[tuple[str, int]], free: list[int]) -> None:
    drives = [drive(f"/dev/sd{n}", size) for n, size in enumerate(free)]
    demands = [demand(server, str(n), size) for n, (server, size) in enumerate(wanted)]
    plan = plan_cache(demands, drives)
    assert sorted((*plan.servers, *plan.too_large)) == sorted({server for server, _ in wanted})
    groups = [plan.servers] if plan.together else [(name,) for name in plan.servers]
    for names in groups:
        places = place([one for one in demands if one.owner.server in names], drives)
        assert places is not None
        for one in drives:
            on_it = [d.size_bytes for d in demands if places.get(d.owner) == one]
            assert sum(map(space_bytes, on_it)) <= one.free_bytes
