"""The plan: turns, the host's memory, and what --force is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, FrozenSet, Optional, Tuple

from anvil_dr.activation.boot_plan import BootPlan, Draft, make
from anvil_dr.ports import HostFacts
from anvil_dr.preflight.findings import Finding, problem
from tests.doubles.hypervisor import GIB


def draft(server: str, *, gib: int = 1, running: bool = False, findings: Tuple[Finding, ...] = ()) -> Draft:
    path = f"/shared/definitions/{server}.xml"
    return Draft(server, path, None, memory_bytes=gib * GIB, cpus=1, xml="", running=running, findings=findings)


def planned(
    *drafts: Draft,
    after: Optional[Dict[str, Tuple[str, ...]]] = None,
    available: Optional[int] = 8 * GIB,
    forced: FrozenSet[str] = frozenset(),
) -> BootPlan:
    host = HostFacts(cpus=4, memory_bytes=16 * GIB, available_bytes=available)
    return make(drafts, start_after=after or {}, delays_seconds={}, host=host, forced=forced)


def states(plan: BootPlan) -> Dict[str, str]:
    return {one.server: one.state for one in plan.servers}


def test_servers_share_the_memory_in_the_order_of_their_turns() -> None:
    plan = planned(draft("A", gib=6), draft("B", gib=6), draft("C", gib=2))
    assert states(plan) == {"A": "ready", "B": "blocked", "C": "ready"}
    (blocked,) = plan.blocked
    assert blocked.problems[0].text == "it needs 6.0 GiB of memory, and 2.0 GiB is left behind A"
    assert blocked.problems[0].advice == "boot it with less: --memory B=2G, or edit /shared/definitions/B.xml"


def test_a_server_that_cannot_be_booted_takes_no_memory() -> None:
    plan = planned(draft("A", gib=6, findings=(problem("no", "do"),)), draft("B", gib=6))
    assert states(plan) == {"A": "blocked", "B": "ready"}


def test_a_server_that_runs_already_has_its_memory_and_its_place() -> None:
    plan = planned(draft("A", gib=60, running=True), draft("B", gib=6), after={"B": ("A",)})
    assert states(plan) == {"A": "running", "B": "ready"}
    assert plan.ready[0].warnings == ()


def test_where_the_host_cannot_say_what_is_free_nobody_is_refused_for_it() -> None:
    assert states(planned(draft("A", gib=600), available=None)) == {"A": "ready"}


def test_a_server_that_starts_after_one_that_cannot_be_booted_cannot_be_booted_either() -> None:
    plan = planned(draft("Db01", findings=(problem("no", "do"),)), draft("Web01"), after={"Web01": ("Db01",)})
    assert states(plan) == {"Db01": "blocked", "Web01": "blocked"}
    (finding,) = plan.servers[1].problems
    assert finding.text == "it starts after Db01, which cannot be booted"


def test_those_that_keep_a_server_waiting_in_vain_are_named_together() -> None:
    broken = (problem("no", "do"),)
    plan = planned(
        draft("Db01", findings=broken), draft("Dns01", findings=broken), draft("Web01"),
        after={"Web01": ("Db01", "Dns01")},
    )  # fmt: skip
    (finding,) = plan.servers[2].problems
    assert finding.text == "it starts after Db01 and Dns01, which cannot be booted"
    assert "--server Web01" in finding.advice


def test_force_is_for_what_may_be_forced_and_for_nothing_else() -> None:
    alive, broken = Finding("a node is alive", "x", forceable=True), problem("no bridge", "y")
    drafts = (draft("A", findings=(alive,)), draft("B", findings=(alive, broken)))
    plan = planned(*drafts)
    assert states(plan) == {"A": "blocked", "B": "blocked"}
    assert [one.may_be_forced for one in plan.servers] == [True, False]
    forced = planned(*drafts, forced=frozenset({"A", "B"}))
    assert states(forced) == {"A": "ready", "B": "blocked"}
    assert [finding.text for finding in forced.ready[0].warnings] == ["a node is alive"]
    assert states(planned(*drafts, forced=frozenset({"B"}))) == {"A": "blocked", "B": "blocked"}


def test_a_server_that_waits_for_one_that_may_be_forced_may_be_forced_too() -> None:
    alive = Finding("a node is alive", "x", forceable=True)
    drafts = (draft("Dns01", findings=(alive,)), draft("Web01", findings=(alive,)))
    plan = planned(*drafts, after={"Web01": ("Dns01",)})
    assert [one.may_be_forced for one in plan.servers] == [True, True]
    both = planned(*drafts, after={"Web01": ("Dns01",)}, forced=frozenset({"Dns01", "Web01"}))
    assert states(both) == {"Dns01": "ready", "Web01": "ready"}


def test_two_servers_with_one_uuid_or_one_screen_port_are_not_both_booted() -> None:
    a = replace(draft("A"), uuid="5C3B1F0A-0000-4B6B-8A3C-0F6A1D2E3B4C", screens=(("", 5901),))
    twin = replace(draft("B"), uuid="5c3b1f0a-0000-4b6b-8a3c-0f6a1d2e3b4c")
    other, free = replace(draft("C"), screens=(("127.0.0.1", 5901),)), replace(draft("D"), screens=(("", 0),))
    plan = planned(a, twin, other, free)
    assert states(plan) == {"A": "ready", "B": "blocked", "C": "blocked", "D": "ready"}
    assert "the same UUID as A" in plan.blocked[0].problems[0].text
    assert "port 5901" in plan.blocked[1].problems[0].text


def test_huge_pages_are_shared_out_apart_from_plain_memory() -> None:
    drafts = [replace(draft(name, gib=6), hugepages=True) for name in "AB"]
    host = HostFacts(cpus=4, memory_bytes=16 * GIB, available_bytes=2 * GIB)
    plan = make(drafts, start_after={}, delays_seconds={}, host=host, free_hugepages_bytes=8 * GIB)
    assert states(plan) == {"A": "ready", "B": "blocked"}
    assert "2.0 GiB is left behind A" in plan.blocked[0].problems[0].text


def test_the_sums_are_those_of_what_is_booted() -> None:
    plan = planned(draft("A", gib=3), draft("B", gib=2), draft("C", gib=60))
    assert (plan.memory_bytes, plan.cpus) == (5 * GIB, 2)


def test_a_host_that_would_have_hardly_anything_left_is_warned_of() -> None:
    (text,) = planned(draft("A", gib=8)).warnings
    assert "only 0 B of memory will be left" in text
    assert planned(draft("A", gib=2)).warnings == ()
