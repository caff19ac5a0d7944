"""Rehearses servers: boots each on throw-away overlays, on an island, and waits for a sign of life (SPEC section 8).

Touches the hypervisor, and what rehearsal_stage.py puts up. The images are not changed, and whoever wants them has
them a moment later.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace
from typing import Callable, Final, Mapping, Optional, Protocol, Tuple

from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.boot_plan import BootPlan, PlannedServer
from anvil_dr.activation.overlays import Overlays
from anvil_dr.config import SignOfLife
from anvil_dr.errors import AnvilDrError, HypervisorError, StoreError
from anvil_dr.ports import DomainState, Hypervisor
from anvil_dr.rehearsal import rehearsal_stage, rehearsal_xml
from anvil_dr.rehearsal.picture import as_png
from anvil_dr.rehearsal.rehearsal_result import RehearsalResult
from anvil_dr.rehearsal.rehearsal_stage import Stage
from anvil_dr.rehearsal.rehearsal_turns import RehearsalTurns
from anvil_dr.words import size

log = logging.getLogger(__name__)

LIMIT_SECONDS: Final = 300.0
"""How long a sign of life may take that was asked for."""
SETTLE_SECONDS: Final = 120.0
"""Whoever runs for so long has come up, where nothing else is known to wait for."""
_RESERVE_BYTES: Final = 1 << 30
"""What a guest may not take of the file system of its overlays: the host, and the state database, live there too."""
_POLL_SECONDS: Final = 0.5
_AGENT_SECONDS: Final = 2
_LOG_BYTES: Final = 1 << 20


class Observer(Protocol):
    """Told how it goes. Nothing that it does may raise."""

    def began(self, server: str) -> None: ...

    def ended(self, result: RehearsalResult) -> None: ...


class Rehearser:
    """`wait_seconds` replaces both limits."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        overlays: Overlays,
        places: FirmwarePlaces,
        turns: RehearsalTurns,
        signs: Mapping[str, SignOfLife],
        *,
        now: Callable[[], str],
        wait_seconds: Optional[float] = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._hypervisor, self._overlays, self._places, self._turns = hypervisor, overlays, places, turns
        self._signs, self._now, self._clock, self._sleep = signs, now, clock, sleep
        self._limit_seconds = LIMIT_SECONDS if wait_seconds is None else wait_seconds
        self._settle_seconds = SETTLE_SECONDS if wait_seconds is None else wait_seconds

    def run(self, plan: BootPlan, observer: Observer, stopped: Callable[[], bool]) -> Tuple[RehearsalResult, ...]:
        """Rehearse every server of the plan, one after the other, in its order; nothing of ours is raised."""
        results = []
        for planned in plan.servers:
            observer.began(planned.server)
            result = replace(self._one(planned, stopped), warnings=tuple(one.text for one in planned.warnings))
            log.info("rehearsed server=%s verdict=%s detail=%s", result.server, result.verdict, result.detail)
            observer.ended(result)
            results.append(result)
        return tuple(results)

    def _one(self, planned: PlannedServer, stopped: Callable[[], bool]) -> RehearsalResult:
        chosen = planned.draft.chosen
        sequence = chosen.sequence if chosen is not None and isinstance(chosen.sequence, int) else None
        received_at = chosen.record.received_at if chosen is not None and chosen.record is not None else None
        blank = RehearsalResult(planned.server, "failed", "", sequence=sequence, received_at=received_at)
        if stopped():
            return replace(blank, verdict="interrupted", detail="it was not its turn yet")
        if planned.state == "running":
            return replace(blank, verdict="skipped", detail="it runs here for real")
        if planned.state == "blocked":
            return replace(blank, verdict="not bootable", detail="; ".join(one.text for one in planned.problems))
        try:
            with self._turns.hold(planned.server) as wanted:
                return self._on_stage(planned, blank, lambda: stopped() or wanted())
        except HypervisorError as error:
            return replace(blank, verdict="interrupted", detail=str(error))

    def _on_stage(
        self, planned: PlannedServer, blank: RehearsalResult, ended: Callable[[], bool]
    ) -> RehearsalResult:
        sign, began = self._signs.get(planned.server, SignOfLife()), self._clock()
        try:
            with rehearsal_stage.put_up(
                planned, self._overlays, self._places, self._now(), with_serial=sign.kind == "serial"
            ) as stage:
                self._refuse_if_full()
                # Before that whatever has its name is somebody else's, and stays.
                self._boot(stage)
                try:
                    return self._watch(planned, stage, sign, blank, began, ended)
                finally:
                    self._hypervisor.destroy(stage.name)
        except AnvilDrError as error:
            return replace(blank, detail=str(error))

    def _refuse_if_full(self) -> None:
        """Raise StoreError if what guests write could fill the file system that their overlays are on."""
        free_bytes = self._overlays.free_bytes()
        if free_bytes < _RESERVE_BYTES:
            raise StoreError(
                f"{self._overlays.folder}, where a rehearsed server writes, has only {size(free_bytes)} free, and "
                f"{size(_RESERVE_BYTES)} are kept for the host: make room there"
            )

    def _boot(self, stage: Stage) -> None:
        try:
            self._hypervisor.boot(stage.xml, autodestroy=True)
        except HypervisorError as error:
            if "network backend 'user'" not in str(error) and "'user' is not" not in str(error):
                raise
            # A QEMU that was built without it, as those of EL 9 are.
            self._hypervisor.boot(rehearsal_xml.without_networks(stage.xml), autodestroy=True)

    def _watch(
        self,
        planned: PlannedServer,
        stage: Stage,
        sign: SignOfLife,
        blank: RehearsalResult,
        began: float,
        ended: Callable[[], bool],
    ) -> RehearsalResult:
        booted, limit_seconds = self._clock(), max(self._limit_seconds, sign.seconds + _POLL_SECONDS)
        while True:
            if ended():
                return replace(blank, verdict="interrupted", detail="somebody else wanted it, or you stopped")
            self._refuse_if_full()
            state = self._hypervisor.state(stage.name)
            if state != "running":
                return replace(blank, detail=_ENDED.get(state, f"it is {state}"), screenshot=self._screen(stage))
            found = self._sign(planned, stage, sign, self._clock() - booted)
            if found is not None:
                seconds = self._clock() - began
                return replace(
                    blank, verdict="passed", detail=found, seconds=seconds, screenshot=self._screen(stage)
                )
            if self._clock() - booted > limit_seconds:
                detail = f"no sign of life within {limit_seconds:.0f} s: {_WAITED_FOR[sign.kind]}"
                return replace(blank, detail=detail, screenshot=self._screen(stage))
            self._sleep(_POLL_SECONDS)

    def _sign(self, planned: PlannedServer, stage: Stage, sign: SignOfLife, seconds: float) -> Optional[str]:
        """The sign of life in words, once it's there."""
        if sign.kind == "serial":
            return self._said(stage, sign.pattern)
        if sign.kind == "agent" or (sign.kind == "any" and planned.draft.has_agent):
            if self._hypervisor.agent_answers(stage.name, timeout_seconds=_AGENT_SECONDS):
                return "its guest agent answers"
        needed = sign.seconds if sign.kind == "time" else min(self._settle_seconds, self._limit_seconds)
        if sign.kind in ("time", "any") and seconds >= needed:
            return f"it has run for {needed:.0f} s; look at its screen"
        return None

    def _said(self, stage: Stage, pattern: str) -> Optional[str]:
        try:
            with open(stage.serial_log, "rb") as file:
                text = file.read(_LOG_BYTES).decode("utf-8", "replace")
        except OSError:
            return None
        match = re.search(pattern, text)
        return None if match is None else f"it said on its serial port: {match.group()[:200]}"

    def _screen(self, stage: Stage) -> Optional[bytes]:
        try:
            return as_png(self._hypervisor.screenshot(stage.name))
        except HypervisorError as error:
            log.info("no picture of=%s error=%s", stage.name, error)
            return None


_WAITED_FOR: Final[Mapping[str, str]] = {
    "agent": "its guest agent does not answer",
    "serial": "what was waited for did not come on its serial port",
    "any": "its guest agent does not answer",
    "time": "it did not run for long enough",
}
_ENDED: Final[Mapping[DomainState, str]] = {
    "paused": "it was booted and then paused: KVM does not work on this host, or a disk gave an error",
    "suspended": "it was booted and then suspended",
    "crashed": "it was booted and then crashed",
    "gone": "it was booted and went off",
    "shut off": "it was booted and went off",
}
