"""Puts preflight's questions to the hypervisor, the host and the store. Changes nothing; judges nothing.

What an answer is worth is preflight.py's business.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Dict, FrozenSet, Iterable, Iterator, Optional, Set, Tuple, TypeVar

from anvil_dr.definition import Requirements
from anvil_dr.errors import HypervisorError, StoreError
from anvil_dr.model import ImageSet, StoredImage
from anvil_dr.ports import Domain, Host, HostFacts, Hypervisor, PathFacts, Platform, Store
from anvil_dr.preflight.boot_subject import Answers, HostView, Subject
from anvil_dr.preflight.findings import Finding, warning

_T = TypeVar("_T")


class Inspector:
    """One look at everything."""

    def __init__(self, store: Store, hypervisor: Hypervisor, host: Host) -> None:
        self._store, self._hypervisor, self._host = store, hypervisor, host

    def look_around(self, subjects: Tuple[Subject, ...], images: Tuple[StoredImage, ...]) -> HostView:
        """Everything that any of the servers asks of the host, looked at once. Raise HypervisorError."""
        domains, facts = self._hypervisor.active(), self._facts()
        return HostView(
            facts=facts,
            domains=domains,
            networks={network.name: network.active for network in self._hypervisor.networks()},
            filters=self._filters(subject.needs for subject in subjects),
            paths=self._paths(subjects, images, domains),
            interfaces=frozenset(
                interface.name
                for subject in subjects
                for interface in subject.needs.interfaces
                if self._host.has_interface(interface.name)
            ),
            devices=self._devices(subject.needs for subject in subjects),
            closed=self._closed(subjects, facts),
            free_hugepages_bytes=self._host.free_hugepages_bytes(),
            has_iommu=self._host.has_iommu(),
        )

    def answers(self, subject: Subject, xml: str, chosen: Optional[ImageSet]) -> Answers:
        """The questions that are about one server alone."""
        needs, hypervisor = subject.needs, self._hypervisor
        platform = Platform(needs.virt_type, needs.arch, needs.machine, needs.emulator)
        capabilities, platform_error = _ask(lambda: hypervisor.capabilities(platform))
        machines = _ask(lambda: hypervisor.machines(needs.arch))[0] if platform_error else ()
        cpu_problem: Optional[str] = None
        if capabilities is not None and needs.cpu is not None and needs.cpu.mode == "custom":
            cpu_xml = needs.cpu.xml
            cpu_problem, cpu_error = _ask(lambda: hypervisor.cpu_problem(cpu_xml, platform))
            cpu_problem = cpu_problem or cpu_error
        _, dry_run_error = _ask(lambda: hypervisor.dry_run(xml))
        screens = {(screen.listen or "", screen.port or 0) for screen in needs.graphics}
        return Answers(
            capabilities=capabilities,
            platform_error=platform_error,
            machines=machines or (),
            cpu_problem=cpu_problem or "",
            dry_run_error=dry_run_error,
            defined=hypervisor.state(subject.server) in ("shut off", "crashed"),
            image_users=self.users(chosen.images if chosen is not None else ()),
            listening_problems={
                (address, port): self._host.listening_problem(address, port)
                for address, port in screens
                if address or port
            },
        )

    def place(self, image: StoredImage) -> Tuple[str, Optional[Finding]]:
        """The path to boot an image from: what a definition says, or where it lies if that link is missing."""
        path = self._store.path(image.owner, image.sequence)
        if path != image.path and self._host.path(path).kind == "missing" != self._host.path(image.path).kind:
            advice = "is the udev rule of anvil-dr installed? virsh create will not find it either"
            return image.path, warning(f"there is no {path}; {image.path} is used", advice)
        return path, None

    def users(self, images: Iterable[StoredImage]) -> Dict[str, str]:
        """Who has each image open, in words, by the path that it's booted from."""
        asked = tuple(images)
        try:
            found = self._store.users(asked)
        except StoreError as error:
            found = dict.fromkeys(asked, f"somebody that cannot be found out ({error})")
        return {self.place(image)[0]: user for image, user in found.items()}

    def _facts(self) -> HostFacts:
        facts = self._hypervisor.host()
        if facts.available_bytes is None:  # not a hypervisor of this machine, such as libvirt's own for tests
            return facts
        # What libvirt calls cached includes what is not given back, such as everything in a tmpfs.
        return replace(facts, available_bytes=self._host.available_memory_bytes())

    def _paths(
        self, subjects: Tuple[Subject, ...], images: Tuple[StoredImage, ...], domains: Tuple[Domain, ...]
    ) -> Dict[str, PathFacts]:
        wanted: Set[Optional[str]] = {path for domain in domains for path in domain.disk_paths}
        wanted.update(image.path for image in images)
        for subject in subjects:
            needs = subject.needs
            wanted.update(subject.paths.values())
            wanted.update(disk.path for disk in needs.disks if disk.type in ("file", "block"))
            wanted.update((needs.emulator, needs.loader, needs.nvram, needs.nvram_template))
        return {path: self._host.path(path) for path in wanted if path is not None}

    def _closed(self, subjects: Tuple[Subject, ...], facts: HostFacts) -> Dict[str, str]:
        if facts.qemu_user is None:
            return {}
        wanted: Set[Optional[str]] = {path for subject in subjects for path in subject.paths.values()}
        wanted.update(subject.needs.nvram for subject in subjects)
        found = {path: self._host.closed_folder(path, *facts.qemu_user) for path in wanted if path is not None}
        return {path: folder for path, folder in found.items() if folder}

    def _filters(self, needs: Iterable[Requirements]) -> FrozenSet[str]:
        """Asked only for a server that needs one: libvirt's driver for them is often not installed."""
        if not any(interface.filter for one in needs for interface in one.interfaces):
            return frozenset()
        return _ask(self._hypervisor.network_filters)[0] or frozenset()

    def _devices(self, needs: Iterator[Requirements]) -> FrozenSet[str]:
        descriptions = {device.description for one in needs for device in one.hostdevs}
        return frozenset(one for one in descriptions if self._has_device(one))

    def _has_device(self, description: str) -> bool:
        kind, _, where = description.partition(":")
        if kind == "pci":
            return self._host.has_pci_device(where)
        if kind == "usb" and where.count(":") == 1:
            vendor, product = (word.replace("0x", "").rjust(4, "0") for word in where.split(":"))
            return self._host.has_usb_device(vendor, product)
        # Nothing here can tell. libvirt will.
        return True


def _ask(question: Callable[[], _T]) -> Tuple[Optional[_T], str]:
    """The answer, or why there is none."""
    try:
        return question(), ""
    except HypervisorError as error:
        return None, str(error)
