"""What the image that is written into holds already, digested ahead of the node's questions.

Touches the image for reading, in a thread of its own, so that the target reads its disk while the node
reads the node's. Differences are found from these bytes and never from a stored index (SPEC section 6).
"""

from __future__ import annotations

import logging
import queue
from typing import Iterator, Optional, Sequence, Union

from anvil_dr.errors import AnvilDrError, ImageIOError
from anvil_dr.ports import Image
from anvil_dr.wire.ahead import Ahead, Ended
from anvil_dr.wire.digest import Digester, segment_count
from anvil_dr.wire.scan import Segment, segments

log = logging.getLogger(__name__)

_AHEAD_SEGMENTS = 4


class Recycled:
    """The block digests of an image, segment by segment in order."""

    has_content = False
    known_zero = False
    problem: Optional[str] = None
    """Why some of it could not be read."""

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
        read = self._segments(digester, image, size_bytes)
        self._ahead = Ahead(read, _AHEAD_SEGMENTS, self._read.put, name="recycled")

    def _segments(self, digester: Digester, image: Image, size_bytes: int) -> Iterator[Segment]:
        """One that can't be read has no digests. It must be written to all the same: that mends a bad sector, and
        a job that failed of it would fail again every night."""
        first, count = 0, segment_count(size_bytes)
        while first < count:
            try:
                for segment in segments(digester, image, size_bytes, first):
                    yield segment
                    first += 1
            except ImageIOError as error:
                log.warning("an image that is written over cannot be read error=%s", error)
                self.problem = self.problem or str(error)
                yield Segment(first, (), False)
                first += 1

    def next(self, blocks: int) -> Optional[Sequence[bytes]]:
        read = self._read.get()
        if isinstance(read, AnvilDrError):
            raise read
        if isinstance(read, Ended):
            raise AssertionError("a segment past the end was asked for")
        self._ahead.done()
        return read.digests or None

    def close(self) -> None:
        self._ahead.close()
