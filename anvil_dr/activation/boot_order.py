"""In which order servers are booted (SPEC section 8: `start_after` and `start_delay`, else by name).

Pure: servers and what the admin asks for them in, steps out.
"""

from __future__ import annotations

import graphlib
from dataclasses import dataclass
from typing import AbstractSet, Dict, FrozenSet, Iterable, List, Mapping, Set, Tuple

from anvil_dr.errors import ConfigError


@dataclass(frozen=True)
class BootStep:
    """One server's turn."""

    server: str
    after: Tuple[str, ...]
    """Those of the same plan that it waits for."""
    delay_seconds: int
    """Counted from the boot of the last of `after`, or from the first boot of all if there is none."""


def order(
    servers: Iterable[str], start_after: Mapping[str, Tuple[str, ...]], delays_seconds: Mapping[str, int]
) -> Tuple[BootStep, ...]:
    """Every server once: each behind those it waits for, the earliest first, then by name.

    A server that is not booted this time is not waited for. But what it would wait for is: if Web01 starts after
    Db01 and Db01 after Dns01, Web01 follows Dns01 also when Db01 is left out. Who waits for Db01 is not said to wait
    for Dns01 as well.
    Raise ConfigError if servers wait for each other in a circle.
    """
    booted = frozenset(servers)
    awaited = {server: _awaited(server, booted, start_after) for server in sorted(booted)}
    by_need = _by_need(awaited)
    earliest: Dict[str, int] = {}
    for server in by_need:
        earliest[server] = max((earliest[one] for one in awaited[server]), default=0) + delays_seconds.get(server, 0)
    # A long delay before one server must not hold up those that have nothing to do with it. sorted() is stable, so
    # need decides between equals.
    turns = sorted(by_need, key=lambda server: earliest[server])
    ahead: Dict[str, FrozenSet[str]] = {}
    for server in by_need:
        ahead[server] = frozenset(awaited[server]).union(*(ahead[one] for one in awaited[server]))
    return tuple(
        BootStep(server, _nearest(awaited[server], ahead), delays_seconds.get(server, 0)) for server in turns
    )


def _nearest(awaited: Tuple[str, ...], ahead: Mapping[str, AbstractSet[str]]) -> Tuple[str, ...]:
    """Without those that come before another one of them anyway."""
    return tuple(one for one in awaited if not any(one in ahead[other] for other in awaited))


def _awaited(server: str, booted: AbstractSet[str], start_after: Mapping[str, Tuple[str, ...]]) -> Tuple[str, ...]:
    """The nearest servers of this plan that come before, looked for through those that are left out."""
    found: Set[str] = set()
    seen: Set[str] = set()
    ahead = list(start_after.get(server, ()))
    while ahead:
        one = ahead.pop()
        if one in booted:
            found.add(one)
        elif one not in seen:
            ahead += start_after.get(one, ())
        seen.add(one)
    return tuple(sorted(found))


def _by_need(awaited: Mapping[str, Tuple[str, ...]]) -> List[str]:
    """Those that wait for nobody first, by name; then those that wait for these only; and so on."""
    sorter = graphlib.TopologicalSorter(awaited)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        circle = " before ".join(error.args[1])
        raise ConfigError(f"no server of these can be the first: {circle}", key="activation.servers") from error
    turns: List[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        turns += ready
        sorter.done(*ready)
    return turns
