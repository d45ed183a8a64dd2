"""What the methods of FineTuneJobs return. Each value prints as one line, and as a table in a notebook."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from finetune_api.base import ApiModel
from finetune_api.failures import FinetuneError, Reason
from finetune_api.job import FineTuneJob
from finetune_api.progress_text import progress_line
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Artifact, FineTuneJobStatus, Phase, Progress
from finetune_api.text import printable

READ = ("apiVersion", "kind", "metadata", "spec", "status")
HOLDING = (Phase.Starting, Phase.Running, Phase.Restarting)
"""Phases in which a job may hold nodes."""

Action = Literal["submitted", "stopped", "resumed", "retried", "cloned", "deleted"]


@dataclass(frozen=True, repr=False)
class Job:
    """A FineTuneJob as the cluster returned it."""

    object: FineTuneJob
    raw: Mapping[str, Any]
    """All of its fields, also those that this version does not know."""

    @staticmethod
    def read(raw: Mapping[str, Any]) -> Job:
        """FinetuneError(InvalidSpec) if another version of the operator wrote it in a way that cannot be read."""
        kept = {key: raw[key] for key in READ if key in raw}
        try:
            return Job(FineTuneJob.model_validate_json(json.dumps(kept)), raw)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            where = ".".join(map(str, detail["loc"]))
            name = (raw.get("metadata") or {}).get("name")
            message = f"FineTuneJob {name} cannot be read: {where}: {detail['msg']}"
            hint = "Use the same version of finetune as the operator."
            raise FinetuneError(Reason.InvalidSpec, message, hint) from error

    @property
    def name(self) -> str:
        return self.object.metadata.name

    @property
    def namespace(self) -> str:
        return self.object.metadata.namespace

    @property
    def uid(self) -> str:
        return self.object.metadata.uid

    @property
    def spec(self) -> FineTuneJobSpec:
        return self.object.spec

    @property
    def status(self) -> FineTuneJobStatus:
        return self.object.status

    @property
    def phase(self) -> Phase:
        return self.status.phase or Phase.Pending

    @property
    def progress(self) -> Progress:
        return self.status.progress or Progress()

    @property
    def artifact(self) -> Artifact | None:
        return self.status.artifact

    @property
    def finished(self) -> bool:
        """Whether the phase is final."""
        return self.phase.terminal

    @property
    def unfinished_work(self) -> bool:
        """Whether deleting the job would lose training."""
        return not self.finished and (self.phase in HOLDING or self.progress.step > 0)

    def told(self) -> str:
        """Its phase in one line, with progress and failure: `Running  step 30/120 (25 %)  loss 1.2340`."""
        parts = [progress_line(str(self.phase), self.progress)]
        if self.phase is Phase.Failed and self.status.last_failure is not None:
            failure = self.status.last_failure
            parts.append(f"{failure.reason}: {failure.message}")
        if self.artifact is not None:
            parts.append(self.artifact.uri)
        return printable("  ".join(parts))

    def to_json(self) -> dict[str, Any]:
        return dict(self.raw)

    def __repr__(self) -> str:
        return f"<FineTuneJob {self.namespace}/{self.name}: {self.told()}>"

    def _repr_html_(self) -> str:
        return _html_table([self])


class Jobs(tuple[Job, ...]):
    """Several jobs; a table in a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "<no FineTuneJobs>"

    def _repr_html_(self) -> str:
        return _html_table(self)


class Event(ApiModel):
    """A Kubernetes event about a job."""

    time: str = Field(description="When it last happened: RFC 3339, UTC.")
    type: str = Field(description="Normal or Warning.")
    reason: str
    message: str = ""
    count: int = 1


class Outcome(ApiModel):
    """What a command did: the JSON of `finetune submit`, `stop`, `resume`, `retry`, `clone` and `delete`."""

    action: Action = Field(description="What was asked for.")
    name: str = Field(description="Name of the job; of a clone, that of the new job.")
    namespace: str = Field(description="Namespace of the job.")
    uid: str = Field("", description="UID of the job; empty after a trial run (--dry-run).")
    phase: Phase = Field(description="Phase of the job before the operator has seen the change.")
    changed: bool = Field(True, description="false if the job already was in the requested state, or with --dry-run.")
    message: str = Field(description="What happened, in a sentence.")
    next: Sequence[str] = Field((), description="Commands that are useful now.")

    def __repr__(self) -> str:
        return f"<{self.namespace}/{self.name}: {self.message}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        commands = "".join(f"<br><code>{html.escape(printable(command))}</code>" for command in self.next)
        return f"<p>{html.escape(printable(self.message))}{commands}</p>"


def _html_table(jobs: Iterable[Job]) -> str:
    rows = [
        (f"{job.namespace}/{job.name}", str(job.phase), progress_line("", job.progress).strip(), _ended(job))
        for job in jobs
    ]
    head = "".join(f"<th>{name}</th>" for name in ("job", "phase", "progress", "result"))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(printable(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _ended(job: Job) -> str:
    if job.artifact is not None:
        return job.artifact.uri
    failure = job.status.last_failure
    return f"{failure.reason}: {failure.message} {failure.hint}".strip() if failure is not None else ""
