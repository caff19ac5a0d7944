"""`anvil-dr-export`: sends a server that ran on the DR box back to its node, once its site stands again.

Only what differs from what the node still has crosses the wire. The node runs `anvil-dr-take-back`. Exit codes: 0 it is
back, 1 it isn't, 2 usage or configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Dict, Final, Optional, Sequence

from anvil_dr import command, words
from anvil_dr import config as configuration
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.overlays import Overlays
from anvil_dr.cli import activate_box, complain, run_command, wiring
from anvil_dr.cli.interruption import Interruption
from anvil_dr.cli.parser import Parser, add_common_options
from anvil_dr.cli.progress import watcher
from anvil_dr.cli.send_report import Recorder
from anvil_dr.errors import AnvilDrError, JobInterruptedError, UsageError
from anvil_dr.failback import give_back, sent_home
from anvil_dr.model import Activation
from anvil_dr.receiving.target import utc_now
from anvil_dr.sending import connect
from anvil_dr.sending.job import OutgoingServer, ServerOutcome
from anvil_dr.sending.send import JobSender

PROGRAM = "anvil-dr-export"

_REMOTE: Final = "anvil-dr-take-back"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = Parser(
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
    parser.add_argument("--again", action="store_true", help="although it went home before and is whole there")
    parser.add_argument("--no-progress", action="store_true", help="say nothing before the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of words")
    options = parser.parse_args(argv)
    return run_command(PROGRAM, lambda: _export(options), as_json=options.json)


def _export(options: argparse.Namespace) -> int:
    destination = connect.parse_destination(options.to, kinds="ssh://[user@]host[:port]")
    if not isinstance(destination, connect.SshDestination):
        raise UsageError("--to: a node is reached by ssh://[user@]host[:port]")
    limit_bytes = configuration.parse_rate(options.bandwidth_limit)
    config = configuration.load(options.config)
    with wiring.open_state(config) as state, activate_box.alone(config, keeps_rehearsals_off=True):
        store = wiring.open_cached(config, state, wiring.open_store(config, state)).store
        overlays = Overlays(config.overlays, command.run)
        places = FirmwarePlaces(config.state, config.definitions)
        server = give_back.outgoing(options.server, store, state, overlays, places)
        activation = state.activations()[options.server]
        _refuse_twice(config.state, activation, again=options.again)
        trip = _send(options, destination, server, limit_bytes)
        if trip.outcome.error is None:
            problem = sent_home.note(config.state, activation, utc_now())
            if problem:
                complain(f"{PROGRAM}: it is not remembered that it went home: {words.printable(problem)}")
    _report(trip, as_json=options.json)
    if trip.interrupted_by is not None:
        return 128 + trip.interrupted_by
    return 0 if trip.outcome.error is None else 1


def _refuse_twice(state_directory: str, activation: Activation, *, again: bool) -> None:
    at = sent_home.when(state_directory, activation)
    if at is not None and not again:
        raise UsageError(
            f"{activation.server} went home {words.age(at, datetime.now(timezone.utc))} and is whole there; once more "
            f"would be written over what it has done there since. If it runs well there: anvil-activate-dr --release "
            f"{activation.server}. If it is to go once more all the same, or ran here since: the same with --again"
        )


@dataclass(frozen=True)
class _Trip:
    """What became of it."""

    outcome: ServerOutcome
    begun: bool
    """True if the node may have begun to write."""
    wire_bytes: int
    seconds: float
    interrupted_by: Optional[signal.Signals]


def _send(
    options: argparse.Namespace, destination: connect.SshDestination, server: OutgoingServer, limit_bytes: int
) -> _Trip:
    totals = {server.name: sum(disk.size_bytes for disk in server.disks)}
    remote = options.node_command or f"{_REMOTE} {shlex.quote(server.name)}"
    wire_bytes, began = 0, time.monotonic()
    error: Optional[AnvilDrError] = None
    with Interruption() as interruption, watcher(sys.stderr, totals, wanted=not options.no_progress) as watching:
        recorder = Recorder(watching)
        try:
            with connect.connected(
                destination, command.spawn, identity=options.identity, remote_command=remote
            ) as channel:
                interruption.watch(channel.abandon)
                node = os.uname().nodename
                sender = JobSender(channel, node=node, observer=recorder, bandwidth_limit_bytes=limit_bytes)
                try:
                    sender.run(f"{server.name} comes back", (server,))
                finally:
                    interruption.watch(lambda: None)
                    wire_bytes = channel.wire_bytes
        except AnvilDrError as raised:
            error = JobInterruptedError(interruption.by.name) if interruption.by is not None else raised
    outcome = recorder.outcomes.get(server.name) or ServerOutcome(server.name, error)
    if outcome.error is None and error is not None:
        outcome = replace(outcome, error=error)
    seconds = time.monotonic() - began
    return _Trip(outcome, server.name in recorder.begun, wire_bytes, seconds, interruption.by)


def _report(trip: _Trip, *, as_json: bool) -> None:
    outcome, name = trip.outcome, words.printable(trip.outcome.name)
    written_bytes = outcome.done.written_bytes if outcome.done is not None else 0
    if as_json:
        told: Dict[str, Any] = {
            "server": outcome.name,
            "state": "succeeded" if outcome.error is None else "failed",
            "error": None if outcome.error is None else str(outcome.error),
            "node_changed": trip.begun,
            "wire_bytes": trip.wire_bytes,
            "written_bytes": written_bytes,
            "seconds": round(trip.seconds, 3),
        }
        print(json.dumps(told, indent=2))
    elif outcome.error is None:
        print(f"{name}: back on its node after {trip.seconds:.1f} s, and whole there.")
        print(f"{words.size(trip.wire_bytes)} over the wire, {words.size(written_bytes)} written there.")
        print(f"Start it there: virsh start {name}. Once it runs well, here: anvil-activate-dr --release {name}")
    else:
        print(f"{name}: failed: {words.printable(str(outcome.error))}")
        if trip.begun:
            print(f"DO NOT START {name} ON ITS NODE: its disks may be part old, part new there.")
            print("Nothing is lost here. Type the same again: what has arrived is not sent again.")
        else:
            print("Nothing was changed on its node.")
