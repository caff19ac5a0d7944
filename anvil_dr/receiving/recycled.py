"""What the image that is written into holds already, digested ahead of the node's questions.

Touches the image for reading, in a thread of its own, so that the target reads its disk while the node
reads the node's. Differences are found from these bytes and never from a stored index (SPEC section 6).
"""

from __future__ import annotations

import queue
from typing import Optional, Sequence, Union

from anvil_dr.errors import AnvilDrError
from anvil_dr.ports import Image
from anvil_dr.wire.ahead import Ahead, Ended
from anvil_dr.wire.digest import Digester
from anvil_dr.wire.scan import Segment, segments

_AHEAD_SEGMENTS = 4


class Recycled:
    """The block digests of an image, segment by segment in order."""

    has_content = False
    known_zero = False

    def next(self, blocks: int) -> Optional[Sequence[bytes]]:
        """The digests of the next segment, which has that many blocks; None if its content is not known."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop reading. The image may be closed afterwards."""


class UnknownContent(Recycled):
    """A new logical volume: it may hold somebody's old data, so everything is written or zeroed."""

    def next(self, blocks: int) -> Optional[Sequence[bytes]]:
        return None


class KnownZeros(Recycled):
    """A new sparse file."""

    known_zero = True

    def __init__(self, digester: Digester) -> None:
        self._zero_block = digester.zero_block

    def next(self, blocks: int) -> Optional[Sequence[bytes]]:
        return [self._zero_block] * blocks


class Content(Recycled):
    """An image that was recycled, or left over from a job that broke."""

    has_content = True

    def __init__(self, digester: Digester, image: Image, size_bytes: int) -> None:
        self._read: queue.SimpleQueue[Union[Segment, AnvilDrError, Ended]] = queue.SimpleQueue()
        self._ahead = Ahead(segments(digester, image, size_bytes), _AHEAD_SEGMENTS, self._read.put, name="recycled")

    def next(self, blocks: int) -> Optional[Sequence[bytes]]:
        """Raise ImageIOError if the image cannot be read there."""
        read = self._read.get()
        if isinstance(read, AnvilDrError):
            raise read
        if isinstance(read, Ended):
            raise AssertionError("a segment past the end was asked for")
        self._ahead.done()
        return read.digests

    def close(self) -> None:
        self._ahead.close()
