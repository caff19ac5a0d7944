"""A real server to practise on: two disks that boot, built in a fraction of a second, without root.

Disk 0 has a boot loader, Debian's cloud kernel, an initramfs and a file system with a token; disk 1 is a file system
with a file of random bytes. When it runs it says on its serial console, and on its screen, what it reads from both.

May touch: the directory it is given. Needs Debian's linux-image-cloud-amd64 (or what setup/prepare has unpacked of
it), busybox-static, syslinux, syslinux-common, mtools, e2fsprogs and kmod; qemu-guest-agent too if the agent is
asked for. One that is not to boot needs e2fsprogs only.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import struct
import tempfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Optional, Tuple
from xml.sax.saxutils import escape, quoteattr

from anvil_dr import command
from anvil_dr.demo.guest import initramfs
from anvil_dr.errors import SourceError

MIB: Final = 1 << 20
READY: Final = "DR-READY"
"""The guest's report begins with this word, is one line, and is repeated for as long as it runs."""

_SECTOR_BYTES: Final = 512
_BOOT_START: Final = 1 * MIB
_BOOT_BYTES: Final = 40 * MIB
_DATA_START: Final = _BOOT_START + _BOOT_BYTES
_FILE_BYTES: Final = 2 * MIB
_OVMF: Final = "/usr/share/OVMF/OVMF_CODE_4M.fd"
_OVMF_VARIABLES: Final = "/usr/share/OVMF/OVMF_VARS_4M.fd"
_MBR_CODE: Final = Path("/usr/lib/syslinux/mbr/mbr.bin")

_KERNEL_ARGUMENTS: Final = (
    # The kernel's tests of its own cryptography take a sixth of a boot under emulation, and nothing here needs them.
    "console=tty0 console=ttyS0,115200 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on cryptomgr.notests"
)
_SYSLINUX_CFG: Final = f"""\
SERIAL 0 115200
DEFAULT server
PROMPT 0
LABEL server
  LINUX /vmlinuz
  INITRD /initrd.gz
  APPEND {_KERNEL_ARGUMENTS}
"""


@dataclass(frozen=True)
class DemoServer:
    """The server's disks, and what it will say of them when it boots."""

    name: str
    disks: Tuple[Path, Path]
    token: str
    checksum: str
    """SHA-256 of the file on disk 1."""


@dataclass(frozen=True)
class Markers:
    """What two disks hold that tells them from any others."""

    token: str
    checksum: str


@dataclass(frozen=True)
class Report:
    """What a running guest said."""

    token: str
    checksum: str
    boots: int
    """How often these disks have been booted, this time included."""
    interfaces: Tuple[str, ...]
    efi: str = ""
    """The token of the disks that were there when its UEFI variables were new."""
    tpm: str = ""
    """What tells its TPM from any other."""


def build(
    directory: Path, name: str, *, agent: bool = False, bootable: bool = True, uefi: bool = False, disk_mib: int = 64
) -> DemoServer:
    """Make `<directory>/<name>_0.raw` and `_1.raw`, over whatever is there. Raise CommandError, SourceError.

    Without `bootable` disk 0 has its partitions and its token, and nothing to boot.
    """
    directory.mkdir(parents=True, exist_ok=True)
    disks = (directory / f"{name}_0.raw", directory / f"{name}_1.raw")
    token = secrets.token_hex(8)
    server = DemoServer(name, disks, token, _checksum(token))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = work / "data"
        data_bytes = disk_mib * MIB - _DATA_START - MIB
        _file_system(data, data_bytes, "DATA", "token", f"{server.token}\n".encode())
        with open(disks[0], "wb") as disk:
            disk.truncate(disk_mib * MIB)
            disk.write(_partition_table(data_bytes))
            if bootable:
                disk.seek(0)
                disk.write(_MBR_CODE.read_bytes())
                _copy_sparse(_boot_partition(work, find_kernel(), agent=agent, uefi=uefi), disk.fileno(), _BOOT_START)
            _copy_sparse(data, disk.fileno(), _DATA_START)
        _file_system(disks[1], disk_mib * MIB, "MORE", "file", _file_content(server.token))
    return server


def find_kernel() -> Path:
    """Debian's cloud kernel: this machine's own, or the one that setup/prepare has unpacked. Raise SourceError."""
    for root in (Path("/"), Path(__file__).resolve().parents[2] / ".cache" / "kernel"):
        kernels = sorted((root / "boot").glob("vmlinuz-*-cloud-amd64"))
        if kernels:
            return kernels[-1]
    raise SourceError("no kernel to boot with: apt install linux-image-cloud-amd64")


def markers(disks: Tuple[Path, Path]) -> Markers:
    """What is on these disks, or images of them, read from the file systems without mounting. Raise CommandError."""
    token = command.run(("debugfs", "-R", "cat token", f"{disks[0]}?offset={_DATA_START}")).stdout
    content = command.run(("debugfs", "-R", "cat file", str(disks[1]))).stdout
    return Markers(token.decode(errors="replace").strip(), hashlib.sha256(content).hexdigest())


def change(server: DemoServer) -> DemoServer:
    """What a day's work leaves behind: another token, and another file, inside the same file systems.

    The server must be off. Raise CommandError.
    """
    token = secrets.token_hex(8)
    changed = replace(server, token=token, checksum=_checksum(token))
    with tempfile.TemporaryDirectory() as temporary:
        new = Path(temporary) / "new"
        for disk, offset_bytes, name, content in (
            (server.disks[0], _DATA_START, "token", f"{changed.token}\n".encode()),
            (server.disks[1], 0, "file", _file_content(changed.token)),
        ):
            new.write_bytes(content)
            _replace_file(disk, offset_bytes, name, new)
    return changed


def definition(
    server: DemoServer,
    *,
    virt_type: str = "qemu",
    memory_mib: int = 128,
    bridge: Optional[str] = None,
    medium: Optional[Path] = None,
    nvram: Optional[Path] = None,
    tpm: bool = False,
) -> str:
    """libvirt XML as the node has it: a q35 machine with an optical drive, a console, a screen and an agent's channel.

    Its UUID is the same each time it's asked for the same server. `bridge` gives it a network card, `medium` a disc,
    `nvram` UEFI with its variables in that file, `tpm` a TPM that remembers.
    """
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, server.name)
    mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in identity.bytes[:3])
    card = f"""
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge={quoteattr(bridge)}/>
      <model type='virtio'/>
    </interface>""" if bridge else ""  # fmt: skip
    boot, more_memory_mib = "<boot dev='hd'/>", 0
    if nvram:
        # OVMF by its path: libvirt 9.0 takes either that or firmware='efi' with a file of its own choice.
        boot = (
            f"<loader readonly='yes' type='pflash'>{_OVMF}</loader>\n"
            f"    <nvram template='{_OVMF_VARIABLES}'>{escape(str(nvram))}</nvram>"
        )
        more_memory_mib = 128
    trust = """
    <tpm model='tpm-crb'>
      <backend type='emulator' version='2.0' persistent_state='yes'/>
    </tpm>""" if tpm else ""  # fmt: skip
    disc = f"\n      <source file={quoteattr(str(medium))}/>" if medium else ""
    disks = "".join(f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none' discard='unmap'/>
      <source file={quoteattr(str(path))}/>
      <target dev='vd{letter}' bus='virtio'/>
    </disk>""" for path, letter in zip(server.disks, "ab"))  # fmt: skip
    return f"""\
<domain type='{virt_type}'>
  <name>{server.name}</name>
  <uuid>{identity}</uuid>
  <memory unit='MiB'>{memory_mib + more_memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    {boot}
  </os>
  <features><acpi/><apic/></features>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>{disks}
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>{disc}
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>{card}{trust}
    <serial type='pty'/>
    <console type='pty'/>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <graphics type='vnc' autoport='yes'/>
    <video><model type='vga'/></video>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""


def read_report(console_text: str) -> Optional[Report]:
    """The last whole report in what a guest wrote to its console; None if there is none."""
    words = r"token=(\w*) sum=(\w*) boots=(\d+) net=(\S*)(?: efi=(\w*))?(?: tpm=(\w*))?"
    lines = re.findall(rf"{READY} {words} end", console_text)
    if not lines:
        return None
    token, checksum, boots, net, efi, tpm = lines[-1]
    return Report(token, checksum, int(boots), tuple(net.split(",")) if net else (), efi, tpm)


def _checksum(token: str) -> str:
    return hashlib.sha256(_file_content(token)).hexdigest()


def _file_content(token: str) -> bytes:
    """Bytes that no compressor makes smaller, and that follow from the token."""
    return hashlib.shake_128(token.encode()).digest(_FILE_BYTES)


def _boot_partition(work: Path, kernel: Path, *, agent: bool, uefi: bool) -> Path:
    """A FAT file system that syslinux boots the kernel from, or else the UEFI shell that OVMF has in it."""
    image, config, initrd = work / "boot", work / "syslinux.cfg", work / "initrd.gz"
    config.write_text(_SYSLINUX_CFG)
    initrd.write_bytes(initramfs(kernel, agent=agent))
    with open(image, "wb") as file:
        file.truncate(_BOOT_BYTES)
    hidden = str(_BOOT_START // _SECTOR_BYTES)
    command.run(("mformat", "-i", str(image), "-H", hidden, "-v", "BOOT", "::"))
    for source, name in ((kernel, "vmlinuz"), (initrd, "initrd.gz"), (config, "syslinux.cfg")):
        command.run(("mcopy", "-i", str(image), str(source), f"::/{name}"))
    if uefi:
        script = work / "startup.nsh"
        script.write_text(f"fs0:\r\nvmlinuz.efi initrd=\\initrd.gz {_KERNEL_ARGUMENTS}\r\n")
        for source, name in ((kernel, "vmlinuz.efi"), (script, "startup.nsh")):
            command.run(("mcopy", "-i", str(image), str(source), f"::/{name}"))
    # It refuses a partition whose hidden sectors don't suit mtools' checks, which are made for floppies.
    command.run(("env", "MTOOLS_SKIP_CHECK=1", "syslinux", "--install", str(image)))
    return image


def _file_system(image: Path, size_bytes: int, label: str, name: str, content: bytes) -> None:
    """An ext4 file system with one file, filled by mke2fs itself: nothing is mounted."""
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / name).write_bytes(content)
        options = "lazy_itable_init=0,root_owner=0:0"
        command.run(("mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-E", options, "-d", temporary, str(image)))


def _partition_table(data_bytes: int) -> bytes:
    """An MBR with the boot partition, active, and the data partition; without the code that starts it."""
    table = bytearray(_SECTOR_BYTES)
    partitions = ((0x80, 0x0E, _BOOT_START, _BOOT_BYTES), (0x00, 0x83, _DATA_START, data_bytes))
    for index, (active, kind, start, length) in enumerate(partitions):
        # Cylinders, heads and sectors at their maximum: "see the LBA fields".
        far = b"\xfe\xff\xff"
        entry = (active, far, kind, far, start // _SECTOR_BYTES, length // _SECTOR_BYTES)
        struct.pack_into("<B3sB3sII", table, 446 + 16 * index, *entry)
    table[510:] = b"\x55\xaa"
    return bytes(table)


def _copy_sparse(source: Path, disk_fd: int, offset_bytes: int) -> None:
    """Copy what is not zero, so that the disk stays as sparse as it is empty."""
    zeros = bytes(MIB)
    with open(source, "rb") as file:
        for position in range(0, source.stat().st_size, MIB):
            block = file.read(MIB)
            if block != zeros[: len(block)]:
                os.pwrite(disk_fd, block, offset_bytes + position)


def _replace_file(disk: Path, offset_bytes: int, name: str, new: Path) -> None:
    """Put `new` in place of a file in a file system inside a disk, without mounting it."""
    script = new.with_name("debugfs")
    script.write_text(f"rm {name}\nwrite {new} {name}\n")
    said = command.run(("debugfs", "-w", "-f", str(script), f"{disk}?offset={offset_bytes}")).stderr.decode()
    # debugfs ends with 0 whatever became of its commands. Its first line is its version.
    complaints = [line for line in said.splitlines() if not line.startswith("debugfs ")]
    if complaints:
        raise SourceError(f"cannot change {name}: {'; '.join(complaints)}", path=str(disk))
