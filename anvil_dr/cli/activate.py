"""`anvil-activate-dr`: boots the servers that this DR box keeps, on the day on which their own site is lost.

Exit codes: 0 if every server that was asked for runs (or, with --check, could be booted); 1 if one doesn't, or the
admin said no; 2 usage or configuration.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Dict, List, Optional, Sequence, Tuple

from anvil_dr import command, hypervisor, words
from anvil_dr import config as configuration
from anvil_dr.activation import activate, activation_json, activation_text, check_record, release
from anvil_dr.activation.activate import Request
from anvil_dr.activation.check_result import CheckResult
from anvil_dr.activation.overlays import Overlays
from anvil_dr.cli import (
    activate_boot,
    activate_box,
    activate_rehearse,
    activate_view,
    complain,
    run_command,
    wiring,
)
from anvil_dr.cli.activate_box import Box, Manner
from anvil_dr.cli.parser import Parser, add_common_options, seconds
from anvil_dr.config import Config
from anvil_dr.errors import AnvilDrError, HypervisorError, StateError, UsageError
from anvil_dr.receiving.target import utc_now
from anvil_dr.records.database import FILE_NAME as STATE_FILE
from anvil_dr.records.state import State

PROGRAM = "anvil-activate-dr"

_DESCRIPTION = """\
Boot the servers that this DR box keeps.
On the day: type anvil-activate-dr and read. It shows what it is going to do, and asks before it does it.
"""
_EPILOG = """\
examples:
  anvil-activate-dr                     all servers, in their order
  anvil-activate-dr Web01 Db01          only these
  anvil-activate-dr --check             is anything in the way? boots nothing
  anvil-activate-dr --memory Web01=4G   with less memory than its definition says
  anvil-activate-dr --overlay           so that what they write can be thrown away
  anvil-activate-dr --release Web01     its jobs may write its images again
  anvil-activate-dr --rehearse          on any good day: a trial, with a report
"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    options = _parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _run(options), as_json=options.json)


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM, usage="%(prog)s [SERVER ...] [option ...]", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, enough=PROGRAM,
    )  # fmt: skip
    parser.add_argument("servers", metavar="SERVER", nargs="*", help="only these (default: all)")
    add_common_options(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="only show the servers and their sets")
    what.add_argument("--check", action="store_true", help="only show what would be booted, and what is in the way")
    # What the service does after each job: a check, quietly.
    what.add_argument("--after-job", action="store_true", help=argparse.SUPPRESS)
    what.add_argument(
        "--release", metavar="SERVER", action="append", help="jobs may write this server's images again; boot nothing"
    )
    what.add_argument(
        "--rehearse", metavar="SERVER", nargs="*",
        help="boot these, or all, on throw-away copies without network, see whether they come up, and keep a report",
    )
    parser.add_argument("--report", metavar="FILE", default="", help="with --rehearse: write the report here too")
    parser.add_argument("--server", metavar="SERVER", action="append", default=[], help="the same as naming it")
    parser.add_argument("--sequence", metavar="N", type=int, help="that set's images instead of the newest complete")
    parser.add_argument(
        "--memory", metavar="SERVER=SIZE", action="append", default=[],
        help="boot it with so much memory, such as 4G or 512M; its definition stays as it is",
    )  # fmt: skip
    parser.add_argument(
        "--overlay", action="store_true", help="leave the images as they were received; --release asks what then"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep", action="store_true", help="with --release: put what it wrote into its images")
    choice.add_argument("--discard", action="store_true", help="with --release: throw away what it wrote")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--force", action="store_true",
        help="boot although a node seems to be alive, or an image is known to be damaged",
    )  # fmt: skip
    parser.add_argument("--wait", metavar="SECONDS", type=seconds, help="how long to wait for the guests to answer")
    parser.add_argument("--connect", metavar="URI", help="the hypervisor (default: activation.connect)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def _run(options: argparse.Namespace) -> int:
    _refuse_what_makes_no_sense(options)
    options.check |= options.after_job
    options.server += options.servers
    memory_bytes = _memory(options.memory)
    config = configuration.load(options.config)
    if options.release:
        return _release(config, options)
    rehearses = options.rehearse is not None
    asks = not (options.list or options.check or options.yes or rehearses)
    if asks and options.json:
        raise UsageError("--json cannot ask; add --yes, or --check to boot nothing")
    if asks and not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on; add --yes, or --check to boot nothing")
    with ExitStack() as opened:
        box = _open(config, opened, readonly=options.list or options.check)
        if options.list:
            return _list(box, options)
        if options.after_job:
            activate_box.tidy_up(box)
        servers = tuple(dict.fromkeys([*options.server, *(options.rehearse or ())]))
        request = Request(servers, options.sequence, options.force, memory_bytes=memory_bytes)
        manner = Manner(options.check, options.yes, options.json, options.wait, options.overlay, options.after_job)
        uri = options.connect or config.activation.connect
        try:
            connected = opened.enter_context(hypervisor.connect(uri))
        except HypervisorError as error:
            if options.check and not request.is_special:
                check_record.write(config.state, CheckResult(utc_now(), str(error)))
            raise
        if rehearses:
            # A node is alive on every good day, which is when a rehearsal takes place.
            return activate_rehearse.run(
                box, replace(request, force=True), connected,
                wait_seconds=options.wait, as_json=options.json, report=options.report,
            )  # fmt: skip
        with activate_box.alone(config, keeps_rehearsals_off=not options.check):
            return activate_boot.run(box, request, manner, connected, lambda: hypervisor.connect(uri))


def _refuse_what_makes_no_sense(options: argparse.Namespace) -> None:
    """Raise UsageError. An option that would do nothing is a misunderstanding, and on that day a dangerous one."""
    if options.sequence is not None and options.sequence < 1:
        raise UsageError("--sequence: sets are numbered from 1, the newest")
    if (options.keep or options.discard) and not options.release:
        given = "--keep" if options.keep else "--discard"
        raise UsageError(f"{given} goes with --release: {PROGRAM} --release SERVER {given}")
    if options.report and options.rehearse is None:
        raise UsageError(f"--report goes with --rehearse: {PROGRAM} --rehearse --report {options.report}")
    if options.overlay and (options.rehearse is not None or options.release):
        raise UsageError("--overlay is for booting; a rehearsal is on throw-away overlays anyway")


def _memory(wishes: Sequence[str]) -> Dict[str, int]:
    """`Web01=4G` -> bytes. Raise UsageError."""
    found: Dict[str, int] = {}
    for wish in wishes:
        server, equals, size = wish.partition("=")
        try:
            size_bytes = configuration.parse_rate(size)
        except UsageError:
            size_bytes = 0
        if not server or not equals or size_bytes < 1 << 20:
            raise UsageError(f"--memory takes a server and a size, such as Web01=4G, not {wish!r}")
        found[server] = size_bytes
    return found


def _open(config: Config, opened: ExitStack, *, readonly: bool) -> Box:
    """The store, and the state if it can be had at all: on this day nothing is taken for granted."""
    warnings: List[str] = []
    if not os.path.exists(os.path.join(config.state, STATE_FILE)):
        warnings = [f"there is no state database in {config.state}: what is known of sets is from its spare copies"]
    state: Optional[State] = None
    for attempt in (True,) if readonly else (False, True):
        try:
            state = opened.enter_context(wiring.open_state(config, readonly=attempt))
            state.check()
            break
        except StateError as error:
            state, warnings = _spare_state(config, error)
    store, wrong = wiring.open_store_in_reach(config, state)
    bootable = wiring.open_cached(config, state, store)
    warnings += bootable.warnings
    overlays = Overlays(config.overlays, command.run)
    return Box(config, bootable.store, state, overlays, (*warnings, *wrong), bootable.records)


def _spare_state(config: Config, error: StateError) -> Tuple[Optional[State], List[str]]:
    """What is known all the same where the database cannot be used, and the warning."""
    try:
        said = f"the state cannot be used, so what is known of sets is from its spare copies: {error}"
        return State.open_spare(config.state), [said]
    except StateError:
        return None, [f"the state cannot be used, so the age of a set is not known: {error}"]


def _list(box: Box, options: argparse.Namespace) -> int:
    seen = box.survey(without_store=True)
    chosen = activate.selected(seen, tuple(options.server))
    for text in (*box.warnings, *activate_boot.no_images(box, seen)):
        complain(f"{PROGRAM}: {words.printable(text)}")
    if box.warnings and os.geteuid() != 0:
        complain(f"{PROGRAM}: some of it only root can read")
    if options.json:
        activate_view.show_json(activation_json.list_to_json(chosen))
    elif chosen:
        rows = activation_text.list_rows(chosen, activate_view.now())
        activate_view.show_table(activation_text.LIST_HEADINGS, ((row, "plain") for row in rows))
    else:
        print(activate_box.nothing_here(box.config))
    return 0 if seen.store_problem is None else 1


def _release(config: Config, options: argparse.Namespace) -> int:
    wish: Optional[release.Wish] = "keep" if options.keep else "discard" if options.discard else None
    with wiring.open_state(config) as state:
        store = wiring.open_cached(config, state, wiring.open_store(config, state)).store
        box = Box(config, store, state, Overlays(config.overlays, command.run), ())
        done: Dict[str, str] = {}
        servers = tuple(dict.fromkeys([*options.release, *options.servers]))
        with activate_box.alone(config, keeps_rehearsals_off=True):
            release.refuse_others(servers, state, box.overlays)
            for server in servers:
                try:
                    done[server] = release.release(server, wish, store, state, box.overlays, box.places, utc_now())
                except AnvilDrError as error:
                    if not (options.json and done):
                        raise
                    activate_view.show_json({"released": done, "error": str(error), "code": error.code})
                    complain(f"{PROGRAM}: {words.printable(str(error))}")
                    return 1
                if not options.json:
                    print(f"{words.printable(server)}: {done[server]}")
    if options.json:
        activate_view.show_json({"released": done})
    return 0
