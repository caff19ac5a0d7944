"""A definition made fit for a rehearsal: another identity, nothing that reaches the world, nothing that is the host's.

Pure. The disks' overlays are boot_xml.py's business.
"""

from __future__ import annotations

from typing import Collection, Final, Optional, Tuple

from lxml import etree

from anvil_dr import definition

# What hands the guest a device, a folder or a channel of the host or of whoever looks at its screen.
_REMOVED: Final = (
    "hostdev", "redirdev", "redirfilter", "filesystem", "smartcard", "shmem", "vsock", "lease", "audio", "parallel",
)  # fmt: skip


def isolated(xml: str, name: str, uuid: str, overlays: Collection[str], serial_log: Optional[str]) -> str:
    """The definition as a stranger on an island. Raise DefinitionError.

    `overlays` are the paths of its disks that are thrown away in the end; every other disk goes, and every medium.
    A network card stays, so that the guest finds its hardware, but its cable is not plugged in. With `serial_log` the
    first serial port writes to that file.
    """
    root = definition.parse(xml).root
    _set_text(root, "name", name)
    _set_text(root, "uuid", uuid)
    definition.avoid_memory_files(root)
    definition.take_off_host(root)
    devices = root.find("devices")
    if devices is None:
        return etree.tostring(root, encoding="unicode")
    for tag in _REMOVED:
        for element in devices.findall(tag):
            devices.remove(element)
    for channel in devices.findall("channel"):
        if channel.get("type") not in ("unix", "pty"):
            devices.remove(channel)
    _disks(devices, overlays)
    for interface in devices.findall("interface"):
        _unplug(interface)
    _screen(devices)
    for backend in devices.iterfind("tpm/backend"):
        backend.attrib.pop("persistent_state", "")
    if serial_log is not None:
        _serial(devices, serial_log)
    return etree.tostring(root, encoding="unicode")


def without_networks(xml: str) -> str:
    """For a QEMU that has no network of its own to plug a card into. Raise DefinitionError."""
    root = definition.parse(xml).root
    for devices in root.findall("devices"):
        for interface in devices.findall("interface"):
            devices.remove(interface)
    return etree.tostring(root, encoding="unicode")


def with_own_nvram(xml: str, path: str, *, is_filled: bool) -> str:
    """UEFI variables in a file of the rehearsal's own; libvirt fills an empty one from the firmware's template."""
    root = definition.parse(xml).root
    os = root.find("os")
    if os is None:
        return xml
    nvram = os.find("nvram")
    if nvram is None:
        nvram = etree.SubElement(os, "nvram")
    for child in list(nvram):
        nvram.remove(child)
    nvram.attrib.pop("type", "")
    if is_filled:
        nvram.attrib.pop("template", "")
    nvram.text = path
    return etree.tostring(root, encoding="unicode")


def _set_text(root: etree._Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = etree.Element(tag)
        root.insert(0, element)
    element.text = text


def _disks(devices: etree._Element, overlays: Collection[str]) -> None:
    for disk in devices.findall("disk"):
        source = disk.find("source")
        if disk.get("device") in ("cdrom", "floppy"):
            if source is not None:
                disk.remove(source)
            disk.set("type", "file")
        elif source is None or source.get("file") not in overlays:
            devices.remove(disk)


def _unplug(interface: etree._Element) -> None:
    """QEMU's user-mode network is the one kind that needs nothing of the host; and the link to it is down."""
    kept = {"mac", "model", "address", "driver", "alias", "rom"}
    for child in list(interface):
        if child.tag not in kept:
            interface.remove(child)
    driver = interface.find("driver")
    if driver is not None and driver.get("name") == "vhost":
        interface.remove(driver)
    interface.attrib.clear()
    interface.set("type", "user")
    etree.SubElement(interface, "link", state="down")


def _screen(devices: etree._Element) -> None:
    """One that only this host can look at, on whatever port is free."""
    screens = devices.findall("graphics")
    for screen in screens:
        devices.remove(screen)
    if screens:
        etree.SubElement(devices, "graphics", type="vnc", port="-1", autoport="yes", listen="127.0.0.1")


def _serial(devices: etree._Element, path: str) -> None:
    # libvirt wants the first console to be the first serial port, and makes it if there is none.
    for console in devices.findall("console"):
        target = console.find("target")
        if target is None or target.get("type", "serial") == "serial":
            devices.remove(console)
    serial = devices.find("serial")
    if serial is None:
        serial = etree.SubElement(devices, "serial")
    kept: Tuple[etree._Element, ...] = tuple(child for child in serial if child.tag in ("target", "address"))
    for child in list(serial):
        serial.remove(child)
    serial.attrib.clear()
    serial.set("type", "file")
    etree.SubElement(serial, "source", path=path)
    serial.extend(kept)
