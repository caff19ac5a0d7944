"""`anvil-dr-export`: sends a server that ran on the DR box back to its node, once its site stands again.

Only what differs from what the node still has crosses the wire. The node runs `anvil-dr-take-back`. Exit codes: 0 it is
back, 1 it isn't, 2 usage or configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from typing import Any, Dict, Final, Optional, Sequence, Tuple

from anvil_dr import command, words
from anvil_dr import config as configuration
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.overlays import Overlays
from anvil_dr.cli import activate_boot, add_common_options, run_command, wiring
from anvil_dr.cli.interruption import Interruption
from anvil_dr.cli.progress import watcher
from anvil_dr.errors import UsageError
from anvil_dr.failback import give_back
from anvil_dr.sending import connect
from anvil_dr.sending.send import JobSender, OutgoingServer, ServerOutcome

PROGRAM = "anvil-dr-export"

_REMOTE: Final = "anvil-dr-take-back"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Send a server that ran on this DR box, and is shut down now, back to its node.",
        epilog="It stays activated here, and jobs for it are refused, until: anvil-activate-dr --release SERVER",
    )
    add_common_options(parser)
    parser.add_argument("server", metavar="SERVER", help="an activated server that is off")
    parser.add_argument("--to", metavar="DEST", required=True, help="the node: ssh://[user@]host[:port], usually root")
    parser.add_argument("--identity", metavar="FILE", help="the private key that ssh is to use, and no other")
    parser.add_argument("--node-command", metavar="COMMAND", help=f"what ssh runs there (default: {_REMOTE} SERVER)")
    parser.add_argument("--bandwidth-limit", default="0", metavar="RATE", help="bytes a second, such as 10M")
    parser.add_argument("--no-progress", action="store_true", help="say nothing before the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of words")
    options = parser.parse_args(argv)
    return run_command(PROGRAM, lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    destination = connect.parse_destination(options.to)
    if not isinstance(destination, connect.SshDestination):
        raise UsageError("--to: a node is reached by ssh://[user@]host[:port]")
    limit_bytes = configuration.parse_rate(options.bandwidth_limit)
    config = configuration.load(options.config)
    with wiring.open_state(config) as state, activate_boot.alone(config, keeps_rehearsals_off=True):
        store = wiring.open_cached(config, state, wiring.open_store(config, state)).store
        overlays = Overlays(config.overlays, command.run)
        places = FirmwarePlaces(config.state, config.definitions)
        server = give_back.outgoing(options.server, store, state, overlays, places)
        began = time.monotonic()
        outcome, wire_bytes = _send(options, destination, server, limit_bytes)
    _report(options, outcome, wire_bytes, time.monotonic() - began)
    return 0 if outcome.error is None else 1


def _send(
    options: argparse.Namespace, destination: connect.SshDestination, server: OutgoingServer, limit_bytes: int
) -> Tuple[ServerOutcome, int]:
    totals = {server.name: sum(disk.size_bytes for disk in server.disks)}
    remote = options.node_command or f"{_REMOTE} {shlex.quote(server.name)}"
    with Interruption() as interruption, watcher(sys.stderr, totals, wanted=not options.no_progress) as watching:
        with connect.connected(
            destination, command.spawn, identity=options.identity, remote_command=remote
        ) as channel:
            interruption.watch(channel.abandon)
            node = os.uname().nodename
            sender = JobSender(channel, node=node, observer=watching, bandwidth_limit_bytes=limit_bytes)
            job = sender.run(f"{server.name} comes back", (server,))
            interruption.watch(lambda: None)
            return job.servers[0], channel.wire_bytes


def _report(options: argparse.Namespace, outcome: ServerOutcome, wire_bytes: int, seconds: float) -> None:
    written_bytes = outcome.done.written_bytes if outcome.done is not None else 0
    if options.json:
        told: Dict[str, Any] = {
            "server": outcome.name,
            "state": "succeeded" if outcome.error is None else "failed",
            "error": None if outcome.error is None else str(outcome.error),
            "wire_bytes": wire_bytes,
            "written_bytes": written_bytes,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(told, indent=2))
        return
    if outcome.error is not None:
        print(f"{words.printable(outcome.name)}: failed: {words.printable(str(outcome.error))}")
        print("Nothing is lost here. Run the same command again: what has arrived is not sent again.")
        return
    print(
        f"{words.printable(outcome.name)}: back on its node after {seconds:.1f} s; {words.size(wire_bytes)} over the "
        f"wire, {words.size(written_bytes)} written there."
    )
    print(f"Start it there. Once it runs well: anvil-activate-dr --release {words.printable(outcome.name)}")
