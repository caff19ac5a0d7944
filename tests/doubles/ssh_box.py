"""A DR box behind a real sshd on loopback: the service as its command, keys with a forced command, all in one folder.

Runs as whoever runs the tests; as root it makes /run/sshd, without which Debian's sshd does not start.
"""

from __future__ import annotations

import getpass
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
_PRIVILEGE_SEPARATION = Path("/run/sshd")

_SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
# The folder is below /tmp, and the account is whoever runs the tests.
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""

_SSH_CONFIG = """\
Host *
    IdentityFile {folder}/{key}
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
"""

# anvil-dr-send, whose ssh also gets a configuration: only that of the account's own home would be read.
_SEND = """\
import sys
from anvil_dr import command
spawn, ssh_config = command.spawn, sys.argv.pop(1)
command.spawn = lambda argv: spawn((argv[0], "-F", ssh_config, *argv[1:]))
from anvil_dr.cli import send
sys.exit(send.main())
"""


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class SshBox:
    """Keys are made by name; one without options may run anything, as an admin's."""

    def __init__(self, folder: Path) -> None:
        for program in ("/usr/sbin/sshd", "/usr/bin/ssh"):
            if not os.access(program, os.X_OK):
                pytest.skip(f"there is no {program}; run: setup/prepare ssh")
        self.folder, self.store, self.port = folder, folder / "store", _free_port()
        self.store.mkdir()
        self.config = folder / "target.yaml"
        self.config.write_text(
            f"name: dr01\nstore: fs:{self.store}\ndefinitions: {folder}/definitions\nstate: {folder}/state\n"
            f"runtime: {folder}/run\nuse_cache: false\n"
        )
        self.service_log = folder / "service.log"
        self._make_key("host_key")
        host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}\n")
        (folder / "sshd_config").write_text(_SSHD_CONFIG.format(port=self.port, folder=folder))
        (folder / "authorized_keys").touch(mode=0o600)

    def _make_key(self, name: str) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)

    def add_key(self, name: str, *, allow: Sequence[str] = (), options: str = "restrict,") -> None:
        """A node's key, as the README says that it is to be installed."""
        self._make_key(name)
        allowed = "".join(f" --allow '{pattern}'" for pattern in allow)
        command = f"{ROOT}/bin/anvil-dr-receive --config {self.config}{allowed}"
        with (self.folder / "authorized_keys").open("a") as file:
            file.write(f'{options}command="{command}" {(self.folder / f"{name}.pub").read_text()}')
        (self.folder / f"ssh_{name}").write_text(_SSH_CONFIG.format(folder=self.folder, key=name))

    # — the box —

    @contextmanager
    def listening(self) -> Iterator[None]:
        """sshd is there."""
        if os.geteuid() == 0:
            _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        with (self.folder / "sshd.log").open("wb") as log:
            sshd = subprocess.Popen(
                ["/usr/sbin/sshd", "-D", "-e", "-f", self.folder / "sshd_config"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            wait_for(lambda: self._answers() or sshd.poll() is not None, "sshd does not answer")
            assert sshd.poll() is None, (self.folder / "sshd.log").read_text()
            yield
        finally:
            sshd.terminate()
            sshd.wait()

    def _answers(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        """The service is there; its log goes on in `service_log`."""
        already = self._times_serving()
        with self.service_log.open("ab") as log:
            service = subprocess.Popen(
                [ROOT / "bin" / "anvil-dr-target", "--config", self.config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "LISTEN_FDS")},
            )  # fmt: skip
        try:
            wait_for(
                lambda: self._times_serving() > already or service.poll() is not None, "the service does not come up"
            )
            assert service.poll() is None, self.service_log.read_text()
            yield service
        finally:
            service.terminate()
            service.wait()

    def _times_serving(self) -> int:
        return self.log().count(" serving ")

    def log(self) -> str:
        return self.service_log.read_text() if self.service_log.exists() else ""

    def logged(self, pattern: str) -> bool:
        return re.search(pattern, self.log()) is not None

    def images(self) -> List[str]:
        return sorted(path.name for path in self.store.iterdir())

    def image(self, name: str) -> bytes:
        return (self.store / f"{name}.raw").read_bytes()

    # — a node —

    @property
    def destination(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    def ssh(self, key: str, *arguments: str) -> Tuple[str, ...]:
        """The ssh of a node, or of whoever has stolen its key."""
        return ("ssh", "-F", str(self.folder / f"ssh_{key}"), "-p", str(self.port), *arguments)

    def sending(self, key: str, job: Path, *options: str) -> subprocess.Popen[str]:
        """anvil-dr-send at work."""
        return subprocess.Popen(
            [sys.executable, "-c", _SEND, self.folder / f"ssh_{key}", "--to", self.destination, "--job", job,
             "--no-progress", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def send(self, key: str, job: Path, *options: str) -> subprocess.CompletedProcess[str]:
        with self.sending(key, job, *options) as process:
            try:
                out, errors = process.communicate()
            except BaseException:
                process.kill()  # else the end of this block waits for it
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def write_job(folder: Path, servers: Mapping[str, Mapping[str, bytes]]) -> Path:
    """A job file; `servers` are the bytes of their disks."""
    folder.mkdir(exist_ok=True)
    lines = ["name: nightly", "servers:"]
    for server, disks in servers.items():
        rows = []
        lines += [f"  - name: {server}", f"    definition: {server}.xml", "    disks:"]
        for number, (disk, content) in enumerate(disks.items()):
            path = folder / f"{disk}.img"
            path.write_bytes(content)
            lines.append(f"      - {{name: {disk}, path: {path}}}")
            rows.append(
                f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>"
                f"<target dev='vd{chr(97 + number)}' bus='virtio'/></disk>"
            )
        (folder / f"{server}.xml").write_text(
            f"<domain type='qemu'><name>{server}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><devices>{''.join(rows)}</devices></domain>"
        )
    job = folder / "job.yaml"
    job.write_text("\n".join(lines) + "\n")
    return job


def children_of(pid: int) -> Dict[int, str]:
    """The processes below one, with their command lines."""
    found: Dict[int, str] = {}
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    for child in map(int, listed):
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        found.update(children_of(child))
    return found


def kill_child(pid: int, pattern: str, number: int = signal.SIGKILL) -> None:
    """End the one process below `pid` whose command line begins so."""
    found: List[Optional[int]] = [child for child, line in children_of(pid).items() if re.match(pattern, line)]
    assert len(found) == 1, f"{len(found)} processes look like {pattern}: {children_of(pid)}"
    assert found[0] is not None
    os.kill(found[0], number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
