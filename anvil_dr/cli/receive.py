"""`anvil-dr-receive`: what a node's ssh key runs on the DR box. Hands its pipe ends to the service and waits.

Touches the service's socket, and looks at the environment that sshd made.
"""

from __future__ import annotations

import os
from typing import Optional, Sequence

from anvil_dr import config, relay
from anvil_dr.cli import run_command
from anvil_dr.cli.parser import Parser, add_common_options

PROGRAM = "anvil-dr-receive"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = Parser(
        prog=PROGRAM,
        description="Receive servers' images from a node. Meant as the only command of the node's ssh key.",
        epilog=f'In authorized_keys: restrict,command="{PROGRAM} --allow \'Web*\'" ssh-ed25519 AAAA... node1',
    )
    add_common_options(parser)
    parser.add_argument(
        "--allow",
        action="append",
        metavar="PATTERN",
        help="a server, or a pattern of servers, that this key may send; may be given more than once; default: all",
    )
    options = parser.parse_args(argv)
    return run_command(PROGRAM, lambda: _receive(options.config, tuple(options.allow or ("*",))))


def _receive(config_path: str, allowed: Sequence[str]) -> int:
    settings = config.load(config_path)
    # sshd(8), ENVIRONMENT: client address, client port, server address, server port.
    address = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    introduction = relay.Introduction(address or "a local user", tuple(allowed))
    return 0 if relay.hand_over(settings.socket, introduction, 0, 1) else 1
