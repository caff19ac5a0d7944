"""A job file -> one frozen `JobFile` (SPEC section 9). May read that file, and nothing else.

What the file names (definitions, disks, firmware state) is looked at by outgoing.py, server by server: one that
cannot be read must not stop the others.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Callable, Dict, Final, Iterable, Optional, Tuple

from anvil_dr import definition, naming, settings
from anvil_dr.errors import ConfigError, DefinitionError, ImageNameError

_JOB_KEYS: Final = ("name", "servers")
_SERVER_KEYS: Final = ("name", "definition", "disks", "left_out", "nvram", "tpm")
_DISK_KEYS: Final = ("name", "path", "image")


@dataclass(frozen=True)
class DiskEntry:
    """One disk to be sent."""

    name: str
    path: str
    """As the definition has it."""
    image: Optional[str]
    """The file or device that is read instead; None if it's `path` itself."""


@dataclass(frozen=True)
class ServerEntry:
    """One server to be sent. Its paths are absolute."""

    name: str
    definition: str
    disks: Tuple[DiskEntry, ...]
    left_out: Tuple[str, ...] = ()
    nvram: Optional[str] = None
    """File with the UEFI variables."""
    tpm: Optional[str] = None
    """Folder with the TPM's state."""


@dataclass(frozen=True)
class JobFile:
    """One job, said by hand."""

    name: str
    servers: Tuple[ServerEntry, ...]


def load(path: str) -> JobFile:
    """Read and check a job file. Raise ConfigError naming the file, the key and the line."""
    try:
        with open(path, "rb") as file:
            content = file.read(settings.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=path) from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text", path=path, line=line) from error
    return parse(text, path)


def parse(text: str, path: str) -> JobFile:
    """Check the text of a job file. Relative paths in it start at its folder. Raise ConfigError."""
    folder = os.path.dirname(os.path.abspath(path))
    top = settings.read(text, path)
    top.only(_JOB_KEYS)
    name = top.text("name", os.path.basename(path).partition(".")[0] or "job")
    sections = top.sections("servers")
    servers = tuple(_server(section, folder) for section in sections)
    _refuse_twice(sections, "name", (server.name for server in servers), lambda twice: f"server {twice} is there twice")
    return JobFile(name, servers)


def _server(section: settings.Section, folder: str) -> ServerEntry:
    section.only(_SERVER_KEYS)
    name = section.text("name")
    try:
        naming.check_server_name(name)
    except ImageNameError as error:
        raise section.error("name", str(error)) from error
    sections = section.sections("disks")
    disks = tuple(_disk(one, folder) for one in sections)
    _refuse_twice(sections, "name", (disk.name for disk in disks), lambda twice: f"two disks are named {twice}")
    _refuse_twice(sections, "path", (disk.path for disk in disks), lambda twice: f"{twice} is there twice")
    left_out = section.texts("left_out")
    for disk in disks:
        if disk.path in left_out:
            raise section.error("left_out", f"{disk.path} is among the disks too")
    return ServerEntry(
        name,
        os.path.join(folder, section.text("definition")),
        disks,
        left_out,
        _optional_path(section, "nvram", folder),
        _optional_path(section, "tpm", folder),
    )


def _disk(section: settings.Section, folder: str) -> DiskEntry:
    section.only(_DISK_KEYS)
    path = section.text("path")
    if not path.startswith("/"):
        raise section.error("path", f"must be the absolute path that the definition has, not {path!r}")
    if "name" in section:
        name = section.text("name")
    else:
        try:
            name = definition.disk_name(path)
        except DefinitionError as error:
            raise section.error("name", f"is missing, and the path {path} gives none") from error
    return DiskEntry(name, path, _optional_path(section, "image", folder))


def _optional_path(section: settings.Section, key: str, folder: str) -> Optional[str]:
    return os.path.join(folder, section.text(key)) if key in section else None


def _refuse_twice(
    sections: Tuple[settings.Section, ...], key: str, values: Iterable[str], message: Callable[[str], str]
) -> None:
    """Raise ConfigError at the second section with the same value."""
    seen: Dict[str, settings.Section] = {}
    for section, value in zip(sections, values):
        if value in seen:
            raise section.error(key, message(value))
        seen[value] = section
