"""`finetune logs NAME`: log files of a local run, `kubectl logs` with the operator's labels, or the saved logs of an
attempt whose pods are gone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.job import FineTuneJob
from finetune_api.status import Phase
from finetune_trainer.agent.home import Home
from finetune_trainer.cli.jobs import Where, find
from finetune_trainer.store.attempt_logs import kept
from finetune_trainer.store.opening import open_folder

NOT_YET = (Phase.Pending, Phase.Queued, Phase.Starting, Phase.Suspended)
"""Phases in which pods may not exist, or have not logged anything."""


def show_logs(name: str, *, where: Where, node: int | None, attempt: int | None, follow: bool) -> int:
    job, local = find(name, where)
    present = job.status.attempt or 1
    attempt = attempt or present
    if attempt > present:
        message = f"{name} has no attempt {attempt}: the current one is {present}"
        raise FinetuneError(Reason.NotFound, message, f"See `finetune status {name}`.")
    if not local:
        if attempt == present and job.status.phase in (None, *NOT_YET):
            print(f"{name} is {job.status.phase or Phase.Pending}: see `finetune status {name}`", file=sys.stderr)
        if not _pods(name, where, node=node, attempt=attempt) and _show_kept(job, node=node, attempt=attempt):
            return ExitCode.OK
        return subprocess.run(
            kubectl_logs(name, where, node=node, attempt=attempt, follow=follow), check=False
        ).returncode
    home = Home(where.home)
    log = home.log(name, node=node or 0, attempt=attempt)
    if not log.exists() and _show_kept(job, node=node, attempt=attempt):
        return ExitCode.OK
    if not log.exists():
        message = f"no log of node {node or 0}, attempt {attempt} of {name}"
        raise FinetuneError(Reason.NotFound, message, f"List the available logs: ls {home.run(name)}/*")

    def over() -> bool:
        latest = home.load(name)
        return latest is None or latest.status.phase is None or latest.status.phase.terminal

    _copy(log, follow=follow, running=job.status.phase in (Phase.Starting, Phase.Running, Phase.Restarting), over=over)
    return ExitCode.OK


def _show_kept(job: FineTuneJob, *, node: int | None, attempt: int) -> bool:
    """Prints the logs that the attempt's agents saved in the output folder, using this machine's credentials. Returns
    False if there are none."""
    if job.spec.given_output is None:
        return False
    folder = open_folder(job.spec.output.uri, prefix=names.PREFIX_OUTPUT)
    found = kept(folder, uid=job.metadata.uid, attempt=attempt, node=node)
    for file, text in found.items():
        print(f"==> {folder.uri}: {file} <==\n{text}")
    return bool(found)


def _pods(name: str, where: Where, *, node: int | None, attempt: int) -> bool:
    """Whether any pod of the attempt still exists."""
    command = where.kubectl("get", "pods", "--selector", selector(name, node=node, attempt=attempt), "--output", "name")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode != 0 or bool(done.stdout.strip())


def selector(name: str, *, node: int | None, attempt: int) -> str:
    """Returns the label selector of all pods of the attempt, or of one node."""
    labels = {names.LABEL_JOB: name, names.LABEL_ATTEMPT: str(attempt)}
    if node is not None:
        labels[names.LABEL_COMPLETION_INDEX] = str(node)
    return ",".join(f"{key}={value}" for key, value in labels.items())


def kubectl_logs(name: str, where: Where, *, node: int | None, attempt: int, follow: bool) -> list[str]:
    pods = selector(name, node=node, attempt=attempt)
    command = where.kubectl("logs", "--selector", pods, "--container", names.CONTAINER, "--tail=-1", "--prefix")
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
