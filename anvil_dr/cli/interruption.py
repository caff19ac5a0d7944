"""Ctrl-C, `systemctl stop` and a lost terminal, while servers may be off: they end the session, in good order.

A KeyboardInterrupt could strike anywhere, also between a server's shutdown and the code that will start it again.
So nothing is raised: the session is abandoned, which its own code notices within a second, and cleans up after.

May touch: the process's signal handlers, on the main thread.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Callable, Dict, Final, Optional

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """`with Interruption() as interruption: ... interruption.watch(channel.abandon)`."""

    def __init__(self) -> None:
        self.by: Optional[signal.Signals] = None
        """The first signal that came."""
        self._abandon: Callable[[], None] = lambda: None
        self._before: Dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.by is not None

    def watch(self, abandon: Callable[[], None]) -> None:
        """What is to be done when a signal comes; done at once if one has come already. It must not raise."""
        self._abandon = abandon
        if self:
            abandon()

    def __enter__(self) -> Interruption:
        for one in _SIGNALS:
            # Ignored by whoever started us, as by nohup: then it's ignored.
            if signal.getsignal(one) is not signal.SIG_IGN:
                self._before[one] = signal.signal(one, self._came)
        return self

    def __exit__(self, *unused: object) -> None:
        for one, before in self._before.items():
            signal.signal(one, before)

    def _came(self, number: int, frame: Optional[FrameType]) -> None:
        if self.by is None:
            self.by = signal.Signals(number)
        self._abandon()
