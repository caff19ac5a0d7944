"""Whether the original site is still alive: what is asked for each server, and what an answer means (SPEC section 8).

Pure. prober.py asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterable, Mapping, Set, Tuple

from anvil_dr.preflight.findings import Finding
from anvil_dr.words import listed


@dataclass(frozen=True)
class Node:
    """One end of a job."""

    name: str
    """As it calls itself."""
    address: str
    """Where its connection came from; empty where that was this machine."""
    seen_at: str
    """ISO 8601, UTC."""


Nodes = Mapping[str, Tuple[Node, ...]]
Addresses = Mapping[str, Tuple[str, ...]]


def to_probe(servers: Iterable[str], nodes: Nodes, addresses: Addresses) -> Tuple[str, ...]:
    """Every address to be asked, once: those of the nodes that sent the servers, and the servers' own."""
    found: Set[str] = set()
    for server in servers:
        found.update(node.address for node in nodes.get(server, ()) if node.address)
        found.update(addresses.get(server, ()))
    return tuple(sorted(found))


def judge(
    servers: Iterable[str], nodes: Nodes, addresses: Addresses, answers: Mapping[str, str]
) -> Mapping[str, Finding]:
    """By server, why its original may still run. `answers` has the addresses that answered, and how."""
    found: Dict[str, Finding] = {}
    for server in servers:
        own = [f"{address} {answers[address]}" for address in addresses.get(server, ()) if address in answers]
        theirs = [
            f"node {node.name} ({node.address}) {answers[node.address]}"
            for node in nodes.get(server, ())
            if node.address in answers
        ]
        if own:
            found[server] = _alive(f"its own address is alive: {listed(own)}")
        elif theirs:
            found[server] = _alive(f"it may still run where it came from: {listed(theirs)}")
    return found


def unknown(servers: Iterable[str], nodes: Nodes, addresses: Addresses) -> Tuple[str, ...]:
    """Servers of which nothing could be asked."""
    return tuple(server for server in servers if not to_probe((server,), nodes, addresses))


def _alive(text: str) -> Finding:
    return Finding(
        text, "make sure that it is off there; then type its name when asked, or use --force", forceable=True
    )
