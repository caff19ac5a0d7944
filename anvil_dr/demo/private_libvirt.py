"""A libvirtd of our own, as root, in namespaces of its own: for the demo and for the tests.

It reads and writes nothing of the system's libvirt: its own /run, and bind mounts over /etc/libvirt and
/var/{lib,cache,log}/libvirt that only it sees. Its network is its own too, so a bridge made there is invisible
outside. Every process it starts, QEMU included, dies with it, whatever became of us.

May touch: the directory it is given, and processes in its own namespaces. Needs root.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Optional, Tuple, Type

from anvil_dr import command
from anvil_dr.errors import CommandError, HypervisorError
from anvil_dr.hypervisor import connect
from anvil_dr.ports import Completed

_SOCKET_PATH_BYTES = 107
"""What sockaddr_un holds, without its closing zero (unix(7))."""

_START_SECONDS = 60.0

# No labels: the images are the test's own. No virtlogd here, so QEMU writes its own log
# (stdio_handler). No cgroups and no mount namespace for each QEMU: neither is ours to make in here.
_QEMU_CONF = """\
security_driver = "none"
user = "{user}"
group = "{user}"
dynamic_ownership = {changes_owners}
remember_owner = 0
stdio_handler = "file"
namespaces = [ ]
cgroup_controllers = [ ]
vnc_listen = "127.0.0.1"
"""

_LIBVIRTD_CONF = """\
unix_sock_dir = "{directory}/socket"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_filters = "1:qemu.qemu_process 3:*"
log_outputs = "3:file:{directory}/log/libvirtd.log"
host_uuid = "{host_uuid}"
"""

_PRIVATE = (("etc", "/etc/libvirt"), ("lib", "/var/lib/libvirt"), ("cache", "/var/cache/libvirt"),
            ("log", "/var/log/libvirt"))  # fmt: skip

# Process 1 of the namespace. `wait` reaps whatever is handed to it: libvirt waits for the pid of a QEMU that has
# daemonised to vanish, and a zombie would hold every destroy for 40 seconds. /sys is mounted anew because it shows
# the network namespace of whoever mounted it (sysfs(5)).
_INIT = """\
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/libvirt /run/lock
{binds}
mount -t sysfs sysfs /sys
ip link set lo up
{prepare}
libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirtd.pid >{log} 2>&1 </dev/null &
wait $!
"""


class PrivateLibvirt:
    """`with PrivateLibvirt(directory) as libvirt: connect(libvirt.uri)`.

    `directory` must be short, because the path of the socket in it is limited; it is made if need be, and left behind
    (the logs are in it; what libvirt learnt of QEMU too, which saves a second at the next start).
    `qemu_user` is who QEMU runs as; as another than root it is given its images by libvirt, as on a real host.
    `prepare` is shell run inside, as root, before libvirtd: bridges to make, things to hide.
    Started from a thread, it ends with that thread (PR_SET_PDEATHSIG in prctl(2)).
    """

    def __init__(self, directory: Path, *, prepare: str = "", qemu_user: str = "root") -> None:
        self._directory, self._prepare, self._qemu_user = directory.absolute(), prepare, qemu_user
        self._process: Optional[command.Process] = None
        self._init_pid = 0
        socket = os.fsencode(self._socket)
        if len(socket) > _SOCKET_PATH_BYTES:
            raise HypervisorError(f"{self._socket}: longer than a unix socket's path may be; use a shorter directory")

    @property
    def _socket(self) -> Path:
        return self._directory / "socket" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """What to connect to."""
        return f"qemu+unix:///system?socket={self._socket}"

    @property
    def qemu_log(self) -> Path:
        """The folder of what it calls /var/log/libvirt/qemu."""
        return self._directory / "log" / "qemu"

    def start(self) -> None:
        """Start it and wait until it answers. Raise HypervisorError with its log if it does not."""
        for name, _ in _PRIVATE:
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._directory / "socket", ignore_errors=True)
        (self._directory / "socket").mkdir()
        owners = 0 if self._qemu_user == "root" else 1
        (self._directory / "etc" / "qemu.conf").write_text(
            _QEMU_CONF.format(user=self._qemu_user, changes_owners=owners)
        )
        (self._directory / "etc" / "libvirtd.conf").write_text(
            _LIBVIRTD_CONF.format(directory=self._directory, host_uuid=uuid.uuid4())
        )
        quoted = shlex.quote(str(self._directory))
        script = _INIT.format(
            binds="\n".join(f"mount --bind {quoted}/{name} {place}" for name, place in _PRIVATE),
            prepare=self._prepare,
            log=f"{quoted}/log/libvirtd.out",
        )
        self._process = command.start(
            ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc",
             "--propagation", "private", "--kill-child=SIGKILL", "sh", "-c", script),
            output=self._directory / "log" / "init.out",
        )  # fmt: skip
        try:
            self._wait_until_it_answers(self._process)
        except HypervisorError:
            self.stop()
            raise

    def run(self, *argv: str, timeout_seconds: float = 120.0) -> Completed:
        """Run a command where libvirtd runs: same mounts, same network. Raise CommandError."""
        inside = ("nsenter", "--target", str(self._init_pid), "--mount", "--net", "--pid")
        return command.run((*inside, *argv), timeout_seconds=timeout_seconds)

    def stop(self) -> None:
        """End it and every QEMU in it; when this returns they are gone and their images are free."""
        process, self._process = self._process, None
        if process is None:
            return
        # The kernel ends all the others of the namespace before its process 1 can be waited for
        # (pid_namespaces(7)), and unshare waits for that one. Killing unshare itself would not wait.
        children = _children(process.pid)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        if not children:
            process.kill()  # it was just about to begin, or has ended
        try:
            process.wait(10)
        except CommandError:
            process.kill()

    def log(self) -> str:
        """What libvirtd and its starter have said so far."""
        said = [self._directory / "log" / name for name in ("init.out", "libvirtd.out", "libvirtd.log")]
        return "".join(path.read_text(errors="replace") for path in said if path.exists())

    def __enter__(self) -> PrivateLibvirt:
        self.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.stop()

    def _wait_until_it_answers(self, process: command.Process) -> None:
        end = time.monotonic() + _START_SECONDS
        while True:
            if process.exit_code() is not None:
                raise HypervisorError(f"the private libvirtd did not start: {self.log().strip()}")
            if self._socket.exists():
                try:
                    connect(self.uri).close()
                    break
                except HypervisorError:
                    if time.monotonic() > end:
                        raise
            elif time.monotonic() > end:
                raise HypervisorError(f"the private libvirtd did not answer in time: {self.log().strip()}")
            time.sleep(0.02)
        (self._init_pid,) = _children(process.pid)


def _children(pid: int) -> Tuple[int, ...]:
    try:
        return tuple(int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return ()
