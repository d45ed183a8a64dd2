"""FineTuneJob.status: what the operator says about a job, and what the trainer measured."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from .base import ApiModel
from .fields import LIST_MAP, MAP_KEYS

Text = Annotated[str, Field(max_length=4096)]


class Phase(StrEnum):
    """Where a job is, in one word. Terminal: Succeeded and Failed."""

    Pending = "Pending"
    Queued = "Queued"
    Starting = "Starting"
    Running = "Running"
    Restarting = "Restarting"
    Suspended = "Suspended"
    Succeeded = "Succeeded"
    Failed = "Failed"

    @property
    def terminal(self) -> bool:
        return self in (Phase.Succeeded, Phase.Failed)


class FailureClass(StrEnum):
    """Who decides about a retry. See `failures.CLASSES`."""

    Config = "Config"
    Data = "Data"
    Authentication = "Authentication"
    OutOfMemory = "OutOfMemory"
    NonFinite = "NonFinite"
    Hang = "Hang"
    PeerLost = "PeerLost"
    Infrastructure = "Infrastructure"
    Preemption = "Preemption"
    Internal = "Internal"


class Condition(ApiModel):
    """metav1.Condition."""

    type: str = Field(max_length=316)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(min_length=1, max_length=1024)
    message: str = Field("", max_length=32768)
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})
    observed_generation: int | None = None


class Restarts(ApiModel):
    """Attempts that followed others, by the budget that they used."""

    counted: int = Field(0, description="Against retry.maxRestarts.")
    free: int = Field(0, description="Preemptions and resumes.")
    out_of_memory: int | None = Field(None, description="With half the micro-batch each.")
    non_finite: int | None = Field(None, description="From the last checkpoint, once.")
    resized: int | None = Field(None, description="With fewer nodes, or with more.")

    @property
    def total(self) -> int:
        return self.counted + self.free + (self.out_of_memory or 0) + (self.non_finite or 0) + (self.resized or 0)


class Progress(ApiModel):
    """How far the training is, as node 0 last reported it."""

    step: int = Field(0, description="Optimizer steps done.")
    total_steps: int | None = Field(None, description="Steps planned.")
    percent: int | None = Field(None, description="0 to 100.")
    eta_seconds: int | None = Field(None, description="To the last step.")
    loss: float | None = Field(None, description="Training loss, nats per trained token, last logged step.")
    eval_loss: float | None = Field(None, description="Validation loss, nats per trained token.")
    tokens_per_second: float | None = Field(None, description="Tokens processed, all nodes.")
    last_update_time: str | None = Field(None, json_schema_extra={"format": "date-time"})


class ResolvedPlan(ApiModel):
    """What the defaults came to."""

    method: str = Field("", max_length=64)
    strategy: str = Field("", max_length=64)
    world_size: int | None = None
    precision: str = Field("", max_length=64)
    learning_rate: float | None = None
    batch_size: int | None = None
    micro_batch_tokens: int | None = None
    longest_row: int | None = Field(None, description="Tokens of the longest training row.")
    total_steps: int | None = None
    parameters: int | None = Field(None, description="Of the model.")
    trainable_parameters: int | None = None
    trained_layers: int | None = Field(None, description="Of method partial: decoder layers, counted from the last.")
    model_revision: str | None = Field(None, max_length=256)
    train_rows: int | None = None
    trained_tokens_per_epoch: int | None = None


class Scores(ApiModel):
    """One data set, one model."""

    loss: float = Field(description="Nats per trained token.")
    bits_per_byte: float | None = Field(None, description="Of the trained text: comparable over tokenizers.")
    accuracy: float | None = Field(None, description="Of classification rows: the likeliest label is the right one.")
    rows: int = 0
    tokens: int = Field(0, description="Trained (unmasked) tokens.")


class Splits(ApiModel):
    validation: Scores | None = None
    test: Scores | None = None
    general: Scores | None = None


class SliceScores(ApiModel):
    name: str = Field(max_length=63)
    base: Scores | None = None
    tuned: Scores | None = None


class Evaluation(ApiModel):
    """Before and after, on the same rows."""

    base: Splits = Field(default_factory=Splits, description="The untouched model.")
    tuned: Splits = Field(default_factory=Splits, description="The model in the artifact.")
    slices: Annotated[tuple[SliceScores, ...], Field(max_length=32)] = Field(
        (), json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]}
    )


Servable = Literal["lora", "merged", "hf-only"]


class Artifact(ApiModel):
    """What the run committed."""

    uri: str = Field(max_length=2048, description="Its folder: output.uri.")
    digest: str = Field(max_length=128, description="sha256 of the manifest, which holds the digest of every file.")
    size_bytes: int
    kind: Literal["adapter", "model"] = Field(description="adapter: for a base model. model: whole weights.")
    servable: Servable | None = Field(
        None,
        description="What serves it. lora: any server of LoRA adapters, beside others on one base. merged: any server "
        "of whole models. hf-only: transformers and our own code.",
    )


class LastFailure(ApiModel):
    """What was to blame for the last attempt that failed, or keeps the present one from starting."""

    failure_class: FailureClass = Field(alias="class", description="Decides about a retry.")
    reason: str = Field(max_length=64, description="A stable word for it: alerts match on it.")
    message: Text = Field("", description="What was wrong, and where.")
    hint: Text = Field("", description="What a person can do about it.")
    attempt: int = Field(0, description="Of the attempt.")
    rank: int | None = Field(None, description="Global rank of the culprit.")
    node: str | None = Field(None, max_length=253, description="On which its pod was.")
    exit_code: int | None = Field(None, description="Of its process or container.")
    step: int | None = Field(None, description="Optimizer steps done before.")
    time: str | None = Field(None, json_schema_extra={"format": "date-time"})


class AvoidedNode(ApiModel):
    """A node that was to blame for failed attempts, within an hour of each other."""

    name: str = Field(max_length=253)
    failures: int
    last_failure_time: str = Field(json_schema_extra={"format": "date-time"})
    until: str | None = Field(
        None,
        description="Following attempts avoid the node until then. Unset after a single failure.",
        json_schema_extra={"format": "date-time"},
    )
    required: bool | None = Field(
        None,
        description="true: no pod may run there; the gang had other nodes too. Else others are only preferred.",
    )


class FineTuneJobStatus(ApiModel):
    """What the operator says about the job, and what the trainer measured."""

    phase: Phase | None = None
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field(
        (), json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["type"]}
    )
    observed_generation: int | None = None
    attempt: int | None = Field(None, description="Raised before the attempt's Job exists.")
    restarts: Restarts | None = None
    nodes: int | None = Field(None, description="Pods of the present attempt.")
    micro_batch_tokens: int | None = Field(
        None, description="Of attempts after memory ran out, instead of what manifest or trainer choose."
    )
    skipped_step: int | None = Field(
        None, description="With training.skipBadBatch: optimizer steps before the one whose batch is left out."
    )
    start_time: str | None = Field(None, json_schema_extra={"format": "date-time"})
    completion_time: str | None = Field(None, json_schema_extra={"format": "date-time"})
    progress: Progress | None = None
    plan: ResolvedPlan | None = None
    evaluation: Evaluation | None = None
    artifact: Artifact | None = None
    last_failure: LastFailure | None = None
    avoided_nodes: Annotated[tuple[AvoidedNode, ...], Field(max_length=16)] | None = Field(
        None, json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]}
    )
