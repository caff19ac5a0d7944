"""`anvil-dr-target`: the service of the DR box. Builds its adapters, finishes what was begun, and serves.

Touches what wiring.py opens, signals, and systemd's notifications. Without systemd it needs nothing of it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import contextmanager
from typing import Iterator, Optional, Sequence

from anvil_dr import command, config, definition_files, service, words
from anvil_dr.cli import run_command, target_aftercare, target_socket, wiring
from anvil_dr.cli.parser import Parser, add_common_options
from anvil_dr.config import Config
from anvil_dr.cycling import lost_sets
from anvil_dr.errors import HypervisorError, UsageError
from anvil_dr.receiving import recover
from anvil_dr.receiving.target import Target

PROGRAM = "anvil-dr-target"

log = logging.getLogger(__name__)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = Parser(
        prog=PROGRAM, description="Take servers' images from the nodes, on the DR box. Usually started by systemd."
    )
    add_common_options(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--check-config", action="store_true", help="say whether the configuration can be used, and change nothing"
    )
    instead.add_argument(
        "--recover",
        action="store_true",
        help="do what the service does first when it starts: say what was begun and not finished, and finish it",
    )
    instead.add_argument(
        "--forget", metavar="PLAN", type=int, help="drop a plan that cannot be finished: its images stay as they are"
    )
    instead.add_argument(
        "--forget-lost-sets",
        action="store_true",
        help="once a store that died was made anew, and with the service stopped: forget the sets that it had",
    )
    options = parser.parse_args(argv)
    if options.forget_lost_sets:
        return run_command(PROGRAM, lambda: _forget_lost_sets(options.config))
    if options.recover:
        return run_command(PROGRAM, lambda: _recover(options.config))
    if options.forget is not None:
        return run_command(PROGRAM, lambda: _forget(options.config, options.forget))
    if options.check_config:
        return run_command(PROGRAM, lambda: _check(options.config))
    return run_command(PROGRAM, lambda: _serve(options.config), log_handler=_journal(), level=logging.INFO)


def _journal() -> Optional[logging.Handler]:
    """The journal itself, where standard error leads to it, so that levels survive; else None."""
    stream = os.environ.get("JOURNAL_STREAM")
    if stream is None:
        return None
    # systemd.exec(5): a terminal inherits the variable too, so it says which file is meant.
    facts = os.fstat(2)
    if stream != f"{facts.st_dev}:{facts.st_ino}":
        return None
    import systemd.journal as journal

    handler: logging.Handler = journal.JournalHandler(SYSLOG_IDENTIFIER=PROGRAM)
    return handler


def _notify() -> service.Notify:
    """Tells systemd how it goes, if it wants to know (sd_notify(3))."""
    if "NOTIFY_SOCKET" not in os.environ:
        return lambda state: None
    import systemd.daemon as daemon

    notify: service.Notify = daemon.notify
    return notify


def _check(path: str) -> int:
    settings = config.load(path)
    with wiring.open_state(settings, readonly=True) as state:
        store = wiring.open_store(settings, state)
        store.check()
        lost_sets.refuse_empty(store, state)
        print(f"{path}: the configuration can be used")
        print(f"  store        {store.kind}")
        for place in store.locations():
            print(f"    {place.name}: {place.free_bytes >> 20} MiB free of {place.size_bytes >> 20} MiB")
        for key, folder in (("definitions", settings.definitions), ("state", settings.state)):
            print(f"  {key:<12} {folder}{'' if os.path.isdir(folder) else ' (will be made)'}")
        others = definition_files.who_else_writes(settings.definitions)
        if others:
            print(f"    careful: {others}")
        print(f"  copies       {settings.copies}")
        _check_cache(settings)
        print(f"  socket       {settings.socket}")
        elsewhere = target_socket.warning(settings.socket, command.run)
        if elsewhere:
            print(f"    careful: {elsewhere}")
        _check_hypervisor(settings)
    return 0


def _check_hypervisor(settings: Config) -> None:
    """Receiving needs none, so one that is not there is only warned of, and a missing libvirt-python too."""
    uri = settings.activation.connect
    print(words.printable(f"  hypervisor   {uri}"))
    try:
        from anvil_dr import hypervisor  # the service does without libvirt

        with hypervisor.connect(uri) as connected:
            connected.active()
    except (ImportError, HypervisorError) as error:
        print(words.printable(f"    careful: nothing can be booted on this machine: {error}"))


def _check_cache(settings: Config) -> None:
    """What would be found, and why not (SPEC section 5)."""
    drives = wiring.open_cache_drives(settings, None)
    if drives is None:
        print("  cache drives are not looked for (use_cache)")
        return
    found = drives.survey()
    print(f"  cache drives{'' if any(one.problem is None for one in found) else ' (none)'}")
    for one in found:
        free = f"{one.free_bytes >> 20} MiB free, {one.filesystem}"
        use = free if one.problem is None else f"not used: {one.problem}"
        known_as = " ".join(filter(None, [one.model, one.serial]))
        print(words.printable(f"    {one.device}: {use}{f' [{known_as}]' if known_as else ''}"))
        for brought in one.carries:
            print(words.printable(f"      brings {brought}; to take it: anvil-dr-import {one.device}"))


@contextmanager
def _alone(settings: Config) -> Iterator[Target]:
    """Everything that a service works with, while no other one does. Raise ServiceError, StateError, StoreError."""
    with wiring.open_state(settings) as state:
        state.lock_service()
        store = wiring.open_store(settings, state)
        store.check()
        yield Target(settings, store, state, cache_drives=wiring.open_cache_drives(settings, state))


def _recover(path: str) -> int:
    with _alone(config.load(path)) as target:
        if target.state.rebuilt:
            print(words.printable(target.state.rebuilt))
        begun = recover.look(target)
        for one in begun:
            print("\n".join(map(words.printable, recover.in_words(one))))
        done = recover.recover(target)
    for owner in done.owners:
        print(words.printable(f"disk {owner.disk} of server {owner.server}: the state did not know it, and does now"))
    for job in done.jobs:
        print(words.printable(f"job {job.id} of server {job.server} was running, and has {job.state}"))
    for problem in done.problems:
        print(f"{PROGRAM}: {words.printable(problem)}", file=sys.stderr)
    if not begun:
        print("Nothing was begun that is not finished.")
    elif not done.problems:
        print("All of it is finished.")
    return 1 if done.problems else 0


def _forget(path: str, number: int) -> int:
    with _alone(config.load(path)) as target:
        entry = next((entry for entry in target.state.pending() if entry.id == number), None)
        if entry is None:
            raise UsageError(f"there is no plan {number}; anvil-dr-status names those that are not finished")
        target.state.drop(entry)
    print(f"Plan {number} of server {entry.server} is forgotten. Its images stay as they are.")
    return 0


def _forget_lost_sets(path: str) -> int:
    with _alone(config.load(path)) as target:
        forgotten = lost_sets.forget(target.store, target.state)
    for one in forgotten:
        print(words.printable(f"set of server {one.server}, received {one.received_at}: forgotten"))
    print("The service can be started, and jobs come as before." if forgotten else "No set is lost: nothing to forget.")
    return 0


def _serve(path: str) -> int:
    settings, notify = config.load(path), _notify()
    with _alone(settings) as target:
        notify("STATUS=Finishing what was begun")
        recover.recover(target)
        with target_socket.listener(settings) as listener:
            running = service.Service(target, listener, notify)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *unused: running.stop())
            others = definition_files.who_else_writes(settings.definitions)
            if others:
                log.warning("careful: %s", others)
            log.info("serving name=%s store=%s socket=%s", settings.name, target.store.kind, settings.socket)
            with wiring.cache_at_work(target), target_aftercare.at_work(target, path):
                running.run()
    log.info("stopped name=%s", settings.name)
    return 0
