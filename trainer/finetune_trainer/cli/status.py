"""`finetune status NAME`."""

from __future__ import annotations

import json

from finetune_api.failures import ExitCode
from finetune_api.text import printable
from finetune_trainer.agent.home import Home
from finetune_trainer.cli.jobs import Where, find
from finetune_trainer.cli.text import status_text


def show_status(name: str, *, where: Where, as_json: bool) -> int:
    job, local = find(name, where)
    if as_json:
        print(json.dumps(job.to_json(), indent=2))
        return ExitCode.OK
    logs = ""
    if local:
        attempt = job.status.attempt or 1
        logs = str(Home(where.home).log(name, node=_node(job.status.last_failure), attempt=attempt))
    print(printable(status_text(name, job.status, logs=logs)))
    return ExitCode.OK


def _node(failure: object) -> int:
    node = getattr(failure, "node", None)
    return int(node) if isinstance(node, str) and node.isdigit() else 0
