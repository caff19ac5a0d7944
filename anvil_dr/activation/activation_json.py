"""An activation as JSON objects, for `--json` and for the record. Pure."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Optional, Tuple

from anvil_dr.activation.boot_plan import BootPlan, Found, Outcome
from anvil_dr.model import ImageSet
from anvil_dr.preflight.findings import Finding


def plan_to_json(plan: BootPlan, outcomes: Optional[Tuple[Outcome, ...]]) -> Dict[str, Any]:
    """The plan as one object; and what became of each server, where it was carried out."""
    ended = {outcome.server: outcome for outcome in outcomes or ()}
    return {
        "warnings": list(plan.warnings),
        "host": {
            "cpus": plan.host.cpus,
            "memory_bytes": plan.host.memory_bytes,
            "available_bytes": plan.host.available_bytes,
        },
        "servers": [
            {
                "name": planned.server,
                "state": planned.state,
                "definition": planned.draft.definition_path,
                "set": set_to_json(planned.draft.chosen),
                "memory_bytes": planned.draft.memory_bytes,
                "cpus": planned.draft.cpus,
                "disks": planned.disks,
                "disk_bytes": planned.draft.disk_bytes,
                "networks": list(planned.draft.networks),
                "after": list(planned.after),
                "delay_seconds": planned.delay_seconds,
                "problems": [finding_to_json(one) for one in planned.problems],
                "warnings": [finding_to_json(one) for one in planned.warnings],
                **_outcome_to_json(ended.get(planned.server)),
            }
            for planned in plan.servers
        ],
    }


def list_to_json(servers: Iterable[Found]) -> Dict[str, Any]:
    """What is here, as one object."""
    return {
        "servers": [
            {
                "name": found.server,
                "definition": found.definition_path if found.definition_problem is None else None,
                "activated": found.activation is not None,
                "sets": [set_to_json(one) for one in found.sets if one.complete],
            }
            for found in servers
        ]
    }


def set_to_json(one: Optional[ImageSet]) -> Optional[Dict[str, Any]]:
    """One set: its number, where it comes from, and the paths of its images."""
    if one is None:
        return None
    record = one.record
    return {
        "sequence": one.sequence,
        "received_at": record.received_at if record is not None else None,
        "source": record.source if record is not None else None,
        "images": [{"disk": image.owner.disk, "path": image.path} for image in one.images],
    }


def finding_to_json(finding: Finding) -> Dict[str, str]:
    """What is wrong, and what to do."""
    return {"text": finding.text, "advice": finding.advice}


def _outcome_to_json(outcome: Optional[Outcome]) -> Dict[str, Any]:
    if outcome is None:
        return {"booted": False, "error": None, "advice": "", "booted_seconds": None, "answered_seconds": None}
    return {
        "booted": outcome.error is None,
        "error": outcome.error,
        "advice": outcome.advice,
        "booted_seconds": outcome.booted_seconds,
        "answered_seconds": outcome.answered_seconds,
    }
