"""The plan: turns, the host's memory, and what --force is for."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

from anvil_dr.boot_plan import BootPlan, Draft, make
from anvil_dr.findings import Finding, problem
from anvil_dr.ports import HostFacts
from tests.doubles.hypervisor import GIB


def draft(server: str, *, gib: int = 1, running: bool = False, findings: Tuple[Finding, ...] = ()) -> Draft:
    path = f"/shared/definitions/{server}.xml"
    return Draft(server, path, None, memory_bytes=gib * GIB, cpus=1, xml="", running=running, findings=findings)


def planned(
    *drafts: Draft,
    after: Optional[Dict[str, Tuple[str, ...]]] = None,
    available: Optional[int] = 8 * GIB,
    force: bool = False,
) -> BootPlan:
    host = HostFacts(cpus=4, memory_bytes=16 * GIB, available_bytes=available)
    return make(drafts, start_after=after or {}, delays_seconds={}, host=host, force=force)


def states(plan: BootPlan) -> Dict[str, str]:
    return {one.server: one.state for one in plan.servers}


def test_servers_share_the_memory_in_the_order_of_their_turns() -> None:
    plan = planned(draft("A", gib=6), draft("B", gib=6), draft("C", gib=2))
    assert states(plan) == {"A": "ready", "B": "blocked", "C": "ready"}
    (blocked,) = plan.blocked
    assert blocked.problems[0].text == "it needs 6.0 GiB of memory, and 2.0 GiB is left behind A"
    assert "/shared/definitions/B.xml" in blocked.problems[0].advice


def test_a_server_that_cannot_be_booted_takes_no_memory() -> None:
    plan = planned(draft("A", gib=6, findings=(problem("no", "do"),)), draft("B", gib=6))
    assert states(plan) == {"A": "blocked", "B": "ready"}


def test_a_server_that_runs_already_has_its_memory_and_its_place() -> None:
    plan = planned(draft("A", gib=60, running=True), draft("B", gib=6), after={"B": ("A",)})
    assert states(plan) == {"A": "running", "B": "ready"}
    assert plan.ready[0].warnings == ()


def test_where_the_host_cannot_say_what_is_free_nobody_is_refused_for_it() -> None:
    assert states(planned(draft("A", gib=600), available=None)) == {"A": "ready"}


def test_a_server_that_starts_after_one_that_cannot_be_booted_is_booted_with_a_warning() -> None:
    plan = planned(draft("Db01", findings=(problem("no", "do"),)), draft("Web01"), after={"Web01": ("Db01",)})
    (web,) = plan.ready
    assert [finding.text for finding in web.warnings] == ["it should start after Db01, which cannot be booted"]


def test_force_is_for_what_may_be_forced_and_for_nothing_else() -> None:
    alive, broken = Finding("a node is alive", "x", forceable=True), problem("no bridge", "y")
    drafts = (draft("A", findings=(alive,)), draft("B", findings=(alive, broken)))
    assert states(planned(*drafts)) == {"A": "blocked", "B": "blocked"}
    forced = planned(*drafts, force=True)
    assert states(forced) == {"A": "ready", "B": "blocked"}
    assert [finding.text for finding in forced.ready[0].warnings] == ["a node is alive"]
