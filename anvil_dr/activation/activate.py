"""Activation: asks everything that must be known before a server is booted, and makes the plan.

Asks the store, the hypervisor and the host through their ports; changes nothing. survey.py says what there is to boot,
inspection.py puts the questions, preflight.py judges the answers, boot_plan.py puts the servers in order, boot.py
carries the plan out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import FrozenSet, Iterable, Iterator, Mapping, Optional, Set, Tuple

from anvil_dr import definition
from anvil_dr.activation import boot_images, boot_plan, boot_xml, ran_before
from anvil_dr.activation.boot_plan import BootPlan, Draft, Found
from anvil_dr.activation.survey import Survey
from anvil_dr.config import ActivationConfig
from anvil_dr.errors import DefinitionError, UsageError
from anvil_dr.model import CACHED, INCOMPLETE, ImageSet
from anvil_dr.ports import Host, Hypervisor, Store
from anvil_dr.preflight import preflight
from anvil_dr.preflight.boot_subject import HostView, Subject
from anvil_dr.preflight.findings import Finding, problem, warning
from anvil_dr.preflight.inspection import Inspector
from anvil_dr.words import listed, nearest


@dataclass(frozen=True)
class Request:
    """What the admin asks for."""

    servers: Tuple[str, ...] = ()
    """Empty: all."""
    sequence: Optional[int] = None
    force: bool = False
    """Boot all, whatever may be forced."""
    forced: FrozenSet[str] = frozenset()
    """Boot these, whatever may be forced."""
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """Boot these with so much, instead of what the definition says."""

    @property
    def is_special(self) -> bool:
        """True if it asks for anything but all servers as they are."""
        return bool(self.servers or self.sequence or self.memory_bytes)


@dataclass(frozen=True)
class _Case:
    """One server on its way into the plan, as far as that got. Without a subject it cannot be booted."""

    found: Found
    chosen: Optional[ImageSet]
    subject: Optional[Subject]
    findings: Tuple[Finding, ...]
    disk_paths: Tuple[Tuple[str, str], ...] = ()


def plan(
    seen: Survey,
    request: Request,
    config: ActivationConfig,
    store: Store,
    hypervisor: Hypervisor,
    host: Host,
    *,
    alive: Optional[Mapping[str, Finding]] = None,
    warnings: Iterable[str] = (),
) -> BootPlan:
    """What would be booted, from what, in which order, and what would not and why.

    `alive` says of servers why their original may still run; `warnings` are about the box as a whole. Raise
    UsageError for a server that is not here, ConfigError for a circle in `start_after`, HypervisorError if the
    hypervisor does not answer at all.
    """
    chosen = selected(seen, request.servers)
    _refuse_memory_for_others(request, {found.server for found in chosen}, seen)
    drafter = _Drafter(Inspector(store, hypervisor, host), store, request, config, alive or {})
    cases = tuple(drafter.open_case(found, seen) for found in chosen)
    subjects = tuple(case.subject for case in cases if case.subject is not None)
    view = drafter.inspector.look_around(subjects, seen.images)
    drafts = tuple(drafter.draft(case, view) for case in cases)
    return boot_plan.make(
        drafts,
        start_after={server: rule.start_after for server, rule in config.servers.items()},
        delays_seconds={server: rule.start_delay for server, rule in config.servers.items()},
        host=view.facts,
        free_hugepages_bytes=view.free_hugepages_bytes,
        forced={draft.server for draft in drafts} if request.force else request.forced,
        warnings=(*warnings, *_unknown_here(seen, config)),
    )


def selected(seen: Survey, servers: Tuple[str, ...]) -> Tuple[Found, ...]:
    """Those that were asked for; all, where none was named. Raise UsageError for one that is not here."""
    known = [found.server for found in seen.servers]
    _refuse_unknown(servers, known)
    return tuple(found for found in seen.servers if not servers or found.server in servers)


def _refuse_unknown(servers: Iterable[str], known: Iterable[str]) -> None:
    here = sorted(known)
    unknown = sorted(set(servers) - set(here))
    if unknown:
        there = f"those here are {listed(here)}" if here else "there is none here at all"
        raise UsageError(f"there is no server named {listed(unknown)}{nearest(unknown[0], here)}; {there}")


def _refuse_memory_for_others(request: Request, chosen: Set[str], seen: Survey) -> None:
    """Raise UsageError for a server that is not here, or is not to be booted."""
    _refuse_unknown(request.memory_bytes, [found.server for found in seen.servers])
    others = sorted(set(request.memory_bytes) - chosen)
    if others:
        booted = listed(sorted(chosen))
        raise UsageError(f"--memory {others[0]}=...: {others[0]} is not among those to be booted: {booted}")


def _unknown_here(seen: Survey, config: ActivationConfig) -> Iterator[str]:
    here = {found.server for found in seen.servers}
    unknown = sorted(set(config.servers) - here)
    if unknown and here:
        yield f"activation.servers in the configuration has {listed(unknown)}, which is not a server here"


class _Drafter:
    """Makes a draft of each server: which set, which text, and everything that is wrong with it."""

    def __init__(
        self,
        inspector: Inspector,
        store: Store,
        request: Request,
        config: ActivationConfig,
        alive: Mapping[str, Finding],
    ) -> None:
        self.inspector, self._store, self._request, self._alive = inspector, store, request, alive
        self._config = config

    def open_case(self, found: Found, seen: Survey) -> _Case:
        """The set, the definition, and which image stands for which disk."""
        chosen, findings = boot_images.choose_set(found.sets, self._request.sequence, ran_before.ran_from(found))
        unfinished = boot_images.in_the_way(found.pending, chosen)
        findings = (*findings, *unfinished, *self._unknown_before(found, seen), *ran_before.on_overlays(found, chosen))
        if found.overlays_problem is not None:
            advice = f"if nobody needs what it wrote: anvil-activate-dr --release {found.server} --discard"
            findings = (*findings, problem(found.overlays_problem, advice))
        if found.definition_problem is not None:
            advice = f"see to {found.definition_path}; its next job makes one if there is none, a backup may have it"
            if not any(one.definition_xml for one in seen.servers):
                advice = f"no server has one: is what holds {found.definition_path} mounted?"
            wrong = problem(found.definition_problem, advice)
            return _Case(found, chosen, None, (*findings, wrong))
        try:
            needs = definition.requirements(found.definition_xml)
        except DefinitionError as error:
            wrong = problem(f"its definition: {error}", f"correct it: edit {found.definition_path}")
            return _Case(found, chosen, None, (*findings, wrong))
        if chosen is None:
            return _Case(found, None, None, findings)
        bound = boot_images.bind(found.server, needs.disks, chosen, seen.images, self._store.path)
        places = {path: self.inspector.place(image) for path, image in bound.images.items()}
        paths = {path: place for path, (place, _) in places.items()}
        unlinked = tuple(finding for _, finding in places.values() if finding is not None)
        cached = frozenset(paths[path] for path, image in bound.images.items() if image.sequence == CACHED)
        subject = Subject(found.server, found.definition_path, needs, paths, cached_paths=cached)
        disks = tuple((image.owner.disk, paths[path]) for path, image in bound.images.items())
        bare = ran_before.without_overlay(found, [disk for disk, _ in disks])
        return _Case(found, chosen, subject, (*findings, *bound.findings, *unlinked, *bare), disks)

    def _unknown_before(self, found: Found, seen: Survey) -> Iterator[Finding]:
        """A name that nobody has makes a rule that never holds. Whoever names servers wants no rule."""
        rule = self._config.servers.get(found.server)
        unknown = sorted(set(rule.start_after) - {one.server for one in seen.servers}) if rule is not None else []
        if unknown and not self._request.servers:
            yield problem(
                f"the configuration starts it after {listed(unknown)}, and there is no such server here",
                f"correct activation.servers.{found.server}.start_after; or boot it alone: --server {found.server}",
            )

    def draft(self, case: _Case, view: HostView) -> Draft:
        """One server, judged by itself."""
        found, subject = case.found, case.subject
        draft = Draft(
            found.server, found.definition_path, case.chosen,
            activated=found.activation is not None, left=ran_before.left(found, case.chosen),
        )  # fmt: skip
        images = (image.path for one in found.sets for image in one.images)
        domain = preflight.own_domain(found.server, images, view)
        if domain is not None and domain.state == "running":
            return ran_before.running(found, draft, domain, view, self._request.sequence)
        if domain is not None:
            advice = f"see why; then end it and boot it again: virsh destroy {found.server}"
            return replace(draft, findings=(problem(f"it was booted before and is {domain.state} now", advice),))
        if subject is None:
            return replace(draft, findings=case.findings)
        try:
            xml, memory_bytes = self._text(found, subject)
        except (DefinitionError, UsageError) as error:
            return replace(draft, findings=(*case.findings, problem(str(error), f"edit {found.definition_path}")))
        answers = self.inspector.answers(subject, xml, case.chosen)
        subject = replace(subject, answers=replace(answers, nvram_kept=_has_nvram(found, case.chosen)))
        needs = subject.needs
        return replace(
            draft,
            memory_bytes=memory_bytes,
            memory_line=needs.lines.get("memory", 0),
            cpus=needs.vcpus,
            needs=needs,
            disk_paths=case.disk_paths,
            disk_bytes=sum(image.size_bytes for image in case.chosen.images) if case.chosen is not None else 0,
            networks=tuple(dict.fromkeys(interface.name for interface in needs.interfaces if interface.name)),
            hugepages=needs.hugepages,
            has_agent=needs.has_agent,
            uuid=needs.uuid,
            screens=tuple((screen.listen or "", screen.port or 0) for screen in needs.graphics),
            xml=xml,
            findings=(*case.findings, *preflight.check(subject, view), *self._alive_there(found), *_drift(found)),
        )

    def _text(self, found: Found, subject: Subject) -> Tuple[str, int]:
        """What would be booted, and how much memory it takes. Raise DefinitionError, UsageError."""
        changed = {path: booted for path, booted in subject.paths.items() if path != booted}
        # Without a change the text goes to libvirt as the admin wrote it, as with virsh create.
        xml = found.definition_xml
        if changed:
            xml = boot_xml.with_disk_paths(found.definition_xml, changed, subject.cached_paths)
        wanted_bytes = self._request.memory_bytes.get(found.server)
        if wanted_bytes is None:
            return xml, subject.needs.memory_bytes
        return boot_xml.with_memory(xml, wanted_bytes), wanted_bytes

    def _alive_there(self, found: Found) -> Iterator[Finding]:
        """Signs that the server may still run at its old place."""
        if found.server in self._alive:
            yield self._alive[found.server]
        incomplete = [image for one in found.sets if one.sequence == INCOMPLETE for image in one.images]
        users = sorted(set(self.inspector.users(incomplete).values()))
        if users:
            yield Finding(
                f"a job is writing its next set at this moment ({listed(users)}): a node is alive",
                "stop the job if the original site is really lost; --force boots the server all the same",
                forceable=True,
            )


def _has_nvram(found: Found, chosen: Optional[ImageSet]) -> bool:
    return chosen is not None and chosen.record is not None and chosen.record.job_id in found.nvram_kept


def _drift(found: Found) -> Iterator[Finding]:
    if found.drift:
        advice = f"if it should follow its source: edit {found.definition_path}"
        yield warning(f"its definition differs from its source's: {'; '.join(found.drift)}", advice)
