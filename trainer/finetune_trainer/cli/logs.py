"""`finetune logs NAME`: files of a local run, or `kubectl logs` by the operator's labels."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.status import Phase
from finetune_trainer.agent.local import Home
from finetune_trainer.cli.jobs import Where, find


def show_logs(name: str, *, where: Where, node: int | None, attempt: int | None, follow: bool) -> int:
    job, local = find(name, where)
    attempt = attempt or job.status.attempt or 1
    if not local:
        return subprocess.run(
            kubectl_logs(name, where, node=node, attempt=attempt, follow=follow), check=False
        ).returncode
    home = Home(where.home)
    log = home.log(name, node=node or 0, attempt=attempt)
    if not log.exists():
        message = f"no log of node {node or 0}, attempt {attempt} of {name}"
        raise FinetuneError(Reason.InvalidSpec, message, f"See what there is: ls {home.run(name)}/*")

    def over() -> bool:
        latest = home.load(name)
        return latest is None or latest.status.phase is None or latest.status.phase.terminal

    _copy(log, follow=follow, running=job.status.phase in (Phase.Starting, Phase.Running, Phase.Restarting), over=over)
    return ExitCode.OK


def kubectl_logs(name: str, where: Where, *, node: int | None, attempt: int, follow: bool) -> list[str]:
    """All pods of the attempt, or the one of a node."""
    labels = {names.LABEL_JOB: name, names.LABEL_ATTEMPT: str(attempt)}
    if node is not None:
        labels[names.LABEL_COMPLETION_INDEX] = str(node)
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    command = where.kubectl("logs", "--selector", selector, "--container", names.CONTAINER, "--tail=-1", "--prefix")
    return [*command, "--max-log-requests=64", *(["--follow"] if follow else [])]


def _copy(log: Path, *, follow: bool, running: bool, over: Callable[[], bool]) -> None:
    with log.open(errors="replace") as file:
        while True:
            text = file.read()
            sys.stdout.write(text)
            sys.stdout.flush()
            if not text:
                if not follow or not running or over():
                    return
                time.sleep(0.5)
