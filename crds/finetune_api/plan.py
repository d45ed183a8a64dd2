"""The plan of one attempt: the annotation `finetune.dev/plan` of its pods, and the file that local agents read."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from .base import ApiModel
from .ladder import LadderStatus, Price
from .logs import JobLog, chosen_format
from .measurements import Evaluation, RemedyName, RemedyRun
from .names import MASTER_PORT
from .rung_pods import RungName, UnavailableRung
from .spec import FineTuneJobSpec
from .status import Artifact, Candidate, Progress, ResolvedPlan

PHASES = ("preflight", "waiting", "loading", "evaluating", "training", "saving", "done", "failed")
"""What an agent does, in a word."""


class JobIdentity(ApiModel):
    namespace: str
    name: str
    uid: str = Field(description="Identifies the run in the output folder. For local runs: derived from the spec.")


class Publishes(ApiModel):
    """Of a run that publishes the best rung of a ladder: whose checkpoints it takes."""

    uri: str = Field(description="Output folder of the rung.")
    uid: str = Field(description="UID of the rung's run.")
    ladder: LadderStatus


class Fold(ApiModel):
    """A part of the training rows that a run does not train on, but measures in place of the validation rows."""

    index: int = Field(ge=0)
    of: int = Field(ge=2)


class Trial(ApiModel):
    """Of a run of a rung: with one of its learning rates (ladder.learningRates), without some of its rows, or with a
    base model that is measured with examples in its prompt, too. Of a remedy: at a lower learning rate."""

    factor: float = Field(1.0, description="Multiple of the learning rate.")
    until: float | None = Field(
        None,
        description="Share of the steps after which it stops with a checkpoint, and notes the validation loss. None: "
        "to the end.",
    )

    fold: Fold | None = Field(None, description="Of a run that helps to decide about a rung by cross-fitting.")
    few_shot: int = Field(0, ge=0, description="Examples in the prompt of the base model (ladder.fewShot).")

    @property
    def note(self) -> str:
        """Name of the note with the loss."""
        return f"trial-{self.until or 1.0}"


class Remedy(ApiModel):
    """Of a run that trains again, because a guard was violated (guards.maxAttempts)."""

    name: RemedyName
    settings: str = Field("", description="What differs from the manifest.")
    before: tuple[RemedyRun, ...] = Field((), description="The runs before it.")


class RunPlan(ApiModel):
    """The plan of one attempt. It is the same for every node; the node rank comes from the environment."""

    job: JobIdentity
    attempt: int = Field(1, ge=1)
    nodes: int = Field(1, ge=1)
    processes_per_node: int = Field(1, ge=1)
    master_address: str = "127.0.0.1"
    master_port: int = MASTER_PORT
    grace_seconds: int = Field(120, description="Time between SIGTERM and SIGKILL.")
    micro_batch_tokens: int | None = Field(
        None, ge=8, description="Replaces the manifest's value after an out-of-memory failure; batchSize is unchanged."
    )
    skipped_step: int | None = Field(
        None,
        ge=0,
        description="Number of optimizer steps before the one that is skipped because its loss was not finite.",
    )
    token: str | None = Field(
        None, max_length=128, description="Bearer token that clients of /progress must send. None: no authentication."
    )
    nonce: str | None = Field(
        None, max_length=128, description="Returned with progress, since another pod may have taken over the address."
    )
    rung: str | None = Field(
        None,
        max_length=32,
        description="Of a run that is a rung of a ladder: test rows are not measured, a half of the validation rows is "
        "kept from training, and the checkpoints stay.",
    )
    publishes: Publishes | None = None
    uri_prefixes: tuple[str, ...] | None = Field(
        None,
        description="With continueFrom: what the admin's policy lets URIs begin with, for those that are named in the "
        "earlier artifact. None: anything.",
    )
    trial: Trial | None = None
    remedy: Remedy | None = Field(
        None, description="With guards.maxAttempts: which of the runs it is. None: the first."
    )
    price: Price | None = Field(None, description="Of an hour of one process, for the budget of a ladder.")
    pods_of: RungName | None = Field(
        None, description="Of a ladder: the rung whose pods these are (ladder.overrides). None: the job's."
    )
    unavailable_rung: UnavailableRung | None = Field(
        None, description="Of a ladder: the rung before which it stops, as its pods could not be had."
    )
    turn: int | None = Field(
        None, ge=1, description="Of a run of a ladder: its number in the attempt, the same on all nodes."
    )
    spec: FineTuneJobSpec

    @property
    def fold(self) -> Fold | None:
        return self.trial.fold if self.trial else None

    @property
    def few_shot(self) -> int:
        return self.trial.few_shot if self.trial else 0

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node

    def log(self, environ: Mapping[str, str]) -> JobLog:
        """Where lines about this attempt go, in the format that the environment asks for."""
        job = self.job
        return JobLog(namespace=job.namespace, job=job.name, attempt=self.attempt, format=chosen_format(environ))

    @property
    def spec_of_attempt(self) -> FineTuneJobSpec:
        """The spec with the changes of this attempt applied."""
        spec = self.spec.model_copy(update={"nodes": self.nodes})
        if self.micro_batch_tokens is None:
            return spec
        training = spec.training.model_copy(update={"micro_batch_tokens": self.micro_batch_tokens})
        return spec.model_copy(update={"training": training})


class ProgressReport(ApiModel):
    """Response of node 0's agent to GET /progress."""

    attempt: int
    phase: str = Field(description="One of preflight, waiting, loading, evaluating, training, saving, done, failed.")
    progress: Progress = Field(default_factory=Progress)
    plan: ResolvedPlan | None = None
    evaluation: Evaluation | None = None
    artifact: Artifact | None = None
    candidate: Candidate | None = None
    ladder: LadderStatus | None = Field(None, description="For method.type auto.")
    uid: str | None = Field(None, description="UID of the agent's job.")
    nonce: str | None = Field(None, description="Nonce of the agent's plan.")
