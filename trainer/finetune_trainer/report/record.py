"""What a run leaves behind about itself: `run.json` in the artifact; HTML page and model card are made from it.

Rank 0 fills it in while it trains. It carries no secret: a manifest names Secrets, never their content, and values that
were written into pod.env are hidden. The page is a function of this file alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, field_validator

from finetune_api.base import ApiModel
from finetune_api.plan import JobIdentity
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Evaluation, ResolvedPlan, Scores
from finetune_trainer.statistics import DataRecord

RECORD_FILE = "run.json"
REPORT_FILE = "report.html"
CARD_FILE = "README.md"


class CurvePoint(ApiModel):
    """One logged optimizer step."""

    step: int
    loss: float | None = Field(None, description="Nats per trained token of this step's rows.")
    learning_rate: float | None = None
    gradient_norm: float | None = Field(None, description="Before clipping.")
    tokens_per_second: float | None = Field(None, description="Processed, all nodes.")


class ValidationPoint(ApiModel):
    """The validation rows, measured after `step` optimizer steps; step 0 is the untouched model."""

    step: int
    scores: Scores


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


class Provenance(ApiModel):
    """Where everything came from: enough to run it again, and to notice that something changed."""

    base_model: str = Field("", description="URI of the model that was tuned.")
    revision: str | None = Field(None, description="Commit of a hub model.")
    data: dict[str, str] = Field(
        default_factory=dict, description="File (its URI) to its sha256, or to that of its rows behind `rows:`."
    )
    versions: dict[str, str] = Field(default_factory=dict, description="Package to version.")
    hardware: str = Field("", description="In words: 2 × NVIDIA H100, or CPU with 2 threads.")
    image: str = Field("", description="Of the trainer, where it is known.")

    def digests(self) -> Iterator[tuple[str, str, str]]:
        """(file, what the digest is of, digest). A table in a bucket is read in part: its digest is of the rows."""
        for uri, digest in self.data.items():
            of_rows = digest.startswith("rows:")
            yield uri, "sha256 of the rows" if of_rows else "sha256", digest.removeprefix("rows:")


class RunRecord(ApiModel):
    """One fine-tuning run, from manifest to measurement."""

    version: int = 1
    job: JobIdentity
    spec: FineTuneJobSpec
    plan: ResolvedPlan = Field(default_factory=ResolvedPlan)
    evaluation: Evaluation = Field(default_factory=Evaluation)
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
    servable: str = Field("", description="What servers accept it as: lora, merged or hf-only.")

    @field_validator("spec")
    @classmethod
    def _without_environment(cls, spec: FineTuneJobSpec) -> FineTuneJobSpec:
        hidden = tuple(e.model_copy(update={"value": "(hidden)"}) if e.value is not None else e for e in spec.pod.env)
        return spec.model_copy(update={"pod": spec.pod.model_copy(update={"env": hidden})}) if hidden else spec

    def encode(self) -> str:
        """The content of `run.json`; a loss that is not finite becomes null."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"


def decode(text: str | bytes) -> RunRecord:
    """`run.json` as a RunRecord; pydantic's ValidationError if it is none."""
    return RunRecord.model_validate_json(text)
