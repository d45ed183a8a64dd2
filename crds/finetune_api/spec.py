"""FineTuneJob.spec. Only model, data and output are required; every other field has a sensible default.

Defaults are applied here and not by the API server, so that a stored manifest stays as short as it was written;
`status.plan` shows the resolved values. Every list and string is bounded, which also bounds the cost of the CEL rules.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from . import accelerators, durations, names, uris
from .base import ApiModel, Rule
from .data import Credentials, Data
from .diagnostics import Diagnostics
from .evaluation import EvaluationSettings
from .failures import FinetuneError, Reason
from .fields import LIST_MAP, ControllerName, Duration, Name, OutputUri
from .generation import Generate
from .guards import Guards
from .ladder import Ladder
from .methods import Method
from .pod import Pod, Resources
from .regularization import Regularization
from .rules import MODEL_RULES, SPEC_RULES
from .strategy import Strategy
from .switching import MOST_ADAPTERS
from .vocabulary import METHODS, Vocabulary

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
        description="Branch, tag or commit of an hf:// model. Default main; the resolved commit is recorded.",
    )
    credentials: Credentials | None = Field(None, description="Credentials for private models and buckets.")

    RULES: ClassVar[tuple[Rule, ...]] = MODEL_RULES


class EarlyStopping(ApiModel):
    patience: int = Field(
        3, ge=1, le=1000, description="Number of evaluations without improvement after which training stops."
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Smallest decrease of the validation loss, in nats per token, that counts as an improvement.",
    )


class Training(ApiModel):
    epochs: int = Field(3, ge=1, le=1000, description="Passes over the training rows. Ignored if maxSteps is set.")
    max_steps: int | None = Field(
        None,
        ge=1,
        le=100000000,
        description="Total number of optimizer steps; replaces epochs. The run repeats the training rows as often as "
        "needed, and the last pass may end early.",
    )
    batch_size: int = Field(32, ge=1, le=1048576, description="Rows per optimizer step, across all nodes.")
    micro_batch_tokens: int | None = Field(
        None,
        ge=8,
        le=16777216,
        description="Tokens per micro-batch on each process. Default: chosen by device, at least one sequence.",
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="Peak learning rate. Default: depends on method and model width; status.plan shows it."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Learning rate schedule after the warm-up."
    )
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Fraction of the steps used for warm-up.")
    optimizer: Optimizer = Field(
        "adamw",
        description="adamw8bit: 8-bit AdamW, whose moments take one byte each instead of four. It needs less memory "
        "and makes smaller checkpoints; steps take longer. Not supported by strategy deepspeed.",
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="Decoupled weight decay, as in AdamW.")
    max_grad_norm: float = Field(
        1.0, ge=0, le=1000000, description="Gradients are clipped to this norm; 0 disables clipping."
    )
    seed: int = Field(1, ge=0, le=2147483647, description="Seed of row order, adapter initialization and dropout.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on GPUs that support it, otherwise float32."
    )
    evaluate_every: int | None = Field(
        None, ge=1, le=100000000, description="Steps between evaluations. Default: a tenth of the run."
    )
    early_stopping: EarlyStopping | None = Field(None, description="Stop when the validation loss stops improving.")
    compile: bool = Field(
        False,
        description="Compile the decoder blocks with torch.compile: steps are faster, the first one takes longer. "
        "Compiled code is kept in the cache. Not supported for dora, qlora, prefix, probe and strategy deepspeed.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Recompute the activations of each decoder block in the backward pass instead of keeping them: "
        "less memory, about a third more time, identical losses. Use it if rows do not fit otherwise. Not supported "
        "together with compile, prefix or probe.",
    )
    kernels: Literal["auto", "reference"] = Field(
        "auto",
        description="auto: on GPUs, use installed third-party kernels for attention and loss if they prove correct and "
        "faster on this GPU at startup. reference: use only torch's own kernels, whatever is installed.",
    )
    frozen_layer_cache: bool = Field(
        True,
        description="Compute the outputs of the frozen layers below the lowest trained layer once and read them from "
        "disk afterwards, if that saves time. Uses at most half of the free disk space, and at most 20 GiB.",
    )
    skip_bad_batch: bool = Field(
        False,
        description="If the loss becomes NaN or infinite, the single retry skips the batch of that step. If false, it "
        "uses the same batch again.",
    )


class Checkpoint(ApiModel):
    """How often to save the state that the next attempt resumes from."""

    every: Annotated[int | str, Field(union_mode="left_to_right")] = Field(
        "10m",
        description="Interval between checkpoints: a duration such as 10m, or a number of steps.",
    )
    keep: int = Field(2, ge=1, le=100, description="Number of latest checkpoints to keep; the best one is always kept.")

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.every) || (type(self.every) == int ? self.every >= 1 : "
            f"self.every.matches('{durations.SHORT_PATTERN}'))",
            message="checkpoint.every must be a duration such as 10m, or a number of steps of at least 1",
            holds=lambda new, _: _is_steps_or_duration(new.get("every", "10m")),
        ),
    )


def _is_steps_or_duration(value: object) -> bool:
    if isinstance(value, str):
        return re.match(durations.SHORT_PATTERN, value) is not None
    return isinstance(value, int) and value >= 1


class Output(ApiModel):
    uri: OutputUri = Field(description="Folder for the artifact: s3://, gs://, az://, pvc:// or file:///.")
    credentials: Credentials | None = Field(None, description="Credentials for a private bucket.")
    overwrite: bool = Field(False, description="Replace an artifact that another run has written there.")
    merged: bool = Field(
        False,
        description="Also write the merged model (base weights plus adapter) into the artifact's folder merged/. For "
        "method.type lora, dora and qlora; full and partial always write a whole model.",
    )
    switch_test: Annotated[tuple[OutputUri, ...], Field(max_length=MOST_ADAPTERS)] = Field(
        (),
        description="Artifacts of earlier jobs with LoRA adapters on the same base model. At the end of the run the "
        "new adapter is loaded together with them, and status.artifact.switchTest reports whether each gives what it "
        "gives alone. They are read with output.credentials. For method lora.",
        json_schema_extra={LIST_MAP: "set"},
    )


def _some_time(field: str, *, where: str = "deadlines") -> Rule:
    """A duration of zero would end before it starts."""
    return Rule(
        cel=f"!has(self.{field}) || !self.{field}.matches('^(0+[smhd])+$')",
        message=f"{where}.{field} must be greater than zero: remove it to use the default",
        holds=lambda new, _: field not in new or not re.match(r"^(0+[smhd])+$", str(new[field])),
    )


class Retry(ApiModel):
    """Restarts of failed attempts."""

    max_restarts: int = Field(
        3,
        ge=0,
        le=1000,
        description="Maximum number of counted restarts within window. Preemptions are not counted; configuration and "
        "data errors are never retried.",
    )
    window: Duration = Field(
        "7d", description="Counted restarts expire after this time, so that long runs can survive more node failures."
    )

    RULES: ClassVar[tuple[Rule, ...]] = (_some_time("window", where="retry"),)


class Deadlines(ApiModel):
    """Time limits. All are reset when the job is resumed, or admitted by its queue."""

    startup: Duration = Field(
        "30m",
        description="Time for all pods of an attempt to start running. After that the attempt is deleted and "
        "restarted; the restart is counted.",
    )
    active: Duration | None = Field(
        None,
        description="Total time from start (or resume) to completion, restarts included. After that the job fails.",
    )
    stall: Duration = Field(
        "10m", description="Time without a training step after which an attempt is restarted as hung."
    )

    RULES: ClassVar[tuple[Rule, ...]] = tuple(map(_some_time, ("startup", "active", "stall")))


class NodeRange(ApiModel):
    """Elastic number of nodes: fixed within an attempt, chosen for each attempt by what can be scheduled."""

    min: int = Field(ge=1, le=1024, description="Minimum number of nodes of an attempt.")
    max: int = Field(ge=1, le=1024, description="Maximum number of nodes. The first attempt asks for this many.")

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="",
            message="nodes.min must not be greater than nodes.max: raise max, or lower min",
            holds=lambda new, _: new["min"] <= new["max"],
        ),
    )


class FineTuneJobSpec(ApiModel):
    """A job is described by model, data and method, or runs a custom script (command).

    Code reads `model`, `data` and `output` through the properties of those names, which raise if they are not set.
    """

    given_model: ModelSource | None = Field(None, alias="model", description="**Required**, unless command is set.")
    given_data: Data | None = Field(None, alias="data", description="**Required**, unless command is set.")
    continue_from: OutputUri | None = Field(
        None,
        description="Artifact of an earlier job with the same model, from which this one continues: tasks in sequence, "
        "or more data. The base model of evaluation, guards and regularization is then the earlier artifact's. It is "
        "read with output.credentials. See [tasks in sequence](tasks/tasks-in-sequence.md).",
    )
    given_output: Output | None = Field(
        None,
        alias="output",
        description="Where the artifact is written. **Required**, unless command is set; with a command, diagnostics "
        "of failed attempts are written there.",
    )
    command: (
        Annotated[tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...], Field(min_length=1, max_length=256)]
        | None
    ) = Field(
        None,
        description="Program and arguments that torchrun starts in each process. Replaces model, data and method.",
        json_schema_extra={LIST_MAP: "atomic"},
    )
    method: Method = Field(default_factory=Method)
    training: Training = Field(default_factory=Training)
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description="How base and tuned model are compared on held-out rows."
    )
    guards: Guards = Field(default_factory=Guards, description="What keeps a bad artifact from being published.")
    regularization: Regularization = Field(
        default_factory=Regularization,
        description="What keeps the model from forgetting while it learns. See [pitfalls](pitfalls.md).",
    )
    diagnostics: Diagnostics = Field(
        default_factory=Diagnostics,
        description="What is measured inside the model before and after training. See [analyze](analyze.md).",
    )
    vocabulary: Vocabulary | None = Field(
        None,
        description="New tokens for words that the model's tokenizer cuts into many pieces. Their embeddings begin as "
        "the mean of those of the pieces, and train with the method. For method.type "
        f"{', '.join(METHODS)}. The artifact of an adapter then has the extended base model in its folder base/. See "
        "[pitfalls](pitfalls.md#vocabulary-mismatch).",
    )
    ladder: Ladder = Field(default_factory=Ladder, description="Settings of method.type auto.")
    nodes: Annotated[int, Field(ge=1, le=1024)] | NodeRange = Field(
        1,
        description="Number of pods (one per node), or {min, max} for an elastic job, which continues with fewer nodes "
        "while others cannot be scheduled, and grows when they can. The batch size does not change.",
    )
    processes_per_node: Annotated[int | str, Field(union_mode="left_to_right")] = Field(
        "auto",
        description="Processes per pod. auto: one per GPU in resources.limits, or one without GPUs. Must be set to a "
        "number for GPU slices (MIG, gpu.shared) and for pod.resourceClaims.",
    )
    strategy: Strategy = Field(default_factory=Strategy, description="Parallelism: how processes share the weights.")
    resources: Resources = Field(default_factory=Resources)
    image: str | None = Field(
        None, min_length=1, max_length=512, description="Trainer image. Default: the operator's --default-image."
    )
    pod: Pod = Field(default_factory=Pod)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    queue_name: Name | None = Field(
        None,
        description="Name of a Kueue LocalQueue in the job's namespace. Each attempt waits there until it is admitted; "
        "pod.priorityClassName sets its priority. Default: no queue.",
    )
    suspend: bool = Field(
        False, description="true: stop after a checkpoint and release the nodes. false: run, or resume."
    )
    managed_by: ControllerName | None = Field(
        None,
        description="Controller that manages the job, such as kueue.x-k8s.io/multikueue. This operator ignores jobs "
        f"with another manager. Default: {names.MANAGER}. Immutable.",
    )
    retry: Retry = Field(default_factory=Retry)
    deadlines: Deadlines = Field(default_factory=Deadlines)
    ttl_after_finished: Duration | None = Field(
        None,
        description="Time after completion at which the FineTuneJob is deleted; the artifact is kept. Default: never.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = SPEC_RULES

    @property
    def model(self) -> ModelSource:
        """Raises FinetuneError(InvalidSpec) if the job has a command instead; so do `data` and `output`."""
        return _given(self.given_model, "model")

    @property
    def data(self) -> Data:
        return _given(self.given_data, "data")

    @property
    def output(self) -> Output:
        return _given(self.given_output, "output")

    @property
    def generates(self) -> Generate | None:
        """What is generated with base and tuned model; None without evaluation.generate and guards that need it. With
        the metrics of guards.generation."""
        asked = self.evaluation.generate
        if asked is None and not (self.guards.collapse or self.guards.generation):
            return None
        asked = asked or Generate()
        return asked.model_copy(update={"metrics": tuple(dict.fromkeys((*asked.metrics, *self.guards.shares)))})

    @property
    def replay_uri(self) -> str | None:
        """The general text that is replayed, or that importance is measured on; None where training needs none."""
        if not self.regularization.reads_general_text:
            return None
        replay, general = self.regularization.replay, self.data.general
        return (replay.uri if replay else None) or (general.uri if general else None)

    @property
    def processes(self) -> int:
        """Processes in each pod, with `auto` resolved from the GPU limits."""
        if isinstance(self.processes_per_node, int):
            return self.processes_per_node
        return accelerators.count(self.resources.limits)

    @property
    def min_nodes(self) -> int:
        """The minimum number of pods of an attempt."""
        return self.nodes.min if isinstance(self.nodes, NodeRange) else self.nodes

    @property
    def max_nodes(self) -> int:
        return self.nodes.max if isinstance(self.nodes, NodeRange) else self.nodes

    @property
    def world_size(self) -> int:
        """Number of processes at the maximum number of nodes."""
        return self.max_nodes * self.processes


def _given(part: T | None, field: str) -> T:
    if part is None:
        message = f"a job with spec.command has no spec.{field}"
        raise FinetuneError(Reason.InvalidSpec, message, "This command needs a job with model, data and output.")
    return part
