"""Finds a job: among the runs of this machine first, otherwise on the cluster through kubectl."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason
from finetune_api.job import FineTuneJob
from finetune_trainer.agent.home import Home

RESOURCE = f"{names.PLURAL}.{names.GROUP}"


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where to look. If `namespace` or `context` is set, only the cluster is searched."""

    home: Path
    namespace: str | None = None
    context: str | None = None

    @property
    def cluster_only(self) -> bool:
        return self.namespace is not None or self.context is not None

    def kubectl(self, *arguments: str) -> list[str]:
        command = ["kubectl", *(["--context", self.context] if self.context else [])]
        return [*command, *(["--namespace", self.namespace] if self.namespace else []), *arguments]


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
    return Found(_parse(_get(name, where), name), local=False)


def _get(name: str, where: Where) -> str:
    command = where.kubectl("get", RESOURCE, name, "--output", "json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    if "NotFound" in done.stderr:
        hint = "Check the name, the namespace (-n) and, for runs on this machine, the folder (--home)."
        said = done.stderr.strip().splitlines()[-1]
        raise FinetuneError(Reason.NotFound, f"no FineTuneJob named {name}: {said}", hint)
    raise refused(done.stderr, done.returncode)


def refused(stderr: str, status: int = 1) -> FinetuneError:
    """The error that the last line of kubectl's output means."""
    said = stderr.strip().splitlines()
    message = said[-1] if said else f"kubectl exited with status {status}"
    if "the server doesn't have a resource type" in message:
        hint = "Install the CustomResourceDefinition and the operator first."
        return FinetuneError(Reason.ClusterUnavailable, message, hint)
    return FinetuneError(Reason.ClusterUnavailable, message)


def _parse(text: str, name: str) -> FineTuneJob:
    """Reads the known fields of a job: another version of the operator may have written others."""
    raw = json.loads(text)
    kept = {key: raw[key] for key in ("apiVersion", "kind", "metadata", "spec", "status") if key in raw}
    try:
        return FineTuneJob.model_validate_json(json.dumps(kept))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"]))
        message = f"FineTuneJob {name} cannot be read: {where}: {detail['msg']}"
        raise FinetuneError(Reason.InvalidSpec, message, "Use the same version of finetune as the operator.") from error
