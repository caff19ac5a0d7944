"""anvil-dr-send's job, through the bench's own sshd: the same code, but ssh gets the bench's configuration.

`python -m bench.sender SSH_CONFIG HOST JOB_FILE`; prints what `anvil-dr-send --json` prints of the wire.
"""

from __future__ import annotations

import json
import sys
from typing import List

from anvil_dr import command
from anvil_dr.cli.progress import Silent
from anvil_dr.sending import connect, job_file, outgoing
from anvil_dr.sending.send import JobSender


def main(argv: List[str]) -> int:
    config, host, job_path = argv
    job = job_file.load(job_path)
    with connect.connected(
        connect.SshDestination(host), lambda ssh: command.spawn((ssh[0], "-F", config, *ssh[1:]))
    ) as channel:
        sender = JobSender(channel, node="bench", observer=Silent())
        outcome = sender.run(job.name, outgoing.from_job_file(job).servers)
        print(json.dumps({"wire_bytes": channel.wire_bytes}))
    return 0 if outcome.succeeded else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
