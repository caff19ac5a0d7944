"""One session with a node, on the target: greets, and does what the node came for.

Touches the channel. An error of the peer, or of the protocol, ends this session only, and the peer is told why.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Tuple

from anvil_dr.activation import nodes
from anvil_dr.caching import carry_in
from anvil_dr.errors import AnvilDrError, ProtocolError
from anvil_dr.receiving.conversation import Conversation
from anvil_dr.receiving.incoming_job import IncomingJob
from anvil_dr.receiving.target import Target
from anvil_dr.wire import digest
from anvil_dr.wire.channel import Channel, KeepAlive
from anvil_dr.wire.limits import Limits
from anvil_dr.wire.protocol import (
    VERSION,
    Hello,
    Import,
    ImportDone,
    ImportedReport,
    RunningJobReport,
    Status,
    Welcome,
)

log = logging.getLogger(__name__)

_NAME_CHARACTERS = 255


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as far as this machine knows by itself."""

    description: str
    allowed: Tuple[str, ...] = ("*",)
    """Patterns of the servers that it may send (`anvil-dr-receive --allow`)."""
    may_ask_status: bool = True

    def may_be(self, other: Peer) -> bool:
        """True if they come from one address, or with one key: who has IPv6 has addresses without end.

        Keys are told apart by what they may send; one that may send everything is trusted with more than sessions.
        """
        return self.description == other.description or self.allowed == other.allowed != ("*",)


class Session:
    """One connection, from the greeting to its end."""

    def __init__(self, target: Target, channel: Channel, peer: Peer, limits: Limits) -> None:
        self._target, self._channel, self._peer, self._limits = target, channel, peer, limits
        self._conversation = Conversation(channel, limits)

    def run(self) -> bool:
        """See the session through. False if a server of its job failed or was refused, which the node then knows.

        Raise AnvilDrError after having told the peer, if it can still be told.
        """
        try:
            return self._converse()
        except AnvilDrError as error:
            self.tell(error)
            raise
        finally:
            self._conversation.close()

    def tell(self, error: AnvilDrError) -> None:
        """Say why the session ends, if the peer can still be told."""
        self._conversation.tell(error, self._limits.farewell_seconds)

    def _converse(self) -> bool:
        hello = self._conversation.hello(self._limits.greeting_seconds)
        if len(hello.node) > _NAME_CHARACTERS:
            raise ProtocolError("the node's name is too long")
        if not hello.node.isprintable():
            raise ProtocolError(f"{hello.node!r} is no name of a node")
        if VERSION not in hello.versions:
            spoken = ", ".join(map(str, hello.versions[:10])) or "(none)"
            raise ProtocolError(f"the node speaks protocol version {spoken}, this box version {VERSION}")
        if hello.purpose == "status" and self._peer.may_ask_status:
            jobs = self._target.jobs()
            self._conversation.send(Status(tuple(RunningJobReport(**vars(job)) for job in jobs)))
            return True
        if hello.purpose == "import" and self._peer.may_ask_status:
            return self._import()
        if hello.purpose != "job":
            raise ProtocolError(f"{hello.purpose[:40]!r} is nothing this box can be asked")
        node = hello.node or self._peer.description
        log.info("session begun peer=%r node=%r program=%r", self._peer.description, node, hello.program[:40])
        with KeepAlive(self._channel):
            return self._job(hello, node)

    def _import(self) -> bool:
        device = self._conversation.expect(Import).device
        with KeepAlive(self._channel):
            found = carry_in.bring_in(self._target, device)
        reports = (
            ImportedReport(one.server, one.error.code if one.error else "", str(one.error or one.note), one.was_here)
            for one in found
        )
        self._conversation.send(ImportDone(tuple(reports)))
        return all(one.error is None for one in found)

    def _job(self, hello: Hello, node: str) -> bool:
        digester = self._welcome(hello)
        job = self._conversation.job(self._limits.announcement_seconds)
        address = nodes.address_of(self._peer.description)
        incoming = IncomingJob(
            self._target, self._channel, self._conversation, digester, node, self._peer.allowed, address
        )
        return incoming.run(job)

    def _welcome(self, hello: Hello) -> digest.Digester:
        algorithm = next((name for name in digest.available() if name in hello.digests), None)
        if algorithm is None:
            raise ProtocolError(f"no digest algorithm is common to both ends; here are {', '.join(digest.available())}")
        self._conversation.send(
            Welcome(
                version=VERSION,
                digest=algorithm,
                compressions=("zstd",) if "zstd" in hello.compressions else (),
                target=self._target.config.name,
                window=self._target.window,
                bandwidth_limit=self._target.config.bandwidth_limit,
            )
        )
        return digest.digester(algorithm)
