"""Finds a job: among the runs of this machine first, otherwise on the cluster through kubectl."""

from __future__ import annotations

import difflib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from finetune_api.client import FineTuneJobs
from finetune_api.client.kubectl import Cluster
from finetune_api.failures import FinetuneError, Reason
from finetune_api.job import FineTuneJob
from finetune_trainer.agent.home import Home

MOST_NAMES = 10
"""Of runs, in a hint."""
_NO_RUNS = "For a run on this machine: pass its folder .finetune with --home."


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where to look. If `namespace` or `context` is set, only the cluster is searched."""

    home: Path
    namespace: str | None = None
    context: str | None = None

    @property
    def cluster_only(self) -> bool:
        return self.namespace is not None or self.context is not None

    @property
    def jobs(self) -> FineTuneJobs:
        """The jobs of the cluster."""
        return FineTuneJobs(namespace=self.namespace, context=self.context)

    def kubectl(self, *arguments: str) -> list[str]:
        return Cluster(namespace=self.namespace, context=self.context).command(*arguments)


class Found(NamedTuple):
    job: FineTuneJob
    local: bool


def find(name: str, where: Where) -> Found:
    """Returns the job of that name. Raises FinetuneError if it does not exist, or the cluster cannot be reached."""
    if not where.cluster_only and (job := Home(where.home).load(name)) is not None:
        return Found(job, local=True)
    if shutil.which("kubectl") is None:
        message = f"no run named {name} in {where.home}, and kubectl is not installed"
        raise FinetuneError(Reason.NotFound, message, "Check the name and the folder (--home), or install kubectl.")
    try:
        return Found(where.jobs.get(name).object, local=False)
    except FinetuneError as error:
        if where.cluster_only:
            raise
        known = Home(where.home).names()
        near = difflib.get_close_matches(name, known, n=1)
        if near:
            hint = f"Did you mean {near[0]}, a run of this machine?"
        else:
            runs = f"Runs on this machine: {', '.join(known[:MOST_NAMES])}." if known else _NO_RUNS
            hint = f"{runs} For a job on a cluster: {error.hint}"
        message = f"no run named {name} in {where.home}; on the cluster: {error.message}"
        raise FinetuneError(error.reason, message, hint) from error
