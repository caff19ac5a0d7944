"""Who booted what, and what of it was forced: told to the journal beforehand, and kept as a record afterwards.

Touches the journal and the folders of records.
"""

from __future__ import annotations

import logging
import os
import pwd
import syslog
from typing import FrozenSet, Mapping, Optional, Tuple

from anvil_dr.activation import activation_json, boot_record
from anvil_dr.activation.activate import Request
from anvil_dr.activation.boot_plan import BootPlan, Outcome
from anvil_dr.config import Config
from anvil_dr.receiving.target import utc_now

log = logging.getLogger(__name__)


def tell_of_forced(plan: BootPlan, typed: FrozenSet[str]) -> Mapping[str, str]:
    """What is about to be booted although a sign of life, or worse, speaks against it, and how that was said.

    The journal knows before it happens.
    """
    forced = {
        planned.server: "its name was typed in" if planned.server in typed else "--force"
        for planned in plan.ready
        if any(one.forceable for one in planned.draft.findings)
    }
    for planned in plan.ready:
        if planned.server not in forced:
            continue
        against = "; ".join(one.text for one in planned.draft.findings if one.forceable)
        how = forced[planned.server]
        said = f"forced boot server={planned.server} user={user()} at={utc_now()} how={how} against={against}"
        log.info(said)
        _tell_journal(said)
    return forced


def keep(
    config: Config, plan: BootPlan, outcomes: Tuple[Outcome, ...], request: Request, forced: Mapping[str, str]
) -> Optional[str]:
    """Who did it, and what of it was forced. The path of the record; None if none was kept."""
    who, at = user(), utc_now()
    record = {"user": who, "forced": forced, "memory_bytes": dict(request.memory_bytes)}
    folders = (os.path.join(config.state, "records"), os.path.join(config.runtime, "records"))
    return boot_record.write(folders, "activation", at, {**record, **activation_json.plan_to_json(plan, outcomes)})


def _tell_journal(message: str) -> None:
    """A record below /var may go with its disk; the journal may have been forwarded."""
    try:
        import systemd.journal as journal

        journal.send(message, SYSLOG_IDENTIFIER="anvil-activate-dr", PRIORITY=str(syslog.LOG_WARNING))
    except (ImportError, OSError) as error:
        log.info("not told to the journal: %s", error)


def user() -> str:
    """Who types: root is nobody in particular."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
