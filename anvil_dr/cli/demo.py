"""`anvil-dr-demo`: the whole of it at work on one machine, in a minute, with nothing set up and nothing left behind.

Exit codes: 0 if the booted server proved its disks intact, or if nothing can be booted on this machine and all the
rest went well; 1 if something failed; 2 usage; 130 after Ctrl-C.
"""

from __future__ import annotations

from typing import Optional, Sequence

from anvil_dr import __version__
from anvil_dr.cli import run_command
from anvil_dr.cli.parser import Parser
from anvil_dr.demo.play import play

PROGRAM = "anvil-dr-demo"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = Parser(
        prog=PROGRAM,
        description="Image a real two-disk server to a DR box four times, lose it, and boot it there. Takes a minute, "
        "needs no configuration, and leaves nothing behind. The boot needs root.",
    )
    parser.add_argument("--keep", action="store_true", help="keep everything at the end, to look around")
    parser.add_argument("--config", metavar="FILE", help="not used: the demo writes a configuration of its own")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(argv)
    return run_command(PROGRAM, lambda: play(keep=options.keep))
