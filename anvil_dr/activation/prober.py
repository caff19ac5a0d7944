"""Asks machines whether they are alive: ssh port, ping, then ARP. Touches the network; changes nothing there.

No answer says little: a firewall, a cable. An answer says that something runs there. Works without a network: then
nothing answers, at once. Who drops ssh and ping still has to answer ARP on its own network, which the kernel asks when
it is to reach it (ip-neighbour(8)).
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, ContextManager, Dict, Final, FrozenSet, Iterable, Mapping, Optional, Tuple

import psutil

from anvil_dr.errors import CommandError
from anvil_dr.ports import CommandRunner

log = logging.getLogger(__name__)

_SSH_PORT: Final = 22
_TIMEOUT_SECONDS: Final = 1.5
_AT_ONCE: Final = 32
_ARP_POLL_SECONDS: Final = 0.5
_ARP_TRIES: Final = 18
_NOT_KNOWN_YET: Final = frozenset(("DELAY", "PROBE", "INCOMPLETE"))


class Prober:
    """`run` runs ping. `ssh_port` is where nodes listen."""

    def __init__(
        self,
        run: CommandRunner,
        *,
        ssh_port: int = _SSH_PORT,
        timeout_seconds: float = _TIMEOUT_SECONDS,
        own: Optional[Callable[[], FrozenSet[str]]] = None,
        connect: Callable[[Tuple[str, int], float], ContextManager[object]] = socket.create_connection,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run, self._port, self._timeout_seconds, self._own = run, ssh_port, timeout_seconds, own or own_addresses
        self._connect, self._sleep = connect, sleep

    def answers(self, addresses: Iterable[str]) -> Mapping[str, str]:
        """Those that answered, and how, in words that follow the address. All are asked at once."""
        own = self._own()
        asked = tuple(address for address in addresses if address not in own)
        if not asked:
            return {}
        with ThreadPoolExecutor(min(_AT_ONCE, len(asked)), thread_name_prefix="probe") as workers:
            found: Dict[str, str] = {}
            for address, how in zip(asked, workers.map(self._ask, asked)):
                log.info("probed address=%s answer=%s", address, how)
                if how is not None:
                    found[address] = how
        return found

    def _ask(self, address: str) -> Optional[str]:
        return self._by_ssh(address) or self._by_ping(address) or self._by_arp(address)

    def _by_ssh(self, address: str) -> Optional[str]:
        try:
            with self._connect((address, self._port), self._timeout_seconds):
                return "answers on its ssh port"
        except ConnectionRefusedError:
            return "refuses ssh, so something runs there"
        except OSError:
            return None

    def _by_ping(self, address: str) -> Optional[str]:
        seconds = str(max(1, int(self._timeout_seconds)))
        try:
            self._run(("ping", "-n", "-q", "-c", "1", "-W", seconds, address), timeout_seconds=10.0)
        except CommandError:
            return None
        return "answers a ping"

    def _by_arp(self, address: str) -> Optional[str]:
        """The two questions before have made the kernel ask. What it knew before that may be of one that has gone
        since, so it asks again by itself, after five seconds."""
        for _ in range(_ARP_TRIES):
            states = self._neighbour_states(address)
            if "REACHABLE" in states:
                return "answers ARP, so something on this network has that address"
            if not states & _NOT_KNOWN_YET:
                return None
            self._sleep(_ARP_POLL_SECONDS)
        return None

    def _neighbour_states(self, address: str) -> FrozenSet[str]:
        try:
            found = json.loads(self._run(("ip", "-j", "neigh", "show", "to", address), timeout_seconds=10.0).stdout)
            return frozenset(str(state) for one in found for state in one.get("state", ()))
        except (CommandError, ValueError, AttributeError, TypeError):
            return frozenset()


def can_ping() -> bool:
    """Where there is no ping, less is asked."""
    return shutil.which("ping") is not None


def own_addresses() -> FrozenSet[str]:
    """This machine's, as in a trial with everything on one machine, or where a server already runs here."""
    found = (one.address.partition("%")[0] for card in psutil.net_if_addrs().values() for one in card)
    return frozenset(found)
