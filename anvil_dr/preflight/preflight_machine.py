"""What would keep a server from booting here: machine, processors, memory, firmware, TPM. Pure; preflight.py's part."""

from __future__ import annotations

import re
from typing import Iterator, List, Tuple

from anvil_dr.preflight.boot_subject import HostView, Subject
from anvil_dr.preflight.findings import Finding, problem, warning
from anvil_dr.words import count, listed, size


def platform(subject: Subject, view: HostView) -> Iterator[Finding]:
    needs, error = subject.needs, subject.answers.platform_error
    emulator, machine, ours = needs.emulator, needs.machine, subject.answers.machines
    if emulator is not None and view.path(emulator).kind == "missing":
        advice = f"{subject.edit('emulator')} and remove it; libvirt has its own"
        yield problem(f"there is no emulator {emulator} here", advice)
    elif error and needs.virt_type not in ("kvm", "qemu"):
        yield problem(f"it is a domain of type {needs.virt_type}, and this host has no such", subject.edit("type"))
    elif needs.virt_type == "kvm" and ("'kvm'" in error or (error and needs.machine in ours)):
        yield problem(
            "KVM is not available here",
            "switch on virtualization in the firmware's setup and load kvm_intel or kvm_amd",
        )
    elif error and machine is not None and ours and machine not in ours:
        near = nearest_machine(machine, ours)
        have, put = (f"; this host has {near}", f" and write machine='{near}'") if near else ("", "")
        yield problem(f"it wants machine type {machine}, which is not here{have}", subject.edit("machine") + put)
    elif error:
        yield problem(error, f"{subject.edit('machine')}; virsh domcapabilities tells what this host has")


def nearest_machine(wanted: str, here: Tuple[str, ...]) -> str:
    """The newest machine type of the same family: pc-q35-7.2 for pc-q35-rhel9.4.0. Empty if there is none."""
    family = re.match(r"pc-q35|pc-i440fx|q35|[a-z]+", wanted)
    if family is None:
        return ""
    aliases = {"q35": "pc-q35", "pc": "pc-i440fx"}
    prefix = aliases.get(family.group(), family.group()) + "-"
    versions: List[Tuple[Tuple[int, ...], str]] = [
        (tuple(map(int, version.split("."))), machine)
        for machine in here
        for version in [machine[len(prefix) :]]
        if machine.startswith(prefix) and re.fullmatch(r"[0-9]+(\.[0-9]+)*", version)
    ]
    return max(versions)[1] if versions else ""


def processors(subject: Subject, view: HostView) -> Iterator[Finding]:
    vcpus, capabilities, bound_to = subject.needs.vcpus, subject.answers.capabilities, subject.needs.cpuset
    if capabilities is not None and capabilities.max_cpus is not None and vcpus > capabilities.max_cpus:
        text = f"it has {vcpus} CPUs, and this machine type takes {capabilities.max_cpus}"
        yield problem(text, f"lower <vcpu>: {subject.edit('vcpu')}")
    elif vcpus > view.facts.cpus:
        yield warning(f"it has {vcpus} CPUs and the host {view.facts.cpus}: it will be slow")
    if bound_to is not None and max(map(int, re.findall(r"[0-9]+", bound_to)), default=0) >= view.facts.cpus:
        yield problem(
            f"it is bound to the host's CPUs {bound_to}, and there are {count(view.facts.cpus, 'CPU')}",
            f"remove cpuset: {subject.edit('vcpu')}",
        )


def cpu(subject: Subject, view: HostView) -> Iterator[Finding]:
    wanted, capabilities = subject.needs.cpu, subject.answers.capabilities
    if wanted is None or not wanted.mode or capabilities is None:
        return
    where, lacks = subject.edit("cpu"), subject.answers.cpu_problem
    if wanted.mode not in capabilities.cpu_modes:
        yield problem(
            f"CPU mode {wanted.mode} is not possible here",
            f"remove <cpu>, or choose one of {listed(capabilities.cpu_modes)}: {where}",
        )
    elif wanted.mode == "custom" and wanted.model is not None and wanted.model not in capabilities.cpu_models:
        yield problem(f"CPU model {wanted.model} is not known here", f"choose another, or mode='host-model': {where}")
    elif lacks and wanted.check == "none":
        yield warning(
            f"this host's CPU lacks what it expects ({lacks}); check='none' hides it", "programs in it may crash"
        )
    elif lacks:
        text = f"this host's CPU lacks what it expects: {lacks}"
        yield problem(text, f"choose an older model, or mode='host-model': {where}")


def firmware(subject: Subject, view: HostView) -> Iterator[Finding]:
    needs, capabilities = subject.needs, subject.answers.capabilities
    if needs.loader is not None and view.path(needs.loader).kind == "missing":
        ours = capabilities.loaders if capabilities is not None else ()
        here = f" (here: {listed(ours)})" if ours else " (apt install ovmf)"
        yield problem(f"its firmware {needs.loader} is not here", f"name one that is{here}: {subject.edit('loader')}")
    elif needs.firmware == "efi" and capabilities is not None and not capabilities.loaders:
        yield problem("there is no UEFI firmware on this host", "install it: apt install ovmf")
    if needs.nvram is None or subject.answers.nvram_kept or view.path(needs.nvram).kind == "file":
        return
    if needs.nvram_template is not None and view.path(needs.nvram_template).kind == "missing":
        yield problem(
            f"its UEFI variables {needs.nvram} are missing, and so is their template {needs.nvram_template}",
            f"name a template that is here, or none: {subject.edit('nvram')}",
        )
    else:
        yield warning(f"its UEFI variables {needs.nvram} are missing", "it may not find its boot loader")


def tpm(subject: Subject, view: HostView) -> Iterator[Finding]:
    wanted, capabilities = subject.needs.tpm, subject.answers.capabilities
    if wanted is None or wanted.backend != "emulator" or capabilities is None:
        return
    where = subject.edit_at(wanted.line)
    if "emulator" not in capabilities.tpm_backends:
        yield problem("it has a TPM, and no TPM emulator is here", "install one: apt install swtpm swtpm-tools")
    elif wanted.version is not None and wanted.version not in capabilities.tpm_versions:
        ours = listed(capabilities.tpm_versions)
        yield problem(f"its TPM is of version {wanted.version}, and the one here can do {ours}", where)
    elif not wanted.persistent:
        yield warning(
            "its TPM forgets everything when it is shut down", f"add persistent_state='yes' to <backend>: {where}"
        )


def hugepages(subject: Subject, view: HostView) -> Iterator[Finding]:
    """Plain memory is shared out by the plan."""
    wanted, free = subject.needs.memory_bytes, view.free_hugepages_bytes
    if subject.needs.hugepages and free < wanted:
        text = f"it wants {size(wanted)} of huge pages, and {size(free)} are free"
        yield problem(text, f"remove <memoryBacking>: {subject.edit('hugepages')}")
