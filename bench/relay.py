"""A slow, long link for the bench: bytes between two sockets, at a rate, each way late by half of the round trip.

Touches its sockets and its report. `python -m bench.relay LISTEN TO RATE_BYTES DELAY_SECONDS REPORT`; LISTEN and TO
are paths of unix sockets, or ports of this machine. Each way has the whole rate, shared by all connections, and a
buffer of its own as a router has. Nothing is lost and nothing starts slowly: this is the link, not a TCP over it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import List, Tuple

_CHUNK_BYTES = 16 << 10
_ROUTER_BYTES = 256 << 10

_Piece = Tuple[float, bytes]


class Way:
    """One direction of the link."""

    def __init__(self, rate_bytes: float, delay_seconds: float) -> None:
        self._rate_bytes, self.delay_seconds = rate_bytes, delay_seconds
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.carried_bytes = 0
        self.first = self.last = 0.0

    @property
    def pieces(self) -> int:
        """How many can be on the way, or wait in front of it."""
        return 1 + int(self._rate_bytes * self.delay_seconds + _ROUTER_BYTES) // _CHUNK_BYTES

    def enter(self, size_bytes: int) -> float:
        """When the last of these bytes comes out at the other end."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size_bytes / self._rate_bytes
            self.carried_bytes += size_bytes
            self.first, self.last = self.first or now, self._free_at
            return self._free_at + self.delay_seconds


def carry(source: socket.socket, sink: socket.socket, way: Way) -> None:
    """Everything from `source` to `sink`, until it ends."""
    pieces: queue.Queue[_Piece] = queue.Queue(way.pieces)
    writer = threading.Thread(target=_deliver, args=(pieces, sink), daemon=True)
    writer.start()
    while True:
        try:
            piece = source.recv(_CHUNK_BYTES)
        except OSError:
            piece = b""
        pieces.put((way.enter(len(piece)), piece))
        if not piece:
            writer.join()
            return


def _deliver(pieces: queue.Queue[_Piece], sink: socket.socket) -> None:
    broken = False
    while True:
        due, piece = pieces.get()
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        try:
            if not piece:
                sink.shutdown(socket.SHUT_WR)
                return
            if not broken:
                sink.sendall(piece)
        except OSError:
            broken = True
            if not piece:
                return


def _connection(near: socket.socket, to: str, ways: Tuple[Way, Way]) -> None:
    far = connect(to)
    back = threading.Thread(target=carry, args=(far, near, ways[1]), daemon=True)
    back.start()
    carry(near, far, ways[0])
    back.join()
    near.close()
    far.close()


def connect(to: str) -> socket.socket:
    if to.startswith("/"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(to)
        return connection
    return socket.create_connection(("127.0.0.1", int(to)))


def _listen(at: str) -> socket.socket:
    if at.startswith("/"):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(at)
        listener.listen()
        return listener
    return socket.create_server(("127.0.0.1", int(at)))


def _report(path: Path, ways: Tuple[Way, Way]) -> None:
    content = [{"bytes": way.carried_bytes, "seconds": way.last - way.first} for way in ways]
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content))
    os.replace(new, path)


def main(argv: List[str]) -> int:
    """Carry until SIGTERM; the report has, for each way, the bytes and the seconds from the first to the last."""
    at, to, rate, delay, report = argv
    ways = (Way(float(rate), float(delay)), Way(float(rate), float(delay)))
    listener = _listen(at)

    def end(*unused: object) -> None:
        _report(Path(report), ways)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        near, _ = listener.accept()
        threading.Thread(target=_connection, args=(near, to, ways), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
