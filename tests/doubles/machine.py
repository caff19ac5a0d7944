"""A node whose servers are shut down and started: what is true of it, and connections to its libvirt that can break."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, Dict, List, Optional, Set, Tuple

from anvil_dr.errors import HypervisorError, ShutdownRefusedError, SourceError
from anvil_dr.ports import Domain, DomainState
from anvil_dr.sending.off_note import OffNote
from tests.doubles.hypervisor import Clock, FakeHypervisor


class MemoryNotes:
    """A keep_off.Notes that outlives the run that wrote it, as a file does."""

    def __init__(self) -> None:
        self.kept: Dict[str, OffNote] = {}

    def path(self, server: str) -> str:
        return f"/notes/{server}.xml"

    def keep(self, server: str, definition: str, *, transient: bool) -> None:
        at = "2026-11-25T01:00:00+00:00"
        self.kept[server] = OffNote(server, at, transient, definition, self.path(server))

    def take_over(self, server: str) -> bool:
        return not self.kept[server].held

    def another_run_has(self, server: str) -> None:
        self.kept[server] = replace(self.kept[server], held=True)

    def of(self, server: str) -> Optional[OffNote]:
        return self.kept.get(server)

    def forget(self, server: str) -> None:
        self.kept.pop(server, None)

    def doubt(self, why: str) -> None:
        self.kept = {server: replace(note, doubt=why) for server, note in self.kept.items()}


@dataclass
class Machine:
    """What is true of the node, whoever is connected to its libvirt."""

    clock: Clock = field(default_factory=Clock)
    domains: Dict[str, DomainState] = field(default_factory=lambda: {"Web01": "running"})
    transient: Set[str] = field(default_factory=set)
    saved: Set[str] = field(default_factory=set)
    goes_off_at: Optional[float] = None
    """When a server that was asked to shut down is off; None: half a minute later."""
    shutdown_refused: str = ""
    """Why libvirt does not even take the order."""
    start_errors: List[str] = field(default_factory=list)
    boot_errors: List[str] = field(default_factory=list)
    half_back: Set[str] = field(default_factory=set)
    """Servers that are on their way back from the DR box."""
    definitions: Dict[str, str] = field(default_factory=dict)
    events: List[str] = field(default_factory=list)
    notes: MemoryNotes = field(default_factory=MemoryNotes)
    connections: int = 0
    broken_connections: int = 0
    """Connections up to this number answer nothing any more."""
    no_libvirt_until: float = 0.0
    """Until then libvirt is restarted: nobody can connect, and no connection from before works any more."""
    after_shutdown: Callable[[], None] = lambda: None

    def connect(self) -> Connection:
        if self.clock.time < self.no_libvirt_until:
            raise HypervisorError("libvirtd is not running")
        self.connections += 1
        return Connection(self, self.connections)

    def refuse(self, server: str) -> None:
        if server in self.half_back:
            raise SourceError(f"the disks of {server} are part old and part new")

    def restart_libvirt(self, seconds: float) -> None:
        self.no_libvirt_until = self.clock.time + seconds
        self.broken_connections = self.connections

    def advance(self, name: str) -> None:
        """Let a guest that was asked to go off be off when it's time."""
        if self.goes_off_at is not None and self.clock.time >= self.goes_off_at:
            self.goes_off_at = None
            self.end(name)

    def end(self, name: str) -> None:
        if name in self.transient:
            del self.domains[name]
        else:
            self.domains[name] = "shut off"


class Connection(FakeHypervisor):
    """Implements ports.SourceHypervisor."""

    def __init__(self, machine: Machine, number: int) -> None:
        super().__init__()
        self.machine, self.number = machine, number

    def _ask(self) -> Machine:
        if self.number <= self.machine.broken_connections:
            raise HypervisorError("client socket is closed")
        return self.machine

    def active(self) -> Tuple[Domain, ...]:
        machine = self._ask()
        return tuple(
            Domain(name, "", state, name not in machine.transient, ())
            for name, state in machine.domains.items()
            if state != "shut off"
        )

    def state(self, name: str) -> DomainState:
        machine = self._ask()
        machine.advance(name)
        return machine.domains.get(name, "gone")

    def definition(self, name: str) -> str:
        return self._ask().definitions.get(name, f"<domain><name>{name}</name></domain>")

    def is_saved(self, name: str) -> bool:
        return name in self._ask().saved

    def shutdown(self, name: str, *, timeout_seconds: float) -> None:
        machine = self._ask()
        if machine.shutdown_refused:
            raise ShutdownRefusedError(machine.shutdown_refused)
        machine.events.append(f"shutdown {name}")
        if machine.goes_off_at is None:
            machine.clock.sleep(30)
            machine.end(name)
            machine.after_shutdown()
        else:
            machine.clock.sleep(timeout_seconds)
            raise HypervisorError(f"{name} did not shut down within {timeout_seconds:g} seconds")

    def start(self, name: str) -> None:
        machine = self._ask()
        if machine.start_errors:
            raise HypervisorError(machine.start_errors.pop(0))
        machine.events.append(f"start {name}")
        machine.domains[name] = "running"

    def boot(self, xml: str, *, paused: bool = False, autodestroy: bool = False) -> Domain:
        machine = self._ask()
        if machine.boot_errors:
            raise HypervisorError(machine.boot_errors.pop(0))
        machine.events.append(f"boot {xml}")
        machine.domains["Web01"] = "running"
        return Domain("Web01", "", "running", False, ())
