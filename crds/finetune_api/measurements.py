"""FineTuneJob.status.evaluation: base and tuned model on held-out rows, and what the guards say about it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from .base import ApiModel
from .calibration import Calibration, ScaleSweep
from .fields import LIST_MAP, MAP_KEYS
from .generated_text import Collapse, Generation
from .verdicts import GuardVerdict, Verdict


class Scores(ApiModel):
    """Scores of one model on one data set."""

    loss: float = Field(description="Loss, in nats per trained token.")
    bits_per_byte: float | None = Field(
        None, description="Loss in bits per byte of trained text; comparable across tokenizers."
    )
    accuracy: float | None = Field(
        None, description="Fraction of classification rows whose most likely label is correct."
    )
    rows: int = 0
    tokens: int = Field(0, description="Number of trained (unmasked) tokens.")


DataKind = Literal["validation", "test", "slice", "general", "task"]
Metric = Literal["accuracy", "loss", "bitsPerByte"]

HIGHER_IS_BETTER: dict[Metric, bool] = {"accuracy": True, "loss": False, "bitsPerByte": False}

MOST_TASKS = 32
"""Tasks in sequence: this job's, and those before it."""

MOST_DATA_SETS = 40 + MOST_TASKS
"""Validation, test, general text, 32 slices and the tests of earlier tasks, and some to spare."""


def shown(kind: DataKind, name: str) -> str:
    """A data set in words: `slice music`, `task invoices`, `test`."""
    return f"{kind} {name}" if kind in ("slice", "task") else name


class Measurement(ApiModel):
    """One held-out data set by one metric: base against tuned model on the same rows."""

    name: str = Field(max_length=63, description="validation, test, general, or the name of the slice or task.")
    kind: DataKind = Field(description="task: the test data of an earlier task, with continueFrom.")
    metric: Metric = Field(
        description="accuracy: share of rows whose likeliest label is the right one. loss: nats per trained token. "
        "bitsPerByte: of the trained text, comparable over tokenizers."
    )
    base: float | None = Field(None, description="The model as the run starts.")
    tuned: float | None = Field(None, description="The model in the artifact.")
    difference: float | None = Field(None, description="tuned minus base.")
    low: float | None = Field(
        None, description="Of the 95 % interval of the difference; of slices, and of tasks, adjusted for their number."
    )
    high: float | None = Field(None, description="See low.")
    minimum_detectable: float | None = Field(
        None, description="The smallest difference that four of five such data sets would show."
    )
    verdict: Verdict | None = Field(
        None,
        description="equivalent: the 90 % interval lies within the practical margin. better, worse: the interval "
        "excludes 0. inconclusive: too few rows to say.",
    )
    rows: int = 0
    groups: int = Field(0, description="Of rows that are independent of each other: what intervals count.")


class Divergence(ApiModel):
    """Mean KL(base || tuned) of the next-token distributions on rows of the task, in nats per token."""

    name: Literal["test", "validation"] = Field(description="Data set: data.test, else data.validation.")
    value: float = Field(description="0: the distributions are the same.")
    low: float | None = Field(None, description="Lower limit of the 95 % interval of value.")
    high: float | None = Field(None, description="Upper limit of the 95 % interval of value.")
    rows: int = 0
    groups: int = Field(0, description="See data.")

    def told(self) -> str:
        """KL to the base on test rows: 0.12 nats per token [0.1, 0.14]."""
        between = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"KL to the base on {self.name} rows: {self.value:.3g} nats per token{between}"


class Continual(ApiModel):
    """Tasks in sequence: what this job's model still does of them. Higher is better in bwt and fwt."""

    tasks: int = Field(description="Of which the test data was measured, this job's included.")
    metric: Metric = Field(description="That all of them have: accuracy, else bitsPerByte, else loss.")
    acc: float = Field(description="Mean over all tasks after this one, by metric.")
    bwt: float | None = Field(
        None,
        description="Backward transfer: mean change of earlier tasks since each was trained; below 0: worse.",
    )
    fwt: float | None = Field(
        None,
        description="Forward transfer: mean advance of each later task over the original base model, before it was "
        "trained. Unset where the base model was not measured.",
    )
    forgetting: float | None = Field(None, description="Mean fall of the earlier tasks from the best they had.")

    def told(self) -> str:
        """3 tasks in sequence by accuracy: mean 0.81, backward transfer -0.04, forgetting 0.05."""
        parts = [f"mean {self.acc:.4g}"]
        parts += [f"backward transfer {self.bwt:+.4g}"] if self.bwt is not None else []
        parts += [f"forward transfer {self.fwt:+.4g}"] if self.fwt is not None else []
        parts += [f"forgetting {self.forgetting:.4g}"] if self.forgetting is not None else []
        return f"{self.tasks} tasks in sequence by {self.metric}: {', '.join(parts)}"


class PriorGain(ApiModel):
    """A linear classifier on the untouched model's states, against one on those of a copy with random weights."""

    name: Literal["test", "validation"] = Field(description="Data set: data.test, else data.validation.")
    random: float | None = Field(None, description="Accuracy on states of random weights.")
    pretrained: float | None = Field(None, description="Accuracy on states of the model as it is.")
    difference: float | None = Field(None, description="pretrained minus random.")
    low: float | None = Field(None, description="Lower limit of the 95 % interval of difference.")
    high: float | None = Field(None, description="Upper limit of the 95 % interval of difference.")
    minimum_detectable: float | None = Field(None, description="See data.")
    verdict: Verdict | None = Field(None, description="See data. worse: random weights are better.")
    rows: int = 0
    groups: int = Field(0, description="See data.")

    def told(self) -> str:
        """What pretraining is worth on test rows: +21.0 points [+15.2, +26.9], better (random weights 62.0 %)."""
        if self.difference is None or self.random is None:
            return f"what pretraining is worth on {self.name} rows is not known: {self.rows} rows are too few"
        between = "" if self.low is None or self.high is None else f" [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return (
            f"what pretraining is worth on {self.name} rows: {100 * self.difference:+.1f} points{between}, "
            f"{self.verdict} (a linear classifier on random weights has {100 * self.random:.1f} %)"
        )


class NegativeTransfer(ApiModel):
    """A slice on which something cheaper than the tuned model is better."""

    slice: str = Field(max_length=63)
    reference: str = Field(
        max_length=63, description="base, or a name in evaluation.references: of those that are better, the best."
    )
    difference: float = Field(description="Tuned model minus reference, by the slice's main metric.")
    p_value: float = Field(
        description="One-sided, of a regression within the practical margin; adjusted for the number of slices and "
        "references by Holm's method. Below 0.05."
    )

    def told(self) -> str:
        """negative transfer on slice music: base is better (difference -0.11)."""
        return (
            f"negative transfer on slice {self.slice}: {self.reference} is better (difference {self.difference:+.4g})"
        )


GuardName = Literal["minGain", "forgetting", "slices", "calibration", "collapse", "generation"]


class GuardResult(ApiModel):
    """A guard of the manifest, and what was measured."""

    name: GuardName = Field(description="As in spec.guards.")
    bound: float = Field(description="As in spec.guards.")
    value: float | None = Field(
        None,
        description="The gain, the increase, the drop or the share; of slices and of figures of generated text the one "
        "that comes nearest to the bound.",
    )
    low: float | None = Field(None, description="Of the interval of value.")
    high: float | None = Field(None, description="Of the interval of value.")
    verdict: GuardVerdict = Field(
        description="passed: the whole interval keeps the bound. violated: none of it does. inconclusive: neither."
    )
    rows_needed: int | None = Field(
        None, description="About so many rows would decide an inconclusive guard, if value stays what it is."
    )

    def told(self) -> str:
        """forgetting is violated: +0.21 [+0.18, +0.24], at most 0.05 is allowed."""
        between = "" if self.low is None or self.high is None else f" [{self.low:+.4g}, {self.high:+.4g}]"
        value = "not measured" if self.value is None else f"{self.value:+.4g}{between}"
        more = f"; about {self.rows_needed:,} rows would decide" if self.rows_needed else ""
        wanted = "required" if self._from_below else "allowed"
        return f"{self.name} is {self.verdict}: {value}, {self.limit} is {wanted}{more}"

    @property
    def limit(self) -> str:
        """The bound with its direction: at most 0.05."""
        return f"at {'least' if self._from_below else 'most'} {self.bound:g}"

    @property
    def _from_below(self) -> bool:
        return self.name in ("minGain", "generation")


RemedyName = Literal["asWritten", "replay", "klToBase", "learningRate"]
RemedyOutcome = Literal["published", "violated", "inconclusive", "failed"]


class RemedyRun(ApiModel):
    """One of several runs."""

    name: RemedyName = Field(description="asWritten: the first run.")
    settings: str = Field("", max_length=256, description="What differs from the manifest.")
    outcome: RemedyOutcome = Field(description="What became of it.")
    reason: str = Field("", max_length=1024, description="Of each guard, or why it failed.")
    cost: float | None = Field(None, description="Hours of steps, times processes.")

    def told(self) -> str:
        """replay (regularization.replay): violated, 0.5 process hours; forgetting is violated: +0.21, …"""
        settings = f" ({self.settings})" if self.settings else ""
        cost = "" if self.cost is None else f", {self.cost:.3g} process hours"
        return f"{self.name}{settings}: {self.outcome}{cost}; {self.reason}"


class Evaluation(ApiModel):
    """Before and after, on the same rows; everything in evaluation/ of the artifact, row by row."""

    data: Annotated[tuple[Measurement, ...], Field(max_length=MOST_DATA_SETS)] = Field(
        (),
        description="Each held-out data set by its main metric.",
        json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["kind", "name"]},
    )
    guards: Annotated[tuple[GuardResult, ...], Field(max_length=8)] = Field(
        (),
        description="Each guard that spec.guards has.",
        json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]},
    )
    remedies: Annotated[tuple[RemedyRun, ...], Field(max_length=4)] = Field(
        (),
        description="With guards.maxAttempts: each run.",
        json_schema_extra={LIST_MAP: "atomic"},
    )
    negative_transfer: Annotated[tuple[NegativeTransfer, ...], Field(max_length=32)] = Field(
        (),
        description="Slices on which the base model, or one of evaluation.references, is better than the tuned model.",
        json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["slice"]},
    )
    kl_to_base: Divergence | None = Field(None, description="With evaluation.klToBase.")
    prior_gain: PriorGain | None = Field(None, description="With evaluation.priorGain.")
    calibration: Calibration | None = Field(
        None, description="Whether confidence matches accuracy, where rows are classifications."
    )
    scale: ScaleSweep | None = Field(
        None, description="With evaluation.scaleSweep, or guards.onViolation: remedy and a violated guard."
    )
    generation: Generation | None = Field(None, description="With evaluation.generate: scores of generated answers.")
    collapse: Collapse | None = Field(
        None, description="With evaluation.generate: whether the tuned model repeats itself."
    )
    continual: Continual | None = Field(None, description="With continueFrom and data.test: tasks in sequence.")
    omitted: int | None = Field(
        None,
        description="Data sets that did not fit into the termination message, with their negative transfer; run.json "
        "in the artifact has them.",
    )

    @model_serializer(mode="wrap")
    def _without_empty_lists(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`kubectl describe` would show each as a name without a value."""
        return {name: value for name, value in serialize(self).items() if value not in ([], ())}
