"""The newest complete set's image of a disk, from which blocks are taken that it has already. Touches it for reading.

It is a help and not a need: one that can't be read any more is done without, or its server would never get a set that
can be read.
"""

from __future__ import annotations

import logging
from typing import Optional

from anvil_dr.errors import ImageIOError
from anvil_dr.ports import Image

log = logging.getLogger(__name__)


class Newest:
    """As much of it as can be read."""

    def __init__(self, image: Optional[Image]) -> None:
        self._image = image
        self.problem: Optional[str] = None
        """Why it was given up."""

    def __bool__(self) -> bool:
        """Whether there is one."""
        return self._image is not None

    def read_into(self, offset_bytes: int, buffer: memoryview) -> bool:
        """False if there is none; the buffer may hold anything then."""
        try:
            if self._image is None:
                return False
            self._image.read_into(offset_bytes, buffer)
        except ImageIOError as error:
            self._give_up(error)
            return False
        return True

    def may_hold_data(self, offset_bytes: int, length_bytes: int) -> bool:
        """False if there is nothing but zeros, or no image."""
        try:
            return self._image is not None and any(True for _ in self._image.data_ranges(offset_bytes, length_bytes))
        except ImageIOError as error:
            self._give_up(error)
            return False

    def _give_up(self, error: ImageIOError) -> None:
        log.warning("the newest set is done without error=%s", error)
        self._image, self.problem = None, str(error)
