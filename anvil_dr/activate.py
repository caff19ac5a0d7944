"""Activation: asks everything that must be known before a server is booted, and makes the plan.

Asks the store, the hypervisor and the host through their ports; changes nothing. survey.py says what there is to boot,
preflight.py judges the answers, boot_plan.py puts the servers in order, boot.py carries the plan out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Dict, FrozenSet, Iterable, Iterator, Optional, Set, Tuple, TypeVar

from anvil_dr import boot_images, boot_plan, definition, preflight
from anvil_dr.boot_plan import BootPlan, Draft, Found
from anvil_dr.config import ActivationConfig
from anvil_dr.definition import Requirements
from anvil_dr.errors import DefinitionError, HypervisorError, StoreError, UsageError
from anvil_dr.findings import Finding, problem, warning
from anvil_dr.model import INCOMPLETE, ImageSet, StoredImage
from anvil_dr.ports import Domain, Host, Hypervisor, PathFacts, Platform, Store
from anvil_dr.preflight import Answers, HostView, Subject
from anvil_dr.survey import Survey
from anvil_dr.words import listed

_T = TypeVar("_T")


@dataclass(frozen=True)
class Request:
    """What the admin asks for."""

    servers: Tuple[str, ...] = ()
    """Empty: all."""
    sequence: Optional[int] = None
    force: bool = False


@dataclass(frozen=True)
class _Case:
    """One server on its way into the plan, as far as that got. Without a subject it cannot be booted."""

    found: Found
    chosen: Optional[ImageSet]
    subject: Optional[Subject]
    findings: Tuple[Finding, ...]


def plan(
    seen: Survey,
    request: Request,
    config: ActivationConfig,
    store: Store,
    hypervisor: Hypervisor,
    host: Host,
    warnings: Iterable[str] = (),
) -> BootPlan:
    """What would be booted, from what, in which order, and what would not and why.

    `warnings` are about the box as a whole. Raise UsageError for a server that is not here, ConfigError for a circle
    in `start_after`, HypervisorError if the hypervisor does not answer at all.
    """
    asker = _Asker(store, hypervisor, host)
    cases = tuple(asker.open_case(found, seen, request.sequence) for found in selected(seen, request.servers))
    subjects = tuple(case.subject for case in cases if case.subject is not None)
    view = asker.look_around(subjects, seen.images)
    return boot_plan.make(
        (asker.draft(case, view) for case in cases),
        start_after={server: rule.start_after for server, rule in config.servers.items()},
        delays_seconds={server: rule.start_delay for server, rule in config.servers.items()},
        host=view.facts,
        force=request.force,
        warnings=warnings,
    )


def selected(seen: Survey, servers: Tuple[str, ...]) -> Tuple[Found, ...]:
    """Those that were asked for; all, where none was named. Raise UsageError for one that is not here."""
    known = [found.server for found in seen.servers]
    unknown = sorted(set(servers) - set(known))
    if unknown:
        there = f"those here are {listed(known)}" if known else "there is none here at all"
        raise UsageError(f"there is no server named {listed(unknown)}; {there}")
    return tuple(found for found in seen.servers if not servers or found.server in servers)


class _Asker:
    """Puts the questions. What an answer is worth is preflight's business."""

    def __init__(self, store: Store, hypervisor: Hypervisor, host: Host) -> None:
        self._store, self._hypervisor, self._host = store, hypervisor, host

    def open_case(self, found: Found, seen: Survey, sequence: Optional[int]) -> _Case:
        """The set, the definition, and which image stands for which disk."""
        chosen, findings = boot_images.choose_set(found.sets, sequence, found.activation)
        if found.definition_problem is not None:
            wrong = problem(found.definition_problem, f"see to {found.definition_path}")
            return _Case(found, chosen, None, (*findings, wrong))
        try:
            needs = definition.requirements(found.definition_xml)
        except DefinitionError as error:
            wrong = problem(f"its definition: {error}", f"correct {found.definition_path}")
            return _Case(found, chosen, None, (*findings, wrong))
        if chosen is None:
            return _Case(found, None, None, findings)
        bound = boot_images.bind(found.server, needs.disks, chosen, seen.images, self._store.path)
        places = {path: self._place(image) for path, image in bound.images.items()}
        paths = {path: place for path, (place, _) in places.items()}
        unlinked = tuple(finding for _, finding in places.values() if finding is not None)
        subject = Subject(found.server, found.definition_path, needs, paths)
        return _Case(found, chosen, subject, (*findings, *bound.findings, *unlinked))

    def look_around(self, subjects: Tuple[Subject, ...], images: Tuple[StoredImage, ...]) -> HostView:
        """Everything that any of the servers asks of the host, looked at once."""
        domains = self._hypervisor.active()
        return HostView(
            facts=self._hypervisor.host(),
            domains=domains,
            networks={network.name: network.active for network in self._hypervisor.networks()},
            paths=self._paths(subjects, images, domains),
            interfaces=frozenset(
                interface.name
                for subject in subjects
                for interface in subject.needs.interfaces
                if self._host.has_interface(interface.name)
            ),
            devices=self._devices(subject.needs for subject in subjects),
            free_hugepages_bytes=self._host.free_hugepages_bytes(),
        )

    def draft(self, case: _Case, view: HostView) -> Draft:
        """One server, judged by itself."""
        found, subject = case.found, case.subject
        draft = Draft(found.server, found.definition_path, case.chosen, activated=found.activation is not None)
        images = (image.path for one in found.sets for image in one.images)
        domain = preflight.own_domain(found.server, images, view)
        if domain is not None and domain.state == "running":
            return replace(draft, running=True)
        if domain is not None:
            advice = f"see why; then end it and boot it again: virsh destroy {found.server}"
            return replace(draft, findings=(problem(f"it was booted before and is {domain.state} now", advice),))
        if subject is None:
            return replace(draft, findings=case.findings)
        changed = {path: booted for path, booted in subject.paths.items() if path != booted}
        # Without a change the text goes to libvirt as the admin wrote it, as with virsh create.
        xml = boot_images.with_disk_paths(found.definition_xml, changed) if changed else found.definition_xml
        answers = self._answers(subject, xml, case.chosen)
        checked = preflight.check(replace(subject, answers=answers), view)
        return replace(
            draft,
            memory_bytes=subject.needs.memory_bytes,
            cpus=subject.needs.vcpus,
            xml=xml,
            findings=(*case.findings, *checked, *self._being_received(found)),
        )

    def _place(self, image: StoredImage) -> Tuple[str, Optional[Finding]]:
        """The path to boot an image from: what a definition says, or where it lies if that link is missing."""
        path = self._store.path(image.owner, image.sequence)
        if path != image.path and self._host.path(path).kind == "missing" != self._host.path(image.path).kind:
            advice = "is the udev rule of anvil-dr installed? virsh create will not find it either"
            return image.path, warning(f"there is no {path}; {image.path} is used", advice)
        return path, None

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

    def _answers(self, subject: Subject, xml: str, chosen: Optional[ImageSet]) -> Answers:
        """The questions that are about one server alone."""
        needs, hypervisor = subject.needs, self._hypervisor
        platform = Platform(needs.virt_type, needs.arch, needs.machine, needs.emulator)
        capabilities, platform_error = _ask(lambda: hypervisor.capabilities(platform))
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
            cpu_problem=cpu_problem or "",
            dry_run_error=dry_run_error,
            defined=hypervisor.state(subject.server) in ("shut off", "crashed"),
            image_users=self._users(chosen.images if chosen is not None else ()),
            listening_problems={
                (address, port): self._host.listening_problem(address, port)
                for address, port in screens
                if address or port
            },
        )

    def _users(self, images: Tuple[StoredImage, ...]) -> Dict[str, str]:
        users: Dict[str, str] = {}
        for image in images:
            try:
                user = self._store.user(image)
            except StoreError as error:
                user = f"somebody that cannot be found out ({error})"
            if user is not None:
                users[self._place(image)[0]] = user
        return users

    def _being_received(self, found: Found) -> Iterator[Finding]:
        """A node that sends at this moment is alive, and so may be the server at its old place."""
        incomplete = [image for one in found.sets if one.sequence == INCOMPLETE for image in one.images]
        users = sorted(set(self._users(tuple(incomplete)).values()))
        if users:
            yield Finding(
                f"a job is writing its next set at this moment ({listed(users)}): a node is alive",
                "stop the job if the original site is really lost; --force boots the server all the same",
                forceable=True,
            )


def _ask(question: Callable[[], _T]) -> Tuple[Optional[_T], str]:
    """The answer, or why there is none."""
    try:
        return question(), ""
    except HypervisorError as error:
        return None, str(error)
