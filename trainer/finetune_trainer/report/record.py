"""The record of a run: `run.json` in the artifact, from which HTML report and model card are generated.

Rank 0 fills it in while it trains. It carries no secret: a manifest names Secrets, never their content, and values that
were written into pod.env are hidden. The page is a function of this file alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from finetune_api.base import ApiModel
from finetune_api.failures import FinetuneError, Reason
from finetune_api.ladder import LadderStatus
from finetune_api.measurements import Evaluation, Measurement, Scores
from finetune_api.plan import JobIdentity
from finetune_api.spec import FineTuneJobSpec, ModelSource
from finetune_api.status import ResolvedPlan
from finetune_api.switching import SwitchTest
from finetune_trainer.statistics import DataRecord
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.sequence import Sequence

from .layers import Inside

RECORD_FILE = "run.json"
REPORT_FILE = "report.html"
CARD_FILE = "README.md"
BASE_FOLDER = "base"
"""The model that an adapter is for, where it is not the one that was tuned."""


class CurvePoint(ApiModel):
    """One logged optimizer step."""

    step: int
    loss: float | None = Field(None, description="Nats per trained token of this step's rows.")
    learning_rate: float | None = None
    gradient_norm: float | None = Field(None, description="Before clipping.")
    tokens_per_second: float | None = Field(None, description="Processed, all nodes.")
    regularization: dict[str, float] | None = Field(
        None, description="By key of spec.regularization, of those that the step has, in the units of the terms."
    )


class ValidationPoint(ApiModel):
    """The validation rows, measured after `step` optimizer steps; step 0 is the untouched model."""

    step: int
    scores: Scores


class ReliabilityPoint(ApiModel):
    """Rows of similar confidence, of the data set in evaluation.calibration."""

    model: Literal["base", "tuned"]
    rows: int
    confidence: float
    accuracy: float


class SliceAgainst(ApiModel):
    """A slice against the base model or an earlier artifact, on the rows that both measured."""

    slice: str
    reference: str = Field(description="base, or a name in evaluation.references.")
    metric: str
    tuned_value: float | None = None
    reference_value: float | None = None
    difference: float | None = Field(None, description="tunedValue minus referenceValue.")
    low: float | None = Field(None, description="Of the interval, adjusted for the number of slices and references.")
    high: float | None = None
    p_value: float | None = Field(None, description="One-sided, adjusted by Holm's method. None: too few rows.")
    flagged: bool = Field(description="Negative transfer: the reference is better.")
    rows: int = 0


class AnswerSample(ApiModel):
    """Greedy answers of both models to one held-out prompt; long texts are cut."""

    why: Literal["sample", "gained", "lost"] = Field(
        description="gained, lost: the score by metric rose or fell. sample: taken without a look at the answers."
    )
    metric: str | None = Field(None, description="Of gained and lost rows.")
    row: str = Field("", description="Digest of the row, as in the records.")
    prompt: str
    reference: str
    base: str
    tuned: str


class AttemptRecord(ApiModel):
    """One attempt of the gang."""

    attempt: int
    first_step: int = Field(0, description="Step that it resumed after; 0 for a fresh start.")
    last_step: int = Field(0, description="Last step done.")
    nodes: int = 1
    world_size: int = 1
    start_time: str = Field("", description="RFC 3339, UTC.")
    end_time: str = Field("", description="RFC 3339, UTC; empty while it runs.")
    outcome: str = Field("", description="In one phrase: finished, interrupted at step 40, …")
    computed: str = Field("", description="Types of numbers and kernels, in one line.")
    model_cache: str = Field("", description="What the shared cache did for node 0: hit, miss, healed or bypass.")


class Provenance(ApiModel):
    """Provenance: enough to run it again, and to detect changes."""

    base_model: str = Field("", description="URI of the model that was tuned.")
    model_class: str = Field("", description="The transformers class that loads it: Gemma3ForConditionalGeneration.")
    revision: str | None = Field(None, description="Commit of a hub model.")
    base_weights: str = Field("", description="Fingerprint of the base model's weights: their headers and a sample.")
    data: dict[str, str] = Field(
        default_factory=dict, description="File (its URI) to its sha256, or to that of its rows with prefix `rows:`."
    )
    versions: dict[str, str] = Field(default_factory=dict, description="Package to version.")
    hardware: str = Field("", description="Such as 2 × NVIDIA H100, or CPU with 2 threads.")
    image: str = Field("", description="Trainer image, if known.")

    def digests(self) -> Iterator[tuple[str, str, str]]:
        """(file, what the digest is of, digest). A table in a bucket is read in part: its digest is of the rows."""
        for uri, digest in self.data.items():
            of_rows = digest.startswith("rows:")
            yield uri, "sha256 of the rows" if of_rows else "sha256", digest.removeprefix("rows:")


class RunRecord(ApiModel):
    """One fine-tuning run, from manifest to measurement."""

    version: int = 1
    job: JobIdentity
    spec: FineTuneJobSpec = Field(
        description="As it ran: with defaults that depend on model, data and hardware, and what these changed."
    )
    asked: FineTuneJobSpec | None = Field(None, description="As the manifest says; older records have it in spec.")
    plan: ResolvedPlan = Field(default_factory=ResolvedPlan)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    measurements: tuple[Measurement, ...] = Field(
        (), description="By all metrics; evaluation has the main one of each data set."
    )
    sources: tuple[Measurement, ...] = Field(
        (), description="General text of several files: each by its main metric, as general/FILE."
    )
    reliability: tuple[ReliabilityPoint, ...] = ()
    against: tuple[SliceAgainst, ...] = Field(
        (), description="Each slice against each reference, with evaluation.references."
    )
    answers: tuple[AnswerSample, ...] = Field((), description="With evaluation.generate: some of the answers.")
    curve: tuple[CurvePoint, ...] = ()
    validation: tuple[ValidationPoint, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()
    provenance: Provenance = Field(default_factory=Provenance)
    data: DataRecord = Field(default_factory=DataRecord, description="Counts of the data, and how it was laid out.")
    start_time: str = ""
    completion_time: str = ""
    train_seconds: float | None = Field(None, description="Spent in optimizer steps, all attempts together.")
    steps: int = Field(0, description="Optimizer steps done.")
    best_step: int | None = Field(None, description="Step whose weights are in the artifact, when it is not the last.")
    stop_reason: str = Field("", description="Why training ended: all steps done, or early stopping in words.")
    notes: tuple[str, ...] = Field((), description="What a reader should know: duplicates, dropped rows, warnings.")
    eos_token_ids: tuple[int, ...] = Field(
        (), description="What generation stops at, where trained ends were added to the base model's."
    )
    inside: Inside | None = Field(None, description="With spec.diagnostics: what changed inside the model.")
    continual: Sequence | None = Field(None, description="With continueFrom: the tasks before this one, and it.")
    ladder: LadderStatus | None = Field(None, description="The ladder that chose this method.")
    refused: str = Field("", description="Why a guard kept the artifact back, in words; empty where none did.")
    switch_test: SwitchTest | None = Field(None, description="With output.switchTest: several adapters on one base.")
    servable: str = Field("", description="What servers accept it as: lora, merged or hf-only.")

    def tuned_scores(self, name: Literal["test"]) -> Scores | None:
        """Of the model in the artifact, on a data set of this kind."""
        found = {each.metric: each for each in (*self.evaluation.data, *self.measurements) if each.kind == name}
        loss = found.get("loss")
        if loss is None or loss.tuned is None:
            return None
        others = {metric: each.tuned for metric, each in found.items()}
        return Scores(
            loss=loss.tuned, bits_per_byte=others.get("bitsPerByte"), accuracy=others.get("accuracy"), rows=loss.rows
        )

    @property
    def manifest(self) -> FineTuneJobSpec:
        """What was asked for."""
        return self.asked or self.spec

    @property
    def has_own_base(self) -> bool:
        """Whether the artifact has the model that its adapter is for, in its folder `base/`."""
        return self.spec.vocabulary is not None and not self.spec.method.trains_the_model

    def base_of(self, artifact: str) -> ModelSource:
        """The model that the adapter of this artifact is for. artifact: its URI."""
        if self.has_own_base:
            return ModelSource(uri=f"{artifact.rstrip('/')}/{BASE_FOLDER}")
        return ModelSource(uri=self.provenance.base_model or self.spec.model.uri, revision=self.provenance.revision)

    @property
    def temperature(self) -> float | None:
        """Fitted to the validation rows."""
        return self.evaluation.calibration.temperature if self.evaluation.calibration is not None else None

    @field_validator("spec", "asked")
    @classmethod
    def _without_environment(cls, spec: FineTuneJobSpec | None) -> FineTuneJobSpec | None:
        if spec is None:
            return None
        hidden = tuple(e.model_copy(update={"value": "(hidden)"}) if e.value is not None else e for e in spec.pod.env)
        return spec.model_copy(update={"pod": spec.pod.model_copy(update={"env": hidden})}) if hidden else spec

    def encode(self) -> str:
        """The content of `run.json`; a loss that is not finite becomes null."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"


def read_record(folder: Folder) -> RunRecord:
    """The record in an artifact's folder. Raises NotFound, and DataUnreadable if the file is not one."""
    try:
        return decode(folder.read(RECORD_FILE))
    except ValueError as error:
        where = f"{folder.uri}/{RECORD_FILE}"
        raise FinetuneError(Reason.DataUnreadable, f"{where} is not the record of a run: {error}") from None


def decode(text: str | bytes) -> RunRecord:
    """Reads `run.json` as a RunRecord. Raises pydantic's ValidationError if it is not valid."""
    return RunRecord.model_validate_json(text)
