"""The hypervisor's adapter against a real libvirt and real guests."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Callable

import pytest

from anvil_dr import command
from anvil_dr.demo import server as demo_server
from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import DemoServer, Report, definition
from anvil_dr.errors import HypervisorError
from anvil_dr.hypervisor import LibvirtHypervisor, connect
from anvil_dr.ports import Platform

Reporter = Callable[[str, Callable[[], object]], Report]


def defined(libvirt: PrivateLibvirt) -> bytes:
    return libvirt.run("virsh", "-q", "-c", libvirt.uri, "list", "--all", "--persistent").stdout.strip()


def test_a_guest_boots_transient_and_reads_what_is_on_its_disks(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, report: Reporter
) -> None:
    said = report("Web01", lambda: hypervisor.boot(definition(web)))
    assert (said.token, said.checksum, said.boots) == (web.token, web.checksum, 1)
    (domain,) = hypervisor.active()
    assert (domain.name, domain.state, domain.persistent) == ("Web01", "running", False)
    assert domain.disk_paths == tuple(str(path) for path in web.disks)
    assert defined(libvirt) == b""
    hypervisor.destroy("Web01")
    assert hypervisor.state("Web01") == "gone"


def test_a_guest_that_was_shut_down_boots_again_from_its_kept_definition_and_finds_changed_disks(
    hypervisor: LibvirtHypervisor, web: DemoServer, report: Reporter
) -> None:
    report("Web01", lambda: hypervisor.boot(definition(web)))
    kept = hypervisor.definition("Web01")
    hypervisor.shutdown("Web01", timeout_seconds=60)
    assert hypervisor.state("Web01") == "gone"
    changed = demo_server.change(web)
    said = report("Web01", lambda: hypervisor.boot(kept))
    assert (said.token, said.checksum) == (changed.token, changed.checksum)
    assert said.boots == 2
    assert changed.token != web.token


def test_a_guest_with_an_agent_is_shut_down_through_it(
    hypervisor: LibvirtHypervisor, tmp_path: Path, report: Reporter, caplog: pytest.LogCaptureFixture
) -> None:
    with_agent = demo_server.build(tmp_path, "Mail01", agent=True)
    report("Mail01", lambda: hypervisor.boot(definition(with_agent)))
    end = time.monotonic() + 60
    while not hypervisor.agent_answers("Mail01", timeout_seconds=5) and time.monotonic() < end:
        time.sleep(0.1)
    assert hypervisor.agent_answers("Mail01", timeout_seconds=5)
    with caplog.at_level(logging.INFO):
        hypervisor.shutdown("Mail01", timeout_seconds=60)
    assert hypervisor.state("Mail01") == "gone"
    assert [record.getMessage() for record in caplog.records if "asked" in record.getMessage()] == [
        "shutdown asked server=Mail01 by=agent"
    ]


def test_a_guest_without_an_agent_does_not_answer_for_it(hypervisor: LibvirtHypervisor, web: DemoServer) -> None:
    hypervisor.boot(definition(web))
    assert not hypervisor.agent_answers("Web01", timeout_seconds=1)


def test_a_guest_that_does_not_listen_fails_the_shutdown_and_runs_on(
    hypervisor: LibvirtHypervisor, web: DemoServer
) -> None:
    hypervisor.boot(definition(web))  # still in its firmware, which has no ears
    with pytest.raises(HypervisorError, match="Web01 did not shut down within 0.2 seconds"):
        hypervisor.shutdown("Web01", timeout_seconds=0.2)
    assert hypervisor.state("Web01") == "running"


def test_a_paused_guest_must_run_before_it_can_be_shut_down(hypervisor: LibvirtHypervisor, web: DemoServer) -> None:
    hypervisor.boot(definition(web), paused=True)
    with pytest.raises(HypervisorError, match="virsh resume Web01"):
        hypervisor.shutdown("Web01", timeout_seconds=1)
    hypervisor.resume("Web01")
    assert hypervisor.state("Web01") == "running"


def test_a_persistent_server_gives_its_stored_definition_and_is_off_after_its_shutdown(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, tmp_path: Path, report: Reporter
) -> None:
    stored = tmp_path / "web.xml"
    stored.write_text(definition(web).replace("<graphics type='vnc'", "<graphics type='vnc' passwd='s3cret'"))
    libvirt.run("virsh", "-c", libvirt.uri, "define", str(stored))
    try:
        report("Web01", lambda: hypervisor.start("Web01"))
        text = hypervisor.definition("Web01")
        assert "passwd='s3cret'" in text
        assert "<alias" not in text
        hypervisor.shutdown("Web01", timeout_seconds=60)
        assert hypervisor.state("Web01") == "shut off"
        assert hypervisor.active() == ()
        hypervisor.destroy("Web01")
    finally:
        libvirt.run("virsh", "-c", libvirt.uri, "undefine", "Web01")


def test_an_overlay_shows_the_image_under_it_as_in_use(
    hypervisor: LibvirtHypervisor, web: DemoServer, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.qcow2"
    command.run(("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(web.disks[0]), str(overlay)))
    text = definition(web).replace(str(web.disks[0]), str(overlay)).replace("type='raw'", "type='qcow2'", 1)
    hypervisor.boot(text, paused=True)
    (domain,) = hypervisor.active()
    assert {str(overlay), str(web.disks[0])} <= set(domain.disk_paths)


def test_a_name_that_is_taken_is_refused_with_libvirts_words(hypervisor: LibvirtHypervisor, web: DemoServer) -> None:
    hypervisor.boot(definition(web), paused=True)
    with pytest.raises(HypervisorError, match="already active") as refusal:
        hypervisor.boot(definition(web))
    assert refusal.value.libvirt_code == 55


def test_a_rehearsal_ends_with_the_connection_that_made_it(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer
) -> None:
    with connect(libvirt.uri) as other:
        other.boot(definition(web), paused=True, autodestroy=True)
        assert hypervisor.state("Web01") == "paused"
    while hypervisor.state("Web01") != "gone":
        pass


def test_text_that_never_comes_is_an_error_with_what_came_instead(
    hypervisor: LibvirtHypervisor, web: DemoServer, report: Reporter
) -> None:
    report("Web01", lambda: hypervisor.boot(definition(web)))
    with pytest.raises(HypervisorError, match="'no such word'.*nothing came within 3 seconds; last: .*DR-READY"):
        hypervisor.console_text("Web01", "no such word", timeout_seconds=3)


def test_a_guest_that_ends_does_not_keep_the_reader_of_its_console_waiting(
    libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, web: DemoServer, report: Reporter
) -> None:
    report("Web01", lambda: hypervisor.boot(definition(web)))
    libvirt.run("virsh", "-c", libvirt.uri, "shutdown", "Web01", "--mode", "acpi")
    with pytest.raises(HypervisorError, match="console of Web01"):
        hypervisor.console_text("Web01", "no such word", timeout_seconds=60)
    assert hypervisor.state("Web01") == "gone"


def test_what_a_host_can_run_is_known_before_anything_boots(hypervisor: LibvirtHypervisor) -> None:
    found = hypervisor.capabilities(Platform("qemu", "x86_64", "q35"))
    assert found.machine.startswith("pc-q35-")
    assert "qemu64" in found.usable_cpu_models
    with pytest.raises(HypervisorError, match="pc-q35-rhel9.4.0"):
        hypervisor.capabilities(Platform("qemu", "x86_64", "pc-q35-rhel9.4.0"))
    with pytest.raises(HypervisorError, match="qemu-kvm"):
        hypervisor.capabilities(Platform("qemu", "x86_64", emulator="/usr/libexec/qemu-kvm"))


def test_cpu_features_that_are_missing_are_named(hypervisor: LibvirtHypervisor) -> None:
    emulated = Platform("qemu", "x86_64", "q35", "/usr/bin/qemu-system-x86_64")
    modern = "<cpu mode='custom' match='exact'><model fallback='forbid'>EPYC-Milan</model></cpu>"
    assert "pcid" in hypervisor.cpu_problem(modern, emulated)
    plain = "<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>"
    assert hypervisor.cpu_problem(plain, emulated) == ""


def test_a_dry_run_names_what_the_host_lacks_and_starts_nothing(hypervisor: LibvirtHypervisor, web: DemoServer) -> None:
    hypervisor.dry_run(definition(web))
    with pytest.raises(HypervisorError, match="pc-q35-rhel9.4.0"):
        hypervisor.dry_run(definition(web).replace("'q35'", "'pc-q35-rhel9.4.0'"))
    assert hypervisor.active() == ()


def test_the_host_has_memory_and_processors(hypervisor: LibvirtHypervisor) -> None:
    host = hypervisor.host()
    assert host.cpus == os.cpu_count()
    assert host.available_bytes is not None
    assert 0 < host.available_bytes <= host.memory_bytes


def test_a_libvirtd_that_is_not_running_is_an_error_that_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="systemctl start libvirtd"):
        connect(f"qemu+unix:///system?socket={tmp_path}/none")
