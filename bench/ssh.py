"""An sshd of the bench's own on loopback, with keys of its own; nothing of the account's ~/.ssh is used.

Touches its folder, a free port, and makes /run/sshd if it is missing (sshd(8), privilege separation).
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path
from typing import IO, Tuple

from bench.measure import Server

PUSH = "push"
"""The host alias whose key is good for our receiver alone, as in the README; `shell` is for the others."""
SHELL = "shell"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Sshd:
    """Runs until `stop`."""

    def __init__(self, folder: Path, receive: str, log: IO[str]) -> None:
        self._folder = folder
        folder.mkdir()
        self.port = free_port()
        for name in ("host", PUSH, SHELL):
            self._keygen(name)
        forced = f'restrict,command="{receive}" {(folder / f"{PUSH}.pub").read_text()}'
        (folder / "authorized_keys").write_text(forced + (folder / f"{SHELL}.pub").read_text())
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile {folder / 'pid'}\n"
            f"AuthorizedKeysFile {folder / 'authorized_keys'}\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\nUseDNS no\n"
        )
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        # sshd(8): it must be started by its absolute path, to be able to start itself again.
        program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "/usr/sbin/sshd"
        self._server = Server([program, "-D", "-e", "-f", str(folder / "sshd_config")], log)
        self._server.wait_for(folder / "pid")

    @property
    def pid(self) -> int:
        return self._server.pid

    def client(self, port: int) -> Path:
        """A client's configuration (ssh -F) that reaches this sshd by `port`: its own, or that of a link to it."""
        path = self._folder / f"client-{port}"
        common = (
            f"  HostName 127.0.0.1\n  Port {port}\n  User {pwd.getpwuid(os.geteuid()).pw_name}\n"
            "  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        path.write_text(
            "".join(f"Host {name}\n  IdentityFile {self._folder / name}\n{common}" for name in (PUSH, SHELL))
        )
        return path

    def stop(self) -> None:
        self._server.stop()

    def _keygen(self, name: str) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name)], check=True)


def packages() -> Tuple[str, ...]:
    """What must be installed for this."""
    return ("openssh-server", "openssh-client")
