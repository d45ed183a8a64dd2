"""What commands print with `-o json`, as models: the source of docs/json/*.schema.json and of tables in docs/cli.md.

Fields are added and never renamed; a reader should ignore those that it does not know. `finetune schema COMMAND` prints
a schema. The tests validate what the commands really print with it, and then no field may be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, TypeAdapter

from finetune_api.base import ApiModel
from finetune_api.calibration import Calibration, ScalePoint
from finetune_api.client import Outcome
from finetune_api.generated_text import Collapse, Generation
from finetune_api.job import FineTuneJob
from finetune_api.measurements import DataKind, Divergence
from finetune_api.status import Phase
from finetune_api.switching import SwitchTest
from finetune_api.verdicts import Verdict
from finetune_trainer.cli.checked import CHECKED
from finetune_trainer.cli.ladder_outputs import LadderRule, PlannedLadder
from finetune_trainer.cli.watch_view import Snapshot
from finetune_trainer.report.layers import ChangedData, ConceptCurve, Recommendation
from finetune_trainer.statistics.data import Statistics


class Device(ApiModel):
    """What a process computes on."""

    name: str
    memory_bytes: int


class ModelSize(ApiModel):
    """The model of a plan."""

    parameters: int
    active_parameters: int = Field(description="That a token passes; fewer than all in a mixture of experts.")
    layers: int
    without_adapter: int = Field(description="Parameters (experts, for instance) that an adapter does not reach.")


class Bytes(ApiModel):
    """Memory per process."""

    weights: int
    optimizer: int
    gathered: int = Field(description="Weights that are there in whole for a moment, where they are sharded.")
    activations: int
    loss: int
    host: int = Field(description="Of the machine rather than the device.")
    total: int


class PlanRow(ApiModel):
    """A method with a strategy."""

    method: str
    strategy: str
    trainable_parameters: int
    micro_batch_tokens: int
    bytes: Bytes
    fits: bool
    tokens_per_second: float
    seconds: float | None = Field(description="Of all steps; null if the number of tokens is not known.")
    cost: float | None = Field(description="In currency; null without a price.")
    recommended: bool


class PlannedAnswers(ApiModel):
    """What generated answers cost."""

    answers: int = Field(description="At most.")
    passes: int = Field(description="Of each process, at most: each makes one token of each answer of a batch.")
    seconds: float = Field(description="At least, if no answer ends early.")
    gathered: bool = Field(description="Whether all weights are gathered from other processes for each token.")


class PlannedRun(ApiModel):
    """One of the runs that guards.maxAttempts allows."""

    name: str = Field(description="asWritten: the first one.")
    settings: str = Field(description="What differs from the manifest.")
    gpu_hours: float | None = Field(description="Upper estimate, with evaluation; null if it is not known.")


class SkippedRemedy(ApiModel):
    """A remedy that has no run."""

    name: str
    reason: str


class PlannedRemedies(ApiModel):
    """What a job with guards.maxAttempts may cost."""

    runs: tuple[PlannedRun, ...]
    skipped: tuple[SkippedRemedy, ...]
    gpu_hours: float | None = Field(description="Of all runs; null if it is not known.")
    cost: float | None = Field(description="The same in currency; null without a price.")


class Plan(ApiModel):
    """finetune plan"""

    job: str
    device: Device
    processes: int
    precision: str
    model: ModelSize
    rows: int | None = Field(description="Of the training data; null if not known.")
    tokens: int | None = Field(description="Of an epoch; null if not known.")
    longest_row: int = Field(description="That memory is planned for, in tokens.")
    steps: int | None
    currency: str | None
    price_date: str | None
    plans: tuple[PlanRow, ...]
    reasons: tuple[str, ...] = Field(description="For the recommended row.")
    hint: str | None = Field(description="The smallest change with which the job fits; null if it does.")
    exact_bytes: int | None = Field(description="Traced peak, with --exact.")
    merged_bytes: int | None = Field(description="What output.merged adds to the artifact.")
    ladder: PlannedLadder | None
    ladder_rule: LadderRule | None = Field(description="Of this data; null with continueFrom, which needs one method.")
    generation: PlannedAnswers | None = Field(description="With evaluation.generate.")
    remedies: PlannedRemedies | None = Field(description="With guards.maxAttempts.")


class Running(ApiModel):
    """A job in the list of finetune top"""

    namespace: str
    name: str
    phase: Phase
    nodes: int = Field(description="0 if it holds none.")
    gpus: int
    percent: int | None = Field(None, description="Of the steps.")
    eta_seconds: int | None = None
    tokens_per_second: float | None = None
    restarts: int
    gpu_hours: float | None = None
    wasted_gpu_hours: float | None = None
    money: float | None = Field(None, description="Cost of gpuHours, if the administrator has set prices.")
    currency: str | None = None


class Difference(ApiModel):
    """One number of two models on the same rows."""

    metric: str
    base: float | None = Field(description="Of the first model.")
    tuned: float | None = Field(description="Of the second model.")
    difference: float | None = Field(description="tuned minus base.")
    low: float | None = Field(description="Of the interval of the difference.")
    high: float | None
    minimum_detectable: float | None
    verdict: Verdict | None = Field(description="Unset where neither direction is better.")
    rows: int
    groups: int
    method: str = Field(description="Of the interval.")
    confidence: float = Field(description="Of the interval: 0.95, or more where several are adjusted.")
    margin: float = Field(description="Differences within it do not matter in practice.")
    p_value: float | None
    reason: str | None = Field(None, description="Why there is no interval.")


class Compared(Difference):
    """A data set by one metric."""

    name: str
    kind: DataKind
    negative_transfer: bool | None = Field(None, description="Of slices.")
    adjusted_p_value: float | None = Field(None, description="Of slices: of negative transfer, by Holm's method.")


class Side(ApiModel):
    """A model of an artifact."""

    uri: str
    model: str = Field(description="base, tuned or scale/NUMBER.")


class Scales(ApiModel):
    """The adapter at other scales, on the rows that chose its scale."""

    curve: tuple[ScalePoint, ...] = Field(description="As in status.evaluation.scale, without verdicts.")


class Comparison(ApiModel):
    """finetune compare"""

    first: Side
    second: Side
    data: tuple[Compared, ...]
    left_out: tuple[str, ...] = Field(description="What cannot be compared, and why, in words.")
    calibration: Calibration | None = Field(None, description="base: the first model. tuned: the second.")
    kl_to_base: Divergence | None = Field(None, description="Of the second model.")
    generation: Generation | None = Field(None, description="base: the first model. tuned: the second.")
    collapse: Collapse | None = Field(None, description="base: the first model. tuned: the second. At a bound of 0.2.")
    scale: Scales | None = Field(None, description="Of the second artifact, if scales were measured.")


class Piece(ApiModel):
    """A part of a row's text."""

    text: str
    trained: bool = Field(description="Whether its tokens have a loss.")


class Inspected(ApiModel):
    """finetune data inspect"""

    statistics: Statistics
    set: str
    template: str | None = Field(description="Name of the chat template, for the format chat.")
    repeated: int = Field(description="Rows of the set that are copies of earlier ones.")
    languages: dict[str, float] = Field(
        description="Fraction of its first 500 rows by language, a guess by scripts and frequent words."
    )
    lengths: tuple[int, ...] = Field(description="Tokens of each row.")
    rows: tuple[tuple[Piece, ...], ...] = Field(description="The first rows, as the model sees them.")


class Adapter(ApiModel):
    """One of several on a base model."""

    name: str
    uri: str
    rank: int


class Switched(ApiModel):
    """finetune switch-test"""

    base: str
    max_rank: int
    adapters: tuple[Adapter, ...]
    result: SwitchTest


class Answered(ApiModel):
    """finetune chat, one for each prompt"""

    prompt: str
    base: str
    tuned: str


class TextSample(ApiModel):
    """Texts that the untouched model read."""

    name: str
    documents: int
    bits_per_byte: float
    tokens_per_byte: float


class Ratio(ApiModel):
    """With its interval."""

    value: float
    low: float
    high: float


class Source(ApiModel):
    """How the tokenizer cuts the words of a data set."""

    name: str
    documents: int
    tokens_per_byte: float
    fertility: float | None = Field(description="Tokens for each word; null for scripts without spaces.")
    fragmented: float | None = Field(description="Share of words that are cut into four or more tokens.")


class Term(ApiModel):
    """A word that is frequent in the task and cut into many tokens."""

    word: str
    z: float = Field(description="How much more frequent than in general text.")
    documents: int
    pieces: int


class Words(ApiModel):
    """The vocabulary."""

    sources: tuple[Source, ...]
    terms: tuple[Term, ...]


class ProbedLayer(ApiModel):
    """A linear probe on a layer."""

    layer: int = Field(description="0: the embeddings.")
    accuracy: float
    standard_error: float
    control: float = Field(description="Accuracy with permuted labels.")
    selectivity: float
    log_me: float
    h_score: float
    trans_rate: float
    slices: dict[str, float] | None = Field(None, description="Accuracy on each of data.slices.")


class Probes(ApiModel):
    """Linear probes on each layer."""

    rows: int
    majority: float = Field(description="Accuracy of the most frequent label.")
    curve: tuple[ProbedLayer, ...]
    best: int
    enough: int = Field(description="The lowest layer within a standard error of the best.")
    trained: int = Field(description="Blocks above it.")
    chance: float = Field(description="p-value of the best layer against permuted labels.")
    doubling: Difference = Field(description="All rows against half of them.")


class Gradients(ApiModel):
    """How strongly the first steps would move each block."""

    relative: tuple[float, ...]
    held_from_here: tuple[float, ...]
    trained: int


class Answers(ApiModel):
    """The untouched model's own choice among the labels."""

    accuracy: float
    leep: float
    leep_uninformed: float
    probe: Difference


class Analysis(ApiModel):
    """finetune analyze"""

    rows: int
    held_out_rows: int
    texts: tuple[TextSample, ...] | None = Field(None, description="With data.general, as the next four fields.")
    bits_per_byte_ratio: Ratio | None = None
    jensen_shannon_excess: float | None = None
    tokens_per_byte_ratio: float | None = None
    shift: str | None = None
    vocabulary: Words | None = None
    layers: Probes | None = Field(None, description="Of classifications.")
    concepts: tuple[ConceptCurve, ...] | None = Field(None, description="With diagnostics.probes.")
    gradients: Gradients | None = Field(None, description="Of other rows.")
    own_answers: Answers | None = None
    ladder_rule: LadderRule | None = Field(None, description="Of this data; unset with continueFrom.")
    notes: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]


class Change(ApiModel):
    """finetune analyze --against"""

    artifact: str
    data: tuple[ChangedData, ...]
    notes: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]


OUTPUTS: Mapping[str, Any] = {
    "status": FineTuneJob,
    "top": tuple[Running, ...],
    "plan": Plan,
    "analyze": Analysis,
    "analyze-against": Change,
    "compare": Comparison,
    "data-inspect": Inspected,
    "switch-test": Switched,
    "watch": Snapshot,
    "chat": Answered,
    **CHECKED,
    **dict.fromkeys(("submit", "stop", "resume", "retry", "clone", "delete"), Outcome),
}
"""By command: what it prints, or for `watch` and `chat` each line of it."""


def schema_of(name: str) -> dict[str, Any]:
    """JSON Schema, draft 2020-12. KeyError."""
    schema = TypeAdapter(OUTPUTS[name]).json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"finetune {name} -o json"} | {
        key: value for key, value in schema.items() if key != "title"
    }
