"""What the service has done after each job: `anvil-activate-dr --after-job`, as a process of its own.

Touches nothing but that process; aftercare.py says when.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Iterator

from anvil_dr import command
from anvil_dr.aftercare import Aftercare
from anvil_dr.target import Target

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS: Final = 900.0
# As setup/launch does it: nothing of the environment can put other modules in.
_PROGRAM: Final = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
from anvil_dr.cli.activate import main
sys.exit(main())
"""


@contextmanager
def at_work(target: Target, config_path: str) -> Iterator[None]:
    """Meanwhile it is done after each job and daily, unless the configuration doesn't want it."""
    if not target.config.activation.check:
        yield
        return
    root = str(Path(__file__).resolve().parents[2])
    path = os.path.abspath(config_path)
    argv = (sys.executable, "-I", "-c", _PROGRAM, root, "--config", path, "--after-job")
    aftercare = Aftercare(lambda: command.run(argv, timeout_seconds=_TIMEOUT_SECONDS))
    target.job_ended = aftercare.job_ended
    with aftercare.at_work():
        yield
