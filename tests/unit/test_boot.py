"""Carrying out a plan: order, delays, marks, and servers that do not stay up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

from anvil_dr.boot import WATCH_SECONDS, execute
from anvil_dr.boot_plan import BootPlan, Draft, Outcome, PlannedServer
from anvil_dr.errors import StateError
from anvil_dr.findings import problem
from anvil_dr.model import ImageSet
from anvil_dr.ports import DomainState
from tests.doubles.hypervisor import FakeHypervisor


@dataclass
class Marks:
    """Remembers marks, and in which order they and the boots came."""

    hypervisor: FakeHypervisor
    broken: bool = False
    activated: Dict[str, Tuple[int, str]] = field(default_factory=dict)
    booted_before: Dict[str, bool] = field(default_factory=dict)

    def activate(self, server: str, sequence: int, user: str) -> None:
        if self.broken:
            raise StateError("the disk is full")
        self.activated[server] = (sequence, user)
        self.booted_before[server] = server in self.hypervisor.booted_xml

    def release(self, server: str) -> bool:
        return self.activated.pop(server, None) is not None


@dataclass
class Log:
    """An observer that writes down."""

    said: List[str] = field(default_factory=list)

    def waiting(self, server: str, seconds: float) -> None:
        self.said.append(f"{server} waits {seconds:g}")

    def booted(self, server: str, seconds: float) -> None:
        self.said.append(f"{server} booted")

    def failed(self, outcome: Outcome) -> None:
        self.said.append(f"{outcome.server} failed")

    def unmarked(self, server: str, reason: str) -> None:
        self.said.append(f"{server} unmarked: {reason}")

    def watching(self, seconds: float) -> None:
        self.said.append("watching")


def server(
    name: str, *, after: Tuple[str, ...] = (), delay: int = 0, sequence: int = 1, activated: bool = False
) -> PlannedServer:
    chosen = ImageSet(name, sequence, (), True)
    xml = f"<domain><name>{name}</name></domain>"
    return PlannedServer(Draft(name, "", chosen, xml=xml, activated=activated), after, delay)


def run(
    *servers: PlannedServer, hypervisor: FakeHypervisor, marks: Optional[Marks] = None, log: Optional[Log] = None
) -> Dict[str, Optional[str]]:
    clock = hypervisor.clock
    outcomes = execute(BootPlan(servers), hypervisor, marks, "alice", log or Log(), now=clock.now, sleep=clock.sleep)
    return {outcome.server: outcome.error for outcome in outcomes}


def test_every_server_is_booted_in_its_turn_and_stays_up() -> None:
    hypervisor, log = FakeHypervisor(), Log()
    assert run(server("A"), server("B"), hypervisor=hypervisor, log=log) == {"A": None, "B": None}
    assert [name for name, _ in hypervisor.booted] == ["A", "B"]
    assert log.said[-1] == "watching"


def test_a_delay_is_counted_from_the_boot_of_what_it_waits_for() -> None:
    hypervisor, log = FakeHypervisor(), Log()
    servers = (server("Dns01", delay=10), server("Web01", after=("Dns01",), delay=30))
    run(*servers, hypervisor=hypervisor, log=log)
    times = dict(hypervisor.booted)
    assert times["Dns01"] == 1010
    assert times["Web01"] == times["Dns01"] + 30
    assert "Web01 waits 30" in log.said


def test_a_server_that_cannot_be_booted_does_not_stop_the_others_nor_keep_them_waiting() -> None:
    hypervisor = FakeHypervisor(refused={"Dns01": "no such machine"})
    servers = (server("Dns01"), server("Web01", after=("Dns01",)))
    assert run(*servers, hypervisor=hypervisor) == {"Dns01": "no such machine", "Web01": None}


def test_a_server_that_is_blocked_is_not_booted() -> None:
    hypervisor = FakeHypervisor()
    blocked = PlannedServer(Draft("A", "", ImageSet("A", 1, (), True), xml="<domain/>", findings=(problem("x", "y"),)))
    assert run(blocked, hypervisor=hypervisor) == {}
    assert hypervisor.booted == []


def test_a_server_is_marked_as_activated_before_it_is_booted() -> None:
    hypervisor = FakeHypervisor()
    marks = Marks(hypervisor)
    run(server("A", sequence=2), hypervisor=hypervisor, marks=marks)
    assert marks.activated == {"A": (2, "alice")}
    assert marks.booted_before == {"A": False}


def test_a_server_that_was_never_booted_is_not_left_marked() -> None:
    hypervisor = FakeHypervisor(refused={"A": "no"})
    marks = Marks(hypervisor)
    run(server("A"), hypervisor=hypervisor, marks=marks)
    assert marks.activated == {}


def test_a_server_that_ran_here_before_stays_marked_when_it_cannot_be_booted_again() -> None:
    hypervisor = FakeHypervisor(refused={"A": "no"})
    marks = Marks(hypervisor, activated={"A": (1, "bob")})
    run(server("A", activated=True), hypervisor=hypervisor, marks=marks)
    assert "A" in marks.activated


def test_a_server_that_did_not_stay_up_stays_marked_because_it_may_have_written() -> None:
    hypervisor = FakeHypervisor(states={"A": "paused"})
    marks = Marks(hypervisor)
    run(server("A"), hypervisor=hypervisor, marks=marks)
    assert "A" in marks.activated


def test_a_state_that_cannot_be_written_does_not_keep_a_server_down_but_is_said() -> None:
    hypervisor, log = FakeHypervisor(), Log()
    assert run(server("A"), hypervisor=hypervisor, marks=Marks(hypervisor, broken=True), log=log) == {"A": None}
    assert "A unmarked: the disk is full" in log.said
    assert run(server("B"), hypervisor=hypervisor, marks=None, log=log) == {"B": None}
    assert any(line.startswith("B unmarked") for line in log.said)


def test_a_guest_that_is_suspended_after_seconds_as_with_a_broken_kvm_has_failed() -> None:
    class BrokenKvm(FakeHypervisor):
        def state(self, name: str) -> DomainState:
            return "running" if self.clock.now() < 1005 else "paused"

    hypervisor, log = BrokenKvm(), Log()
    errors = run(server("A"), server("B"), hypervisor=hypervisor, log=log)
    assert all(error is not None and "KVM does not work" in error for error in errors.values())
    assert hypervisor.clock.now() <= 1000 + WATCH_SECONDS


def test_a_guest_that_ends_while_the_next_one_waits_is_noticed_then() -> None:
    hypervisor, log = FakeHypervisor(states={"A": "gone"}), Log()
    run(server("A"), server("B", delay=60), hypervisor=hypervisor, log=log)
    assert log.said.index("A failed") < log.said.index("B booted")


def test_a_guest_that_is_shut_down_long_after_its_boot_has_not_failed() -> None:
    class Leaves(FakeHypervisor):
        def state(self, name: str) -> DomainState:
            return "gone" if name == "A" and self.clock.now() > 1030 else "running"

    assert run(server("A"), server("B", delay=60), hypervisor=Leaves()) == {"A": None, "B": None}
