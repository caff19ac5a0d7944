"""Carrying out a plan: order, delays, marks, and servers that do not stay up."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

import pytest

from anvil_dr.activation.activation_text import end_lines
from anvil_dr.activation.boot import WATCH_SECONDS, AsPlanned, Footing, Phase, execute
from anvil_dr.activation.boot_plan import BootPlan, Draft, Outcome, PlannedServer
from anvil_dr.errors import AnvilDrError, HypervisorError, StateError, StoreError
from anvil_dr.model import ImageSet, Owner, StoredImage
from anvil_dr.ports import Domain, DomainState, Hypervisor
from anvil_dr.preflight.findings import problem
from tests.doubles.hypervisor import FakeHypervisor


@dataclass
class Marks:
    """Remembers marks, and in which order they and the boots came."""

    hypervisor: FakeHypervisor
    broken: bool = False
    activated: Dict[str, Tuple[int, str]] = field(default_factory=dict)
    left: Tuple[str, ...] = ()
    booted_before: Dict[str, bool] = field(default_factory=dict)

    def activate(self, server: str, sequence: int, user: str, *, leaves: Iterable[str] = ()) -> None:
        if self.broken:
            raise StateError("the disk is full")
        self.left = tuple(leaves)
        self.activated[server] = (sequence, user)
        self.booted_before[server] = server in self.hypervisor.booted_xml

    def release(self, server: str) -> bool:
        return self.activated.pop(server, None) is not None


@dataclass
class Log:
    """An observer that writes down."""

    said: List[str] = field(default_factory=list)
    waits: Set[str] = field(default_factory=set)

    def phase(self, server: str, phase: Phase, seconds: float, note: str = "") -> None:
        self.said.append(f"{server} {phase} {note}".strip())

    def unmarked(self, server: str, reason: str) -> None:
        self.said.append(f"{server} unmarked: {reason}")

    def pending(self, words: str) -> None:
        self.waits.add(words)


class AtOnce(Executor):
    """Workers that are done before they are asked."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **named))
        except AnvilDrError as error:
            done.set_exception(error)
        return done


class Queue(Executor):
    """Workers that do nothing until they are told to."""

    def __init__(self) -> None:
        self.tasks: List[Callable[[], None]] = []

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        self.tasks.append(lambda: done.set_result(work(*arguments, **named)))
        return done


def server(
    name: str,
    *,
    after: Tuple[str, ...] = (),
    delay: int = 0,
    sequence: int = 1,
    activated: bool = False,
    agent: bool = False,
) -> PlannedServer:
    chosen = ImageSet(name, sequence, (), True)
    xml = f"<domain><name>{name}</name></domain>"
    return PlannedServer(Draft(name, "", chosen, xml=xml, activated=activated, has_agent=agent), after, delay)


def outcomes(
    *servers: PlannedServer,
    hypervisor: FakeHypervisor,
    marks: Optional[Marks] = None,
    log: Optional[Log] = None,
    workers: Optional[Executor] = None,
    answer_seconds: float = 0.0,
    stopped: Callable[[], bool] = lambda: False,
    footing: Optional[Footing] = None,
    again: Optional[Callable[[], Hypervisor]] = None,
) -> Dict[str, Outcome]:
    clock = hypervisor.clock
    found = execute(
        BootPlan(servers, hypervisor.facts), hypervisor, marks, "alice", log or Log(), footing=footing,
        answer_seconds=answer_seconds, stopped=stopped, workers=workers or AtOnce(), again=again, now=clock.now,
        sleep=clock.sleep,
    )  # fmt: skip
    return {outcome.server: outcome for outcome in found}


def run(
    *servers: PlannedServer, hypervisor: FakeHypervisor, marks: Optional[Marks] = None, log: Optional[Log] = None
) -> Dict[str, Optional[str]]:
    return {name: one.error for name, one in outcomes(*servers, hypervisor=hypervisor, marks=marks, log=log).items()}


def test_every_server_is_booted_in_its_turn_and_stays_up() -> None:
    hypervisor, log = FakeHypervisor(), Log()
    marks = Marks(hypervisor)
    assert run(server("A"), server("B"), hypervisor=hypervisor, marks=marks, log=log) == {"A": None, "B": None}
    assert [name for name, _ in hypervisor.booted] == ["A", "B"]
    assert log.said == ["A booting", "A running", "B booting", "B running"]
    assert hypervisor.clock.now() == pytest.approx(1000 + WATCH_SECONDS)


def test_a_delay_is_counted_from_the_boot_of_what_it_waits_for() -> None:
    hypervisor, log = FakeHypervisor(), Log()
    servers = (server("Dns01", delay=10), server("Web01", after=("Dns01",), delay=30))
    run(*servers, hypervisor=hypervisor, log=log)
    times = dict(hypervisor.booted)
    assert times["Dns01"] == pytest.approx(1010)
    assert times["Web01"] == pytest.approx(times["Dns01"] + 30, abs=0.5)
    assert "Web01 waiting 30 s after Dns01" in log.said
    assert any("Web01 boots in 12 s" in words for words in log.waits)


def test_a_server_that_cannot_be_booted_stops_only_those_that_start_after_it() -> None:
    hypervisor = FakeHypervisor(refused={"Dns01": "no such machine"})
    servers = (server("Dns01"), server("Mail01"), server("Web01", after=("Dns01",)), server("App01", after=("Web01",)))
    assert run(*servers, hypervisor=hypervisor) == {
        "Dns01": "no such machine",
        "Mail01": None,
        "Web01": "it starts after Dns01, which does not run",
        "App01": "it starts after Web01, which does not run",
    }


def test_a_server_that_ends_while_another_waits_its_delay_stops_that_one() -> None:
    hypervisor = FakeHypervisor(states={"Dns01": "gone"})
    errors = run(server("Dns01"), server("Web01", after=("Dns01",), delay=30), hypervisor=hypervisor)
    assert errors["Web01"] == "it starts after Dns01, which does not run"
    assert [name for name, _ in hypervisor.booted] == ["Dns01"]


def test_servers_that_wait_for_nobody_are_booted_several_at_once() -> None:
    class Slow(Queue):
        """Gives in once three are there together."""

        def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
            done = super().submit(work, *arguments, **named)
            if len(self.tasks) == 3:
                for task in self.tasks:
                    task()
            return done

    hypervisor = FakeHypervisor()
    found = outcomes(server("A"), server("B"), server("C"), hypervisor=hypervisor, workers=Slow())
    assert [one.error for one in found.values()] == [None, None, None]


def test_a_guest_whose_agent_answers_is_told_with_the_time() -> None:
    class Wakes(FakeHypervisor):
        def agent_answers(self, name: str, *, timeout_seconds: int) -> bool:
            return self.clock.now() >= 1012

    hypervisor, log = Wakes(), Log()
    found = outcomes(server("A", agent=True), server("B"), hypervisor=hypervisor, log=log, answer_seconds=60)
    assert found["A"].answered_seconds == pytest.approx(12, abs=1.5)
    assert found["B"].answered_seconds is None
    assert log.said[-1] == "A answers"
    assert any("no answer yet from A" in words for words in log.waits)
    assert hypervisor.clock.now() < 1015


def test_a_guest_that_never_answers_runs_all_the_same_and_is_not_waited_for_longer_than_said() -> None:
    hypervisor = FakeHypervisor()
    found = outcomes(server("A", agent=True), hypervisor=hypervisor, answer_seconds=20)
    assert (found["A"].error, found["A"].answered_seconds) == (None, None)
    assert hypervisor.clock.now() == pytest.approx(1020)


def test_whoever_stops_it_leaves_what_runs_running_and_starts_nothing_more() -> None:
    hypervisor = FakeHypervisor()
    found = outcomes(
        server("A"), server("B", delay=60), hypervisor=hypervisor, stopped=lambda: hypervisor.clock.now() > 1003
    )
    assert found["A"].error is None
    assert found["B"].error == "it was not its turn yet when you stopped"
    assert hypervisor.clock.now() < 1005
    assert list(hypervisor.booted_xml) == ["A"]


class Broken:
    """A footing that nothing stands on."""

    def __init__(self, undo_error: str = "") -> None:
        self.undo_error, self.undone = undo_error, 0

    def prepare(self, planned: PlannedServer) -> str:
        raise StateError("no UEFI variables")

    def undo(self, planned: PlannedServer) -> None:
        self.undone += 1
        if self.undo_error:
            raise StoreError(self.undo_error)


class Standing(Broken):
    """One that everything stands on."""

    def prepare(self, planned: PlannedServer) -> str:
        return planned.draft.xml or ""


def test_what_cannot_be_put_in_place_keeps_a_server_down_and_unmarked() -> None:
    hypervisor = FakeHypervisor()
    marks, footing = Marks(hypervisor), Broken()
    found = outcomes(server("A"), hypervisor=hypervisor, marks=marks, footing=footing)
    assert (found["A"].error, marks.activated, hypervisor.booted) == ("no UEFI variables", {}, [])
    assert footing.undone == 1


def test_what_cannot_be_taken_away_after_a_failed_boot_is_told_with_the_way_out_and_stays_marked() -> None:
    hypervisor = FakeHypervisor()
    marks = Marks(hypervisor)
    found = outcomes(server("A"), hypervisor=hypervisor, marks=marks, footing=Broken("its overlays stay"))
    assert found["A"].error is not None and "no UEFI variables; and its overlays stay" in found["A"].error
    assert "anvil-activate-dr --release A --discard" in found["A"].error
    assert "A" in marks.activated


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


def test_a_server_that_may_have_come_up_although_its_boot_failed_stays_marked() -> None:
    silent = FakeHypervisor(refused={"A": "no"}, unreachable=True)
    for hypervisor in (FakeHypervisor(lost={"A": "broken pipe"}), silent):
        marks, footing = Marks(hypervisor), Standing()
        found = outcomes(server("A"), hypervisor=hypervisor, marks=marks, footing=footing)["A"]
        assert footing.undone == 0
        assert found.error is not None and "it may be running" in found.error
        assert "virsh domstate A" in found.advice
        assert "A" in marks.activated


@dataclass
class Restarting(FakeHypervisor):
    """A libvirt that is away for some seconds; the connection of before does not come back."""

    away: Tuple[float, float] = (0.0, 0.0)
    dead: bool = False

    def ask(self) -> None:
        self.dead |= self.away[0] <= self.clock.now() < self.away[1]
        if self.dead:
            raise HypervisorError("client socket is closed")

    def again(self) -> Restarting:
        self.dead = False
        self.ask()
        return self

    def state(self, name: str) -> DomainState:
        self.ask()
        return super().state(name)

    def boot(self, xml: str, *, paused: bool = False, autodestroy: bool = False) -> Domain:
        self.ask()
        return super().boot(xml)


def test_a_libvirt_that_restarts_while_servers_come_up_stops_nothing() -> None:
    for away in ((1003.0, 1008.0), (1030.0, 1036.0), (1003.0, 1032.0)):
        hypervisor = Restarting(away=away)
        dns, web = server("Dns01"), server("Web01", after=("Dns01",), delay=30)
        found = outcomes(dns, web, hypervisor=hypervisor, again=hypervisor.again)
        assert [one.error for one in found.values()] == [None, None]
        assert [name for name, _ in hypervisor.booted] == ["Dns01", "Web01"]


def test_a_libvirt_that_is_away_at_the_moment_of_a_boot_is_asked_again() -> None:
    hypervisor = Restarting(away=(1000.0, 1005.0))
    found = outcomes(server("A"), hypervisor=hypervisor, again=hypervisor.again)
    assert (found["A"].error, hypervisor.booted) == (None, [("A", pytest.approx(1005, abs=1))])


def test_nobody_is_told_that_a_server_does_not_run_when_libvirt_stays_away() -> None:
    hypervisor = Restarting(away=(1003.0, 9000.0))
    dns, web = server("Dns01"), server("Web01", after=("Dns01",), delay=30)
    found = outcomes(dns, web, hypervisor=hypervisor, again=hypervisor.again)
    assert found["Dns01"].unknown and not found["Web01"].unknown
    lines = [one.text for one in end_lines(BootPlan((dns, web), hypervisor.facts), tuple(found.values()), 90.0)]
    (said,) = [text for text in lines if text.startswith("  Dns01")]
    assert "NOT RUNNING" not in said and "NOBODY KNOWS WHETHER IT RUNS" in said
    assert [name for name, _ in hypervisor.booted] == ["Dns01"]
    assert found["Web01"].error == "it starts after Dns01, and nobody knows whether that runs"


def test_a_server_that_ran_here_before_stays_marked_when_it_cannot_be_booted_again() -> None:
    hypervisor = FakeHypervisor(refused={"A": "no"})
    marks = Marks(hypervisor, activated={"A": (1, "bob")})
    run(server("A", activated=True), hypervisor=hypervisor, marks=marks)
    assert "A" in marks.activated


def test_a_server_that_changes_sets_is_marked_with_the_other_one_once_all_of_that_is_in_place() -> None:
    image = StoredImage(Owner("A", "A_0"), 1, "/srv/dr", "inode:7", 4096, "/srv/dr/A_A_0_1.raw")
    left = ImageSet("A", 1, (image,), True)
    changing = server("A", sequence=2, activated=True)
    changing = replace(changing, draft=replace(changing.draft, left=left))
    for footing, marked, leaves in ((Broken(), 1, ()), (AsPlanned(), 2, ("inode:7",))):
        hypervisor = FakeHypervisor()
        marks = Marks(hypervisor, activated={"A": (1, "bob")})
        outcomes(changing, hypervisor=hypervisor, marks=marks, footing=footing)
        assert (marks.activated["A"][0], marks.left) == (marked, leaves)
        assert not any(marks.booted_before.values())


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
    assert hypervisor.clock.now() < 1000 + WATCH_SECONDS


def test_a_guest_that_ends_while_the_next_one_waits_is_noticed_then() -> None:
    hypervisor, log = FakeHypervisor(states={"A": "gone"}), Log()
    run(server("A"), server("B", delay=60), hypervisor=hypervisor, log=log)
    assert log.said.index("A failed it was booted and ended at once") < log.said.index("B running")


def test_a_guest_that_goes_off_later_does_not_count_as_running_and_nothing_starts_behind_it() -> None:
    class Leaves(FakeHypervisor):
        def state(self, name: str) -> DomainState:
            return "gone" if name == "A" and self.clock.now() > 1030 else "running"

    errors = run(server("A"), server("B", delay=60), server("C", after=("A",), delay=40), hypervisor=Leaves())
    assert errors["A"] == "it ran for 30 s and went off: did somebody shut it down?"
    assert errors["B"] is None
    assert errors["C"] == "it starts after A, which does not run"


@pytest.mark.parametrize("agent", [True, False])
def test_a_broken_kvm_that_takes_its_time_is_noticed_before_anybody_is_told_that_it_runs(agent: bool) -> None:
    """Seen on a busy host: suspended after eleven seconds instead of five."""

    class SlowlyBroken(FakeHypervisor):
        def state(self, name: str) -> DomainState:
            return "running" if self.clock.now() < 1011 else "paused"

        def agent_answers(self, name: str, *, timeout_seconds: int) -> bool:
            return False

    servers = (server("A", agent=agent), server("B", delay=5))
    found = outcomes(*servers, hypervisor=SlowlyBroken(), answer_seconds=60.0)
    assert all(one.error is not None and "KVM does not work" in one.error for one in found.values())
