"""Changes to a copy of a definition, for one boot."""

from __future__ import annotations

import pytest
from lxml import etree

from anvil_dr.activation.boot_xml import OverlayPaths, with_memory, with_nvram, with_overlays
from anvil_dr.definition import requirements
from anvil_dr.errors import UsageError

TEXT = """<domain type='kvm'>
  <name>Web01</name>
  <memory unit='GiB'>4</memory>
  <currentMemory unit='GiB'>4</currentMemory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><nvram template='/usr/share/x.fd'>/d/nvram/Web01.fd</nvram></os>
  <devices>
    <disk type='block' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev='/dev/anvil-dr/Web01_a_1'/><target dev='vda'/></disk>
    <disk type='file' device='disk'><source file='/srv/b_1.raw'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/></disk>
  </devices>
</domain>
"""
OVERLAYS = {
    "/dev/anvil-dr/Web01_a_1": OverlayPaths("/o/a.qcow2", "/dev/anvil-dr/Web01_a_1", "block"),
    "/srv/b_1.raw": OverlayPaths("/o/b.qcow2", "/srv/b_1.raw", "file"),
}


def disks(xml: str) -> etree._Element:
    return etree.fromstring(xml).findall("devices/disk")


def test_a_disk_on_an_overlay_is_a_qcow2_file_over_the_raw_image() -> None:
    block, file, drive = disks(with_overlays(TEXT, OVERLAYS))
    assert (block.get("type"), block.find("driver").get("type")) == ("file", "qcow2")
    assert dict(block.find("source").attrib) == {"file": "/o/a.qcow2"}
    below = block.find("backingStore")
    assert (below.get("type"), below.find("format").get("type")) == ("block", "raw")
    assert dict(below.find("source").attrib) == {"dev": "/dev/anvil-dr/Web01_a_1"}
    assert file.find("backingStore/source").get("file") == "/srv/b_1.raw"
    assert file.find("driver").get("type") == "qcow2"
    assert drive.find("source") is None and drive.find("driver") is None


def test_what_must_survive_a_power_cut_keeps_its_cache_mode_and_what_is_thrown_away_needs_none() -> None:
    kept, _, _ = disks(with_overlays(TEXT, OVERLAYS))
    thrown, _, _ = disks(with_overlays(TEXT, OVERLAYS, thrown_away=True))
    assert (kept.find("driver").get("cache"), kept.find("driver").get("io")) == ("none", "native")
    assert (thrown.find("driver").get("cache"), thrown.find("driver").get("io")) == ("unsafe", None)


def test_a_disk_that_has_no_overlay_stays_as_it_is() -> None:
    before, after = disks(TEXT), disks(with_overlays(TEXT, {"/srv/b_1.raw": OVERLAYS["/srv/b_1.raw"]}))
    assert etree.tostring(after[0]) == etree.tostring(before[0])


def test_less_memory_is_less_of_both_kinds() -> None:
    changed = with_memory(TEXT, 1 << 30)
    assert requirements(changed).memory_bytes == 1 << 30
    root = etree.fromstring(changed)
    assert (root.find("currentMemory").text, root.find("currentMemory").get("unit")) == ("1048576", "KiB")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<os>", "<cpu><numa><cell id='0' cpus='0-1' memory='4' unit='GiB'/></numa></cpu><os>"),
        ("</devices>", "<memory model='dimm'><target><size unit='GiB'>1</size></target></memory></devices>"),
    ],
)
def test_memory_that_is_said_in_parts_is_not_guessed_at(before: str, after: str) -> None:
    with pytest.raises(UsageError, match="NUMA"):
        with_memory(TEXT.replace(before, after), 1 << 30)


def test_other_uefi_variables_need_no_template() -> None:
    changed = requirements(with_nvram(TEXT, "/o/nvram.fd"))
    assert (changed.nvram, changed.nvram_template) == ("/o/nvram.fd", None)
