"""When libvirt has started a server on this node: from the log that it keeps of each QEMU.

Reads `<folder>/<server>.log` and what was rotated away from it. libvirt writes a line there whenever it starts a QEMU,
for a server that migrates to this node too.
"""

from __future__ import annotations

import glob
import gzip
import logging
import os
import re
import zlib
from datetime import datetime, timezone
from typing import IO, Final, Iterator, List, Optional, Tuple

log = logging.getLogger(__name__)

FOLDER: Final = "/var/log/libvirt/qemu"
"""The default of qemu:///system."""

_EVENT: Final = re.compile(
    rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.\d+\+0000: (starting up|shutting down)(?:, reason=([a-z]+))?"
)
_LOG: Final = re.compile(r"(?:[.-]\d+(?:\.gz)?)?")
"""What may follow `.log`: virtlogd and logrotate each count in their own way."""
_LINE_BYTES: Final = 1 << 16

_Event = Tuple[datetime, bool]
"""When, and whether a start."""


class StartLog:
    """`folder` is the log folder of the libvirt that has the servers."""

    def __init__(self, folder: str = FOLDER) -> None:
        self.folder = folder

    def started_since(self, server: str, moment: datetime) -> Optional[bool]:
        """Whether this server was started here in the second of `moment` or later; None if there is no log of it."""
        try:
            events = sorted(event for path in self._files(server) for event in _events(path))
        except (OSError, EOFError, zlib.error) as error:
            log.warning("the log of its starts cannot be read server=%s error=%s", server, error)
            return None
        if not events:
            return None
        return any(started and at >= moment.replace(microsecond=0) for at, started in events)

    def _files(self, server: str) -> List[str]:
        start = os.path.join(self.folder, f"{server}.log")
        return [path for path in glob.glob(f"{glob.escape(start)}*") if _LOG.fullmatch(path[len(start) :])]


def _events(path: str) -> Iterator[_Event]:
    """The starts and ends of one file, but for starts that failed. Raise OSError."""
    opened: IO[bytes] = gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")  # type: ignore[assignment]
    start: Optional[_Event] = None
    with opened as file:
        for line in iter(lambda: file.readline(_LINE_BYTES), b""):
            found = _EVENT.match(line)
            if found is None:
                continue
            at = datetime.strptime(found[1].decode(), "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
            if found[2] == b"starting up":
                if start is not None:
                    yield start
                start = (at, True)
                continue
            if start is not None and found[3] != b"failed":
                yield start
            start = None
            yield at, False
    if start is not None:
        yield start
