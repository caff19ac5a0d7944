"""anvil-dr-send on real servers: never torn, off no longer than needed, and running again whatever happens."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import pytest

from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import DemoServer, Report, definition
from anvil_dr.hypervisor import LibvirtHypervisor
from anvil_dr.sending.start_log import StartLog
from tests.doubles.dr_box import DrBox

Reporter = Callable[[str, Callable[[], object]], Report]
STUB = Path(__file__).resolve().parents[2] / "bin" / "anvil-dr-send"
OFF = ("gone", "shut off")
SLOWLY = ("--bandwidth-limit", "1M")


def notes(box: DrBox) -> Path:
    """What stands for /var/lib/anvil-dr-send of the node."""
    return box.store_folder.parent / "node"


def start_send(libvirt: PrivateLibvirt, box: DrBox, *arguments: str) -> subprocess.Popen[str]:
    argv = [str(STUB), "--to", f"unix:{box.config.socket}", "--connect", libvirt.uri, "--state", str(notes(box)),
            "--libvirt-log", str(libvirt.qemu_log), "--json", *arguments, "Web01"]  # fmt: skip
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> Tuple[int, Any]:
    """Its exit code, and what it reports of Web01."""
    out, err = process.communicate(timeout=300)
    assert out, err
    (server,) = json.loads(out)["servers"]
    return process.returncode, server


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@contextmanager
def defined(libvirt: PrivateLibvirt, web: DemoServer, tmp_path: Path) -> Iterator[None]:
    """The server as a persistent domain, the way most nodes have theirs."""
    stored = tmp_path / "web.xml"
    stored.write_text(definition(web))
    libvirt.run("virsh", "-c", libvirt.uri, "define", str(stored))
    try:
        yield
    finally:
        libvirt.run("virsh", "-c", libvirt.uri, "undefine", "Web01")


@pytest.fixture
def box(tmp_path: Path) -> DrBox:
    (tmp_path / "dr").mkdir()
    return DrBox(tmp_path / "dr")


def receiving(box: DrBox) -> bool:
    """True once some of an image's bytes have arrived."""
    return any(path.stat().st_blocks for path in box.store_folder.iterdir())


def images(box: DrBox, web: DemoServer) -> List[bytes]:
    return [box.image(f"Web01_{path.stem}_1") for path in web.disks]


def test_a_running_server_is_refused_and_nothing_has_happened_to_it_or_to_the_box(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, box: DrBox
) -> None:
    hypervisor.boot(definition(web))
    with box.running():
        code, server = ended(start_send(libvirt, box))
    assert (code, server["state"], server["code"]) == (1, "failed", "Source")
    assert "is running, so its image would be torn" in server["error"]
    assert hypervisor.state("Web01") == "running" and box.names() == []


def test_a_server_that_is_off_is_imaged_and_stays_off(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, box: DrBox, tmp_path: Path
) -> None:
    with defined(libvirt, web, tmp_path), box.running():
        code, server = ended(start_send(libvirt, box))
        assert (code, server["state"], server["downtime_seconds"]) == (0, "succeeded", None)
        assert images(box, web) == [path.read_bytes() for path in web.disks]
        assert hypervisor.state("Web01") == "shut off"
    assert (tmp_path / "dr" / "definitions" / "Web01.xml").exists()


def test_a_transient_server_is_shut_down_imaged_at_rest_and_made_again(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, box: DrBox, report: Reporter
) -> None:
    report("Web01", lambda: hypervisor.boot(definition(web)))
    with box.running():
        code, server = ended(start_send(libvirt, box, "--shutdown"))
    assert (code, server["state"], server["error"]) == (0, "succeeded", None)
    assert server["downtime_seconds"] > 0
    (domain,) = hypervisor.active()
    assert (domain.name, domain.state, domain.persistent) == ("Web01", "running", False)
    again = report("Web01", lambda: None)
    assert (again.token, again.checksum, again.boots) == (web.token, web.checksum, 2)
    assert list(notes(box).rglob("Web01.*")) == [], "it runs again, so nothing has to be remembered"
    # What lies on the box is what the server left when it shut down: booted once, file systems clean.
    for source, content in zip(web.disks, images(box, web)):
        source.with_suffix(".image").write_bytes(content)
    hypervisor.destroy("Web01")
    first, second = (path.with_suffix(".image") for path in web.disks)
    copies = DemoServer("Web01", (first, second), web.token, web.checksum)
    there = report("Web01", lambda: hypervisor.boot(definition(copies)))
    assert (there.token, there.checksum, there.boots) == (web.token, web.checksum, 2)


@pytest.mark.parametrize("how", ["service stops", "SIGINT"])  # other signals go the same way (test_send_command.py)
def test_a_server_runs_again_when_its_job_breaks_in_the_middle(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, box: DrBox, report: Reporter,
    tmp_path: Path, how: str,
) -> None:  # fmt: skip
    with defined(libvirt, web, tmp_path):
        report("Web01", lambda: hypervisor.start("Web01"))
        with box.running():
            process = start_send(libvirt, box, "--shutdown", *SLOWLY)
            wait_until(lambda: hypervisor.state("Web01") in OFF and receiving(box))
            if how != "service stops":
                process.send_signal(signal.Signals[how])
                code, server = ended(process)
                assert (code, server["code"]) == (128 + signal.Signals[how], "JobInterrupted")
        if how == "service stops":
            code, server = ended(process)
            assert code == 1
        assert server["state"] == "failed" and server["downtime_seconds"] > 0
        assert report("Web01", lambda: None).boots == 2
        assert all("incomplete" in name for name in box.names())


def test_a_transient_server_whose_sender_was_killed_is_imaged_as_it_lies_and_made_again_by_the_next_run(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, box: DrBox, report: Reporter
) -> None:
    report("Web01", lambda: hypervisor.boot(definition(web)))
    with box.running():
        process = start_send(libvirt, box, "--shutdown", *SLOWLY)
        wait_until(lambda: hypervisor.state("Web01") == "gone" and receiving(box))
        process.kill()
        process.communicate()
        assert hypervisor.state("Web01") == "gone"
        assert "<name>Web01</name>" in (notes(box) / "off" / "Web01.xml").read_text()
        off_at = datetime.fromisoformat(json.loads((notes(box) / "off" / "Web01.json").read_text())["since"])
        starts = StartLog(str(libvirt.qemu_log))
        assert starts.started_since("Web01", off_at) is False, "or it would be left off: it may run elsewhere by now"
        code, server = ended(start_send(libvirt, box))
    assert (code, server["state"]) == (0, "succeeded")
    again = report("Web01", lambda: None)
    assert (again.token, again.boots) == (web.token, 2)
    assert list(notes(box).rglob("Web01.*")) == []
    assert starts.started_since("Web01", off_at) is True


def test_an_image_of_a_server_that_somebody_started_meanwhile_is_given_up(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, box: DrBox, tmp_path: Path
) -> None:
    with defined(libvirt, web, tmp_path), box.running():
        process = start_send(libvirt, box, "--bandwidth-limit", "3M")
        wait_until(lambda: receiving(box))
        hypervisor.start("Web01")
        code, server = ended(process)
        assert (code, server["code"]) == (1, "SourceChanged")
        assert hypervisor.state("Web01") == "running"
        assert all("incomplete" in name for name in box.names())


def test_a_server_that_does_not_shut_down_in_time_is_not_imaged_and_runs_on(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, box: DrBox
) -> None:
    hypervisor.boot(definition(web))  # still in its firmware, which has no ears
    with box.running():
        code, server = ended(start_send(libvirt, box, "--shutdown", "--shutdown-timeout", "1"))
    assert (code, server["code"]) == (1, "NotStarted")
    assert "did not shut down within 1 seconds" in server["error"]
    assert hypervisor.state("Web01") == "running"
