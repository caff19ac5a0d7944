"""Who else has image files open, in words for an error message. Touches only the descriptors that it is given.

A file is in use if another process or a loop device has it open, or if a QEMU that cannot be seen from here has locked
it.
"""

from __future__ import annotations

import os
import time
from typing import Callable, ContextManager, Dict, Final, Iterable, Set

from anvil_dr.model import StoredImage
from anvil_dr.stores import openers, qemu_lock

_PASSING_SECONDS: Final = 0.05
"""Who has an image open, and not any more after this time, does not use it."""

Open = Callable[[StoredImage], ContextManager[int]]
"""A descriptor of an image's file, for as long as the block lasts."""


def of(images: Iterable[StoredImage], open_image: Open) -> Dict[StoredImage, str]:
    """Those of these images that somebody else has open, and who. Raises what `open_image` does.

    Whoever lists the images, as the status does, has each open for less than a thousandth of a second: so what is found
    is looked at again.
    """
    found = _at_this_moment(images, open_image)
    if found:
        time.sleep(_PASSING_SECONDS)
        found = _at_this_moment(found, open_image)
    return found


def _at_this_moment(images: Iterable[StoredImage], open_image: Open) -> Dict[StoredImage, str]:
    files: Dict[StoredImage, openers.File] = {}
    locked: Set[StoredImage] = set()
    for image in images:
        with open_image(image) as fd:
            facts = os.fstat(fd)
            files[image] = facts.st_dev, facts.st_ino
            if qemu_lock.writes(fd) or qemu_lock.denies_writing(fd):
                locked.add(image)
    found: Dict[StoredImage, str] = {}
    opened = openers.of_files(set(files.values()))
    for image, file in files.items():
        staying = [one.words for one in opened[file] if not one.harmless]
        if staying:
            found[image] = staying[0]
        elif image in locked and not openers.is_file_open_here(file):
            found[image] = "a QEMU that cannot be seen from here"
    return found
