"""The status as the object of SPEC section 9, for `--json`. Pure: a Status in, plain values out."""

from __future__ import annotations

from typing import Any, Dict

from anvil_dr import naming
from anvil_dr.model import ImageSet, JobRecord
from anvil_dr.status.status import Status


def to_json(status: Status) -> Dict[str, Any]:
    """The object of SPEC section 9, names and types to the letter."""
    return {
        "target": status.target,
        "store": {
            "type": status.store_kind,
            "locations": [
                {"name": one.name, "size_bytes": one.size_bytes, "free_bytes": one.free_bytes}
                for one in status.locations
            ],
        },
        "servers": [
            {
                "name": one.name,
                "definition": one.definition,
                "activated": one.activation is not None,
                "warnings": [remark.text for remark in one.remarks],
                "sets": [_set_to_json(each) for each in one.sets],
                "last_job": None if one.last_job is None else _job_to_json(one.last_job),
            }
            for one in status.servers
        ],
        "cache_drives": [
            {
                "device": one.device,
                "mountpoint": one.mountpoint,
                "filesystem": one.filesystem,
                "size_bytes": one.size_bytes,
                "free_bytes": one.free_bytes,
            }
            for one in status.cache_drives
            if one.problem is None
        ],
        "jobs": [
            {
                "id": one.id,
                "node": one.node,
                "servers": list(one.servers),
                "state": one.state,
                "bytes_done": one.bytes_done,
                "bytes_total": one.bytes_total,
            }
            for one in status.jobs or ()
        ],
    }


def _set_to_json(one: ImageSet) -> Dict[str, Any]:
    digests = {image.identity: image.digest for image in one.record.images} if one.record else {}
    return {
        "sequence": one.sequence,
        "complete": one.complete,
        "received_at": one.record.received_at if one.record else None,
        "source": one.record.source if one.record else None,
        "images": [
            {
                "disk": image.owner.disk,
                "image": naming.image_name(image.owner, image.sequence),
                "path": image.path,
                "size_bytes": image.size_bytes,
                "digest": digests.get(image.identity) or None,
            }
            for image in one.images
        ],
    }


def _job_to_json(job: JobRecord) -> Dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "error": job.error,
        "wire_bytes": job.wire_bytes,
        "written_bytes": job.written_bytes,
    }
