"""Which set is booted, and which image stands for which disk."""

from __future__ import annotations

from typing import List, Optional, Tuple

import pytest

from anvil_dr.activation.boot_images import bind, choose_set
from anvil_dr.activation.boot_xml import with_disk_paths
from anvil_dr.definition import DiskRequirement
from anvil_dr.model import INCOMPLETE, Activation, ImageSet, Owner, Sequence, SetRecord, StoredImage
from anvil_dr.naming import image_name
from anvil_dr.preflight.findings import Finding


def path_of(owner: Owner, sequence: Sequence) -> str:
    return f"/dev/anvil-dr/{image_name(owner, sequence)}"


def stored(server: str, disk: str, sequence: Sequence) -> StoredImage:
    owner = Owner(server, disk)
    name = image_name(owner, sequence)
    return StoredImage(owner, sequence, "vg0", f"lv:{name}", 1 << 20, f"/dev/vg0/{name}")


def one_set(sequence: Sequence, *, complete: bool = True, disks: Tuple[str, ...] = ("Web01_0", "Web01_1")) -> ImageSet:
    images = tuple(stored("Web01", disk, sequence) for disk in disks)
    record = SetRecord("Web01", "2026-11-20T01:02:03+00:00", "an-a05n01", "j1", ())
    return ImageSet("Web01", sequence, images, complete, record)


def disk(path: Optional[str], *, device: str = "disk", target: str = "vda") -> DiskRequirement:
    return DiskRequirement(target, device, "block", path, "raw", False, None, 7)


def fatal(findings: Tuple[Finding, ...]) -> List[str]:
    return [finding.text for finding in findings if finding.fatal]


def test_the_newest_set_is_booted_without_a_word() -> None:
    chosen, findings = choose_set((one_set(1), one_set(2)), None, None)
    assert (chosen, findings) == (one_set(1), ())


@pytest.mark.parametrize("left", [(one_set(2), one_set(3)), (one_set(1, complete=False), one_set(2))])
def test_without_a_complete_set_1_the_newest_complete_one_is_booted_and_that_is_said(
    left: Tuple[ImageSet, ...],
) -> None:
    chosen, findings = choose_set((*left, one_set(INCOMPLETE, complete=False)), None, None)
    assert chosen == one_set(2)
    assert [finding.fatal for finding in findings] == [False]
    assert "set 2 is used" in findings[0].text


def test_without_any_complete_set_there_is_a_problem_and_no_set() -> None:
    chosen, findings = choose_set((one_set(INCOMPLETE, complete=False),), None, None)
    assert chosen is None
    assert fatal(findings) == ["it has no complete set"]


def test_the_set_that_was_asked_for_is_booted() -> None:
    chosen, _ = choose_set((one_set(1), one_set(2)), 2, None)
    assert chosen == one_set(2)


@pytest.mark.parametrize(("wanted", "said"), [(3, "it has no set 3"), (2, "its set 2 is not complete")])
def test_a_set_that_was_asked_for_and_cannot_be_had_is_not_replaced_by_another(wanted: int, said: str) -> None:
    chosen, findings = choose_set((one_set(1), one_set(2, complete=False)), wanted, None)
    assert chosen is None
    assert fatal(findings) == [said]
    assert findings[-1].advice == "complete sets: 1"


def test_a_server_that_ran_here_goes_on_with_the_set_it_ran_from() -> None:
    activation = Activation("Web01", 2, "2026-11-20T03:00:00+00:00", "root")
    chosen, findings = choose_set((one_set(1), one_set(2)), None, activation)
    assert (chosen, findings) == (one_set(2), ())


def test_leaving_the_set_that_a_server_ran_from_is_warned_of() -> None:
    activation = Activation("Web01", 1, "2026-11-20T03:00:00+00:00", "root")
    chosen, findings = choose_set((one_set(1), one_set(2)), 2, activation)
    assert chosen == one_set(2)
    assert "is not in set 2" in findings[0].advice


def test_each_disk_is_bound_to_its_image_of_the_chosen_set() -> None:
    images = [stored("Web01", name, number) for name in ("Web01_0", "Web01_1") for number in (1, 2)]
    disks = [disk("/dev/anvil-dr/Web01_Web01_0_1"), disk("/dev/anvil-dr/Web01_Web01_1_1", target="vdb")]
    bound = bind("Web01", disks, one_set(2), images, path_of)
    assert bound.images == {
        "/dev/anvil-dr/Web01_Web01_0_1": stored("Web01", "Web01_0", 2),
        "/dev/anvil-dr/Web01_Web01_1_1": stored("Web01", "Web01_1", 2),
    }
    assert bound.findings == ()


def test_set_1_need_not_exist_for_its_paths_to_be_known() -> None:
    bound = bind(
        "Web01", [disk("/dev/anvil-dr/Web01_d_1")], one_set(2, disks=("d",)), [stored("Web01", "d", 2)], path_of
    )
    assert list(bound.images) == ["/dev/anvil-dr/Web01_d_1"]


def test_the_path_in_its_volume_group_is_as_good_as_the_stable_one() -> None:
    chosen = one_set(1, disks=("d",))
    bound = bind("Web01", [disk("/dev/vg0/Web01_d_1")], chosen, chosen.images, path_of)
    assert bound.images == {"/dev/vg0/Web01_d_1": chosen.images[0]}


def test_drives_without_a_medium_and_media_are_no_images() -> None:
    chosen = one_set(1, disks=("d",))
    disks = [disk("/dev/anvil-dr/Web01_d_1"), disk(None, device="cdrom"), disk("/iso/x.iso", device="cdrom")]
    assert bind("Web01", disks, chosen, chosen.images, path_of).findings == ()


def test_an_extra_disk_of_the_admins_is_left_alone_and_mentioned() -> None:
    chosen = one_set(1, disks=("d",))
    disks = [disk("/dev/anvil-dr/Web01_d_1"), disk("/dev/sdz", target="vdz")]
    bound = bind("Web01", disks, chosen, chosen.images, path_of)
    assert list(bound.images) == ["/dev/anvil-dr/Web01_d_1"]
    assert [finding.text for finding in bound.findings] == ["disk vdz (/dev/sdz) is not one of its images"]
    assert fatal(bound.findings) == []


def test_another_servers_image_is_a_problem() -> None:
    images = [stored("Web01", "d", 1), stored("Mail01", "d", 1)]
    disks = [disk("/dev/anvil-dr/Web01_d_1"), disk("/dev/anvil-dr/Mail01_d_1", target="vdb")]
    bound = bind("Web01", disks, one_set(1, disks=("d",)), images, path_of)
    assert fatal(bound.findings) == ["disk vdb (/dev/anvil-dr/Mail01_d_1) is an image of server Mail01"]


def test_a_definition_that_names_an_older_set_is_a_problem_that_says_what_to_write() -> None:
    images = [stored("Web01", "d", 1), stored("Web01", "d", 2)]
    bound = bind("Web01", [disk("/dev/anvil-dr/Web01_d_2")], one_set(1, disks=("d",)), images, path_of)
    assert "is an image of set 2" in fatal(bound.findings)[0]
    assert "/dev/anvil-dr/Web01_d_1" in bound.findings[0].advice


def test_a_disk_that_the_set_does_not_have_is_a_problem() -> None:
    images = [stored("Web01", "a", 2), stored("Web01", "b", 1)]
    disks = [disk("/dev/anvil-dr/Web01_a_1"), disk("/dev/anvil-dr/Web01_b_1", target="vdb")]
    bound = bind("Web01", disks, one_set(2, disks=("a",)), images, path_of)
    assert fatal(bound.findings) == ["set 2 has no image of disk vdb (/dev/anvil-dr/Web01_b_1)"]


def test_an_image_that_no_disk_names_is_mentioned() -> None:
    chosen = one_set(1)
    bound = bind("Web01", [disk("/dev/anvil-dr/Web01_Web01_0_1")], chosen, chosen.images, path_of)
    assert fatal(bound.findings) == []
    assert "Web01_1" in bound.findings[0].text


def test_a_definition_that_names_none_of_the_images_is_a_problem() -> None:
    chosen = one_set(1)
    bound = bind("Web01", [disk("/dev/sdz")], chosen, chosen.images, path_of)
    assert fatal(bound.findings) == ["its definition names none of its images"]


def test_paths_are_changed_in_a_copy_and_nothing_else_is() -> None:
    text = (
        "<domain type='kvm'><name>Web01</name><devices>"
        "<disk device='disk' type='block'><source dev='/a_1'/><target dev='vda'/></disk>"
        "<disk device='disk' type='file'><source file='/b_1'/><target dev='vdb'/></disk>"
        "<disk device='disk' type='block'><source dev='/mine'/><target dev='vdc'/></disk>"
        "</devices></domain>"
    )
    changed = with_disk_paths(text, {"/a_1": "/a_2", "/b_1": "/b_2"})
    assert changed == text.replace("'", '"').replace("/a_1", "/a_2").replace("/b_1", "/b_2")
