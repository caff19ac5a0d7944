"""The options of a command, and what is said of one that is mistyped. Touches standard error."""

from __future__ import annotations

import argparse
import math
import re
import sys
from typing import Any, NoReturn, Optional, Sequence

from anvil_dr import __version__, config, words
from anvil_dr.cli import complain
from anvil_dr.errors import UsageError

_NEGATIVE_NUMBER = re.compile(r"-[\d.]")


class Parser(argparse.ArgumentParser):
    """Says what is wrong, and not ten lines of options above it.

    An option that does not exist is named before one that is missing: who types --too wants to hear of --too.
    """

    def __init__(self, *, enough: str = "", **options: Any) -> None:
        """`enough`: what to type when nothing special is wanted."""
        super().__init__(**options)
        self._enough = enough

    def parse_args(  # type: ignore[override]  # it is called in one way only
        self, args: Optional[Sequence[str]] = None, namespace: Optional[argparse.Namespace] = None
    ) -> argparse.Namespace:
        """As argparse does. Exit with 2 where the options are wrong."""
        for typed in sys.argv[1:] if args is None else args:
            if typed == "--":
                break
            name = typed.partition("=")[0]
            if name.startswith("-") and len(name) > 1 and not _NEGATIVE_NUMBER.match(name) and not self._knows(name):
                self.error(f"there is no option {name}{words.nearest(name, list(self._option_string_actions))}")
        return super().parse_args(args, namespace)

    def _knows(self, name: str) -> bool:
        """In full, or, as argparse takes it, its beginning."""
        known = self._option_string_actions
        return name in known or (name.startswith("--") and any(one.startswith(name) for one in known))

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with 2."""
        complain(f"{self.prog}: {words.printable(message)}")
        everything = f"{self.prog} --help"
        complain(
            f"Usually it is enough to type: {self._enough}    (all options: {everything})"
            if self._enough
            else f"All options: {everything}"
        )
        sys.exit(UsageError.exit_code)


def seconds(typed: str) -> float:
    """A length of time. Raise argparse.ArgumentTypeError if it has no end, or is before its beginning."""
    try:
        found = float(typed)
    except ValueError:
        found = math.nan
    if not (0 <= found < math.inf):
        raise argparse.ArgumentTypeError(f"seconds are a number that is not negative, such as 60, not {typed!r}")
    return found


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that every command has."""
    parser.add_argument(
        "--config", metavar="FILE", default=config.DEFAULT_PATH, help="the configuration (default: %(default)s)"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
