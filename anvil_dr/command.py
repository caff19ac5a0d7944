"""The only user of subprocess: runs the system's commands, one at a time, and says exactly what happened."""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Tuple

from anvil_dr.errors import CommandError
from anvil_dr.ports import Completed

log = logging.getLogger(__name__)

# Debian keeps lvm and mount helpers in sbin, which an unprivileged or cron PATH lacks.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(argv: Tuple[str, ...], *, timeout_seconds: float = 120.0, stdin: bytes = b"") -> Completed:
    """Run `argv` without a shell, in the C locale, both pipes drained.

    Raise CommandError for a non-zero exit, a program that is not there, or a timeout (the command is killed).
    """
    environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C", "PATH": _PATH}
    log.debug("command argv=%r", argv)
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, env=environment, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        reason = f"no answer within {timeout_seconds:g} seconds"
        raise CommandError(argv, None, error.stdout or b"", error.stderr or b"", reason) from error
    except OSError as error:
        raise CommandError(argv, None, b"", b"", error.strerror or str(error)) from error
    log.debug("command argv=%r exit=%d stderr=%r", argv, done.returncode, done.stderr[:500])
    if done.returncode != 0:
        raise CommandError(argv, done.returncode, done.stdout, done.stderr)
    return Completed(argv, done.stdout, done.stderr)
