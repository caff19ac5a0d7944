"""Where a server's firmware state lies on its node, and what it is: UEFI variables and TPM state (SPEC section 7).

May read those files, and nothing else. What becomes of them on the DR box is firmware.py's business.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import Dict, Final, Mapping, Optional, Tuple

from anvil_dr.definition import Requirements
from anvil_dr.errors import SourceError
from anvil_dr.wire.protocol import MAX_FIRMWARE_BYTES, MAX_FIRMWARE_FILES

# Where libvirt's QEMU driver puts them if the definition says nothing else (qemu_conf.c, qemu_tpm.c in libvirt).
NVRAM_FOLDER: Final = "/var/lib/libvirt/qemu/nvram"
TPM_FOLDER: Final = "/var/lib/libvirt/swtpm"

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class FirmwareFiles:
    """One server's. Nothing is read before `read`, because a guest changes its state for as long as it runs."""

    nvram: Optional[str] = None
    """File with the UEFI variables."""
    tpm: Optional[str] = None
    """Folder with the TPM's state."""

    def read(self) -> Mapping[str, bytes]:
        """The state as the job names it: `nvram`, `tpm/<file>`. Raise SourceError."""
        found: Dict[str, bytes] = {}
        if self.nvram is not None:
            found["nvram"] = _content(self.nvram, MAX_FIRMWARE_BYTES)
        for name in _names(self.tpm) if self.tpm is not None else ():
            left_bytes = MAX_FIRMWARE_BYTES - sum(len(content) for content in found.values())
            found[f"tpm/{name}"] = _content(os.path.join(str(self.tpm), name), left_bytes, os.O_NOFOLLOW)
        if len(found) > MAX_FIRMWARE_FILES:
            raise SourceError(f"{self.tpm}: {len(found)} files are too many for the state of a TPM", path=str(self.tpm))
        return found


def of_domain(
    needs: Requirements, *, nvram_folder: str = NVRAM_FOLDER, tpm_folder: str = TPM_FOLDER
) -> FirmwareFiles:
    """Where libvirt keeps the state of this domain. What doesn't exist, because it never ran, is left out."""
    nvram = needs.nvram or (os.path.join(nvram_folder, f"{needs.name}_VARS.fd") if needs.is_uefi else None)
    tpm = None
    if needs.tpm is not None and needs.tpm.backend == "emulator" and _UUID.fullmatch((needs.uuid or "").lower()):
        version = "tpm1.2" if needs.tpm.version == "1.2" else "tpm2"
        tpm = os.path.join(tpm_folder, str(needs.uuid).lower(), version)
    return FirmwareFiles(_existing(nvram), _existing(tpm))


def _existing(path: Optional[str]) -> Optional[str]:
    """The path, unless it's known that nothing is there: what can't be looked at must not be left out silently."""
    if path is None:
        return None
    try:
        os.stat(path)
    except FileNotFoundError:
        return None
    except OSError:
        return path
    return path


def _names(folder: str) -> Tuple[str, ...]:
    try:
        # swtpm's lock file begins with a dot.
        return tuple(sorted(name for name in os.listdir(folder) if not name.startswith(".")))
    except OSError as error:
        raise SourceError(f"the TPM's state in {folder} cannot be read: {error.strerror}", path=folder) from error


def _content(path: str, limit_bytes: int, flags: int = 0) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SourceError(f"{path} is not a regular file, so it is no firmware state", path=path)
            content = file.read(limit_bytes + 1)
    except OSError as error:
        why = "it is a symlink" if flags and error.errno == errno.ELOOP else error.strerror
        raise SourceError(f"firmware state {path} cannot be read: {why}", path=path) from error
    if len(content) > limit_bytes:
        raise SourceError(f"{path} is too large for firmware state: more than {limit_bytes} bytes", path=path)
    return content
