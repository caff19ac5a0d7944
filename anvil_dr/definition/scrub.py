"""Removing things from a definition, whole trees at a time. Pure."""

from __future__ import annotations

from typing import Collection, Final

from lxml import etree

from anvil_dr.definition.notes import Notes
from anvil_dr.definition.reading import elements, shown, tag_of

_RUNNING_ONLY: Final = frozenset(("mirror", "privateData", "seclabel"))
"""Parts of devices that libvirt writes for a running domain, or for itself."""

_QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"

_FREE_TEXT: Final = frozenset(("domain/name", "domain/title", "domain/description", "disk/vendor", "disk/product"))
"""Elements whose text goes to people or to the guest, never to the host's file systems."""

_FREE_ATTRIBUTES: Final = frozenset(("passwd", "timezone", "usage", "value"))
"""Attributes that may well have a slash: passwords, Europe/Berlin, a secret's usage, a filter's 10.0.0.0/24."""


def remove(element: etree._Element) -> None:
    """Take an element out of its tree. Text after it goes too: a definition has none there."""
    parent = element.getparent()
    if parent is not None:
        parent.remove(element)


def drop_children(element: etree._Element, *names: str) -> bool:
    """Remove every child of these names, without a word. Whether there was one."""
    found = [child for child in elements(element) if child.tag in names]
    for child in found:
        remove(child)
    return bool(found)


def drop_attributes(element: etree._Element, *names: str) -> bool:
    """Remove these attributes, without a word. Whether there was one."""
    found = [name for name in names if name in element.attrib]
    for name in found:
        del element.attrib[name]
    return bool(found)


def keep_children(element: etree._Element, names: Collection[str], notes: Notes, *, once: bool = False) -> None:
    """Remove, with a warning, every child of another name; with `once` repeated ones too.

    libvirt takes sometimes the first and sometimes the last of what should be there once.
    """
    seen = set()
    for child in elements(element):
        if child.tag not in names:
            where = shown(tag_of(element))
            notes.removed(f"<{shown(tag_of(child))}> in <{where}>", "it is not known to be safe here")
            remove(child)
        elif once and child.tag in seen:
            remove(child)
        seen.add(child.tag)


def keep_attributes(element: etree._Element, names: Collection[str], notes: Notes) -> None:
    """Remove, with a warning, every attribute of another name."""
    for name in element.attrib:
        if name not in names:
            notes.removed(f"{shown(str(name))} of <{shown(tag_of(element))}>", "it is not known to be safe here")
            del element.attrib[name]


def remove_foreign(root: etree._Element, notes: Notes) -> None:
    """Remove every element and attribute that is in a namespace, but for what is below `<metadata>`.

    Those of QEMU's driver (`qemu:commandline`, `qemu:override`, …) hand options to QEMU. Of all others libvirt often
    looks at the local name only, so that `<x:source>` would count as a source.
    """
    _remove_foreign_attributes(root, notes)
    for child in elements(root):
        if etree.QName(child).namespace:
            _remove_foreign_element(child, notes)
        elif child.tag != "metadata":
            _remove_foreign_below(child, notes)


def remove_running(root: etree._Element) -> None:
    """Remove what only a running domain has, wherever it is: aliases that libvirt gave, labels of devices, …"""
    for child in elements(root):
        if child.tag != "metadata":
            _remove_running_below(child)


def remove_paths(root: etree._Element, ours: Collection[str], notes: Notes) -> None:
    """The net under all rules: remove what has a slash in it, unless it is one of `ours` or text that names no file.

    `<os>`, `<metadata>` and `<sysinfo>` have stricter rules of their own (firmware.py, making.py).
    """
    for child in elements(root):
        if child.tag not in ("os", "metadata", "sysinfo"):
            _remove_paths_below(child, ours, notes)


def remove_stray_text(root: etree._Element) -> None:
    """Remove text between elements: it has no meaning in a definition."""
    for element in root.iter():
        if len(element) or not (element.text or "").strip():
            element.text = None
        element.tail = None


def _remove_foreign_below(element: etree._Element, notes: Notes) -> None:
    _remove_foreign_attributes(element, notes)
    for child in elements(element):
        if etree.QName(child).namespace:
            _remove_foreign_element(child, notes)
        else:
            _remove_foreign_below(child, notes)


def _remove_foreign_element(element: etree._Element, notes: Notes) -> None:
    options_for_qemu = etree.QName(element).namespace == _QEMU
    notes.removed(
        f"<{shown(tag_of(element))}>",
        "it hands options to QEMU, past libvirt" if options_for_qemu else "it is not libvirt's own",
    )
    remove(element)


def _remove_foreign_attributes(element: etree._Element, notes: Notes) -> None:
    for name in element.attrib:
        if str(name).startswith("{"):
            notes.removed(f"{shown(str(name))} of <{shown(tag_of(element))}>", "it is not libvirt's own")
            del element.attrib[name]


def _remove_running_below(element: etree._Element) -> None:
    for child in elements(element):
        named_by_libvirt = child.tag == "alias" and not (child.get("name") or "").startswith("ua-")
        if named_by_libvirt or child.tag in _RUNNING_ONLY:
            remove(child)
        else:
            _remove_running_below(child)


def _remove_paths_below(element: etree._Element, ours: Collection[str], notes: Notes) -> None:
    for name, value in element.attrib.items():
        if "/" in str(value) and value not in ours and name not in _FREE_ATTRIBUTES:
            what = f"{shown(str(name))}='{shown(str(value))}' of <{shown(tag_of(element))}>"
            notes.removed(what, "it may be a path of the host")
            del element.attrib[name]
    for child in elements(element):
        _remove_paths_below(child, ours, notes)
    text, parent = element.text or "", element.getparent()
    place = f"{'' if parent is None else parent.tag}/{element.tag}"
    if "/" in text and text not in ours and place not in _FREE_TEXT:
        notes.removed(f"<{shown(tag_of(element))}> {shown(text.strip())}", "it may be a path of the host")
        remove(element)
