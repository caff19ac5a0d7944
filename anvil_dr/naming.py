"""(server, disk, sequence) <-> image name (SPEC section 2). The only owner of `_incomplete` and `.raw`.

Pure: touches nothing. Names are built from a known server and disk, and never split back into them, because the
underscore makes that ambiguous; only the suffix, which has no underscore in it, is ever taken off.

LVM's rules are those of lvm(8), VALID NAMES, and of `apply_lvname_restrictions()` in LVM's own
lib/misc/lvm-string.c, which reserves more than the man page says. The limits of length were tried on lvm2 2.03.16.
udev leaves all of LVM's characters alone in a symlink's name, `+` too, so /dev/anvil-dr/<image name> needs no escapes.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, Final, Iterable, Literal, Optional, Tuple

from anvil_dr.errors import ImageNameError
from anvil_dr.model import INCOMPLETE, Owner, Sequence

_SUFFIX: Final = ".raw"
# Canonical numbers only: `_01` or `_0` is nobody's image. 18 digits are more than any name could need.
_IMAGE_NAME: Final = re.compile(r"(?P<base>.+)_(?P<sequence>[1-9][0-9]{0,17}|incomplete)", re.DOTALL)

_FOREIGN_CHARACTER: Final = re.compile(r"[^A-Za-z0-9+_.-]")
_RESERVED_PREFIXES: Final = ("pvmove", "snapshot")
_RESERVED_PARTS: Final = (
    *("_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare"),
    *("_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig"),
)
# lvcreate and lvrename refuse a group's and a volume's name that are longer together ("length 128 is not supported").
_LVM_PAIR_CHARACTERS: Final = 124
# DM_NAME_LEN without its final zero. `<group>-<volume>`, in which each hyphen of either is written twice.
_DEVICE_MAPPER_CHARACTERS: Final = 127
# NAME_MAX, and PATH_MAX without its final zero (limits.h).
_FILE_NAME_BYTES: Final = 255
_PATH_BYTES: Final = 4095


def image_base(owner: Owner) -> str:
    """The part of an image's name that all its sequences share."""
    return f"{owner.server}_{owner.disk}"


def image_name(owner: Owner, sequence: Sequence) -> str:
    """What a logical volume is called, and a file without its suffix. Raise ValueError for a number below 1."""
    if sequence != INCOMPLETE and sequence < 1:
        raise ValueError(f"there is no sequence {sequence}")
    return f"{image_base(owner)}_{sequence}"


def file_name(owner: Owner, sequence: Sequence) -> str:
    """What an image is called in a file system. Raise ValueError for a number below 1."""
    return image_name(owner, sequence) + _SUFFIX


def parse_image_name(name: str) -> Optional[Tuple[str, Sequence]]:
    """The base and the sequence of what may be an image's name; None if it cannot be one."""
    match = _IMAGE_NAME.fullmatch(name)
    if match is None:
        return None
    sequence = match["sequence"]
    return match["base"], INCOMPLETE if sequence == INCOMPLETE else int(sequence)


def parse_file_name(name: str) -> Optional[Tuple[str, Sequence]]:
    """The same for what may be an image's file name."""
    return parse_image_name(name[: -len(_SUFFIX)]) if name.endswith(_SUFFIX) else None


def match_owners(names: Iterable[str], owners: Iterable[Owner]) -> Dict[str, Tuple[Owner, Sequence]]:
    """Which of these image names belong to a known owner, and with which sequence.

    If two owners build one name, which `find_collision` keeps from happening, the first of them has it.
    """
    return _match(names, owners, parse_image_name)


def match_files(names: Iterable[str], owners: Iterable[Owner]) -> Dict[str, Tuple[Owner, Sequence]]:
    """The same for file names."""
    return _match(names, owners, parse_file_name)


def find_collision(owner: Owner, known_owners: Iterable[Owner]) -> Optional[Owner]:
    """Another pair whose images would have the same names: (`a`, `b_c`) and (`a_b`, `c`). None if there is none."""
    base = image_base(owner)
    return next((known for known in known_owners if known != owner and image_base(known) == base), None)


def check_server_name(name: str) -> None:
    """Raise ImageNameError if no image of a server could have this name at its beginning."""
    _check_word(name)
    _check_reserved(name, name)
    for word in _RESERVED_PREFIXES:
        if name.startswith(word):
            raise ImageNameError(name, f"begins with {word!r}, which LVM reserves")


def check_disk_name(name: str) -> None:
    """Raise ImageNameError if no image could have this disk's name in its middle."""
    _check_word(name)
    _check_reserved(name, f"_{name}")


def check_image_names(
    owner: Owner, store_kind: Literal["fs", "lvm"], location_names: Iterable[str], copies: int
) -> None:
    """Raise ImageNameError if any image of this pair would have a name that the store cannot have.

    `location_names` are all the volume groups, or the directory, that an image may ever lie in. What LVM refuses is
    refused for files too, so that a store can be changed for another; only lengths are the store's own.
    """
    check_server_name(owner.server)
    check_disk_name(owner.disk)
    base = image_base(owner)
    # A set can stand one above `copies` until the next job has succeeded.
    longest = max(image_name(owner, INCOMPLETE), image_name(owner, copies + 1), key=len)
    for location in location_names:
        if store_kind == "lvm":
            _check_volume_length(base, location, longest)
        else:
            _check_file_length(base, location, longest + _SUFFIX)


def _match(
    names: Iterable[str], owners: Iterable[Owner], parse: Callable[[str], Optional[Tuple[str, Sequence]]]
) -> Dict[str, Tuple[Owner, Sequence]]:
    holders: Dict[str, Owner] = {}
    for owner in owners:
        holders.setdefault(image_base(owner), owner)
    matched: Dict[str, Tuple[Owner, Sequence]] = {}
    for name in names:
        parsed = parse(name)
        if parsed is not None and parsed[0] in holders:
            matched[name] = (holders[parsed[0]], parsed[1])
    return matched


def _check_word(name: str) -> None:
    """What a server's and a disk's name must be on their own. A slash is among the foreign characters."""
    if not name:
        raise ImageNameError(name, "is empty")
    if len(name) > _FILE_NAME_BYTES:
        raise ImageNameError(name[:40] + "...", f"is too long: {len(name)} characters")
    foreign = _FOREIGN_CHARACTER.search(name)
    if foreign:
        raise ImageNameError(name, f"has {foreign[0]!r} in it; LVM takes A-Z a-z 0-9 + _ . and - only")
    if name.startswith("-"):
        raise ImageNameError(name, "begins with a hyphen")
    if name in (".", ".."):
        raise ImageNameError(name, "is a directory's")


def _check_reserved(name: str, part: str) -> None:
    """`part` is what of an image's name comes from `name`.

    To look at the parts is enough: these words have their only underscore in front, so none lies across two parts.
    """
    for word in _RESERVED_PARTS:
        if word in part:
            raise ImageNameError(name, f"makes an image name with {word!r} in it, which LVM reserves")


def _check_volume_length(base: str, group: str, volume: str) -> None:
    mapped = f"{group.replace('-', '--')}-{volume.replace('-', '--')}"
    excess = max(len(group) + len(volume) - _LVM_PAIR_CHARACTERS, len(mapped) - _DEVICE_MAPPER_CHARACTERS)
    if excess > 0:
        raise ImageNameError(base, f"is too long: LVM cannot have {volume!r} in volume group {group!r}")


def _check_file_length(base: str, directory: str, file: str) -> None:
    # LVM's characters are one byte each; the directory's need not be.
    path_bytes = len(directory.rstrip("/").encode("utf-8", "surrogateescape")) + 1 + len(file)
    if len(file) > _FILE_NAME_BYTES or path_bytes > _PATH_BYTES:
        raise ImageNameError(base, f"is too long: a file system cannot have {file!r} in {directory!r}")
