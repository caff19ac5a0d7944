"""Makes the DR definition of a server from its node's definition (SPEC section 7). Pure.

The node's definition is hostile until it has been through here. Elements are allowed by name: what this
package does not know is removed, and a warning says so. The rules, in the order they are applied: this module
for what is not a device, `firmware` for `<os>`, `devices` for everything below `<devices>`; last, a net over
the whole result that lets no path through which isn't ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Collection, Final, Iterable, Mapping, Optional, Tuple

from lxml import etree

from anvil_dr.definition import devices, disk_rules, firmware, memory_files, scrub
from anvil_dr.definition.disk_rules import DiskTarget
from anvil_dr.definition.notes import Notes
from anvil_dr.definition.reading import elements, parse, read_uuid, server_name, shown, tag_of
from anvil_dr.errors import DefinitionError

__all__ = ["DiskTarget", "Made", "make_dr_definition"]

_HEADING: Final = """<!--
  Made by anvil-dr from the definition that came with the first image of this server.
  This file is yours: it is never overwritten and never edited. To boot the newest image by hand:
  virsh create with this file's name.
-->
"""

_KEPT: Final = frozenset(
    "name uuid title description maxMemory memory currentMemory memtune iothreads iothreadids defaultiothread"
    " vcpus cpu features clock on_poweroff on_reboot on_crash on_lockfailure pm keywrap os devices".split()
)

_OSINFO: Final = "http://libosinfo.org/xmlns/libvirt/domain/1.0"
_SMBIOS_TABLES: Final = ("bios", "system", "baseBoard", "chassis", "oemStrings")
_NODES_HARDWARE: Final = "it is about the hardware of the node; add what fits this host"


@dataclass(frozen=True)
class Made:
    """A DR definition, and what its admin should know about it."""

    xml: str
    warnings: Tuple[str, ...]


def make_dr_definition(
    source_xml: str,
    server: str,
    paths: Mapping[str, DiskTarget],
    left_out: Collection[str],
    nvram_path: Optional[str],
) -> Made:
    """The definition that boots the newest set of `server` on the DR box.

    `paths` has, for each disk of the job, the path that the node's definition has for it, and where its image
    is. `left_out` names disks that the node leaves out on purpose: by path, or, for a disk without one, by
    target (`vdc`) or by `SourceDisk.path`'s description. `nvram_path` is where a UEFI guest's variables are.
    Raise DefinitionError for a definition that must not, or cannot, become one of ours.
    """
    try:
        return _make(source_xml, server, paths, left_out, nvram_path)
    except DefinitionError as error:
        raise error if error.server else DefinitionError(str(error), server=server) from None


def _make(
    source_xml: str,
    server: str,
    paths: Mapping[str, DiskTarget],
    left_out: Collection[str],
    nvram_path: Optional[str],
) -> Made:
    definition, notes = parse(source_xml), Notes()
    root = definition.root
    name = server_name(definition)
    if name != server:
        raise DefinitionError(f"it is the definition of server {shown(name)!r}")
    _check_kind(root)
    # Looked at as it came, before anything is removed from it.
    disk_rules.check(definition, paths, left_out, notes)

    scrub.remove_foreign(root, notes)
    scrub.remove_running(root)
    _top_level(root, notes)
    for change in memory_files.avoid(root):
        notes.warn(change)
    firmware.apply(root, nvram_path, notes)
    devices.apply(root, disk_rules.Plan(paths, left_out), notes)
    scrub.remove_stray_text(root)
    scrub.remove_paths(root, {*(target.path for target in paths.values()), *devices.RANDOM_DEVICES}, notes)

    etree.cleanup_namespaces(root)
    etree.indent(root, space="  ")
    xml = _HEADING + etree.tostring(root, encoding="unicode") + "\n"
    parse(xml)  # what cannot be read again must not become the only definition of a server
    return Made(xml, notes.warnings())


def _check_kind(root: etree._Element) -> None:
    kind = root.get("type") or ""
    if kind not in ("kvm", "qemu"):
        raise DefinitionError(f"its type is {shown(kind)!r}; only kvm and qemu can be booted here")
    for name in ("bootloader", "bootloader_args"):
        if root.find(name) is not None:
            raise DefinitionError(f"it boots with a <{name}>, a program of its host")


# — what is not a device —


def _top_level(root: etree._Element, notes: Notes) -> None:
    for name in root.attrib:
        if name != "type":
            del root.attrib[name]  # id: only a running domain has one
    for element in elements(root):
        rule = _RULES.get(str(element.tag))
        if rule is not None:
            rule(element, notes)
        elif element.tag not in _KEPT:
            _drop(element, notes, "it is not known to be safe here")


def _drop(element: etree._Element, notes: Notes, why: str) -> None:
    notes.removed(f"<{shown(tag_of(element))}>", why)
    scrub.remove(element)


def _host_tuning(element: etree._Element, notes: Notes) -> None:
    _drop(element, notes, _NODES_HARDWARE)


def _resource(element: etree._Element, notes: Notes) -> None:
    """The cgroup it ran in: libvirt adds `/machine` to every running domain."""
    if (element.findtext("partition") or "").strip() not in ("", "/machine"):
        notes.removed("<resource>", "the cgroup is one of the node's")
    scrub.remove(element)


def _seclabel(element: etree._Element, notes: Notes) -> None:
    """A label of the node's SELinux stops the boot where there is none; type='none' or an own user would undo
    what confines QEMU here. libvirt makes its own in its place."""
    if element.get("type") != "dynamic" or element.find("baselabel") is not None:
        notes.removed(f"<seclabel model='{shown(element.get('model') or '')}'>", "this host labels its guests itself")
    scrub.remove(element)


def _genid(element: etree._Element, notes: Notes) -> None:
    """An empty one makes libvirt choose a new one: how Windows, and domain controllers above all, learn that they
    were put back to an older state (libvirt, "formatdomain", genid)."""
    element.text = None


def _uuid(element: etree._Element, notes: Notes) -> None:
    """As libvirt writes it, since it names files here. Without one libvirt chooses one at each boot."""
    said = read_uuid(element.text or "")
    if said is None:
        notes.removed(f"<uuid> {shown(element.text or '')}", "it is none")
        scrub.remove(element)
    else:
        element.text = said


def _vcpu(element: etree._Element, notes: Notes) -> None:
    if element.get("cpuset") or element.get("placement") == "auto":
        notes.removed("the placement of <vcpu>", _NODES_HARDWARE)
    scrub.drop_attributes(element, "cpuset")
    if "placement" in element.attrib:
        element.set("placement", "static")


def _cputune(element: etree._Element, notes: Notes) -> None:
    kept = ("shares", "period", "quota")
    for child in elements(element):
        if str(child.tag) not in kept and not str(child.tag).endswith(("_period", "_quota")):
            notes.removed("the CPU pinning in <cputune>", _NODES_HARDWARE)
            scrub.remove(child)
    if len(element) == 0:
        scrub.remove(element)


def _memory_backing(element: etree._Element, notes: Notes) -> None:
    for child in elements(element, "hugepages"):
        notes.removed("<hugepages>", "this host may have none reserved, and then it would not boot")
        scrub.remove(child)
    scrub.keep_children(element, ("nosharepages", "locked", "source", "access", "allocation", "discard"), notes)
    for child in elements(element, "source"):
        scrub.keep_attributes(child, ("type",), notes)
    if len(element) == 0:
        scrub.remove(element)


def _metadata(element: etree._Element, notes: Notes) -> None:
    """Other programs' notes have no effect on the guest; which system it is, is worth keeping."""
    element.attrib.clear()
    for child in elements(element):
        if child.tag != f"{{{_OSINFO}}}libosinfo":
            scrub.remove(child)
            continue
        child.attrib.clear()
        system = child.find(f"{{{_OSINFO}}}os")
        for inner in elements(child):
            scrub.remove(inner)
        if system is not None:
            etree.SubElement(child, str(system.tag), id=system.get("id") or "")
    if len(element) == 0:
        scrub.remove(element)


def _sysinfo(element: etree._Element, notes: Notes) -> None:
    if element.get("type", "smbios") not in ("smbios", "fwcfg"):
        _drop(element, notes, "it is not known to be safe here")
        return
    scrub.keep_attributes(element, ("type",), notes)
    scrub.keep_children(element, ("entry", *_SMBIOS_TABLES), notes)
    for table in elements(element):
        _clean_entries([table] if table.tag == "entry" else list(elements(table)), notes)
        if table.tag != "entry":
            scrub.keep_children(table, ("entry",), notes)
            scrub.keep_attributes(table, (), notes)
    if len(element) == 0:
        scrub.remove(element)


def _clean_entries(entries: Iterable[etree._Element], notes: Notes) -> None:
    for entry in entries:
        if "file" in entry.attrib:
            notes.removed(f"<sysinfo> entry {shown(entry.get('name') or '')}", "it reads a file of the host")
            scrub.remove(entry)
            continue
        scrub.keep_attributes(entry, ("name",), notes)
        scrub.keep_children(entry, (), notes)


def _launch_security(element: etree._Element, notes: Notes) -> None:
    """The session was negotiated with the node's own processor."""
    scrub.drop_children(element, "session", "dhCert")
    kind = shown(element.get("type") or "")
    notes.warn(f"<launchSecurity type='{kind}'> needs a processor that can do this, and a new session with its owner")


_RULES: Final[Mapping[str, Callable[[etree._Element, Notes], None]]] = {
    "blkiotune": _host_tuning,
    "cputune": _cputune,
    "genid": _genid,
    "launchSecurity": _launch_security,
    "memoryBacking": _memory_backing,
    "metadata": _metadata,
    "numatune": _host_tuning,
    "resource": _resource,
    "seclabel": _seclabel,
    "sysinfo": _sysinfo,
    "uuid": _uuid,
    "vcpu": _vcpu,
}
