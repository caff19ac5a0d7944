"""The rules for `<interface>`: what connects the guest to networks that this host may have too. Pure.

Whether the bridge or network is there is for activation to find out; the definition keeps its name.
"""

from __future__ import annotations

from typing import Final, Mapping, Tuple

from lxml import etree

from anvil_dr.definition import scrub
from anvil_dr.definition.notes import Notes
from anvil_dr.definition.reading import attribute_of, elements, shown

_SOURCES: Final[Mapping[str, Tuple[str, ...]]] = {
    "bridge": ("bridge",),
    "network": ("network", "portgroup"),
    "direct": ("dev", "mode"),
    "user": (),
    "ethernet": (),
    "null": (),
}
"""Which kinds of interface are kept, and what of their source."""

_NAMED_BY: Final = {"bridge": "bridge", "network": "network", "direct": "dev"}
"""Which attribute of the source says what an interface leads to."""

_RUNNING_SOURCES: Final = ("bridge", "dev", "mode", "network", "portid", "actual")
"""What libvirt adds to the source of a running domain: where a network's port turned out to be."""

_CHILDREN: Final = (
    "mac source model target boot link address mtu bandwidth virtualport vlan filterref driver port coalesce tune rom"
    " guest teaming alias acpi"
).split()
_MADE_NAMES: Final = ("vnet", "vif", "macvtap", "macvlan")
"""Prefixes that libvirt keeps for devices it names itself ("formatdomain", target/@dev)."""


def is_kept(element: etree._Element) -> bool:
    """Whether the DR definition has such an interface at all."""
    return element.get("type", "") in _SOURCES and _is_plugged_in(element)


def interface(element: etree._Element, notes: Notes) -> None:
    """Make one `<interface>` fit for the DR box, or remove it."""
    kind, mac = element.get("type", ""), attribute_of(element, "mac", "address")
    label = f"interface {shown(mac or 'without a MAC')}"
    if kind not in _SOURCES:
        notes.removed(label, f"type {shown(kind)} leads to a device or socket of the node; add one that fits this host")
        scrub.remove(element)
        return
    if not _is_plugged_in(element):
        notes.removed(label, f"it names no {shown(kind)} that a host could have")
        scrub.remove(element)
        return
    for name in ("script", "downscript"):
        for child in elements(element, name):
            notes.removed(f"the {name} of {label}", "it would run as root on the host")
            scrub.remove(child)
    if kind == "ethernet":
        notes.warn(f"{label} was connected by a program of the node (type ethernet); here it is connected to nothing")
    if scrub.drop_children(element, "backend"):
        notes.removed(f"the backend of {label}", "it names programs or devices of the node")
    for child in elements(element, "source"):
        _clean_source(child, kind, notes)
        _leave_the_card(child, label, notes)
    for child in elements(element, "target"):
        made = (child.get("dev") or "").startswith(_MADE_NAMES)
        if made or kind == "ethernet":
            scrub.remove(child)
    for child in elements(element, "rom"):
        if scrub.drop_attributes(child, "file"):
            notes.removed(f"the boot ROM of {label}", "it is a file of the node")
            if not child.attrib:
                scrub.remove(child)
    scrub.keep_attributes(element, ("type", "trustGuestRxFilters"), notes)
    scrub.keep_children(element, _CHILDREN, notes, once=True)


def _is_plugged_in(element: etree._Element) -> bool:
    """Whether what it leads to has a name, where it needs one. Names of network devices have no slash."""
    naming = _NAMED_BY.get(element.get("type", ""))
    if naming is None:
        return True
    name = attribute_of(element, "source", naming) or ""
    return name not in ("", ".", "..") and "/" not in name


def _leave_the_card(source: etree._Element, label: str, notes: Notes) -> None:
    """In passthrough mode libvirt gives the card the guest's MAC address, and the guest alone may use it: the end of
    this host's own network, where it is the only card (libvirt, "formatdomain", direct)."""
    if source.get("mode") == "passthrough":
        notes.warn(f"{label} took over a network card of the node (passthrough); here it shares one (bridge)")
        source.set("mode", "bridge")


def _clean_source(element: etree._Element, kind: str, notes: Notes) -> None:
    kept = _SOURCES[kind]
    for name in _RUNNING_SOURCES:
        if name not in kept:
            scrub.drop_attributes(element, name)
    scrub.keep_attributes(element, kept, notes)
    scrub.keep_children(element, (), notes)
    if not element.attrib:
        scrub.remove(element)
