"""What would keep a server from booting here, before anything is booted (SPEC section 8). Pure.

Most of libvirt's own errors come one at a time, after the first server has been booted, and many have a generic
code; so each thing that differs between hosts is looked at by itself.
"""

from __future__ import annotations

from typing import Callable, Final, Iterable, Iterator, Optional, Tuple

from anvil_dr.ports import Domain
from anvil_dr.preflight import preflight_devices, preflight_machine
from anvil_dr.preflight.boot_subject import HostView, Subject
from anvil_dr.preflight.findings import Finding, problem, warning


def own_domain(server: str, images: Iterable[str], view: HostView) -> Optional[Domain]:
    """The domain of this name that has some of these images of it: the server was booted before."""
    own = {view.path(path).identity for path in images} - {""}
    for domain in view.domains:
        if domain.name == server and own & {view.path(path).identity for path in domain.disk_paths}:
            return domain
    return None


def check(subject: Subject, view: HostView) -> Tuple[Finding, ...]:
    """Everything that is wrong with booting this server on this host."""
    found = [finding for look in _LOOKS for finding in look(subject, view)]
    if subject.answers.dry_run_error and not any(one.fatal for one in found):
        # libvirt sees something that we have no words for.
        found.append(problem(subject.answers.dry_run_error, subject.edit_at(0)))
    return tuple(found)


def _identity(subject: Subject, view: HostView) -> Iterator[Finding]:
    needs = subject.needs
    if needs.name != subject.server:
        yield problem(f"its definition is for a server named {needs.name}", subject.edit("name"))
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


_LOOKS: Final[Tuple[Callable[[Subject, HostView], Iterator[Finding]], ...]] = (
    _identity,
    preflight_machine.platform,
    preflight_machine.processors,
    preflight_machine.cpu,
    preflight_machine.firmware,
    preflight_machine.tpm,
    preflight_machine.hugepages,
    preflight_devices.disks,
    preflight_devices.ways,
    preflight_devices.users,
    preflight_devices.networks,
    preflight_devices.devices,
    preflight_devices.screens,
)
