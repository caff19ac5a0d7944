"""What every command shares: its options, its log, and how an error becomes a line and an exit code.

Exit codes (SPEC section 9): 0 all well, 1 the work failed, 2 usage or configuration; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Callable, Optional, Sequence

from anvil_dr import __version__, config, words
from anvil_dr.errors import AnvilDrError

log = logging.getLogger(__name__)

_INTERRUPTED = 128 + 2


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """An argument parser with the options that every command has."""
    made = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    made.add_argument(
        "--config", metavar="FILE", default=config.DEFAULT_PATH, help="the configuration (default: %(default)s)"
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    made.add_argument(
        "-v", "--verbose", action="count", default=0, help="say what is done; twice: also which commands are run"
    )
    return made


def set_up_logging(verbosity: int = 0) -> None:
    """Log to standard error: warnings, or with 1 also every change of state, or with 2 also every command."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s level=%(levelname)s from=%(name)s %(message)s"))
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(level=level, handlers=[handler], force=True)


def run_command(
    program: str, function: Callable[[Sequence[str]], int], arguments: Optional[Sequence[str]] = None
) -> int:
    """Run a command's function on its arguments (default: the process's); return the process's exit code."""
    set_up_logging()
    try:
        code = function(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except AnvilDrError as error:
        print(f"{program}: {words.printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the command line is where the unforeseen ends
        # It may not come again on the next try, so everything that is known is said now.
        log.exception("unforeseen error")
        name, text = type(error).__name__, words.printable(str(error))
        print(
            f"{program}: an error that nobody foresaw, please report what stands above: {name}: {text}", file=sys.stderr
        )
        return 1


class _Formatter(logging.Formatter):
    """One line for each record, whatever a node put into it; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return words.printable(super().formatMessage(record))
