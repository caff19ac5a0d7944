"""What libvirt's XML says of domains, hosts and what an emulator can give, as values. Pure.

Formats: https://libvirt.org/formatdomaincaps.html, https://libvirt.org/formatcaps.html
"""

from __future__ import annotations

import re
from typing import Optional, Tuple

from lxml import etree

from anvil_dr.ports import DomainCapabilities


def read_domain_capabilities(text: str) -> DomainCapabilities:
    """The answer of getDomainCapabilities."""
    root = parse(text)
    limit = root.find("vcpu")
    return DomainCapabilities(
        machine=root.findtext("machine", ""),
        max_cpus=int(limit.get("max", "0")) if limit is not None else None,
        cpu_modes=_texts(root, "cpu/mode[@supported='yes']/@name"),
        cpu_models=_texts(root, "cpu/mode[@name='custom']/model/text()"),
        usable_cpu_models=_texts(root, "cpu/mode[@name='custom']/model[@usable='yes']/text()"),
        loaders=_texts(root, "os/loader/value/text()"),
        tpm_backends=_texts(root, "devices/tpm[@supported='yes']/enum[@name='backendModel']/value/text()"),
        tpm_versions=_texts(root, "devices/tpm[@supported='yes']/enum[@name='backendVersion']/value/text()"),
    )


def read_machines(text: str, arch: Optional[str]) -> Tuple[str, ...]:
    """The machine types in the answer of getCapabilities, for one architecture or for the host's own."""
    root = parse(text)
    wanted = arch or root.findtext("host/cpu/arch", "")
    found = [
        machine
        for guest in root.iterfind("guest/arch")
        if guest.get("name") == wanted
        for machine in guest.iterfind("machine")
    ]
    return tuple(dict.fromkeys(machine.text.strip() for machine in found if machine.text))


def read_qemu_user(text: str) -> Optional[Tuple[int, int]]:
    """User and group that guests run as, in the answer of getCapabilities; None if it doesn't say."""
    for model in parse(text).iterfind("host/secmodel"):
        label = re.fullmatch(r"\+([0-9]+):\+([0-9]+)", model.findtext("baselabel", ""))
        if model.findtext("model") == "dac" and label is not None:
            return int(label.group(1)), int(label.group(2))
    return None


def disk_sources(text: str) -> Tuple[str, ...]:
    """Every file and device under a domain's disks, those under an overlay too."""
    found = _texts(parse(text), "devices/disk//source/@file | devices/disk//source/@dev")
    return tuple(dict.fromkeys(found))


def parse(text: str) -> etree._Element:
    return etree.fromstring(text, etree.XMLParser(resolve_entities=False, no_network=True))


def _texts(root: etree._Element, path: str) -> Tuple[str, ...]:
    found = root.xpath(path)
    return tuple(str(text) for text in found) if isinstance(found, list) else ()
