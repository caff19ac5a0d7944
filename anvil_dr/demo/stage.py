"""The scratch folder that the demo plays in, and the commands that it runs there. When it's left, all are gone.

Touches that folder, the working folder of this process, and the processes it started.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Iterator, Optional

from anvil_dr import command
from anvil_dr.demo.interrupts import Interrupts
from anvil_dr.demo.narrator import Narrator
from anvil_dr.errors import CommandError, ServiceError, StoreError
from anvil_dr.words import size

_STOP_SECONDS: Final = 20.0
_SPACE_BYTES: Final = 320 << 20
"""A store wants the size of what it is to take as free space, whatever of it is empty."""
_LOG_LINES: Final = 15


class Stage:
    """A place where commands run as if a person had typed them there. `with Stage(…) as stage: stage.open()`."""

    def __init__(self, narrator: Narrator, interrupts: Interrupts, *, keep: bool) -> None:
        self.narrator, self._interrupts, self._keep = narrator, interrupts, keep
        self._undo = ExitStack()
        self.folder = Path()

    def open(self) -> None:
        """Make the folder and go there. Inside of `with`, so that no signal can come between making and undoing.

        Raise StoreError if there is too little space.
        """
        place = tempfile.gettempdir()
        free_bytes = shutil.disk_usage(place).free
        if free_bytes < _SPACE_BYTES:
            needed = size(_SPACE_BYTES)
            raise StoreError(f"{place} has {size(free_bytes)} free, and the demo needs {needed}: set TMPDIR to another")
        with self.until_the_end() as undo:
            # Short, because sockets will lie in it, and a socket's path may have 107 bytes (unix(7)).
            self.folder = Path(tempfile.mkdtemp(prefix="anvil-dr-demo-"))
            undo.callback(self._remove_folder)
            undo.callback(os.chdir, os.getcwd())
            os.chdir(self.folder)
            (self.folder / "tmp").mkdir()
            # So that nothing of an interrupted step stays in /tmp either.
            undo.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
            tempfile.tempdir = str(self.folder / "tmp")

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *unused: object) -> None:
        with self._interrupts.held():
            self._undo.close()

    @property
    def kept(self) -> Optional[Path]:
        """The folder, if it stays; None if it does not, or was not made yet."""
        return self.folder if self._keep and self.folder != Path() else None

    @contextmanager
    def until_the_end(self) -> Iterator[ExitStack]:
        """Start something in here and say how it's undone: no signal comes in between."""
        with self._interrupts.held():
            yield self._undo

    def run(self, *argv: str, shown: str = "") -> None:
        """Show a command line, and run it on this terminal. Raise CommandError if it fails."""
        self.narrator.typed(shown or shlex.join(argv))
        process: Optional[command.Process] = None
        try:
            # A signal that was held strikes at the end of this block, so it must lie inside the try.
            with self._interrupts.held():
                process = command.start((find_program(argv[0]), *argv[1:]), output=None)
            while (code := process.exit_code()) is None:
                time.sleep(0.02)
        except BaseException:
            if process is not None:
                _end(process)
            raise
        if code != 0:
            raise CommandError(argv, code, b"", b"")

    def ask(self, *argv: str) -> bytes:
        """What a command says on standard output. Raise CommandError."""
        return command.run((find_program(argv[0]), *argv[1:])).stdout

    def serve(self, *argv: str, log: str) -> None:
        """Show a command line, and leave it running in the background until the end."""
        self.narrator.typed(f"{shlex.join(argv)} > {log} 2>&1 &")
        # setpriv: should this process be killed, that one ends too (PR_SET_PDEATHSIG in prctl(2)).
        tied = ("setpriv", "--pdeathsig", "TERM", find_program(argv[0]), *argv[1:])
        with self.until_the_end() as undo:
            self._server = command.start(tied, output=self.folder / log)
            undo.callback(_end, self._server)
        self._log = self.folder / log

    def check_server(self) -> None:
        """Raise ServiceError if what `serve` started has ended."""
        code = self._server.exit_code()
        if code is not None:
            raise ServiceError(f"the service has ended with exit code {code}")

    def log_of_server(self) -> str:
        """The last lines of it; empty if nothing was started."""
        path: Optional[Path] = getattr(self, "_log", None)
        lines = path.read_text(errors="replace").splitlines() if path is not None and path.exists() else []
        return "\n".join(lines[-_LOG_LINES:])

    def _remove_folder(self) -> None:
        if not self._keep:
            shutil.rmtree(self.folder)


def programs_folder() -> Optional[Path]:
    """Where the project's commands lie; None if that is not known."""
    places = (Path(__file__).resolve().parents[2] / "bin", Path(sys.argv[0]).resolve().parent, Path(sys.prefix) / "bin")
    return next((place for place in places if (place / "anvil-dr-target").exists()), None)


def find_program(name: str) -> str:
    """One of the project's commands in full; any other as it is."""
    folder = programs_folder()
    return str(folder / name) if folder is not None and (folder / name).exists() else name


def _end(process: command.Process) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except CommandError:
        process.kill()
