"""The paper runbook: what to type, in which order, on the day when not even anvil-activate-dr starts. Pure.

Every line that is indented by four spaces is a command for root's shell. All others are for the reader.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import dataclass
from typing import Final, Iterable, Iterator, List, Mapping, Optional, Tuple

from anvil_dr import definition
from anvil_dr.activation import boot_images, boot_order
from anvil_dr.activation.boot_plan import Found
from anvil_dr.activation.life_signs import Nodes
from anvil_dr.definition import Requirements
from anvil_dr.errors import ConfigError, DefinitionError
from anvil_dr.model import CACHED, ImageSet, SetRecord, StoredImage
from anvil_dr.words import count, listed, printable, size

_INDENT: Final = "    "
_WORK: Final = "/run/anvil-dr-by-hand"
_LOCAL: Final = "qemu:///system"


@dataclass(frozen=True)
class Setting:
    """What of the configuration is in it."""

    name: str
    definitions: str
    connect: str
    groups: Tuple[str, ...]
    """Volume groups; empty for a store of files."""
    start_after: Mapping[str, Tuple[str, ...]]
    delays_seconds: Mapping[str, int]
    addresses: Mapping[str, Tuple[str, ...]]


@dataclass(frozen=True)
class Kept:
    """Where the firmware state of one set is."""

    nvram: Optional[str] = None
    tpm: Optional[str] = None
    """The folder with its files."""
    tpm_target: Optional[str] = None
    """libvirt's folder for it."""


@dataclass(frozen=True)
class _Server:
    found: Found
    chosen: Optional[ImageSet]
    needs: Optional[Requirements]
    paths: Mapping[str, str]
    """The path to boot from, by the one that the definition has."""
    why_not: str


class Runbook:
    """Writes it from what lies on the box. `path_of` is the store's, `kept` tells of firmware state."""

    def __init__(
        self,
        setting: Setting,
        servers: Iterable[Found],
        images: Tuple[StoredImage, ...],
        path_of: boot_images.PathOf,
        nodes: Nodes,
        kept: Mapping[Tuple[str, str], Kept],
    ) -> None:
        """`kept` by server and job."""
        self._setting, self._images, self._path_of, self._nodes, self._kept = setting, images, path_of, nodes, kept
        self._servers = {found.server: self._look_at(found) for found in servers}

    def text(self, now: str) -> str:
        """The whole file. `now` is ISO 8601 in UTC."""
        setting = self._setting
        lines: List[str] = [
            f"RUNBOOK OF DR BOX {printable(setting.name)}, written {_minute(now)}",
            "",
            "For the day on which anvil-activate-dr itself does not start. Print it.",
            "As root, type the lines that are indented, in this order. Whatever else you do:",
            "a server that runs at two places at once destroys its data.",
            "",
            "1. Make sure that the original servers are off. Whoever answers is alive: then",
            "   stop here, and look for yourself.",
            *self._pings(),
            "",
            "2. Let no job write over the images from now on, and start libvirt.",
            f"{_INDENT}systemctl stop anvil-dr-target.socket anvil-dr-target.service",
            f"{_INDENT}systemctl start libvirtd",
        ]
        lines += [f"{_INDENT}vgchange --activate y {group}" for group in setting.groups]
        lines += ["", "3. Boot, in this order."]
        lines += [line for number, name in enumerate(self._order(), 1) for line in self._boot(number, name)]
        left_out = [one for one in self._servers.values() if one.why_not]
        if left_out:
            lines += ["", "Cannot be booted by hand:"]
            lines += [f"  {printable(one.found.server)}: {printable(one.why_not)}" for one in left_out]
        lines += [
            "",
            "4. See that they run. To leave a console: Ctrl and ] together.",
            f"{_INDENT}{self._virsh} list --all",
            "",
            "When anvil-activate-dr works again, run it: it marks what runs, so that jobs",
            "keep off. Only after that: systemctl start anvil-dr-target.socket",
            "If a server does not start, virsh says why. Too little memory is usual: lower",
            "<memory> and <currentMemory> in its definition. virsh shutdown SERVER ends one",
            "in order, virsh destroy SERVER at once.",
        ]
        return "\n".join(lines) + "\n"

    @property
    def _virsh(self) -> str:
        uri = self._setting.connect
        return "virsh" if uri == _LOCAL else f"virsh --connect {shlex.quote(uri)}"

    def _pings(self) -> Iterator[str]:
        addresses = {
            node.address: f"node {node.name}" for nodes in self._nodes.values() for node in nodes if node.address
        }
        for server, own in self._setting.addresses.items():
            addresses.update((address, f"server {server}") for address in own)
        for address, who in sorted(addresses.items()):
            # No answer is the good news, so it must not count as a failure.
            yield f"{_INDENT}ping -c 1 -W 2 {address} || true   # {printable(who)}"
        if not addresses:
            yield "   (No address is known.)"

    def _look_at(self, found: Found) -> _Server:
        # The commands change paths only, and where a drive will be mounted nobody knows.
        stored = tuple(one for one in found.sets if one.sequence != CACHED)
        chosen, findings = boot_images.choose_set(stored, None, found.activation)
        problems = [one.text for one in findings if one.fatal]
        needs: Optional[Requirements] = None
        if found.definition_problem is not None:
            return _Server(found, chosen, None, {}, found.definition_problem)
        if found.overlays is not None:
            where = posixpath.dirname(found.overlays.overlays[0].path)
            return _Server(found, chosen, None, {}, f"it runs, or ran, on overlays in {where}")
        try:
            needs = definition.requirements(found.definition_xml)
        except DefinitionError as error:
            return _Server(found, chosen, None, {}, f"its definition: {error}")
        if chosen is None:
            return _Server(found, None, needs, {}, listed(problems))
        bound = boot_images.bind(found.server, needs.disks, chosen, self._images, self._path_of)
        problems += [one.text for one in bound.findings if one.fatal]
        paths = {path: self._path_of(image.owner, image.sequence) for path, image in bound.images.items()}
        return _Server(found, chosen, needs, paths, "; ".join(problems))

    def _order(self) -> Tuple[str, ...]:
        bootable = [name for name, one in self._servers.items() if not one.why_not]
        try:
            steps = boot_order.order(bootable, self._setting.start_after, self._setting.delays_seconds)
        except ConfigError:
            return tuple(sorted(bootable))
        return tuple(step.server for step in steps)

    def _boot(self, number: int, name: str) -> Iterator[str]:
        one = self._servers[name]
        found, chosen, needs = one.found, one.chosen, one.needs
        before, delay = self._setting.start_after.get(name, ()), self._setting.delays_seconds.get(name, 0)
        if chosen is None or needs is None:
            return
        received = f"of {_minute(chosen.record.received_at)}" if chosen.record is not None else "of an unknown time"
        after = f", after {listed(before)}" if before else ""
        yield ""
        yield (
            f"3.{number} {printable(name)}: set {chosen.sequence}, {printable(received)}, "
            f"{size(needs.memory_bytes)}, {count(needs.vcpus, 'CPU')}{printable(after)}"
        )
        if found.activation is not None:
            yield f"   It was activated on {_minute(found.activation.since)}: does it run already?"
        if delay:
            yield f"{_INDENT}sleep {delay}"
        yield from self._firmware(name, chosen, found.activation is not None)
        path = shlex.quote(found.definition_path)
        changed = {before: after for before, after in one.paths.items() if before != after}
        if changed:
            copy = shlex.quote(f"{_WORK}/{name}.xml")
            edits = " ".join(f"-e {shlex.quote(_edit(before, after))}" for before, after in sorted(changed.items()))
            yield f"{_INDENT}mkdir -p {_WORK}"
            yield f"{_INDENT}sed {edits} {path} > {copy}"
            path = copy
        yield f"{_INDENT}{self._virsh} create {path}"

    def _firmware(self, name: str, chosen: ImageSet, activated: bool) -> Iterator[str]:
        record: Optional[SetRecord] = chosen.record
        kept = self._kept.get((name, record.job_id)) if record is not None else None
        if kept is None or activated:
            return
        if kept.nvram is not None and chosen.sequence != 1:
            target = shlex.quote(f"{self._setting.definitions}/nvram/{name}.fd")
            yield f"{_INDENT}cp {shlex.quote(kept.nvram)} {target}"
        if kept.tpm is not None and kept.tpm_target is not None:
            target = shlex.quote(kept.tpm_target)
            yield f"{_INDENT}mkdir -p {target}"
            yield f"{_INDENT}cp {shlex.quote(kept.tpm)}/* {target}/"


def _minute(iso: str) -> str:
    """A time in UTC, as people write it."""
    return f"{printable(iso)[:16].replace('T', ' ')} UTC"


def _edit(before: str, after: str) -> str:
    """For GNU sed: one path into another, unless it's only the beginning of a longer one."""
    special = re.compile(r"[][\\.*^$|]")
    return f"s|{special.sub(lambda found: chr(92) + found.group(), before)}\\b|{after}|g"
