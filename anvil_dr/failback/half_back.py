"""Which servers' disks on this node are part old and part new, because their way back has begun and not ended.

Reads and writes `<folder>/coming-back/<server>.json`. It is there before the first byte is written, and until every
disk is whole: nobody can tell from the disks themselves.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime, timezone

from anvil_dr import durable, naming
from anvil_dr.errors import ImageNameError, SourceError, StateError

log = logging.getLogger(__name__)


class HalfBack:
    """`folder` is the node's."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, "coming-back")

    def path(self, server: str) -> str:
        return os.path.join(self._folder, f"{server}.json")

    def begin(self, server: str) -> None:
        """Its disks are about to be written over. Raise StateError if that cannot be noted: then they must not be."""
        content = json.dumps({"server": server, "since": datetime.now(timezone.utc).isoformat(timespec="seconds")})
        try:
            naming.check_server_name(server)
            durable.make_directories(self._folder, mode=0o700)
            durable.replace(self.path(server), content.encode("utf-8") + b"\n")
        except ImageNameError as error:
            raise StateError(str(error)) from error
        except OSError as error:
            raise StateError(f"{self.path(server)} cannot be written: {error.strerror}") from error
        log.info("disks are being written over server=%s note=%s", server, self.path(server))

    def end(self, server: str) -> None:
        """They are whole, and on stable storage. Raise StateError."""
        try:
            durable.remove(self.path(server))
        except OSError as error:
            raise StateError(f"{self.path(server)} cannot be removed: {error.strerror}") from error
        log.info("disks are whole server=%s", server)

    def refuse(self, server: str) -> None:
        """Raise SourceError if this server's disks are not whole: an image of them would be worth nothing."""
        try:
            naming.check_server_name(server)
        except ImageNameError:
            return  # such a one never came back
        if os.path.exists(self.path(server)):
            raise SourceError(
                f"{server} was on its way back from the DR box and has not arrived: its disks are part old and part "
                f"new. Don't start it; run anvil-dr-export {server} on the DR box again. If its disks came back in "
                f"another way: rm {self.path(server)}"
            )
