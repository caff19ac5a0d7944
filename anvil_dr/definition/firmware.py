"""The rules for `<os>`: what boots the guest, and where its firmware keeps its variables. Pure.

A UEFI guest's variables travel with it (SPEC section 7), so the definition names their place here. The
firmware itself must be the host's own: either libvirt chooses it (`firmware='efi'`), or it is a file in a
folder where distributions put firmware. Nothing else may be read by path.
"""

from __future__ import annotations

import re
from typing import Final, Mapping, Optional, Tuple

from lxml import etree

from anvil_dr.definition import scrub
from anvil_dr.definition.notes import Notes
from anvil_dr.definition.reading import attribute_of, elements, shown
from anvil_dr.errors import DefinitionError

FIRMWARE_FOLDERS: Final = (
    "/usr/share/AAVMF/",
    "/usr/share/OVMF/",
    "/usr/share/edk2/",
    "/usr/share/edk2-ovmf/",
    "/usr/share/edk2.git/",
    "/usr/share/ovmf/",
    "/usr/share/qemu/",
    "/usr/share/qemu-efi-aarch64/",
    "/usr/share/qemu-kvm/",
    "/usr/share/seabios/",
)

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_.-]*")
_FROM_THE_HOST: Final = ("kernel", "initrd", "dtb", "init", "shim")
_KEPT: Final[Mapping[str, Tuple[str, ...]]] = {
    "type": ("arch", "machine"),
    "firmware": (),
    "loader": ("readonly", "secure", "type", "stateless", "format"),
    "nvram": ("template", "format"),
    "boot": ("dev",),
    "bootmenu": ("enable", "timeout"),
    "smbios": ("mode",),
    "bios": ("useserial", "rebootTimeout"),
}


def is_firmware_path(path: str) -> bool:
    """Whether a file is one that a distribution ships as firmware."""
    return path.startswith(FIRMWARE_FOLDERS) and all(part not in ("", ".", "..") for part in path.split("/")[1:])


def apply(root: etree._Element, nvram_path: Optional[str], notes: Notes) -> None:
    """Make `<os>` fit for the DR box. Raise DefinitionError if the guest boots from files of its node."""
    os = root.find("os")
    if os is None or (os.findtext("type") or "").strip() != "hvm":
        raise DefinitionError("its <os> does not say that it is a full virtual machine (hvm)")
    for name in ("arch", "machine"):
        value = attribute_of(os, "type", name) or ""
        if not _PLAIN_NAME.fullmatch(value):
            raise DefinitionError(f"the {name} {shown(value)!r} is no name of one")
    for name in _FROM_THE_HOST:
        if os.find(name) is not None:
            raise DefinitionError(f"it boots from its host's <{name}>, not from its disks; a DR box has no such file")
    for element in elements(os, "acpi"):
        notes.removed("the <acpi> table", "it is a file of the node; a Windows that is licensed by it may ask")
        scrub.remove(element)
    scrub.keep_children(os, _KEPT, notes)
    _loader(os, notes)
    _variables(os, nvram_path, notes)
    _only_known_attributes(os, notes)


def _loader(os: etree._Element, notes: Notes) -> None:
    """Either the host chooses the firmware, or a path does: libvirt 9.0 refuses definitions that do both, which
    libvirt 9.2 and later write for every guest whose firmware it chose. Of those the choice is kept: the path is what
    it came to on the node, and other distributions have other paths. But not the choice of another format than raw,
    which the variables have too and libvirt 9.0 doesn't know."""
    loader = _only(os, "loader")
    path = "" if loader is None else (loader.text or "").strip()
    if loader is not None and path and not is_firmware_path(path):
        notes.removed(f"the firmware {shown(path)}", "it is none of a distribution's; this host's own is used instead")
        if loader.get("type") == "pflash" and os.get("firmware") is None:
            os.set("firmware", "efi")
        loader.text, path = None, ""
    if loader is not None and os.get("firmware") == "efi" and loader.get("format", "raw") == "raw":
        loader.text, path = None, ""
        scrub.drop_attributes(loader, "format")
    if loader is not None and path:
        scrub.drop_attributes(os, "firmware")
        if loader.get("format") == "raw":
            del loader.attrib["format"]  # what it means anyway, and libvirt 9.0 does not know the attribute
        _protect(loader, path, notes)
    if os.get("firmware") not in (None, "efi", "bios"):
        raise DefinitionError(f"the firmware {shown(os.get('firmware') or '')!r} is unknown")
    if loader is not None and not path:
        scrub.drop_attributes(loader, "readonly", "type")
        if not loader.attrib:
            scrub.remove(loader)
    if os.get("firmware") is None:
        scrub.drop_children(os, "firmware")


def _protect(loader: etree._Element, path: str, notes: Notes) -> None:
    """The file is every guest's here. Without readonly='yes' libvirt has QEMU open flash for writing."""
    if loader.get("readonly") == "no":
        notes.warn(f"the server could write to its firmware {shown(path)}; here it only reads it")
    if loader.get("type") == "pflash" or "readonly" in loader.attrib:
        loader.set("readonly", "yes")


def _variables(os: etree._Element, nvram_path: Optional[str], notes: Notes) -> None:
    loader, nvram = _only(os, "loader"), _only(os, "nvram")
    template, form = ("", None) if nvram is None else (nvram.get("template") or "", nvram.get("format"))
    if nvram is not None:
        scrub.remove(nvram)
    if not _is_uefi(os) or (loader is not None and loader.get("stateless") == "yes"):
        return
    new = etree.Element("nvram")
    if nvram_path:
        # No template: libvirt would make an empty store from it if ours were not there, and nobody would notice.
        new.text = nvram_path
    else:
        notes.warn("the UEFI variables are not part of the job: the server starts with those of this host's firmware")
        # Where the host chooses the firmware, it has a template for it, and libvirt 9.0 refuses another.
        if loader is not None and loader.text and is_firmware_path(template):
            new.set("template", template)
    if nvram_path and form and form != "raw":
        new.set("format", form)
    if new.text or new.attrib:
        os.insert(len(os) if loader is None else os.index(loader) + 1, new)


def _is_uefi(os: etree._Element) -> bool:
    loader = os.find("loader")
    return os.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")


def _only(os: etree._Element, name: str) -> Optional[etree._Element]:
    """The first of that name; libvirt takes that one too. Others are removed."""
    found = list(elements(os, name))
    for element in found[1:]:
        scrub.remove(element)
    return found[0] if found else None


def _only_known_attributes(os: etree._Element, notes: Notes) -> None:
    scrub.keep_attributes(os, ("firmware",), notes)
    for element in elements(os):
        scrub.keep_attributes(element, _KEPT[str(element.tag)], notes)
        if element.tag not in ("type", "loader", "nvram"):
            element.text = None
        if element.tag == "firmware":
            scrub.keep_children(element, ("feature",), notes)
        else:
            for child in elements(element):
                scrub.remove(child)
