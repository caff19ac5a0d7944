"""A server in a rehearsal is somebody else, reaches nothing, and changes nothing that is not thrown away."""

from __future__ import annotations

from typing import List

import pytest
from lxml import etree

from anvil_dr.rehearsal.rehearsal_xml import isolated, with_own_nvram, without_networks

TEXT = """<domain type='kvm'>
  <name>Web01</name>
  <uuid>5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4c</uuid>
  <memory unit='GiB'>4</memory>
  <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><source file='/o/a.qcow2'/><target dev='vda'/></disk>
    <disk type='block' device='disk'><source dev='/dev/sdz'/><target dev='vdb'/></disk>
    <disk type='network' device='disk'><source protocol='iscsi' name='x'/><target dev='vdc'/></disk>
    <disk type='block' device='cdrom'><source dev='/dev/sr0'/><target dev='sda'/></disk>
    <interface type='bridge'>
      <mac address='52:54:00:11:22:33'/><source bridge='lan1'/><virtualport type='openvswitch'/>
      <model type='virtio'/><driver name='vhost' queues='4'/><boot order='2'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <interface type='network'><source network='default'/></interface>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x0529'/></source></hostdev>
    <redirdev bus='usb' type='spicevmc'/>
    <filesystem type='mount'><source dir='/srv'/><target dir='x'/></filesystem>
    <serial type='pty'><target type='isa-serial' port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <graphics type='spice' port='5901' autoport='no' listen='0.0.0.0'/>
    <graphics type='vnc' port='5902' listen='0.0.0.0'/>
    <audio id='1' type='spice'/>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'/></tpm>
  </devices>
</domain>
"""
NEW = "00000000-0000-4000-8000-000000000001"


def rehearsed(serial_log: str = "") -> etree._Element:
    return etree.fromstring(isolated(TEXT, "Web01-rehearsal", NEW, ["/o/a.qcow2"], serial_log or None))


def tags(parent: etree._Element) -> List[str]:
    return [child.tag for child in parent]


def test_it_has_another_name_and_another_uuid() -> None:
    root = rehearsed()
    assert (root.findtext("name"), root.findtext("uuid")) == ("Web01-rehearsal", NEW)


def test_its_network_cards_stay_and_reach_nothing() -> None:
    first, second = rehearsed().findall("devices/interface")
    assert first.get("type") == second.get("type") == "user"
    assert first.find("link").get("state") == "down"
    assert (first.find("mac").get("address"), first.find("model").get("type")) == ("52:54:00:11:22:33", "virtio")
    assert first.find("address") is not None
    assert first.find("source") is None and first.find("driver") is None
    assert b"lan1" not in etree.tostring(rehearsed()) and b"default" not in etree.tostring(rehearsed())


def test_where_there_is_no_such_network_it_has_no_cards() -> None:
    assert etree.fromstring(without_networks(TEXT)).find("devices/interface") is None


def test_disks_that_are_not_thrown_away_are_not_there_and_drives_are_empty() -> None:
    kept, drive = rehearsed().findall("devices/disk")
    assert kept.find("source").get("file") == "/o/a.qcow2"
    assert (drive.get("device"), drive.get("type"), drive.find("source")) == ("cdrom", "file", None)


def test_nothing_of_the_host_and_nobody_elses_screen_is_in_it() -> None:
    devices = rehearsed().find("devices")
    assert not set(tags(devices)) & {"hostdev", "redirdev", "filesystem", "audio"}
    assert [channel.get("type") for channel in devices.findall("channel")] == ["unix"]
    (screen,) = devices.findall("graphics")
    assert dict(screen.attrib) == {"type": "vnc", "port": "-1", "autoport": "yes", "listen": "127.0.0.1"}


def test_what_an_admin_added_does_not_lead_out_of_it() -> None:
    added = """
    <serial type='tcp'><source mode='connect' host='10.0.0.5' service='2445'/><protocol type='raw'/></serial>
    <console type='file'><source path='/var/log/console.log'/><target type='virtio'/></console>
    <serial type='pty'><log file='/var/log/serial.log'/></serial>
    <channel type='unix'><source mode='bind' path='/run/web01.sock'/><target type='virtio' name='org.x'/></channel>
    <rng model='virtio'><backend model='egd' type='tcp'><source mode='connect' host='10.0.0.9'/></backend></rng>
    <tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
    <video><driver name='vhostuser'/><model type='virtio'/></video>
    <memory model='nvdimm'><source><path>/srv/nvdimm</path></source><target><size>1</size></target></memory>
    <pstore backend='acpi-erst'><path>/srv/pstore</path></pstore>
    """
    options = "<qemu:commandline><qemu:arg value='-netdev'/><qemu:arg value='bridge,id=n1'/></qemu:commandline>"
    text = TEXT.replace("</devices>", f"{added}</devices>").replace("</domain>", f"{options}</domain>")
    text = text.replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ")
    made = isolated(text, "Web01-rehearsal", NEW, ["/o/a.qcow2"], None)
    for reached in ("10.0.0.", "/var/log", "/run/", "/dev/", "/srv", "vhostuser", "qemu:arg", "-netdev", "tcp"):
        assert reached not in made
    devices = etree.fromstring(made).find("devices")
    assert {one.get("type") for tag in ("serial", "console") for one in devices.findall(tag)} == {"pty"}
    assert [one.find("target").get("name") for one in devices.findall("channel")] == ["org.qemu.guest_agent.0", "org.x"]


def test_a_crash_in_it_writes_nothing_to_the_hosts_disk() -> None:
    text = TEXT.replace("<devices>", "<on_crash>coredump-destroy</on_crash><devices><watchdog action='dump'/>")
    text = text.replace("<os ", "<memoryBacking><source type='file'/></memoryBacking><os ")
    root = etree.fromstring(isolated(text, "Web01-rehearsal", NEW, ["/o/a.qcow2"], None))
    assert (root.findtext("on_crash"), root.find("devices/watchdog").get("action")) == ("destroy", "reset")
    assert root.find("memoryBacking") is None


def test_its_tpm_leaves_nothing_behind() -> None:
    assert rehearsed().find("devices/tpm/backend").get("persistent_state") is None


def test_its_serial_port_writes_to_a_file_only_where_somebody_reads_it() -> None:
    assert rehearsed().find("devices/serial").get("type") == "pty"
    devices = rehearsed("/o/serial.log").find("devices")
    serial = devices.find("serial")
    assert (serial.get("type"), serial.find("source").get("path")) == ("file", "/o/serial.log")
    assert serial.find("target").get("type") == "isa-serial"
    assert devices.find("console") is None


@pytest.mark.parametrize("filled", [True, False])
def test_its_uefi_variables_are_its_own_and_an_empty_file_is_filled_by_libvirt(filled: bool) -> None:
    text = TEXT.replace("</os>", "<nvram template='/usr/share/x.fd'>/d/nvram/Web01.fd</nvram></os>")
    nvram = etree.fromstring(with_own_nvram(text, "/o/nvram.fd", is_filled=filled)).find("os/nvram")
    assert (nvram.text, nvram.get("template")) == ("/o/nvram.fd", None if filled else "/usr/share/x.fd")
    assert etree.fromstring(with_own_nvram(TEXT, "/o/nvram.fd", is_filled=filled)).findtext("os/nvram") == "/o/nvram.fd"
