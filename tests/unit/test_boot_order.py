"""Servers are booted behind those that they need, and otherwise by name."""

from __future__ import annotations

from typing import Dict, List, Mapping, Set, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil_dr.activation.boot_order import order
from anvil_dr.errors import ConfigError


def names(servers: List[str], after: Mapping[str, Tuple[str, ...]], delays: Mapping[str, int]) -> List[str]:
    return [step.server for step in order(servers, after, delays)]


def test_without_rules_servers_are_booted_by_name() -> None:
    assert names(["Web01", "Dns01", "Db01"], {}, {}) == ["Db01", "Dns01", "Web01"]


def test_a_server_is_booted_behind_the_one_it_starts_after() -> None:
    assert names(["App01", "Zfs01"], {"App01": ("Zfs01",)}, {}) == ["Zfs01", "App01"]


def test_a_delay_does_not_hold_up_servers_that_have_nothing_to_do_with_it() -> None:
    assert names(["App01", "Web01"], {}, {"App01": 30}) == ["Web01", "App01"]


def test_a_step_says_whom_it_waits_for_and_how_long() -> None:
    steps = order(["Dns01", "Web01"], {"Web01": ("Dns01",)}, {"Web01": 30})
    assert [(step.server, step.after, step.delay_seconds) for step in steps] == [
        ("Dns01", (), 0),
        ("Web01", ("Dns01",), 30),
    ]


def test_a_server_that_is_left_out_is_not_waited_for() -> None:
    (step,) = order(["Web01"], {"Web01": ("Dns01",)}, {})
    assert step.after == ()


def test_the_order_holds_through_a_server_that_is_left_out() -> None:
    after = {"App01": ("Db01",), "Db01": ("Zfs01",)}
    assert names(["App01", "Zfs01"], after, {}) == ["Zfs01", "App01"]


def test_servers_that_wait_for_each_other_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="Db01.*Web01|Web01.*Db01"):
        order(["Web01", "Db01"], {"Web01": ("Db01",), "Db01": ("Web01",)}, {})


def test_a_circle_through_a_server_that_is_left_out_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="Web01"):
        order(["Web01"], {"Web01": ("Db01",), "Db01": ("Web01",)}, {})


@st.composite
def plans(draw: st.DrawFn) -> Tuple[List[str], Dict[str, Tuple[str, ...]], Dict[str, int]]:
    """Servers of which each may wait for any that come before it in a hidden order."""
    everyone = draw(st.permutations([f"s{number}" for number in range(8)]))
    after = {
        server: tuple(draw(st.lists(st.sampled_from(everyone[:index]), max_size=3, unique=True)))
        for index, server in enumerate(everyone)
        if index
    }
    delays = draw(st.dictionaries(st.sampled_from(everyone), st.integers(0, 60)))
    return draw(st.lists(st.sampled_from(everyone), unique=True)), after, delays


@given(plans())
def test_every_server_is_booted_once_and_none_before_what_it_waits_for(
    plan: Tuple[List[str], Dict[str, Tuple[str, ...]], Dict[str, int]],
) -> None:
    servers, after, delays = plan
    booted: List[str] = []
    behind: Dict[str, Set[str]] = {}
    for step in order(servers, after, delays):
        assert set(step.after) <= set(booted)
        behind[step.server] = set(step.after).union(*(behind[one] for one in step.after))
        assert set(after.get(step.server, ())) & set(servers) <= behind[step.server]
        booted.append(step.server)
    assert sorted(booted) == sorted(servers)


def test_what_comes_before_another_one_of_them_anyway_is_not_named_twice() -> None:
    steps = order(["Web01", "Db01", "Dns01"], {"Db01": ("Dns01",), "Web01": ("Dns01", "Db01")}, {})
    assert [(step.server, step.after) for step in steps] == [("Dns01", ()), ("Db01", ("Dns01",)), ("Web01", ("Db01",))]
