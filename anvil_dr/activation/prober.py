"""Asks machines whether they are alive: by their ssh port, then by ping. Touches the network; changes nothing there.

No answer says little: a firewall, a cable. An answer says that something runs there. Works without a network: then
nothing answers, at once.
"""

from __future__ import annotations

import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, ContextManager, Dict, Final, FrozenSet, Iterable, Mapping, Optional, Tuple

import psutil

from anvil_dr.errors import CommandError
from anvil_dr.ports import CommandRunner

log = logging.getLogger(__name__)

_SSH_PORT: Final = 22
_TIMEOUT_SECONDS: Final = 1.5
_AT_ONCE: Final = 32


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
    ) -> None:
        self._run, self._port, self._timeout_seconds, self._own = run, ssh_port, timeout_seconds, own or own_addresses
        self._connect = connect

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
        return self._by_ssh(address) or self._by_ping(address)

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


def own_addresses() -> FrozenSet[str]:
    """This machine's, as in a trial with everything on one machine, or where a server already runs here."""
    found = (one.address.partition("%")[0] for card in psutil.net_if_addrs().values() for one in card)
    return frozenset(found)
