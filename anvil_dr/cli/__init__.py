"""One small file for each command, and here what they share: log, errors into lines and exit codes.

Exit codes (SPEC section 9): 0 all well, 1 the work failed, 2 usage or configuration; 130 after Ctrl-C. With
ANVIL_DR_LOG=info in the environment a command logs every change of state, with debug also every command it runs.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from contextlib import suppress
from typing import Callable, Optional

from anvil_dr import words
from anvil_dr.errors import AnvilDrError

log = logging.getLogger(__name__)

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_INTERRUPTED = 128 + 2
LEAST_COLUMNS = 20
"""No terminal is taken for narrower than that, whatever it says of itself."""


def run_command(
    program: str,
    function: Callable[[], int],
    *,
    log_handler: Optional[logging.Handler] = None,
    level: int = logging.WARNING,
    as_json: bool = False,
) -> int:
    """Run a command's work; return the process's exit code. Logs to standard error if no handler is given.

    With `as_json` an error is an object on standard output as well: {"error": its words, "code": its kind}.
    """
    _replace_closed_streams()
    _set_up_logging(log_handler, level)
    try:
        code = _work(program, function, as_json)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`. Python would complain once more when it flushes.
        _forget_output()
        return 1
    except OSError as error:
        _forget_output()
        with suppress(OSError):
            complain(f"{program}: what it says cannot be written: {error.strerror}")
        return 1


def _work(program: str, function: Callable[[], int], as_json: bool) -> int:
    """Raise OSError only if nothing can be said."""
    try:
        return function()
    except AnvilDrError as error:
        if as_json:
            print(json.dumps({"error": str(error), "code": error.code}, indent=2))
        complain(f"{program}: {words.printable(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the command line is where the unforeseen ends
        if isinstance(error, OSError):
            sys.stdout.flush()  # raises again if it is the output that cannot be written
        # It may not come again on the next try, so everything that is known is said now.
        log.exception("unforeseen error")
        name, text = type(error).__name__, words.printable(str(error))
        print(f"{program}: nobody foresaw this, please report what stands above: {name}: {text}", file=sys.stderr)
        return 1


def _forget_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _replace_closed_streams() -> None:
    """Whoever closes them wants to hear nothing; and no file that is opened later may get their numbers."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def complain(text: str) -> None:
    """A line on standard error; on a terminal it is folded between words."""
    columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else len(text)
    print("\n".join(words.folded(text, max(LEAST_COLUMNS, columns))), file=sys.stderr)


def _set_up_logging(handler: Optional[logging.Handler], level: int) -> None:
    if handler is None:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(asctime)s level=%(levelname)s from=%(name)s %(message)s"))
    else:
        # The journal has the time and the level of each line by itself.
        handler.setFormatter(_Formatter("%(message)s"))
    wanted = _LEVELS.get(os.environ.get("ANVIL_DR_LOG", "").lower(), level)
    logging.basicConfig(level=wanted, handlers=[handler], force=True)


class _Formatter(logging.Formatter):
    """One line for each record, whatever a node put into it; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return words.printable(super().formatMessage(record))
