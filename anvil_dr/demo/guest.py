"""What runs inside the demo's server: an initramfs of busybox and a few modules, with an init of its own.

May touch: reads Debian's kernel modules, busybox and guest agent; writes nothing.
"""

from __future__ import annotations

import gzip
import stat
from pathlib import Path
from typing import Final, Set, Tuple

from anvil_dr import command

_MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "button", "evdev", "efivarfs")
_APPLETS: Final = (
    "sh", "mount", "umount", "insmod", "cat", "cut", "ls", "tr", "sed", "wc", "sleep", "mkdir", "echo", "sha256sum",
    "sync", "poweroff", "head", "kill", "rm", "tail",
)  # fmt: skip
_AGENT: Final = "/usr/sbin/qemu-ga"

# A power button is an input device that delivers one event, of 24 bytes, when it's pressed. The agent is told to run
# `shutdown`, which is ours too. The report is repeated, so a console that is opened late misses nothing. Of firmware
# state it tells what a UEFI variable holds that it sets at its first boot, and the digest of the TPM's answer to
# TPM2_ReadPublic of its endorsement key, 0x81010001.
_INIT: Final = """\
#!/bin/sh
export PATH=/bin:/sbin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in $(cat /modules/order); do insmod /modules/$module; done
say() { echo "$*" > /dev/ttyS0; echo "$*" > /dev/tty0; }

tries=0
while [ ! -b /dev/vda2 -o ! -b /dev/vdb ] && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries+1)); done
mount -t ext4 /dev/vda2 /disk0 || say "cannot mount disk 0"
mount -t ext4 /dev/vdb /disk1 || say "cannot mount disk 1"
echo boot >> /disk0/boots; sync
token=$(cat /disk0/token)
sum=$(sha256sum /disk1/file | cut -d' ' -f1)
boots=$(wc -l < /disk0/boots)
net=$(ls /sys/class/net | tr '\\n' ',' | sed 's/,$//')
firmware=
if mount -t efivarfs efivarfs /efi; then
  variable=/efi/DrToken-6f1d2f0e-5a0c-4c39-9d1e-7b1f3a2c4d5e
  [ -e $variable ] || printf '\\007\\000\\000\\000%s' "$token" > $variable
  firmware=" efi=$(tail -c +5 $variable)"
fi
if [ -c /dev/tpm0 ]; then
  exec 3<>/dev/tpm0
  printf '\\200\\001\\000\\000\\000\\016\\000\\000\\001\\163\\201\\001\\000\\001' >&3
  firmware="$firmware tpm=$(head -c 4096 <&3 | sha256sum | cut -c 1-16)"
fi

off() { say "DR-OFF"; umount /disk0 /disk1; sync; poweroff -f; }
trap off USR1 TERM
if [ -e /sbin/qemu-ga ]; then
  for port in /dev/vport*p*; do
    [ "$(cat /sys/class/virtio-ports/${port##*/}/name)" = org.qemu.guest_agent.0 ] || continue
    qemu-ga -m virtio-serial -p $port -t /run &
  done
fi
for name in /sys/class/input/event*/device/name; do
  [ "$(cat $name)" = "Power Button" ] || continue
  event=${name#/sys/class/input/}
  ( head -c 24 > /dev/null; kill -USR1 1 ) < /dev/input/${event%%/*} &
done
while :; do
  say "DR-READY token=$token sum=$sum boots=$boots net=$net$firmware end"
  sleep 1 & wait $!
done
"""


def initramfs(kernel: Path, *, agent: bool) -> bytes:
    """A gzipped initramfs for the kernel in this file. Raise CommandError, OSError where a package is missing."""
    archive = _Cpio()
    for directory in ("dev", "proc", "sys", "run", "tmp", "disk0", "disk1", "efi"):
        archive.directory(directory)
    # Before devtmpfs is mounted the kernel opens this one for init's output.
    archive.device("dev/console", 5, 1)
    archive.file("init", _INIT.encode())
    archive.file("bin/busybox", Path("/bin/busybox").read_bytes())
    for applet in _APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    modules = _with_dependencies(kernel)
    for path in modules:
        archive.file(f"modules/{path.name}", path.read_bytes())
    archive.file("modules/order", "".join(f"{path.name}\n" for path in modules).encode())
    if agent:
        archive.file("sbin/qemu-ga", Path(_AGENT).read_bytes())
        archive.file("sbin/shutdown", b"#!/bin/sh\nkill -USR1 1\n")
        for library in _libraries(_AGENT):
            archive.file(str(library).lstrip("/"), library.read_bytes())
    return gzip.compress(archive.finished(), 1, mtime=0)


def _with_dependencies(kernel: Path) -> Tuple[Path, ...]:
    """The modules' files, in the order in which they can be inserted. They lie below the root that has boot/ in it."""
    root, release = kernel.parents[1], kernel.name[len("vmlinuz-") :]
    asked = ("modprobe", "--dirname", str(root), "--set-version", release, "--show-depends")
    lines = (line for module in _MODULES for line in command.run((*asked, module)).stdout.decode().splitlines())
    # "insmod FILE", or "builtin NAME" for what the kernel has inside.
    return tuple(dict.fromkeys(Path(line[7:].strip()) for line in lines if line.startswith("insmod ")))


def _libraries(program: str) -> Tuple[Path, ...]:
    words = command.run(("ldd", program)).stdout.decode().split()
    return tuple(Path(word) for word in words if word.startswith("/"))


class _Cpio:
    """A writer of the kernel's initramfs format ("newc"). Device nodes are mere headers in it, so no root is needed.

    Documentation/driver-api/early-userspace/buffer-format.rst
    """

    def __init__(self) -> None:
        self._data, self._entries = bytearray(), 0
        self._directories: Set[str] = set()

    def directory(self, name: str) -> None:
        if name and name not in self._directories:
            self._directories.add(name)
            self.directory(_parent(name))
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes) -> None:
        self.directory(_parent(name))
        self._add(name, stat.S_IFREG | 0o755, content)

    def link(self, name: str, target: str) -> None:
        self.directory(_parent(name))
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        self.directory(_parent(name))
        self._add(name, stat.S_IFCHR | 0o600, b"", major, minor)

    def finished(self) -> bytes:
        self._add("TRAILER!!!", 0, b"")
        return bytes(self._data)

    def _add(self, name: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        self._entries += 1
        written = name.encode() + b"\0"
        fields = (self._entries, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(written), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + written
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)


def _parent(name: str) -> str:
    return name.rpartition("/")[0]
