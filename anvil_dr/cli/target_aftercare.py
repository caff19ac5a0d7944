"""What the service has done after each job: `anvil-activate-dr --after-job`, as a process of its own.

Touches that process, and copies the runbook to the cache drives; aftercare.py says when.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Iterator

from anvil_dr import command, durable
from anvil_dr.activation import runbook_file
from anvil_dr.errors import CacheDriveError
from anvil_dr.receiving.aftercare import Aftercare
from anvil_dr.receiving.target import Target

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS: Final = 900.0
# As setup/launch does it: nothing of the environment can put other modules in.
_PROGRAM: Final = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
from anvil_dr.cli.activate import main
sys.exit(main())
"""


def copy_to_cache_drives(target: Target) -> None:
    """The runbook, for the day on which this machine burns too and its drives are plugged in elsewhere."""
    try:
        with open(os.path.join(target.config.definitions, runbook_file.NAME), "rb") as file:
            content = file.read()
        drives = target.cache_drives.survey() if target.cache_drives is not None else ()
    except (OSError, CacheDriveError) as error:
        log.info("the runbook is not copied to cache drives: %s", error)
        return
    for drive in drives:
        if drive.problem is not None or target.cache_drives is None:
            continue
        try:
            with target.cache_drives.use(drive) as used:
                used.check()
                durable.replace(os.path.join(used.folder, f"RUNBOOK-{_plain(target.config.name)}.txt"), content)
        except (OSError, CacheDriveError) as error:
            log.info("the runbook is not copied device=%s error=%s", drive.device, error)


def _plain(name: str) -> str:
    """A name that can be a file's on any file system."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


@contextmanager
def at_work(target: Target, config_path: str) -> Iterator[None]:
    """Meanwhile it is done after each job and daily, unless the configuration doesn't want it."""
    if not target.config.activation.check:
        yield
        return
    root = str(Path(__file__).resolve().parents[2])
    path = os.path.abspath(config_path)
    argv = (sys.executable, "-I", "-c", _PROGRAM, root, "--config", path, "--after-job")

    def work() -> None:
        try:
            command.run(argv, timeout_seconds=_TIMEOUT_SECONDS)
        finally:
            copy_to_cache_drives(target)

    aftercare = Aftercare(work)
    target.job_ended = aftercare.job_ended
    with aftercare.at_work():
        yield
