"""The last act of the demo: the newest set is booted, and the server itself says what it has on its disks.

Touches a libvirtd of its own, below the stage's folder.
"""

from __future__ import annotations

from typing import Final

from anvil_dr.demo.private_libvirt import PrivateLibvirt
from anvil_dr.demo.server import READY, Report, read_report
from anvil_dr.demo.stage import Stage
from anvil_dr.errors import CommandError, HypervisorError
from anvil_dr.hypervisor import LibvirtHypervisor, connect

_CONSOLE_SECONDS: Final = 180.0
_TRIES: Final = 2
"""Emulation without KVM crashes once in some hundred boots."""


def boot(stage: Stage, config: str, server: str) -> Report:
    """Boot it and listen to its console. Raise AnvilDrError if it does not come up."""
    tell = stage.narrator
    libvirt = PrivateLibvirt(stage.folder / "libvirt")
    with stage.until_the_end() as undo:
        undo.callback(libvirt.stop)
    tell.say(
        "This libvirtd is the demo's own, in namespaces of its own: the one of this machine, if there is one, never "
        "hears of it. It knows no server:"
    )
    libvirt.start()
    tell.typed(f"uri='{libvirt.uri}'")
    _virsh(stage, libvirt, "list", "--all")
    with connect(libvirt.uri) as hypervisor:
        for attempt in range(1, _TRIES + 1):
            try:
                report = _boot_once(stage, libvirt, hypervisor, config, server)
                break
            except (CommandError, HypervisorError):
                if attempt == _TRIES or hypervisor.state(server) not in ("gone", "crashed"):
                    raise
            tell.say("QEMU has crashed. Without KVM it does, once in some hundred boots: again.")
    tell.gap()
    tell.say(
        f"{server} runs, and is still not defined: should this host restart, libvirt will not start it a second time "
        "behind the admin's back, when the original may be running again."
    )
    _virsh(stage, libvirt, "list", "--all", "--persistent")
    return report


def _virsh(stage: Stage, libvirt: PrivateLibvirt, *arguments: str) -> None:
    """Show what virsh says."""
    stage.narrator.typed(f'virsh -c "$uri" {" ".join(arguments)}')
    # On a terminal it asks polkit for an agent first, and complains if there is none.
    stage.narrator.shown(stage.ask("setsid", "--wait", "virsh", "-c", libvirt.uri, *arguments).decode().strip("\n"))


def _boot_once(
    stage: Stage, libvirt: PrivateLibvirt, hypervisor: LibvirtHypervisor, config: str, server: str
) -> Report:
    tell = stage.narrator
    line = f'anvil-activate-dr --config {config} --connect "$uri" --yes'
    stage.run("anvil-activate-dr", "--config", config, "--connect", libvirt.uri, "--yes", shown=line)
    tell.gap()
    tell.say("Every second the server says what it has read from its two disks:")
    tell.typed(f'virsh -c "$uri" console {server}')
    said = hypervisor.console_text(server, " end", timeout_seconds=_CONSOLE_SECONDS)
    tell.shown(said[said.rindex(READY) :])
    report = read_report(said)
    if report is None:
        raise HypervisorError(f"the console of {server} said something else: {said}")
    return report
