"""A bandwidth limit: says how long to wait before some bytes may go. Touches only the clock."""

from __future__ import annotations

import threading
import time
from typing import Callable


class Pace:
    """Lets bytes through at a steady rate, whoever sends them; several threads may share one.

    Each caller waits until everything that was let through before it has had its time. A pause is not
    made up for later, beyond a fifth of a second, so the limit holds over any few seconds.
    """

    _CREDIT_SECONDS = 0.2
    _LOOK_SECONDS = 1.0

    def __init__(
        self,
        rate_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`rate_bytes` per second, above zero."""
        self.rate_bytes = rate_bytes
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def wait(self, size_bytes: int, look: Callable[[], None] = lambda: None) -> float:
        """Return when `size_bytes` may be let through; the seconds that this took.

        `look` is called at least once a second meanwhile. What it raises ends the wait.
        """
        with self._lock:
            now = self._clock()
            start = max(self._free_at, now - self._CREDIT_SECONDS)
            self._free_at = start + size_bytes / self.rate_bytes
        left = waited = max(0.0, start - now)
        while left > 0:
            look()
            self._sleep(min(left, self._LOOK_SECONDS))
            left -= self._LOOK_SECONDS
        return waited
