"""What would keep a server from booting here: disks, networks, host devices, screens. Pure; preflight.py's part."""

from __future__ import annotations

from typing import Dict, Iterator

from anvil_dr.definition import DiskRequirement
from anvil_dr.preflight.boot_subject import HostView, Subject
from anvil_dr.preflight.findings import Finding, problem, warning


def disks(subject: Subject, view: HostView) -> Iterator[Finding]:
    for disk in subject.needs.disks:
        if disk.path is None or disk.type not in ("file", "block"):
            continue
        path, where = subject.paths.get(disk.path, disk.path), subject.edit_at(disk.line)
        kind = view.path(path).kind
        if disk.device in ("cdrom", "floppy"):
            if kind == "missing" and disk.startup_policy is None:
                text = f"the medium {path} in drive {disk.target} is not here"
                yield problem(text, f"eject it: {where} and remove its <source>")
        elif kind == "missing":
            yield problem(f"disk {disk.target}: there is no {path}", _how_to_find(disk, subject))
        elif kind != ("file" if path in subject.cached_paths else disk.type):
            yield problem(f"disk {disk.target} is of type {disk.type}, and {path} is a {kind}", where)


def ways(subject: Subject, view: HostView) -> Iterator[Finding]:
    """libvirt gives QEMU's user the files themselves, but not the folders above them."""
    paths = (*subject.paths.values(), subject.needs.nvram)
    for folder in sorted({view.closed[path] for path in paths if path is not None and path in view.closed}):
        yield warning(f"QEMU's own user may not pass {folder}, and what it needs is below it", f"chmod o+x {folder}")


def _how_to_find(disk: DiskRequirement, subject: Subject) -> str:
    if disk.path not in subject.paths:
        return f"attach it, or remove the disk: {subject.edit_at(disk.line)}"
    if disk.type == "block":
        return "activate its volume group: vgchange --activate y"
    return "see whether the store's file system is mounted"


def users(subject: Subject, view: HostView) -> Iterator[Finding]:
    """Two writers destroy a disk. QEMU keeps a second one off files, but not off block devices."""
    holders: Dict[str, str] = {
        view.path(path).identity: domain.name for domain in view.domains for path in domain.disk_paths
    }
    for disk in subject.needs.disks:
        if disk.path is None or disk.device not in ("disk", "lun") or disk.readonly:
            continue
        path = subject.paths.get(disk.path, disk.path)
        facts = view.path(path)
        holder = holders.get(facts.identity) if facts.identity else None
        if holder is not None:
            yield problem(f"{path} is in use by the running domain {holder}", f"end it first: virsh shutdown {holder}")
        elif path in subject.answers.image_users:
            yield problem(
                f"{path} is in use by {subject.answers.image_users[path]}",
                "end that first; if it is the service: systemctl stop anvil-dr-target.socket anvil-dr-target",
            )


def networks(subject: Subject, view: HostView) -> Iterator[Finding]:
    for interface in subject.needs.interfaces:
        where, name = subject.edit_at(interface.line), interface.name
        if interface.kind in ("bridge", "direct") and name not in view.interfaces:
            what = "bridge" if interface.kind == "bridge" else "network card"
            make = f"make it (ip link add {name} type bridge), or " if interface.kind == "bridge" else ""
            yield problem(f"there is no {what} {name} here", f"{make}name one that is: {where}")
        elif interface.kind == "network" and name not in view.networks:
            yield problem(f"there is no libvirt network {name} here", f"make it, or name one that is: {where}")
        elif interface.kind == "network" and not view.networks[name]:
            yield problem(f"libvirt's network {name} is not started", f"start it: virsh net-start {name}")
        if interface.filter is not None and interface.filter not in view.filters:
            text = f"there is no network filter {interface.filter} here"
            yield problem(text, f"copy it from the node (virsh nwfilter-define), or remove <filterref>: {where}")


def devices(subject: Subject, view: HostView) -> Iterator[Finding]:
    for device in subject.needs.hostdevs:
        where = subject.edit_at(device.line)
        if not device.optional and device.description not in view.devices:
            text = f"the host device {device.description} is not here"
            yield problem(text, f"attach it, or remove the <hostdev>: {where}")
        elif device.type == "pci" and not view.has_iommu:
            yield problem(
                f"the host device {device.description} cannot be passed through: this host's IOMMU is off",
                f"switch on VT-d or AMD-Vi in the firmware's setup, or remove the <hostdev>: {where}",
            )


def screens(subject: Subject, view: HostView) -> Iterator[Finding]:
    for screen in subject.needs.graphics:
        said = subject.answers.listening_problems.get((screen.listen or "", screen.port or 0), "")
        if said:
            port = f" port {screen.port}" if screen.port else ""
            yield problem(
                f"its screen cannot be at {screen.listen or 'any address'}{port}: {said}",
                f"use autoport='yes' and listen='127.0.0.1': {subject.edit_at(screen.line)}",
            )
