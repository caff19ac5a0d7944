"""How long the service waits for a node, and how many sessions it has. Values only.

One value for each thing that a peer could otherwise take without end; tests use smaller ones.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The service's patience."""

    greeting_seconds: float = 30.0
    """From the connection to the end of HELLO."""
    announcement_seconds: float = 120.0
    """From WELCOME to the end of JOB, which may have 8 MiB."""
    silence_seconds: float = 300.0
    """Without a byte, in whatever direction one is due."""
    standstill_seconds: float = 900.0
    """In the middle of a disk, with nothing but keep-alives, while we have nothing left to do."""
    idle_seconds: float = 7200.0
    """The same outside of disks, where a node may take its time: it shuts servers down. Its servers are busy for
    others, and the space for them is promised."""
    farewell_seconds: float = 5.0
    """For the reason, to a peer that may not listen any more."""
    stop_seconds: float = 60.0
    """For all the sessions together to end when the service is stopped."""
    pause_seconds: float = 1.0
    """Before connections are accepted again, when one could not be."""
    sessions: int = 64
    sessions_of_one_node: int = 16
    """So that one node cannot keep the others out."""
    failures_of_one_node: int = 60
    """Of its sessions, within a minute; after that it is turned away until they are fewer."""
