"""How a DR definition differs from the source's, in words (SPEC section 7). Pure.

What `make_dr_definition` always changes does not count: paths, media, running state, the node's own devices.
"""

from __future__ import annotations

from typing import Collection, Dict, Iterator, List, Optional, Tuple

from lxml import etree

from anvil_dr.definition import network_rules
from anvil_dr.definition.disks import source_disks
from anvil_dr.definition.memory import memory_bytes
from anvil_dr.definition.reading import Definition, attribute_of, elements, parse, shown, text_of, uuid_of
from anvil_dr.definition.requirements import vcpus

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def differences(source_xml: str, dr_xml: str, left_out: Collection[str] = ()) -> Tuple[str, ...]:
    """What a server has gained or lost at its source since its DR definition was made, or was changed here.

    `left_out` as for `make_dr_definition`. Raise DefinitionError if one of the two cannot be read.
    """
    source, ours = parse(source_xml), parse(dr_xml)
    return (
        *_changed("name", text_of(source.root, "name"), text_of(ours.root, "name")),
        *_changed("UUID", uuid_of(source), uuid_of(ours)),
        *_changed("RAM", _in_words(memory_bytes(source)), _in_words(memory_bytes(ours))),
        *_changed("virtual CPUs", str(vcpus(source)), str(vcpus(ours))),
        *_changed("machine type", *(attribute_of(each.root, "os/type", "machine") for each in (source, ours))),
        *_changed("firmware", _firmware(source), _firmware(ours)),
        *_changed("TPM", _tpm(source), _tpm(ours)),
        *_gained_and_lost(_disks(source, left_out), _disks(ours, ())),
        *_gained_and_lost(_interfaces(source), _interfaces(ours)),
    )


def _changed(what: str, source: Optional[str], ours: Optional[str]) -> Iterator[str]:
    if source != ours:
        yield f"{what}: {shown(source or 'none')} at the source, {shown(ours or 'none')} in the definition here"


def _gained_and_lost(source: Dict[str, str], ours: Dict[str, str]) -> Iterator[str]:
    for key in source:
        if key not in ours:
            yield f"{source[key]}: at the source, not in the definition here"
    for key in ours:
        if key not in source:
            yield f"{ours[key]}: in the definition here, not at the source"


def _disks(definition: Definition, left_out: Collection[str]) -> Dict[str, str]:
    found = (disk for disk in source_disks(definition) if disk.is_storage and not disk.is_one_of(left_out))
    return {(disk.path or "") if disk.is_hostdev else disk.target: str(disk) for disk in found}


def _interfaces(definition: Definition) -> Dict[str, str]:
    """By MAC address; those without one by their place among them. Kinds that are never kept don't count."""
    devices = definition.root.find("devices")
    cards: List[etree._Element] = [] if devices is None else list(elements(devices, "interface"))
    found: Dict[str, str] = {}
    for card in cards:
        if network_rules.is_kept(card):
            mac = (attribute_of(card, "mac", "address") or "").lower()
            kind = card.get("type", "")
            network = attribute_of(card, "source", kind) or kind
            key = mac or f"without a MAC, number {len(found) + 1}"
            found[key] = f"interface {shown(key)} ({shown(network)})"
    return found


def _firmware(definition: Definition) -> str:
    root = definition.root
    chosen, kind = attribute_of(root, "os", "firmware"), attribute_of(root, "os/loader", "type")
    return "UEFI" if chosen == "efi" or kind == "pflash" else "BIOS"


def _tpm(definition: Definition) -> Optional[str]:
    """Only emulated ones: others are never kept."""
    emulated = attribute_of(definition.root, "devices/tpm/backend", "type") == "emulator"
    return "emulated" if emulated else None


def _in_words(size_bytes: int) -> str:
    for unit, name in _UNITS:
        if size_bytes >= unit and size_bytes % (unit // 4 or 1) == 0:
            return f"{size_bytes / unit:g} {name}"
    return f"{size_bytes} bytes"
