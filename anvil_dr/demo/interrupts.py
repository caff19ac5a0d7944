"""Ctrl-C, and the signals that end a program, as one KeyboardInterrupt that never comes at a wrong moment.

Touches the handlers of SIGINT, SIGTERM and SIGHUP.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from types import FrameType
from typing import Any, Dict, Iterator, Optional

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """`with Interrupts() as interrupts:` in the main thread. Only the first signal counts."""

    def __init__(self) -> None:
        self._held, self._came, self._raised = 0, False, False
        self._before: Dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            # nohup ignores it for its command, which then is not to hear of it.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is interrupted in here: what was begun is finished, and known to whoever will undo it."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise_if_due()

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        self._came = True
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        # A second Ctrl-C would interrupt the tidying up that the first one began.
        if self._came and not self._held and not self._raised:
            self._raised = True
            raise KeyboardInterrupt
