"""The rules for what is below `<devices>`; disks, interfaces and streams have modules of their own. Pure."""

from __future__ import annotations

from typing import Callable, Final, Mapping

from lxml import etree

from anvil_dr.definition import characters, disk_rules, network_rules, scrub
from anvil_dr.definition.disk_rules import Plan
from anvil_dr.definition.disks import describe_hostdev, is_storage_hostdev
from anvil_dr.definition.notes import Notes
from anvil_dr.definition.reading import attribute_of, elements, shown, tag_of

Rule = Callable[[etree._Element, Notes], None]

_KEPT: Final = frozenset("controller sound hub watchdog memballoon panic iommu redirfilter nvram".split())
"""Devices that exist in the guest only."""

_REASONS: Final[Mapping[str, str]] = {
    "filesystem": "it shares a folder of the host",
    "lease": "it is a lock that the node's cluster keeps",
    "shmem": "it shares memory with programs of the host",
}

_LEFT_TO_THE_COPY: Final = frozenset(("emulator", "graphics", "interface"))
_USUAL_EMULATORS: Final = ("/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm", "/usr/bin/kvm", "/usr/bin/qemu-system-")
RANDOM_DEVICES: Final = ("/dev/urandom", "/dev/random")
_GRAPHICS_CARD: Final = "it needs a graphics card, without which the server would not boot here"
_ANY_ADDRESS: Final = frozenset(("", "0.0.0.0", "::", "127.0.0.1", "::1", "localhost"))  # noqa: S104 read, not bound


def apply(root: etree._Element, plan: Plan, notes: Notes) -> None:
    """Make every device fit for the DR box, or remove it. Raise DefinitionError."""
    for devices in elements(root, "devices"):
        for device in elements(devices):
            name = str(device.tag)
            if name == "disk":
                disk_rules.apply(device, plan, notes)
            elif name in _RULES:
                _RULES[name](device, notes)
            elif name not in _KEPT:
                _remove(device, notes, _REASONS.get(name, "it is not known to be safe here"))


def take_off_host(root: etree._Element) -> None:
    """Cut what leads from a device, or past libvirt, to this host and its networks, for a copy that must be alone.

    Without a word. Disks, interfaces and screens stay as they are: whoever makes the copy has others for it.
    """
    notes = Notes()
    scrub.remove_foreign(root, notes)
    for devices in elements(root, "devices"):
        for device in elements(devices):
            name = str(device.tag)
            if name in _RULES and name not in _LEFT_TO_THE_COPY:
                _RULES[name](device, notes)
            elif name not in _RULES and name not in _KEPT and name != "disk":
                scrub.remove(device)


def _remove(device: etree._Element, notes: Notes, why: str) -> None:
    notes.removed(f"<{shown(tag_of(device))}>", why)
    scrub.remove(device)


def _emulator(device: etree._Element, notes: Notes) -> None:
    """libvirt chooses the host's own: it is a program, and distributions keep it in different places."""
    path = (device.text or "").strip()
    if not path.startswith(_USUAL_EMULATORS) or "/../" in path:
        notes.removed(f"the emulator {shown(path)}", "this host's own is used instead")
    scrub.remove(device)


def _hostdev(device: etree._Element, notes: Notes) -> None:
    """What is at the same address here is another thing, and giving it to a guest takes it from the host. A USB
    device of the same vendor and product is no better: it may be the DR box's own cache drive.
    """
    if not is_storage_hostdev(device):  # of storage, check() has seen that it is left out
        why = "here it may be another one, such as a cache drive, or none; add what this host has"
        notes.removed(f"passed-through device {shown(describe_hostdev(device))}", why)
    scrub.remove(device)


def _input(device: etree._Element, notes: Notes) -> None:
    if device.get("type") not in ("mouse", "tablet", "keyboard"):
        _remove(device, notes, "it is an input device of the node")
        return
    scrub.keep_children(device, ("driver", "alias", "address", "acpi"), notes)


def _random(device: etree._Element, notes: Notes) -> None:
    backend = device.find("backend")
    model = "" if backend is None else backend.get("model", "")
    if backend is None or model not in ("random", "builtin"):
        _remove(device, notes, "its random numbers come from a service of the node")
        return
    if model == "random" and (backend.text or "").strip() not in RANDOM_DEVICES:
        notes.warn(f"<rng> read {shown((backend.text or '').strip())}; here it reads {RANDOM_DEVICES[0]}")
        backend.text = RANDOM_DEVICES[0]
    scrub.keep_children(device, ("backend", "driver", "rate", "alias", "address", "acpi"), notes, once=True)
    scrub.keep_attributes(backend, ("model",), notes)
    scrub.keep_children(backend, (), notes)


def _tpm(device: etree._Element, notes: Notes) -> None:
    """The TPM of a transient domain is deleted when the domain ends, unless its state is persistent."""
    backend = device.find("backend")
    if backend is None or backend.get("type") != "emulator":
        kind = "unknown" if backend is None else shown(backend.get("type") or "unknown")
        _remove(device, notes, f"its backend ({kind}) is a device or service of the node")
        return
    if backend.find("encryption") is not None:
        notes.warn("the TPM's state is encrypted: this host needs the secret that its <encryption> names")
    backend.set("persistent_state", "yes")
    scrub.drop_children(backend, "source")
    scrub.drop_attributes(backend, "debug")  # a log without end
    scrub.keep_children(device, ("backend", "alias", "address", "acpi"), notes, once=True)


def _graphics(device: etree._Element, notes: Notes) -> None:
    kind = device.get("type", "")
    if kind not in ("vnc", "spice"):
        _remove(device, notes, f"type {shown(kind)} needs a display or a graphics card of the node")
        return
    if scrub.drop_children(device, "gl"):
        notes.removed(f"<gl> of <graphics type='{kind}'>", _GRAPHICS_CARD)
    if device.get("autoport") == "yes":
        scrub.drop_attributes(device, "port", "tlsPort")
        if "websocket" in device.attrib:
            device.set("websocket", "-1")
    scrub.drop_attributes(device, "socket")
    for listen in elements(device, "listen"):
        scrub.drop_attributes(listen, "socket", "fromConfig")
        if listen.get("type") == "network":
            scrub.drop_attributes(listen, "address")
            scrub.drop_attributes(device, "listen")
        _warn_of_address(listen.get("address") or "", notes)
    _warn_of_address(device.get("listen") or "", notes)


def _warn_of_address(address: str, notes: Notes) -> None:
    if address not in _ANY_ADDRESS:
        notes.warn(f"graphics listen on {shown(address)}, which this host must have")


def _audio(device: etree._Element, notes: Notes) -> None:
    if device.get("type") in ("none", "spice"):
        return
    notes.warn(f"<audio> was of type {shown(device.get('type') or 'none')}; here it is silent")
    for name in device.attrib:
        if name != "id":
            del device.attrib[name]
    device.set("type", "none")
    scrub.keep_children(device, (), Notes())


def _video(device: etree._Element, notes: Notes) -> None:
    for driver in elements(device, "driver"):
        if driver.get("name") == "vhostuser":
            notes.removed("vhostuser of <video>", "it runs another program on the host")
            del driver.attrib["name"]
            if not driver.attrib:
                scrub.remove(driver)
    for model in elements(device, "model"):
        if scrub.drop_children(model, "acceleration"):
            notes.removed("<acceleration> of <video>", _GRAPHICS_CARD)


def _memory(device: etree._Element, notes: Notes) -> None:
    model = device.get("model", "")
    if model not in ("dimm", "virtio-mem"):
        lost = "what is in it is not part of the images" if model in ("nvdimm", "virtio-pmem") else "the node has it"
        notes.removed(f"<memory model='{shown(model)}'>", lost)
        scrub.remove(device)
        return
    for source in elements(device, "source"):
        notes.removed(f"the source of <memory model='{shown(model)}'>", "it is about the hardware of the node")
        scrub.remove(source)
    for current in device.findall("target/current"):
        scrub.remove(current)


def _vsock(device: etree._Element, notes: Notes) -> None:
    for cid in elements(device, "cid"):
        if cid.get("auto") == "yes":
            scrub.drop_attributes(cid, "address")


def _crypto(device: etree._Element, notes: Notes) -> None:
    if attribute_of(device, "backend", "model") != "builtin":
        _remove(device, notes, "it uses keys of the host")


_RULES: Final[Mapping[str, Rule]] = {
    "audio": _audio,
    "channel": characters.channel,
    "console": characters.port,
    "crypto": _crypto,
    "emulator": _emulator,
    "graphics": _graphics,
    "hostdev": _hostdev,
    "input": _input,
    "interface": network_rules.interface,
    "memory": _memory,
    "parallel": characters.port,
    "redirdev": characters.spice_only,
    "rng": _random,
    "serial": characters.port,
    "smartcard": characters.spice_only,
    "tpm": _tpm,
    "video": _video,
    "vsock": _vsock,
}
