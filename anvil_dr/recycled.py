"""What the image that is written into holds already, digested ahead of the node's questions.

Touches the image for reading, in a thread of its own, so that the target reads its disk while the node
reads the node's. Differences are found from these bytes and never from a stored index (SPEC section 6).
"""

from __future__ import annotations

import queue
import threading
from typing import List, Optional, Sequence, Union

from anvil_dr.digest import BLOCK_BYTES, SEGMENT_BYTES, Digester, block_count, segment_count
from anvil_dr.errors import AnvilDrError
from anvil_dr.ports import Image

_AHEAD_SEGMENTS = 4
_CHUNK_BYTES = 1 << 20


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
        self._digester, self._image, self._size_bytes = digester, image, size_bytes
        self._read: queue.Queue[Union[List[bytes], AnvilDrError]] = queue.Queue(_AHEAD_SEGMENTS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recycled", daemon=True)
        self._thread.start()

    def next(self, blocks: int) -> Optional[Sequence[bytes]]:
        """Raise ImageIOError if the image cannot be read there."""
        read = self._read.get()
        if isinstance(read, AnvilDrError):
            raise read
        return read

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._read.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self) -> None:
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        for segment in range(segment_count(self._size_bytes)):
            if self._stop.is_set():
                return
            try:
                self._read.put(self._digests(segment, buffer))
            except AnvilDrError as error:
                self._read.put(error)
                return

    def _digests(self, segment: int, buffer: memoryview) -> List[bytes]:
        start, blocks = segment * SEGMENT_BYTES, block_count(self._size_bytes, segment)
        digests = [self._digester.zero_block] * blocks
        end = min(start + blocks * BLOCK_BYTES, self._image.size_bytes)
        for at, length in self._image.data_ranges(start, max(0, end - start)):
            first = (at - start) // BLOCK_BYTES
            last = min(blocks, -(-(at + length - start) // BLOCK_BYTES))
            while first < last:
                count = min(_CHUNK_BYTES // BLOCK_BYTES, last - first)
                chunk = buffer[: count * BLOCK_BYTES]
                self._image.read_into(start + first * BLOCK_BYTES, chunk)
                digests[first : first + count] = self._digester.blocks(chunk)
                first += count
        return digests
