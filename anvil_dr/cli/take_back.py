"""`anvil-dr-take-back`: run on a node by `anvil-dr-export`, through ssh: a server's disks come back from the DR box.

Speaks on its standard input and output. Touches the disks and the firmware state of that one server, which must be
off. Exit codes: 0 it is back, 1 it isn't, 2 usage.
"""

from __future__ import annotations

import argparse
import os
from typing import Callable, Dict, Mapping, Optional, Sequence

from anvil_dr import definition, durable, firmware_files
from anvil_dr.activation import boot_firmware
from anvil_dr.cli import run_command
from anvil_dr.cli.parser import Parser, add_common_options
from anvil_dr.definition import Requirements
from anvil_dr.errors import DefinitionError, HypervisorError, SourceError, StateError, UsageError
from anvil_dr.failback.half_back import HalfBack
from anvil_dr.failback.take_back import Home, TakeBack
from anvil_dr.sending import job_file, off_notes, off_rules
from anvil_dr.sending.off_notes import OffNotes
from anvil_dr.wire.channel import Channel
from anvil_dr.wire.limits import Limits

PROGRAM = "anvil-dr-take-back"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = Parser(
        prog=PROGRAM,
        description="Write a server's disks on this node from what the DR box sends. Started by anvil-dr-export.",
        epilog=f'To allow nothing else to the DR box\'s key, in authorized_keys: restrict,command="{PROGRAM} Web01"',
    )
    add_common_options(parser)
    parser.add_argument("server", metavar="SERVER", help="its disks are written over")
    parser.add_argument("--job", metavar="FILE", help="a job file that says where its disks are, instead of libvirt")
    parser.add_argument("--connect", metavar="URI", default="qemu:///system", help="libvirt (default: %(default)s)")
    parser.add_argument(
        "--state", metavar="DIR", default=off_notes.FOLDER,
        help="where it is noted that disks are not whole yet (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    return run_command(PROGRAM, lambda: _take_back(options))


def _take_back(options: argparse.Namespace) -> int:
    server, half_back = options.server, HalfBack(options.state)

    def check_not_imaged() -> None:
        left = OffNotes(options.state).of(server)
        if left is not None and left.held:
            raise SourceError(off_rules.held_by_another(server))

    if options.job:
        home = _from_job_file(server, options.job, check_not_imaged, half_back)
    else:
        home = _from_libvirt(server, options.connect, check_not_imaged, half_back)
    limits = Limits()
    channel = Channel(os.dup(0), os.dup(1), silence_seconds=limits.silence_seconds)
    # Whatever else says something must not say it into the conversation.
    os.dup2(2, 1)
    try:
        return 0 if TakeBack(home, channel, os.uname().nodename, limits).run() else 1
    finally:
        channel.close()


def _from_job_file(server: str, path: str, check_not_imaged: Callable[[], None], half_back: HalfBack) -> Home:
    entry = next((one for one in job_file.load(path).servers if one.name == server), None)
    if entry is None:
        raise UsageError(f"{path} has no server {server}")
    paths = {disk.name: disk.path if disk.image is None else disk.image for disk in entry.disks}

    def put(files: Mapping[str, bytes]) -> None:
        _put(files, entry.nvram, entry.tpm)

    return Home(server, paths, put, check_not_imaged, half_back)


def _from_libvirt(server: str, uri: str, check_not_imaged: Callable[[], None], half_back: HalfBack) -> Home:
    """Raise HypervisorError, DefinitionError."""
    try:
        from anvil_dr import hypervisor
    except ModuleNotFoundError as error:
        raise HypervisorError(f"Python module {error.name} is missing; --job FILE works without it") from error
    connected = hypervisor.connect(uri)
    xml = connected.definition(server)
    needs = definition.requirements(xml)
    paths: Dict[str, str] = {}
    for disk in definition.source_disks(definition.parse(xml)):
        if disk.is_storage and disk.path is not None:
            try:
                paths[definition.disk_name(disk.path)] = disk.path
            except DefinitionError:
                continue  # no job can have sent it

    def check_off() -> None:
        check_not_imaged()  # that run starts it again, on disks that would be half written
        state = connected.state(server)
        if state not in ("shut off", "crashed", "gone"):
            raise SourceError(f"server {server} is {state} on this node: shut it down first (virsh shutdown {server})")

    def put(files: Mapping[str, bytes]) -> None:
        _put(files, needs.nvram or _default_nvram(needs), _tpm(needs))

    return Home(server, paths, put, check_off, half_back)


def _default_nvram(needs: Requirements) -> Optional[str]:
    return os.path.join(firmware_files.NVRAM_FOLDER, f"{needs.name}_VARS.fd") if needs.is_uefi else None


def _tpm(needs: Requirements) -> Optional[str]:
    return boot_firmware.FirmwarePlaces("", "", firmware_files.TPM_FOLDER).tpm_of(needs)


def _put(files: Mapping[str, bytes], nvram: Optional[str], tpm: Optional[str]) -> None:
    """Raise StateError. What this node has no place for is left out: its server has no such thing."""
    if "nvram" in files and nvram is not None:
        try:
            durable.replace(nvram, files["nvram"], mode=0o600)
        except OSError as error:
            raise StateError(f"{nvram} cannot be written: {error.strerror}") from error
    tpm_files = {name[len("tpm/") :]: content for name, content in files.items() if name.startswith("tpm/")}
    if tpm_files and tpm is not None:
        boot_firmware.put_tpm(tpm, tpm_files)
