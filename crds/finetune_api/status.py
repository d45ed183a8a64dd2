"""FineTuneJob.status: the observed state of a job, and the results of the trainer."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from .base import ApiModel
from .fields import LIST_MAP, MAP_KEYS
from .ladder import LadderStatus
from .measurements import Evaluation
from .reasons import FailureClass as FailureClass  # noqa: PLC0414  # a type of the status
from .restarts import BUDGETS, Budget
from .rung_pods import RungName, UnavailableRung
from .switching import SwitchTest

Text = Annotated[str, Field(max_length=4096)]


class Phase(StrEnum):
    """Phase of the job. Succeeded and Failed are terminal."""

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


class Condition(ApiModel):
    """metav1.Condition."""

    type: str = Field(max_length=316)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(min_length=1, max_length=1024)
    message: str = Field("", max_length=32768)
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})
    observed_generation: int | None = None


class Restarts(ApiModel):
    """Number of restarts, by the budget that they used."""

    counted: int = Field(0, description="Restarts that count against retry.maxRestarts.")
    free: int = Field(0, description="Restarts after preemption and resume, which are not limited.")
    out_of_memory: int | None = Field(
        None, description="Restarts after running out of memory, each with half the micro-batch."
    )
    non_finite: int | None = Field(None, description="Restarts after a NaN or infinite loss, at most one.")
    resized: int | None = Field(None, description="Restarts with a different number of nodes.")

    # a field for each of `restarts.BUDGETS`, which the tests hold

    @property
    def total(self) -> int:
        return sum(self.paid_by(budget) for budget in BUDGETS)

    def paid_by(self, budget: Budget) -> int:
        return getattr(self, budget.field) or 0


class Progress(ApiModel):
    """Training progress, as last reported by node 0."""

    step: int = Field(0, description="Completed optimizer steps.")
    total_steps: int | None = Field(None, description="Planned optimizer steps.")
    percent: int | None = Field(None, description="Progress in percent, 0 to 100.")
    eta_seconds: int | None = Field(None, description="Estimated seconds to the last step.")
    loss: float | None = Field(None, description="Training loss of the last logged step, in nats per trained token.")
    eval_loss: float | None = Field(None, description="Validation loss, in nats per trained token.")
    tokens_per_second: float | None = Field(None, description="Throughput in tokens per second, across all nodes.")
    last_checkpoint_time: str | None = Field(
        None, description="Time of the last complete checkpoint.", json_schema_extra={"format": "date-time"}
    )
    last_update_time: str | None = Field(None, json_schema_extra={"format": "date-time"})

    @property
    def ratio(self) -> float | None:
        """Steps done of the steps planned."""
        return self.step / self.total_steps if self.total_steps else None


class Usage(ApiModel):
    """GPU time of the job's pods, from the binding of each to a node until it ends. Updated with each status write."""

    gpu_hours: float = Field(0.0, description="GPU hours of all attempts. Slices and other accelerators count as one.")
    wasted_gpu_hours: float = Field(
        0.0,
        description="Part of gpuHours without result: waiting for the whole gang, work after the last checkpoint of a "
        "failed attempt, pods of an attempt that is over, capacity checks.",
    )
    money: float | None = Field(None, description="Cost of gpuHours, if the administrator has set prices.")
    currency: str | None = Field(None, max_length=16, description="Currency of money.")
    last_update_time: str | None = Field(
        None, description="Time up to which usage is counted.", json_schema_extra={"format": "date-time"}
    )


class ResolvedPlan(ApiModel):
    """Resolved settings of the run, defaults included."""

    method: str = Field("", max_length=64)
    strategy: str = Field("", max_length=64)
    world_size: int | None = None
    precision: str = Field("", max_length=64)
    learning_rate: float | None = None
    batch_size: int | None = None
    micro_batch_tokens: int | None = None
    longest_row: int | None = Field(None, description="Length of the longest training row, in tokens.")
    total_steps: int | None = None
    parameters: int | None = Field(None, description="Number of parameters of the model.")
    trainable_parameters: int | None = None
    trained_layers: int | None = Field(
        None, description="For method partial: number of trained decoder layers, from the last."
    )
    model_revision: str | None = Field(None, max_length=256)
    train_rows: int | None = None
    trained_tokens_per_epoch: int | None = None


class Candidate(ApiModel):
    """An artifact that a guard kept back: whole, but not published."""

    uri: str = Field(max_length=2048, description="Its folder, below output.uri. finetune promote publishes it.")
    digest: str = Field(max_length=128, description="sha256 of its manifest.")


Servable = Literal["lora", "merged", "hf-only"]


class Artifact(ApiModel):
    """The artifact that the run has committed."""

    uri: str = Field(max_length=2048, description="Folder of the artifact: output.uri.")
    digest: str = Field(
        max_length=128, description="sha256 of the artifact manifest, which lists the digest of every file."
    )
    size_bytes: int
    kind: Literal["adapter", "model"] = Field(description="adapter: needs the base model. model: complete weights.")
    servable: Servable | None = Field(
        None,
        description="What can serve the artifact. lora: servers with LoRA support, several adapters per base model. "
        "merged: any server, as a complete model. hf-only: transformers with the code in finetune_trainer.",
    )
    switch_test: SwitchTest | None = Field(None, description="With output.switchTest: several adapters on one base.")


class LastFailure(ApiModel):
    """Cause of the last failed attempt, or of the current attempt not starting."""

    failure_class: FailureClass = Field(
        alias="class", description="Failure class; decides whether the attempt is retried."
    )
    reason: str = Field(max_length=64, description="Stable reason, on which alerts can match.")
    message: Text = Field("", description="What failed, and where.")
    hint: Text = Field("", description="Suggested fix.")
    attempt: int = Field(0, description="Number of the failed attempt.")
    rank: int | None = Field(None, description="Global rank of the process that failed first.")
    node: str | None = Field(None, max_length=253, description="Node of the pod that failed first.")
    exit_code: int | None = Field(None, description="Exit code of its process or container.")
    step: int | None = Field(None, description="Optimizer steps completed before the failure.")
    time: str | None = Field(None, json_schema_extra={"format": "date-time"})


class AvoidedNode(ApiModel):
    """A node on which attempts have failed, within an hour of each other."""

    name: str = Field(max_length=253)
    failures: int
    last_failure_time: str = Field(json_schema_extra={"format": "date-time"})
    until: str | None = Field(
        None,
        description="New attempts avoid the node until this time. Unset after a single failure.",
        json_schema_extra={"format": "date-time"},
    )
    required: bool | None = Field(
        None,
        description="true: pods must not run on this node. Otherwise other nodes are only preferred.",
    )


class FineTuneJobStatus(ApiModel):
    """Observed state of the job, and results of the trainer."""

    phase: Phase | None = None
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field(
        (), json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["type"]}
    )
    observed_generation: int | None = None
    attempt: int | None = Field(
        None, description="Number of the current attempt. It is incremented before the attempt's Job is created."
    )
    restarts: Restarts | None = None
    restart_times: Annotated[tuple[str, ...], Field(max_length=1000)] | None = Field(
        None,
        description="Times of the counted restarts within retry.window.",
        json_schema_extra={LIST_MAP: "atomic"},
    )
    nodes: int | None = Field(None, description="Number of pods of the current attempt.")
    rung: RungName | None = Field(
        None,
        description="With ladder.overrides: the rung whose nodes and resources the current attempt has. Unset until an "
        "attempt ends because the next rung needs other pods.",
    )
    moves: int | None = Field(
        None, description="Attempts that had other pods than the one before, because the ladder continued there."
    )
    unavailable_rung: UnavailableRung | None = Field(
        None,
        description="With ladder.overrides: the rung before which the ladder stopped, as its pods could not be had.",
    )
    micro_batch_tokens: int | None = Field(
        None, description="Reduced micro-batch size of attempts that follow an out-of-memory failure."
    )
    skipped_step: int | None = Field(
        None, description="With training.skipBadBatch: number of steps before the one whose batch is skipped."
    )
    start_time: str | None = Field(None, json_schema_extra={"format": "date-time"})
    completion_time: str | None = Field(None, json_schema_extra={"format": "date-time"})
    progress: Progress | None = None
    usage: Usage | None = Field(None, description="GPU hours and cost; unset for jobs without GPUs.")
    plan: ResolvedPlan | None = None
    evaluation: Evaluation | None = None
    artifact: Artifact | None = None
    candidate: Candidate | None = Field(None, description="What a guard kept back.")
    ladder: LadderStatus | None = Field(None, description="For method.type auto: the rungs, and what was decided.")
    last_failure: LastFailure | None = None
    avoided_nodes: Annotated[tuple[AvoidedNode, ...], Field(max_length=16)] | None = Field(
        None, json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]}
    )
