"""qcow2 overlays: a server runs on its images without changing them, and what it wrote is kept or thrown away.

Touches one folder for each server below the folder it's given, and runs qemu-img. That folder must be one that QEMU's
own user may pass, which the state directory is not.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, replace
from typing import Any, Final, Iterable, Mapping, Optional, Tuple, Union

from anvil_dr import durable
from anvil_dr.errors import CommandError, StoreError
from anvil_dr.model import Overlay, OverlaySet, StoredImage
from anvil_dr.ports import CommandRunner

log = logging.getLogger(__name__)

_MANIFEST: Final = "overlays.json"
_NVRAM: Final = "nvram.fd"
_COMMIT_SECONDS: Final = 24 * 3600.0


class Overlays:
    """`folder` has one folder for each server that runs, or ran, on overlays."""

    def __init__(self, folder: str, run: CommandRunner) -> None:
        self.folder, self._run = folder, run

    def of(self, server: str) -> Optional[OverlaySet]:
        """None if it has none. Raise StoreError if nobody can tell."""
        return read(self.folder, server)

    def has_any(self, server: str) -> bool:
        """Also if nobody can understand them."""
        return os.path.lexists(os.path.join(self.folder, server, _MANIFEST))

    def make(
        self,
        server: str,
        sequence: int,
        made_at: str,
        images: Iterable[Tuple[StoredImage, str]],
        job_id: Optional[str] = None,
    ) -> OverlaySet:
        """New ones over these images, each with the path to use for it, which this job has sent.

        Raise StoreError; then there are none.
        """
        where = os.path.join(self.folder, server)
        found = []
        try:
            self._make_folder(where)
            for image, base in images:
                path = os.path.join(where, f"{image.owner.disk}.qcow2")
                self._run(("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path))
                kind = "block" if image.identity.startswith("lv:") else "file"
                found.append(Overlay(image.owner.disk, path, base, kind, image.identity))
            made = OverlaySet(server, sequence, made_at, tuple(found), job_id=job_id)
            self._write(where, made)
        except (OSError, CommandError) as error:
            shutil.rmtree(where, ignore_errors=True)
            raise StoreError(f"overlays for {server} cannot be made in {self.folder}: {_why(error)}") from error
        log.info("overlays made server=%s sequence=%d folder=%s", server, sequence, where)
        return made

    def keep_nvram(self, made: OverlaySet, content: bytes) -> OverlaySet:
        """Put a copy of the UEFI variables beside them. Raise StoreError."""
        where = os.path.join(self.folder, made.server)
        changed = replace(made, nvram=os.path.join(where, _NVRAM))
        try:
            durable.replace(str(changed.nvram), content, mode=0o600)
            self._write(where, changed)
        except OSError as error:
            raise StoreError(f"{changed.nvram} cannot be written: {error.strerror}") from error
        return changed

    def begin_commit(self, made: OverlaySet) -> OverlaySet:
        """Remember that its images are not what was received any more. Raise StoreError."""
        return self._note(replace(made, committing=True))

    def commit(self, made: OverlaySet) -> None:
        """Write what the server wrote into its images. Raise StoreError; all of it is still there then."""
        for overlay in made.overlays:
            try:
                argv = ("qemu-img", "commit", "-q", "-f", "qcow2", "-d", overlay.path)
                self._run(argv, timeout_seconds=_COMMIT_SECONDS)
            except CommandError as error:
                raise StoreError(f"{overlay.path} cannot be committed to {overlay.base}: {error}") from error
            log.info("overlay committed server=%s disk=%s base=%s", made.server, overlay.disk, overlay.base)

    def begin_removal(self, made: OverlaySet) -> OverlaySet:
        """Remember that nobody needs them any more, before the first one goes. Raise StoreError."""
        return self._note(replace(made, removing=True))

    def remove(self, server: str) -> None:
        """Throw them away, if there are any. Raise StoreError; doing it again goes on."""
        where = os.path.join(self.folder, server)
        try:
            if os.path.isdir(where):
                # The manifest goes last: as long as anything is left, it says what becomes of it.
                for entry in sorted(os.scandir(where), key=lambda entry: entry.name == _MANIFEST):
                    gone = durable.remove_tree if entry.is_dir(follow_symlinks=False) else durable.remove
                    gone(entry.path)
                shutil.rmtree(where, ignore_errors=True)  # an empty folder says nothing
                log.info("overlays removed server=%s", server)
        except OSError as error:
            raise StoreError(f"{where} cannot be removed: {error.strerror}") from error

    def free_bytes(self) -> int:
        """What can be written to them all together; 0 if there is no such folder yet and nobody can tell."""
        where = self.folder
        while not os.path.isdir(where) and where != "/":
            where = os.path.dirname(where)
        try:
            facts = os.statvfs(where)
        except OSError:
            return 0
        return facts.f_bavail * facts.f_frsize

    def _make_folder(self, where: str) -> None:
        shutil.rmtree(where, ignore_errors=True)
        # QEMU's own user must come through; it may not look around.
        durable.make_directories(where, mode=0o711)

    def _note(self, made: OverlaySet) -> OverlaySet:
        where = os.path.join(self.folder, made.server)
        try:
            self._write(where, made)
        except OSError as error:
            raise StoreError(f"{os.path.join(where, _MANIFEST)} cannot be written: {error.strerror}") from error
        return made

    def _write(self, where: str, made: OverlaySet) -> None:
        content = json.dumps(asdict(made), indent=1) + "\n"
        durable.replace(os.path.join(where, _MANIFEST), content.encode("utf-8"), mode=0o600)


def read(folder: str, server: str) -> Optional[OverlaySet]:
    """This server's in this folder; None if it has none. Raise StoreError if nobody can tell."""
    where = os.path.join(folder, server)
    try:
        with open(os.path.join(where, _MANIFEST), encoding="utf-8") as file:
            return _parse(json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{where}/{_MANIFEST} cannot be understood, so what {server} wrote on its overlays is not known: {error!r}"
        ) from error


def _why(error: Union[OSError, CommandError]) -> str:
    """In few words: they are read on a terminal, on the day."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    said = error.stderr.decode("utf-8", "replace").strip().rpartition(": ")[2]
    return said or str(error)


def _parse(kept: Mapping[str, Any]) -> OverlaySet:
    overlays = tuple(Overlay(**one) for one in kept["overlays"])
    return OverlaySet(
        kept["server"], int(kept["sequence"]), kept["made_at"], overlays, kept["nvram"],
        bool(kept.get("committing", False)), bool(kept.get("removing", False)), kept.get("job_id"),
    )  # fmt: skip
