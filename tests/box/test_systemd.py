"""The units under a real systemd: activated by the socket, notified, restarted, stopped in the middle of a job."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from anvil_dr import config
from anvil_dr.errors import AnvilDrError, ServiceError
from anvil_dr.status.inquiry import running_jobs
from tests.doubles.dr_box import DrBox, Node, Quiet

pytestmark = pytest.mark.in_guest(drives=("600M",), systemd=True)

ROOT = Path(__file__).resolve().parents[2]
SOCKET = "/run/anvil-dr/target.sock"
SERVICE = "anvil-dr-target.service"


def systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def shown(name: str) -> str:
    return systemctl("show", "--property", name, "--value", SERVICE)


def wait_until(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            log = subprocess.run(["journalctl", "-u", "anvil-dr-target", "--no-pager"], capture_output=True, text=True)
            pytest.fail(f"waited in vain; the journal says:\n{log.stdout}")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """What the README's steps leave on a machine."""
    subprocess.run(["groupadd", "-f", "--system", "anvil-dr"], check=True)
    for left in ("/etc/anvil-dr", "/srv/dr", "/var/lib/anvil-dr", "/shared/definitions"):
        shutil.rmtree(left, ignore_errors=True)  # of a host that is a DR box itself; the guest sees its root
    for command in (ROOT / "bin").iterdir():
        link = Path("/usr/local/sbin", command.name)
        link.unlink(missing_ok=True)
        link.symlink_to(command)
    for unit in (ROOT / "systemd").iterdir():
        shutil.copy(unit, "/etc/systemd/system")
    store = Path("/srv/dr")
    store.mkdir(parents=True)
    subprocess.run(["mkfs.ext4", "-q", "/dev/ubda"], check=True)
    subprocess.run(["mount", "/dev/ubda", str(store)], check=True)
    Path("/etc/anvil-dr").mkdir()
    Path("/etc/anvil-dr/target.yaml").write_text(f"name: dr01\nstore: fs:{store}\ncopies: 2\n")
    systemctl("daemon-reload")
    systemctl("start", "anvil-dr-target.socket")
    yield store


class Box(DrBox):
    """The installed service instead of one in this process."""

    def __init__(self, store: Path) -> None:
        self.folder = self.store_folder = store
        self.config = config.load()

    def names(self) -> List[str]:
        return sorted(path.name for path in self.store_folder.glob("*.raw"))


def test_the_first_job_starts_the_service_through_its_socket(installed: Path, tmp_path: Path) -> None:
    assert shown("ActiveState") == "inactive"
    web = Node(tmp_path / "node", disks={"Web01_0": random.Random(1).randbytes(1 << 20)})
    assert Box(installed).send(web.outgoing()).succeeded
    assert shown("ActiveState") == "active"
    assert "Ready" in shown("StatusText")
    assert shown("TimeoutStartUSec") == "infinity", "what was begun may take minutes to finish"
    assert Box(installed).image("Web01_Web01_0_1") == web.disks["Web01_0"]
    assert Path("/shared/definitions/Web01.xml").exists()
    assert oct(Path(SOCKET).stat().st_mode)[-3:] == "660" and Path(SOCKET).group() == "anvil-dr"
    journal = subprocess.run(
        ["journalctl", "-u", "anvil-dr-target", "-o", "cat", "--no-pager"], capture_output=True, text=True
    ).stdout
    assert "set complete server=Web01 sequence=1" in journal


def test_after_a_job_the_service_looks_whether_the_servers_could_be_booted(installed: Path) -> None:
    """Behind its filters too. There is no libvirtd in this guest, which is what it has to find."""
    wait_until(Path("/var/lib/anvil-dr/check.json").exists)
    assert "libvirtd is not running" in json.loads(Path("/var/lib/anvil-dr/check.json").read_text())["problem"]
    assert "virsh create /shared/definitions/Web01.xml" in Path("/shared/definitions/RUNBOOK.txt").read_text()


def test_the_filter_of_system_calls_is_in_force(installed: Path) -> None:
    pid = shown("MainPID")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status


def test_it_comes_back_after_it_was_killed(installed: Path, tmp_path: Path) -> None:
    before = shown("MainPID")
    systemctl("kill", "--signal=KILL", SERVICE)
    wait_until(lambda: shown("MainPID") not in ("0", before) and shown("ActiveState") == "active")
    web = Node(tmp_path / "node", disks={"Web01_0": random.Random(2).randbytes(1 << 20)})
    assert Box(installed).send(web.outgoing()).succeeded


def test_a_stop_in_the_middle_of_a_job_is_clean_and_the_next_job_goes_on(installed: Path, tmp_path: Path) -> None:
    box, web = Box(installed), Node(tmp_path / "node", "Db01", disks={"Db01_0": random.Random(3).randbytes(60 << 20)})
    arrived = threading.Event()
    web.outgoing()

    def send() -> None:
        with suppress(AnvilDrError):
            box.send(web.outgoing(), observer=Quiet(when_advanced=slowly))

    def slowly() -> None:
        arrived.set()
        time.sleep(1)

    sender = threading.Thread(target=send)
    sender.start()
    assert arrived.wait(60)
    assert [job.servers for job in running_jobs(SOCKET)] == [("Db01",)]
    systemctl("stop", SERVICE, "anvil-dr-target.socket")
    sender.join(60)
    assert shown("Result") == "success", "it ended by itself, in time"
    assert "Db01_Db01_0_incomplete.raw" in box.names() and "Db01_Db01_0_1.raw" not in box.names()
    with pytest.raises(ServiceError):
        running_jobs(SOCKET)
    systemctl("start", "anvil-dr-target.socket")
    assert box.send(web.outgoing()).succeeded
    assert "Db01_Db01_0_1.raw" in box.names()


def test_the_status_command_tells_it_all(installed: Path) -> None:
    printed = subprocess.run(["/usr/local/sbin/anvil-dr-status", "--json"], check=True, capture_output=True, text=True)
    status = json.loads(printed.stdout)
    assert {server["name"] for server in status["servers"]} == {"Db01", "Web01"}
    assert all(server["last_job"]["state"] == "succeeded" for server in status["servers"])


def test_a_configuration_that_cannot_be_used_is_named(installed: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"name: dr01\nstore: fs:{installed}\ncopys: 2\n")
    done = subprocess.run(
        ["/usr/local/sbin/anvil-dr-target", "--config", str(bad), "--check-config"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "copys" in done.stderr and ":3:" in done.stderr and "Traceback" not in done.stderr


def killed_in_a_job(store: Path, folder: Path, kill: Callable[[], object]) -> None:
    """A job of Mail01, whose service does not live to its end; systemd starts it again, and the next job goes on."""
    box, mail = Box(store), Node(folder / "node", "Mail01", disks={"Mail01_0": random.Random(4).randbytes(60 << 20)})
    before, struck = shown("MainPID"), threading.Event()

    def strike() -> None:
        if not struck.is_set():
            struck.set()
            kill()

    with pytest.raises(AnvilDrError):
        box.send(mail.outgoing(), observer=Quiet(when_advanced=strike))
    wait_until(lambda: shown("MainPID") not in ("0", before) and shown("ActiveState") == "active")
    assert "Mail01_Mail01_0_incomplete.raw" in box.names()
    outcome = box.send(mail.outgoing())
    assert outcome.succeeded and box.image("Mail01_Mail01_0_1") == mail.disks["Mail01_0"]
    done = outcome.servers[0].done
    assert done is not None and done.written_bytes < len(mail.disks["Mail01_0"]), "what had arrived is not sent again"
    for path in store.glob("Mail01_*.raw"):
        path.unlink()


def test_killed_in_the_middle_of_a_job_it_comes_back_and_the_next_job_goes_on(installed: Path, tmp_path: Path) -> None:
    running_jobs(SOCKET)
    killed_in_a_job(installed, tmp_path, lambda: systemctl("kill", "--signal=KILL", SERVICE))


def test_out_of_memory_it_comes_back_and_the_next_job_goes_on(installed: Path, tmp_path: Path) -> None:
    """A limit below what it uses: the kernel has to kill it."""

    def starve() -> None:
        systemctl("set-property", "--runtime", SERVICE, "MemoryMax=1M", "MemorySwapMax=0")
        # Not before the kernel has done it: what takes the limit away again would save the process.
        wait_until(lambda: shown("Result") == "oom-kill" or shown("MainPID") == "0")
        systemctl("set-property", "--runtime", SERVICE, "MemoryMax=infinity")

    running_jobs(SOCKET)
    killed_in_a_job(installed, tmp_path, starve)
    journal = subprocess.run(["journalctl", "-u", "anvil-dr-target", "-o", "cat", "--no-pager"], capture_output=True)
    assert b"killed by the OOM killer" in journal.stdout or b"oom-kill" in journal.stdout


def test_a_second_service_on_the_same_state_refuses_and_names_the_first(installed: Path) -> None:
    running_jobs(SOCKET)
    done = subprocess.run(["/usr/local/sbin/anvil-dr-target"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"another anvil-dr-target is at work on /var/lib/anvil-dr: pid {shown('MainPID')}" in done.stderr


def test_a_runtime_where_systemd_does_not_listen_is_refused_until_it_does(installed: Path, tmp_path: Path) -> None:
    file, drop_in = Path("/etc/anvil-dr/target.yaml"), Path("/etc/systemd/system/anvil-dr-target.socket.d/place.conf")
    before = file.read_text()
    file.write_text(f"{before}runtime: /run/elsewhere\n")
    systemctl("stop", SERVICE)
    try:
        checked = subprocess.run(
            ["/usr/local/sbin/anvil-dr-target", "--check-config"], check=True, capture_output=True, text=True
        ).stdout
        assert f"careful: systemd listens on {SOCKET}, and nodes are led to /run/elsewhere/target.sock" in checked
        assert subprocess.run(["systemctl", "start", SERVICE], capture_output=True).returncode
        systemctl("stop", SERVICE)
        drop_in.parent.mkdir()
        drop_in.write_text("[Socket]\nListenStream=\nListenStream=/run/elsewhere/target.sock\n")
        systemctl("daemon-reload")
        systemctl("restart", "anvil-dr-target.socket")
        web = Node(tmp_path / "node", disks={"Web01_0": random.Random(6).randbytes(1 << 20)})
        assert Box(installed).send(web.outgoing()).succeeded
    finally:
        file.write_text(before)
        shutil.rmtree(drop_in.parent, ignore_errors=True)
        systemctl("stop", SERVICE)
        systemctl("daemon-reload")
        systemctl("restart", "anvil-dr-target.socket")


def test_the_timer_s_verification_names_a_rotten_image_and_the_next_job_heals_it(
    installed: Path, tmp_path: Path
) -> None:
    box, web = Box(installed), Node(tmp_path / "node", disks={"Web01_0": random.Random(5).randbytes(1 << 20)})
    assert box.send(web.outgoing()).succeeded
    assert "anvil-dr-verify.service" in systemctl("show", "--property", "Triggers", "anvil-dr-verify.timer")
    systemctl("start", "anvil-dr-verify.timer")
    systemctl("start", "anvil-dr-verify.service")
    with (installed / "Web01_Web01_0_1.raw").open("r+b") as image:
        image.seek(5000)
        image.write(b"rot")
    for _ in range(4):  # a quarter each time
        subprocess.run(["systemctl", "start", "anvil-dr-verify.service"], capture_output=True)
    assert systemctl("show", "--property", "Result", "--value", "anvil-dr-verify.service") == "exit-code"
    said = subprocess.run(["/usr/local/sbin/anvil-dr-status"], capture_output=True, text=True).stdout
    assert "set 1 is rotten: disk Web01_0" in said, said
    assert box.send(web.outgoing()).succeeded and box.send(web.outgoing()).succeeded
    done = subprocess.run(["/usr/local/sbin/anvil-dr-verify", "Web01", "--no-progress"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
