"""The definition files of the DR box: which there are, what they say, and whose images they name.

Reads the directory of definitions; writes nothing. The files are the admin's, but what is in them came from a node.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Iterable, List, Optional, Tuple

from anvil_dr import definition, naming
from anvil_dr.errors import DefinitionError, ImageNameError
from anvil_dr.model import Owner

_SUFFIX = ".xml"
_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class DefinitionFile:
    """One server's definition on the DR box."""

    server: str
    path: str
    xml: str = ""
    problem: Optional[str] = None
    """Why there is no text, in words."""


def path_of(directory: str, server: str) -> str:
    """Where a server's definition is. The name must have been checked by naming.check_server_name."""
    return os.path.join(directory, server + _SUFFIX)


def read_all(directory: str) -> Tuple[DefinitionFile, ...]:
    """Every file whose name could be a server's, by server. No directory means no definitions.

    Raise DefinitionError if the directory cannot be read; one file that cannot be says so in its `problem`.
    """
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DefinitionError(f"the definitions in {directory} cannot be listed: {error.strerror}") from error
    servers = (name[: -len(_SUFFIX)] for name in names if name.endswith(_SUFFIX))
    return tuple(read(directory, server) for server in servers if _can_be_server(server))


def read(directory: str, server: str) -> DefinitionFile:
    """One server's file. What is wrong with it, also that it's not there, is in its `problem`."""
    path = path_of(directory, server)
    try:
        # O_NONBLOCK: a fifo with this name would wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return DefinitionFile(server, path, problem="it is not a regular file")
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        return DefinitionFile(server, path, problem=f"it cannot be read: {error.strerror}")
    if len(content) > _MAX_BYTES:
        return DefinitionFile(server, path, problem=f"it is larger than {_MAX_BYTES} bytes")
    try:
        return DefinitionFile(server, path, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return DefinitionFile(server, path, problem=f"it is not UTF-8 text (byte {error.start})")


def who_else_writes(directory: str) -> Optional[str]:
    """Who besides root, or us, can put definitions or UEFI variables there, in words; None if nobody can.

    Whoever can decides what root boots on this machine.
    """
    for folder in (directory, os.path.join(directory, "nvram")):
        try:
            facts = os.stat(folder)
        except OSError:  # what is missing will be made, and what else is wrong with it will be said when it is used
            continue
        if facts.st_uid not in (0, os.geteuid()):
            return f"{folder} belongs to user {facts.st_uid}, who decides with it what is booted here"
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            who = "everybody" if facts.st_mode & stat.S_IWOTH else f"group {facts.st_gid}"
            return f"{folder} can be written by {who}, who decides with it what is booted here"
    return None


def owners_named(files: Iterable[DefinitionFile], directory: str) -> Tuple[Owner, ...]:
    """Whose images in a directory store the definitions name.

    This is how sets are found again when the state database is lost: files carry no tags, but a definition says its
    server's name and its images' paths, and with one of the two names known nothing has to be guessed. A file that
    cannot be read names nothing.
    """
    found: List[Owner] = []
    for one in files:
        try:
            disks = definition.source_disks(definition.parse(one.xml)) if one.xml else ()
        except DefinitionError:
            continue
        for disk in disks:
            if disk.type != "file" or disk.path is None or os.path.dirname(disk.path) != directory:
                continue
            parsed = naming.parse_file_name(os.path.basename(disk.path))
            prefix = naming.image_base(Owner(one.server, ""))
            if parsed is not None and parsed[0].startswith(prefix) and parsed[0] != prefix:
                found.append(Owner(one.server, parsed[0][len(prefix) :]))
    return tuple(found)


def _can_be_server(name: str) -> bool:
    try:
        naming.check_server_name(name)
    except ImageNameError:
        return False
    return True
