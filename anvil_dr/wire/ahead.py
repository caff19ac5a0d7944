"""A thread that works ahead of another, by a fixed number of items. Touches what its items touch, and nothing else."""

from __future__ import annotations

import queue
import threading
from typing import Callable, Generic, Iterator, Optional, TypeVar, Union

from anvil_dr.errors import AnvilDrError

T = TypeVar("T")


class Ended:
    """What is delivered once there is nothing more."""


class Ahead(Generic[T]):
    """Takes items from an iterator, in a thread of its own, and delivers them.

    Never more than `places` of them are being made, or delivered and not `done` with; so an iterator may go round
    that many buffers. An AnvilDrError that it raises is delivered, and is the last thing that is. Whatever else it
    raises, whoever waits for it is told: at a node a server is off meanwhile.
    """

    def __init__(
        self,
        items: Iterator[T],
        places: int,
        deliver: Callable[[Union[T, AnvilDrError, Ended]], None],
        *,
        name: str,
    ) -> None:
        self._items, self._deliver = items, deliver
        self._closed = False
        # Several times as fast as threading.Semaphore, which is written in Python.
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(places):
            self._places.put(None)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def done(self) -> None:
        """One of the items that were delivered is not needed any more."""
        self._places.put(None)

    def close(self) -> None:
        """Return once the thread has ended. It may deliver one more item before that."""
        self._closed = True
        self._places.put(None)
        self._thread.join()

    def _run(self) -> None:
        last: Union[AnvilDrError, Ended] = AnvilDrError("reading ahead ended as nobody foresaw; see what was said")
        try:
            while True:
                self._places.get()
                if self._closed:
                    break
                item: Optional[T] = next(self._items, None)
                if item is None:
                    break
                self._deliver(item)
            last = Ended()
        except AnvilDrError as error:
            last = error
        finally:
            self._deliver(last)
