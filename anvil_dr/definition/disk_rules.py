"""The rules for `<disk>`: every disk of the job points to its image, every medium is ejected. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Collection, Final, Literal, Mapping, Optional

from lxml import etree

from anvil_dr.definition import scrub
from anvil_dr.definition.disks import SourceDisk, as_source_disk, source_disks
from anvil_dr.definition.notes import Notes
from anvil_dr.definition.reading import Definition, elements, shown
from anvil_dr.errors import DefinitionError

_ATTRIBUTES: Final = ("type", "device", "model")
_SILENT_ATTRIBUTES: Final = ("rawio", "sgio", "snapshot")
_CHILDREN: Final = (
    "driver source target boot readonly serial wwn vendor product geometry blockio iotune address alias acpi encryption"
).split()
_SILENT_CHILDREN: Final = ("auth", "backenddomain", "backingStore", "encryption", "source")
_DRIVER_ATTRIBUTES: Final = (
    "name type cache error_policy rerror_policy io ioeventfd event_idx discard detect_zeroes iothread queues queue_size"
    " iommu ats packed page_per_vq"
).split()
_FORMAT_ATTRIBUTES: Final = ("copy_on_read", "discard_no_unmap")
"""Options that only a format with a backing file or with clusters of its own takes."""


@dataclass(frozen=True)
class DiskTarget:
    """Where the image of a disk is, as its DR definition says it."""

    path: str
    kind: Literal["file", "block"]


@dataclass(frozen=True)
class Plan:
    """Which of a server's disks become what."""

    paths: Mapping[str, DiskTarget]
    left_out: Collection[str]


def check(definition: Definition, paths: Mapping[str, DiskTarget], left_out: Collection[str], notes: Notes) -> None:
    """Raise DefinitionError unless every disk of the definition is in the job or left out, and the reverse."""
    disks = [disk for disk in source_disks(definition) if disk.is_storage]
    for path in paths:
        if path in left_out:
            raise DefinitionError(f"{shown(path)} is in the job and left out of it")
        if not any(disk.path == path and _can_be_replaced(disk) for disk in disks):
            raise DefinitionError(f"it has no disk {shown(path)!r}, which is in the job")
    for disk in disks:
        if disk.path not in paths and not disk.is_one_of(left_out):
            raise DefinitionError(f"line {disk.line}: {disk} is not part of the job, nor left out of it on purpose")
    for name in left_out:
        if not any(disk.is_one_of((name,)) for disk in disks):
            notes.warn(f"{shown(name)} is left out, but the definition has no such disk")


def apply(element: etree._Element, plan: Plan, notes: Notes) -> None:
    """Make one `<disk>` fit for the DR box, after `check`. Raise DefinitionError if its bytes could not be used."""
    disk = as_source_disk(element)
    if disk.is_storage and disk.path not in plan.paths:
        scrub.remove(element)
        return
    encryption = _encryption(element, disk, notes) if disk.is_storage else None
    if element.get("rawio") == "yes":
        notes.removed(f"rawio of disk {shown(disk.target)}", "it lets the guest send raw commands to devices")
    scrub.drop_attributes(element, *_SILENT_ATTRIBUTES)
    scrub.keep_attributes(element, _ATTRIBUTES, notes)
    scrub.drop_children(element, *_SILENT_CHILDREN)
    if disk.is_storage:
        _use_image(element, disk, plan.paths[disk.path or ""], notes)
    else:
        _eject(element)
    if encryption is not None:
        element.append(encryption)
    scrub.keep_children(element, _CHILDREN, notes, once=True)
    _clean_driver(element, notes)
    for target in elements(element, "target"):
        scrub.drop_attributes(target, "tray")


def _can_be_replaced(disk: SourceDisk) -> bool:
    return disk.type in ("file", "block") and not disk.is_hostdev


def _encryption(element: etree._Element, disk: SourceDisk, notes: Notes) -> Optional[etree._Element]:
    """What QEMU decrypts the disk with: its image is as encrypted as the disk. Raise DefinitionError if it can't be."""
    if element.find("source/slices") is not None:
        raise DefinitionError(f"line {disk.line}: {disk} is only a slice of its source, which cannot be imaged")
    found = element.find("encryption")
    if found is None:
        found = element.find("source/encryption")
    if found is None:
        return None
    if disk.format != "raw" or found.get("format") != "luks":
        raise DefinitionError(f"line {disk.line}: {disk} is encrypted by its format, which a raw image does not have")
    notes.warn(f"disk {shown(disk.target)} is encrypted: this host needs the secret that its <encryption> names")
    return found


def _use_image(element: etree._Element, disk: SourceDisk, target: DiskTarget, notes: Notes) -> None:
    """`type`, the path and the driver's format change together: one without the others does not boot."""
    label = f"disk {shown(disk.target)}"
    if disk.device == "lun":
        notes.warn(f"{label} was a passed-through SCSI device (lun); here it is an ordinary disk")
    if disk.shareable:
        notes.warn(f"{label} was shared with other servers; here it is a copy that only this server has")
    if element.find("transient") is not None:
        notes.warn(f"{label} forgot its changes at each shutdown (transient); here it keeps them")
    scrub.drop_children(element, "shareable", "transient")
    element.set("device", "disk")
    element.set("type", target.kind)
    driver = element.find("driver")
    if driver is None:
        driver = etree.Element("driver")
        element.insert(0, driver)
    driver.set("name", "qemu")
    driver.set("type", "raw")
    source = etree.Element("source")
    source.set("file" if target.kind == "file" else "dev", target.path)
    element.insert(element.index(driver) + 1, source)


def _eject(element: etree._Element) -> None:
    """A drive without a medium is of type file, whatever it had in it."""
    element.set("type", "file")
    scrub.drop_children(element, "shareable", "transient")
    driver = element.find("driver")
    if driver is not None:
        driver.set("name", "qemu")
        driver.set("type", "raw")


def _clean_driver(element: etree._Element, notes: Notes) -> None:
    for driver in elements(element, "driver"):
        scrub.drop_attributes(driver, *_FORMAT_ATTRIBUTES)
        scrub.drop_children(driver, "metadata_cache")
        scrub.keep_attributes(driver, _DRIVER_ATTRIBUTES, notes)
        scrub.keep_children(driver, ("iothreads",), notes)
    for encryption in elements(element, "encryption"):
        scrub.keep_attributes(encryption, ("format", "engine"), notes)
        scrub.keep_children(encryption, ("secret",), notes)
        for secret in elements(encryption, "secret"):
            scrub.keep_attributes(secret, ("type", "uuid", "usage"), notes)
