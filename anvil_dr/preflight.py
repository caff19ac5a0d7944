"""What would keep a server from booting here, before anything is booted (SPEC section 8). Pure.

Most of libvirt's own errors come one at a time, after the first server has been booted, and many have a generic
code; so each thing that differs between hosts is looked at by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, FrozenSet, Iterable, Iterator, Mapping, Optional, Tuple

from anvil_dr.definition import DiskRequirement, Requirements
from anvil_dr.findings import Finding, problem, warning
from anvil_dr.ports import Domain, DomainCapabilities, HostFacts, PathFacts
from anvil_dr.words import count, listed, size

_MISSING = PathFacts("missing")


@dataclass(frozen=True)
class HostView:
    """What this host has, as far as any of the servers asks for it."""

    facts: HostFacts
    domains: Tuple[Domain, ...] = ()
    networks: Mapping[str, bool] = field(default_factory=dict)
    """libvirt's networks, and whether each is started."""
    paths: Mapping[str, PathFacts] = field(default_factory=dict)
    interfaces: FrozenSet[str] = frozenset()
    devices: FrozenSet[str] = frozenset()
    """Host devices that are there, by their descriptions in the requirements."""
    free_hugepages_bytes: int = 0

    def path(self, path: str) -> PathFacts:
        return self.paths.get(path, _MISSING)


@dataclass(frozen=True)
class Answers:
    """What the hypervisor and the store say of one server."""

    capabilities: Optional[DomainCapabilities] = None
    """None if the host has nothing like it, or cannot say."""
    platform_error: str = ""
    cpu_problem: str = ""
    dry_run_error: str = ""
    defined: bool = False
    """True if a domain of its name is defined here, which never should be."""
    image_users: Mapping[str, str] = field(default_factory=dict)
    """Who has an image open, by the image's path."""
    listening_problems: Mapping[Tuple[str, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """One server that might be booted."""

    server: str
    definition_path: str
    needs: Requirements
    paths: Mapping[str, str]
    """The path that is booted, by the one that the definition has; its own images only."""
    answers: Answers = Answers()

    def line(self, what: str) -> str:
        """Where to edit."""
        return self.at(self.needs.lines.get(what, 0))

    def at(self, line: int) -> str:
        return f"line {line} of {self.definition_path}" if line else self.definition_path


def own_domain(server: str, images: Iterable[str], view: HostView) -> Optional[Domain]:
    """The domain of this name that has some of these images of it: the server was booted before."""
    own = {view.path(path).identity for path in images} - {""}
    for domain in view.domains:
        if domain.name == server and own & {view.path(path).identity for path in domain.disk_paths}:
            return domain
    return None


def check(subject: Subject, view: HostView) -> Tuple[Finding, ...]:
    """Everything that is wrong with booting this server on this host."""
    found = [
        finding
        for one in (_identity, _platform, _processors, _cpu, _firmware, _tpm, _disks, _users, _network, _devices)
        for finding in one(subject, view)
    ]
    found += _memory(subject, view)
    found += _graphics(subject)
    if subject.answers.dry_run_error and not any(one.fatal for one in found):
        # libvirt sees something that we have no words for.
        found.append(problem(subject.answers.dry_run_error, f"correct {subject.definition_path}"))
    return tuple(found)


def _identity(subject: Subject, view: HostView) -> Iterator[Finding]:
    needs = subject.needs
    if needs.name != subject.server:
        yield problem(f"its definition is for a server named {needs.name}", f"correct {subject.line('name')}")
        return
    for domain in view.domains:
        if domain.name == subject.server:
            yield problem(
                f"another domain named {domain.name} is running, on other disks",
                f"see what it is, and end it: virsh shutdown {domain.name}",
            )
        elif needs.uuid is not None and domain.uuid.lower() == needs.uuid.lower():
            yield problem(
                f"the running domain {domain.name} has its UUID", f"end that one first: virsh shutdown {domain.name}"
            )
    if subject.answers.defined:
        yield warning(
            "a domain of its name is defined here, so it could be started by mistake",
            f"undefine it: virsh undefine {subject.server} --keep-nvram",
        )


def _platform(subject: Subject, view: HostView) -> Iterator[Finding]:
    emulator, error = subject.needs.emulator, subject.answers.platform_error
    if emulator is not None and view.path(emulator).kind == "missing":
        yield problem(
            f"there is no emulator {emulator} here", f"remove {subject.line('emulator')}; libvirt has its own"
        )
    elif subject.needs.virt_type == "kvm" and "'kvm'" in error:
        yield problem(
            "KVM is not available here",
            "switch on virtualization in the firmware's setup and load kvm_intel or kvm_amd",
        )
    elif error:
        yield problem(
            error,
            f"choose a machine type that this host has (virsh domcapabilities lists them): {subject.line('machine')}",
        )


def _processors(subject: Subject, view: HostView) -> Iterator[Finding]:
    vcpus, capabilities, bound_to = subject.needs.vcpus, subject.answers.capabilities, subject.needs.cpuset
    if capabilities is not None and capabilities.max_cpus is not None and vcpus > capabilities.max_cpus:
        yield problem(
            f"it has {vcpus} CPUs, and this machine type takes {capabilities.max_cpus}",
            f"lower <vcpu>: {subject.line('vcpu')}",
        )
    elif vcpus > view.facts.cpus:
        yield warning(f"it has {vcpus} CPUs and the host {view.facts.cpus}: it will be slow")
    if bound_to is not None and max(map(int, re.findall(r"[0-9]+", bound_to)), default=0) >= view.facts.cpus:
        yield problem(
            f"it is bound to the host's CPUs {bound_to}, and there are {count(view.facts.cpus, 'CPU')}",
            f"remove cpuset: {subject.line('vcpu')}",
        )


def _cpu(subject: Subject, view: HostView) -> Iterator[Finding]:
    cpu, capabilities = subject.needs.cpu, subject.answers.capabilities
    if cpu is None or not cpu.mode or capabilities is None:
        return
    where = subject.line("cpu")
    if cpu.mode not in capabilities.cpu_modes:
        yield problem(
            f"CPU mode {cpu.mode} is not possible here",
            f"remove <cpu>, or choose one of {listed(capabilities.cpu_modes)}: {where}",
        )
    elif cpu.mode == "custom" and cpu.model is not None and cpu.model not in capabilities.cpu_models:
        yield problem(f"CPU model {cpu.model} is not known here", f"choose another, or mode='host-model': {where}")
    elif subject.answers.cpu_problem and cpu.check == "none":
        yield warning(
            f"this host's CPU lacks what it expects ({subject.answers.cpu_problem}); check='none' hides it",
            "programs in it may crash",
        )
    elif subject.answers.cpu_problem:
        yield problem(
            f"this host's CPU lacks what it expects: {subject.answers.cpu_problem}",
            f"choose an older model, or mode='host-model': {where}",
        )


def _firmware(subject: Subject, view: HostView) -> Iterator[Finding]:
    needs, capabilities = subject.needs, subject.answers.capabilities
    if needs.loader is not None and view.path(needs.loader).kind == "missing":
        ours = capabilities.loaders if capabilities is not None else ()
        here = f" (here: {listed(ours)})" if ours else " (apt install ovmf)"
        yield problem(f"its firmware {needs.loader} is not here", f"name one that is{here}: {subject.line('loader')}")
    elif needs.firmware == "efi" and capabilities is not None and not capabilities.loaders:
        yield problem("there is no UEFI firmware on this host", "install it: apt install ovmf")
    if needs.nvram is None or view.path(needs.nvram).kind == "file":
        return
    if needs.nvram_template is not None and view.path(needs.nvram_template).kind == "missing":
        yield problem(
            f"its UEFI variables {needs.nvram} are missing, and so is their template {needs.nvram_template}",
            f"name a template that is here, or none: {subject.line('nvram')}",
        )
    else:
        yield warning(f"its UEFI variables {needs.nvram} are missing", "it may not find its boot loader")


def _tpm(subject: Subject, view: HostView) -> Iterator[Finding]:
    tpm, capabilities = subject.needs.tpm, subject.answers.capabilities
    if tpm is None or tpm.backend != "emulator" or capabilities is None:
        return
    if "emulator" not in capabilities.tpm_backends:
        yield problem("it has a TPM, and no TPM emulator is here", "install one: apt install swtpm swtpm-tools")
    elif tpm.version is not None and tpm.version not in capabilities.tpm_versions:
        yield problem(
            f"its TPM is of version {tpm.version}, and the one here can do {listed(capabilities.tpm_versions)}",
            f"change the version: {subject.at(tpm.line)}",
        )
    elif not tpm.persistent:
        yield warning(
            "its TPM forgets everything when it is shut down",
            f"add persistent_state='yes' to <backend> below {subject.at(tpm.line)}",
        )


def _disks(subject: Subject, view: HostView) -> Iterator[Finding]:
    for disk in subject.needs.disks:
        if disk.path is None or disk.type not in ("file", "block"):
            continue
        path = subject.paths.get(disk.path, disk.path)
        kind = view.path(path).kind
        if disk.device in ("cdrom", "floppy"):
            if kind == "missing" and disk.startup_policy is None:
                yield problem(
                    f"the medium {path} in drive {disk.target} is not here",
                    f"eject it: remove <source> below {subject.at(disk.line)}",
                )
        elif kind == "missing":
            yield problem(f"disk {disk.target}: there is no {path}", _how_to_find(disk, subject))
        elif kind != disk.type:
            yield problem(
                f"disk {disk.target} is of type {disk.type}, and {path} is a {kind}",
                f"correct the type: {subject.at(disk.line)}",
            )


def _how_to_find(disk: DiskRequirement, subject: Subject) -> str:
    if disk.path not in subject.paths:
        return f"attach it, or remove the disk: {subject.at(disk.line)}"
    if disk.type == "block":
        return "activate its volume group: vgchange --activate y"
    return "see whether the store's file system is mounted"


def _users(subject: Subject, view: HostView) -> Iterator[Finding]:
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
                "end that first; if it is the service: systemctl stop anvil-dr-target",
            )


def _network(subject: Subject, view: HostView) -> Iterator[Finding]:
    for interface in subject.needs.interfaces:
        where, name = subject.at(interface.line), interface.name
        if interface.kind in ("bridge", "direct") and name not in view.interfaces:
            what = "bridge" if interface.kind == "bridge" else "network card"
            yield problem(f"there is no {what} {name} here", f"make it, or change the interface: {where}")
        elif interface.kind == "network" and name not in view.networks:
            yield problem(f"there is no libvirt network {name} here", f"make it, or change the interface: {where}")
        elif interface.kind == "network" and not view.networks[name]:
            yield problem(f"libvirt's network {name} is not started", f"start it: virsh net-start {name}")


def _devices(subject: Subject, view: HostView) -> Iterator[Finding]:
    for device in subject.needs.hostdevs:
        if not device.optional and device.description not in view.devices:
            yield problem(
                f"the host device {device.description} is not here",
                f"attach it, or remove the <hostdev>: {subject.at(device.line)}",
            )


def _memory(subject: Subject, view: HostView) -> Iterator[Finding]:
    """Huge pages only; plain memory is shared out by the plan."""
    wanted, free = subject.needs.memory_bytes, view.free_hugepages_bytes
    if subject.needs.hugepages and free < wanted:
        yield problem(
            f"it wants {size(wanted)} of huge pages, and {size(free)} are free",
            f"remove <memoryBacking>: {subject.line('hugepages')}",
        )


def _graphics(subject: Subject) -> Iterator[Finding]:
    for screen in subject.needs.graphics:
        said = subject.answers.listening_problems.get((screen.listen or "", screen.port or 0), "")
        if said:
            port = f" port {screen.port}" if screen.port else ""
            yield problem(
                f"its screen cannot be at {screen.listen or 'any address'}{port}: {said}",
                f"use autoport='yes' and listen='127.0.0.1': {subject.at(screen.line)}",
            )
