"""How often each node's sessions failed lately. Touches nothing but its own memory, which is bounded."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Callable, Deque, Dict, Final

_SPAN_SECONDS: Final = 60.0
_NODES: Final = 1024


class FailureRate:
    """Counts failures by node, over the last minute."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._failed: Dict[str, Deque[float]] = {}
        self._lock = threading.Lock()

    def note(self, node: str) -> None:
        """A session of this node has failed."""
        now = self._clock()
        with self._lock:
            times = self._failed.pop(node, None) or deque(maxlen=self._most)
            times.append(now)
            self._failed[node] = times  # the one that failed last is last
            while len(self._failed) > _NODES:
                del self._failed[next(iter(self._failed))]

    def is_too_high(self, node: str) -> bool:
        """True if as many failed within the last minute as may fail."""
        with self._lock:
            times = self._failed.get(node)
            return times is not None and len(times) == self._most and self._clock() - times[0] < _SPAN_SECONDS
