"""The rules for devices that carry a stream of bytes between the guest and the host. Pure.

Serial and parallel ports, consoles, channels, USB redirection, smart cards. Their other end on the node was a
file, a socket or a program; here it is a terminal that libvirt makes (`pty`), or the device goes.
"""

from __future__ import annotations

from typing import Final

from lxml import etree

from anvil_dr.definition import scrub
from anvil_dr.definition.notes import Notes
from anvil_dr.definition.reading import attribute_of, elements, shown, tag_of

_PRIVATE_FOLDERS: Final = ("/var/lib/libvirt/qemu/", "/run/libvirt/qemu/", "/var/run/libvirt/qemu/")
"""Where libvirt puts the sockets that it makes itself; their names have the domain's id in them."""

_PORT_ENDS: Final = frozenset(("pty", "null", "vc"))
_CHANNEL_ENDS: Final = frozenset(("pty", "null", "spicevmc", "qemu-vdagent"))


def port(element: etree._Element, notes: Notes) -> None:
    """`<serial>`, `<parallel>` and `<console>`: the guest keeps its port, on a terminal of this host."""
    end = element.get("type", "pty")
    if end not in _PORT_ENDS:
        # The first console is the first serial port under another name: one warning is enough.
        if not (element.tag == "console" and attribute_of(element, "target", "type") in (None, "serial")):
            notes.warn(f"{_label(element)} was of type {shown(end)}; here it is a terminal (virsh console)")
        element.set("type", "pty")
    _remove_ends(element, notes)
    scrub.keep_attributes(element, ("type",), notes)
    scrub.keep_children(element, ("target", "alias", "address", "acpi"), notes, once=True)


def channel(element: etree._Element, notes: Notes) -> None:
    """`<channel>`: kept if libvirt makes its other end itself, as for the guest agent's."""
    end, source = element.get("type", ""), element.find("source")
    if attribute_of(element, "target", "type") not in (None, "virtio", "xen"):
        notes.removed(_label(element), "it leads from the guest's network to the host")
        scrub.remove(element)
        return
    if end == "unix" and (source is None or source.get("mode", "bind") == "bind"):
        path = "" if source is None else source.get("path", "")
        if path and not path.startswith(_PRIVATE_FOLDERS):
            notes.warn(f"{_label(element)} was the socket {shown(path)}; here libvirt chooses its path")
    elif end not in _CHANNEL_ENDS:
        notes.removed(_label(element), f"type {shown(end)} leads to a file, socket or program of the node")
        scrub.remove(element)
        return
    if end == "qemu-vdagent":
        for child in elements(element, "source"):
            scrub.keep_attributes(child, (), notes)
            scrub.keep_children(child, ("clipboard", "mouse"), notes)
    else:
        _remove_ends(element, notes)
    for child in elements(element, "target"):
        scrub.drop_attributes(child, "state")
    scrub.keep_attributes(element, ("type",), notes)
    scrub.keep_children(element, ("source", "target", "alias", "address"), notes, once=True)


def spice_only(element: etree._Element, notes: Notes) -> None:
    """`<redirdev>` and `<smartcard>`: kept if the other end is the viewer's."""
    if element.get("type") != "spicevmc" or element.get("mode") not in (None, "passthrough"):
        notes.removed(f"<{element.tag}>", "it leads to a device, a file or a socket of the node")
        scrub.remove(element)
        return
    _remove_ends(element, notes)
    scrub.keep_attributes(element, ("type", "bus", "mode"), notes)
    scrub.keep_children(element, ("alias", "address", "boot", "acpi"), notes)


def _remove_ends(element: etree._Element, notes: Notes) -> None:
    scrub.drop_attributes(element, "tty")
    for child in elements(element, "log"):
        notes.removed(f"the log of {_label(element)}", "QEMU would write it to a file of the host")
        scrub.remove(child)
    scrub.drop_children(element, "source", "protocol")


def _label(element: etree._Element) -> str:
    target = element.find("target")
    which = "" if target is None else target.get("name") or target.get("port") or ""
    return f"<{tag_of(element)}> {shown(which)}".rstrip()
