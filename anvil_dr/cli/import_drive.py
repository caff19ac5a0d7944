"""`anvil-dr-import DEVICE`: takes the images of a drive that a node has filled (`anvil-dr-send --to drive:...`).

Asks the running service to do it. Exit codes: 0 all of them are here, 1 at least one is not, 2 usage or configuration.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Optional, Sequence, Tuple

from anvil_dr import command, words
from anvil_dr import config as configuration
from anvil_dr.cli import run_command
from anvil_dr.cli.parser import Parser, add_common_options
from anvil_dr.errors import ProtocolError, RemoteError
from anvil_dr.sending import connect
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.protocol import VERSION, Error, Hello, Import, ImportDone, ImportedReport, Kind, decode

PROGRAM = "anvil-dr-import"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = Parser(
        prog=PROGRAM,
        description="Take the images of servers from a drive that a node has filled, after a check of every byte.",
        epilog="anvil-dr-status names the drives and what they bring. The drive itself is not changed.",
    )
    add_common_options(parser)
    parser.add_argument("device", metavar="DEVICE", help="the drive or partition, such as /dev/sdb1")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of words")
    options = parser.parse_args(argv)
    return run_command(PROGRAM, lambda: _import(options), as_json=options.json)


def _import(options: argparse.Namespace) -> int:
    config = configuration.load(options.config)
    if not options.json:
        print(f"Checking and taking what is on {words.printable(options.device)}; anvil-dr-status shows how far it is.",
              flush=True)  # fmt: skip
    with connect.connected(connect.UnixDestination(config.socket), command.spawn) as channel:
        servers = _ask(channel, options.device)
    failed = [one for one in servers if one.code]
    if options.json:
        json.dump({"servers": [_to_json(one) for one in servers]}, sys.stdout, indent=2)
        print()
    else:
        for one in servers:
            print(words.printable(_line(one)))
        print(f"{len(servers) - len(failed)} of {words.count(len(servers), 'server')} here.")
    return 1 if failed else 0


def _ask(channel: Channel, device: str) -> Tuple[ImportedReport, ...]:
    """Raise RemoteError in the service's words, ProtocolError."""
    hello = Hello((VERSION,), (), program=PROGRAM, purpose="import")
    channel.send(hello.kind, hello.encode())
    wish = Import(device)
    channel.send(wish.kind, wish.encode())
    kind, content = channel.receive(frame_buffer())
    if kind is Kind.ERROR:
        error = decode(Error, content)
        raise RemoteError(error.code, error.message)
    if kind is not Kind.IMPORTED:
        raise ProtocolError(f"the service answers with {kind.name}")
    return decode(ImportDone, content).servers


def _line(one: ImportedReport) -> str:
    if one.code:
        return f"{one.server}: FAILED: {one.message}"
    done = "the store has it, or a newer set, already" if one.was_here else "imported as set 1"
    return f"{one.server}: {done}" + (f"; {one.message}" if one.message else "")


def _to_json(one: ImportedReport) -> object:
    state = "failed" if one.code else "was here" if one.was_here else "imported"
    return {"name": one.server, "state": state, "error": one.message if one.code else None, "code": one.code or None,
            "note": None if one.code else one.message or None}  # fmt: skip
