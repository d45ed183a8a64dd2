"""FineTuneJob.spec. Short form: model, data, output; the rest has a default that a good engineer would choose.

Defaults live here and not in the API server, so that a manifest stays as short as it was written; `status.plan` shows
what they came to. Every list and string is bounded, which keeps the cost of the CEL rules bounded too.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from . import durations, names, uris
from .base import ApiModel, Rule
from .data import Credentials, Data
from .failures import FinetuneError, Reason
from .fields import LIST_MAP, ControllerName, Duration, Name, OutputUri
from .methods import Method
from .pod import Pod, Resources
from .rules import MODEL_RULES, SPEC_RULES
from .strategy import Strategy

T = TypeVar("T")

Optimizer = Literal["adamw", "adamw8bit"]


class ModelSource(ApiModel):
    uri: str = Field(
        min_length=1,
        max_length=1024,
        pattern=uris.MODEL,
        description="The base model: hf://org/name, s3://, gs:// or az://bucket/folder, pvc://claim/folder or file:///folder.",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Of hf:// models: branch, tag or commit. Default main; the commit is recorded.",
    )
    credentials: Credentials | None = Field(None, description="For private models and buckets.")

    RULES: ClassVar[tuple[Rule, ...]] = MODEL_RULES


class EarlyStopping(ApiModel):
    patience: int = Field(3, ge=1, le=1000, description="Evaluations without improvement before training stops.")
    min_delta: float = Field(0.0, ge=0, le=100, description="Nats per token that count as an improvement.")


class Training(ApiModel):
    epochs: int = Field(3, ge=1, le=1000, description="Passes over the training rows.")
    max_steps: int | None = Field(
        None, ge=1, le=100000000, description="End after so many optimizer steps, whatever the epochs."
    )
    batch_size: int = Field(32, ge=1, le=1048576, description="Rows for each optimizer step, over all nodes.")
    micro_batch_tokens: int | None = Field(
        None,
        ge=8,
        le=16777216,
        description="Tokens that one process computes at once. Default: by device, at least one sequence.",
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="Peak. Default: by method and width of the model; status.plan shows it."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="After the warm-up.")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Share of the steps with a rising rate.")
    optimizer: Optimizer = Field(
        "adamw",
        description="adamw8bit: AdamW whose moments take a byte each instead of four, for less memory and smaller "
        "checkpoints; its steps take longer. Not with strategy deepspeed.",
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="Decoupled (AdamW).")
    max_grad_norm: float = Field(
        1.0, ge=0, le=1000000, description="Gradients are clipped to this norm; 0 leaves them alone."
    )
    seed: int = Field(1, ge=0, le=2147483647, description="Of row order, adapter weights and dropout.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on GPUs that have it, else float32."
    )
    evaluate_every: int | None = Field(
        None, ge=1, le=100000000, description="Steps between evaluations. Default: a tenth of the run."
    )
    early_stopping: EarlyStopping | None = Field(None, description="Stop when validation stops improving.")
    compile: bool = Field(
        False,
        description="Compile the decoder blocks (torch.compile): faster steps, after a first one that takes longer. "
        "What is compiled stays in the cache. Not for dora, qlora, prefix, probe, nor for strategy deepspeed.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Decoder blocks keep their input alone and run again for their gradients: less memory, a third "
        "more time, the same losses. For rows that do not fit without. Not with compile, prefix or probe.",
    )
    kernels: Literal["auto", "reference"] = Field(
        "auto",
        description="auto: on GPUs, attention and loss by installed kernels that prove right and faster on this very "
        "GPU at start. reference: torch's own, so that what is installed changes nothing.",
    )
    frozen_layer_cache: bool = Field(
        True,
        description="What the layers below the lowest trained one make of the rows is computed once and read from disk "
        "after, where that saves time. At most half of the free disk, and 20 GiB.",
    )
    skip_bad_batch: bool = Field(
        False,
        description="After a loss that is not finite, try again without the batch of that step; else with it. Once.",
    )


class Checkpoint(ApiModel):
    """Where a following attempt goes on."""

    every: Annotated[int | str, Field(union_mode="left_to_right")] = Field(
        "10m",
        description="A duration such as 10m, or a number of steps.",
    )
    keep: int = Field(2, ge=1, le=100, description="Checkpoints that stay; the best one stays too.")

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.every) || (type(self.every) == int ? self.every >= 1 : "
            f"self.every.matches('{durations.PATTERN}'))",
            message="checkpoint.every must be a duration such as 10m, or a number of steps of at least 1",
            holds=lambda new, _: _is_steps_or_duration(new.get("every", "10m")),
        ),
    )


def _is_steps_or_duration(value: object) -> bool:
    if isinstance(value, str):
        try:
            return durations.seconds(value) >= 0
        except ValueError:
            return False
    return isinstance(value, int) and value >= 1


class Output(ApiModel):
    uri: OutputUri = Field(description="Folder of the artifact: s3://, gs://, az://, pvc:// or file:///.")
    credentials: Credentials | None = Field(None, description="For private buckets.")
    overwrite: bool = Field(False, description="Replace the artifact of another run there.")
    merged: bool = Field(
        False,
        description="Write the whole model too, base and adapter in one, into the artifact's folder merged/. For "
        "method.type lora, dora and qlora; the artifacts of full and partial are whole anyway.",
    )


class Retry(ApiModel):
    """Restarts of failed attempts."""

    max_restarts: int = Field(
        3, ge=0, le=1000, description="Counted restarts; preemption is free, config and data errors are never retried."
    )


def _some_time(field: str) -> Rule:
    """A duration of zero would be over before it began."""
    return Rule(
        cel=f"!has(self.{field}) || !self.{field}.matches('^(0+[smhd])+$')",
        message=f"deadlines.{field} must be more than nothing: leave it out for the default",
        holds=lambda new, _: field not in new or not re.match(r"^(0+[smhd])+$", str(new[field])),
    )


class Deadlines(ApiModel):
    """How long things may take. All begin anew when the job is resumed, or admitted by its queue."""

    startup: Duration = Field(
        "30m", description="For all pods of an attempt to run. Then it gives its nodes back and starts anew, counted."
    )
    active: Duration | None = Field(
        None, description="From the start, or from resuming, to the end, restarts included. Then the job has failed."
    )
    stall: Duration = Field("10m", description="Without a training step. Then the attempt hangs and starts anew.")

    RULES: ClassVar[tuple[Rule, ...]] = tuple(map(_some_time, ("startup", "active", "stall")))


class NodeRange(ApiModel):
    """Elastic: each attempt has a fixed number of nodes, by what can be scheduled."""

    min: int = Field(ge=1, le=1024, description="The fewest nodes that an attempt may have.")
    max: int = Field(ge=1, le=1024, description="Nodes of the first attempt, and of others once they can be had.")

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="",
            message="nodes.min must not be more than nodes.max: raise max, or lower min",
            holds=lambda new, _: new["min"] <= new["max"],
        ),
    )


class FineTuneJobSpec(ApiModel):
    """What trains is either told by model, data and method, or a script of the user's own does as it likes (command).

    `model`, `data` and `output` are read by those properties: rooms that need them need not ask whether they are there.
    """

    given_model: ModelSource | None = Field(None, alias="model", description="**Required**, unless there is a command.")
    given_data: Data | None = Field(None, alias="data", description="**Required**, unless there is a command.")
    given_output: Output | None = Field(
        None,
        alias="output",
        description="**Required**, unless there is a command: then what is kept of failed attempts goes there.",
    )
    command: (
        Annotated[tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...], Field(min_length=1, max_length=256)]
        | None
    ) = Field(
        None,
        description="Instead of model, data and method: a program and its arguments, run by torchrun in each process.",
        json_schema_extra={LIST_MAP: "atomic"},
    )
    method: Method = Field(default_factory=Method)
    training: Training = Field(default_factory=Training)
    nodes: Annotated[int, Field(ge=1, le=1024)] | NodeRange = Field(
        1,
        description="Pods of the gang: a number, or {min, max} to go on with fewer (at least min) while others cannot "
        "be scheduled, and with more once they can. The batch stays the same.",
    )
    processes_per_node: Annotated[int | str, Field(union_mode="left_to_right")] = Field(
        "auto", description="Processes in each pod. auto: one for each GPU of the limits, else one."
    )
    strategy: Strategy = Field(default_factory=Strategy, description="Where the weights of the gang lie.")
    resources: Resources = Field(default_factory=Resources)
    image: str | None = Field(
        None, min_length=1, max_length=512, description="Of the trainer. Default: the operator's."
    )
    pod: Pod = Field(default_factory=Pod)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    queue_name: Name | None = Field(
        None,
        description="A LocalQueue of Kueue in the job's namespace. Each attempt waits there until it is admitted; "
        "pod.priorityClassName is its priority. Default: no queue.",
    )
    suspend: bool = Field(False, description="true: stop after a checkpoint and give the nodes back; false: go on.")
    managed_by: ControllerName | None = Field(
        None,
        description="Who looks after the job, such as kueue.x-k8s.io/multikueue; the operator leaves it alone then. "
        f"Default: {names.MANAGER}. Cannot be changed.",
    )
    retry: Retry = Field(default_factory=Retry)
    deadlines: Deadlines = Field(default_factory=Deadlines)
    ttl_after_finished: Duration | None = Field(
        None, description="The FineTuneJob is deleted so long after its end; the artifact stays. Default: never."
    )

    RULES: ClassVar[tuple[Rule, ...]] = SPEC_RULES

    @property
    def model(self) -> ModelSource:
        """FinetuneError(InvalidSpec) for a job with a command; so do `data` and `output`, if it has none."""
        return _given(self.given_model, "model")

    @property
    def data(self) -> Data:
        return _given(self.given_data, "data")

    @property
    def output(self) -> Output:
        return _given(self.given_output, "output")

    @property
    def processes(self) -> int:
        """Processes in each pod, with `auto` resolved from the GPU limits."""
        if isinstance(self.processes_per_node, int):
            return self.processes_per_node
        gpus = [int(str(amount)) for name, amount in self.resources.limits.items() if name.endswith("/gpu")]
        return max(1, sum(gpus))

    @property
    def min_nodes(self) -> int:
        """The fewest pods that an attempt may have."""
        return self.nodes.min if isinstance(self.nodes, NodeRange) else self.nodes

    @property
    def max_nodes(self) -> int:
        return self.nodes.max if isinstance(self.nodes, NodeRange) else self.nodes

    @property
    def world_size(self) -> int:
        """Processes of the whole gang, where it has all the nodes that it may have."""
        return self.max_nodes * self.processes


def _given(part: T | None, field: str) -> T:
    if part is None:
        message = f"a job with spec.command has no spec.{field}"
        raise FinetuneError(Reason.InvalidSpec, message, "This is for jobs with model, data and output.")
    return part
