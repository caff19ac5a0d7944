"""The service as its own process, which can be stopped, killed, started again, and asked what it holds."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional

from anvil_dr.errors import ServiceError
from anvil_dr.status.inquiry import running_jobs

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 60


def _unit_environment() -> Dict[str, str]:
    """What systemd's unit gives it."""
    lines = (ROOT / "systemd" / "anvil-dr-target.service").read_text().splitlines()
    words = [line[len("Environment=") :].partition("=") for line in lines if line.startswith("Environment=")]
    return {name: value for name, _, value in words}


@dataclass(frozen=True)
class Held:
    """What the kernel counts for a process."""

    threads: int
    descriptors: int
    memory_bytes: int
    """Resident, of its own: no file's pages."""


class ServiceProcess:
    """Everything lies below one folder; the store is `<folder>/store`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        self.store.mkdir()
        self.socket = str(folder / "run" / "target.sock")
        self.log = folder / "service.log"
        self._process: Optional[subprocess.Popen[bytes]] = None

    def start(self, *, copies: int) -> None:
        """Come back when it takes jobs."""
        config = self.folder / "target.yaml"
        config.write_text(
            f"name: dr01\nstore: fs:{self.store}\ncopies: {copies}\nuse_cache: false\nactivation: {{check: false}}\n"
            + "".join(
                f"{key}: {self.folder / name}\n"
                for key, name in (("definitions", "definitions"), ("state", "state"), ("runtime", "run"))
            )
        )
        with self.log.open("ab") as log:
            argv = [str(ROOT / "bin" / "anvil-dr-target"), "--config", str(config)]
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, **_unit_environment()})
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Until it answers, and no job is running."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                if not running_jobs(self.socket):
                    return
            except ServiceError:
                pass  # it is not there yet
            assert time.monotonic() < deadline and self.running, self.log.read_text()[-4000:]
            time.sleep(0.01)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """As the kernel does that has run out of memory."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_PATIENCE_SECONDS)

    def stop(self) -> int:
        """As systemd does. Returns its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_PATIENCE_SECONDS)

    def held(self) -> Held:
        """Once the threads of its sessions have ended, which is when nothing happens any more."""
        self.wait_until_idle()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._held().threads > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._held()

    def _held(self) -> Held:
        assert self._process is not None
        folder = Path("/proc", str(self._process.pid))
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        memory_bytes = int(status["RssAnon"].split()[0]) << 10
        return Held(int(status["Threads"]), len(list((folder / "fd").iterdir())), memory_bytes)
