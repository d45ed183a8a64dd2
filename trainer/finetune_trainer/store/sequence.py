"""Tasks in sequence: what an artifact's manifest says about the tasks before it, and the scores of all of them.

    HeldOut    the test data of a task, with all that decides how its rows are read
    Task       a job of the sequence
    Sequence   tasks and their R-matrix; `judged` makes the numbers of status of it

    scores[i][j]   after training task i, on the test data of task j. Known for j ≤ i, and for j = i + 1: the model that
                   task j starts from. What is not known is None, as in base for tasks whose base model was not measured
    base[j]        the original base model

A job that starts from an artifact adds a row and a column to the sequence in its manifest.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from finetune_api.base import ApiModel
from finetune_api.evaluation import EvaluationSettings
from finetune_api.fields import DataUri, Name
from finetune_api.measurements import HIGHER_IS_BETTER, MOST_TASKS, Continual, Metric, Scores
from finetune_api.spec import FineTuneJobSpec

_METRICS: tuple[Metric, ...] = ("accuracy", "bitsPerByte", "loss")
"""The first that all scores have is the metric of a sequence."""

_Text = Annotated[str, Field(max_length=4096)]
_Keys = Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=64)]
_Row = Annotated[tuple[Scores | None, ...], Field(max_length=MOST_TASKS)]


class HeldOut(ApiModel):
    """The test data of a task, as its job read it."""

    uri: DataUri
    format: Literal["chat", "completion", "text", "classification"]
    labels: _Keys = Field((), description="Of classification.")
    instruction: _Text | None = None
    sequence_length: Annotated[int, Field(ge=8, le=1048576)]
    overlong: Literal["fail", "drop", "truncate"] = "fail"
    ignore_keys: _Keys = ()
    append_eos: bool = True
    group_by: Annotated[str, Field(max_length=128)] | None = None
    max_rows: Annotated[int, Field(ge=1)] | None = Field(None, description="evaluation.maxRows.")
    seed: Annotated[int, Field(ge=0)] = Field(1, description="Of the sample that maxRows takes.")


class Task(ApiModel):
    name: Name
    artifact: Annotated[str, Field(max_length=2048)] = Field(description="URI of its artifact.")
    test: HeldOut


class Sequence(ApiModel):
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, max_length=MOST_TASKS)]
    scores: Annotated[tuple[_Row, ...], Field(max_length=MOST_TASKS)]
    base: _Row

    @model_validator(mode="after")
    def _square(self) -> Self:
        size = len(self.tasks)
        if len(self.base) != size or len(self.scores) != size or any(len(row) != size for row in self.scores):
            raise ValueError(f"scores and base of {size} tasks are not {size} × {size} and {size} values")
        if any(self.scores[i][j] is None for i in range(size) for j in range(i + 1)):
            raise ValueError("a score on or below the diagonal is missing")
        if any(not math.isfinite(each.loss) for row in self.scores for each in row if each is not None):
            raise ValueError("a loss is not finite")
        if len({task.name for task in self.tasks}) != size:
            raise ValueError("two tasks have one name")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def metric(self) -> Metric:
        """That every score has."""
        known = [each for row in (*self.scores, self.base) for each in row if each is not None]
        return next(metric for metric in _METRICS if all(value_of(each, metric) is not None for each in known))

    def extended(
        self, task: Task, *, after: tuple[Scores, ...], before: Scores | None = None, base: Scores | None = None
    ) -> Sequence:
        """With one task more. after: its model on the tests of all tasks, its own last; before: the model that it
        started from on its own test; base: the original base model on that."""
        *rows, last = self.scores
        grown = (*((*row, None) for row in rows), (*last, before))
        named = task.model_copy(update={"name": unused(task.name, self.names)})
        return Sequence(tasks=(*self.tasks, named), scores=(*grown, after), base=(*self.base, base))

    def judged(self) -> Continual:
        """The numbers of status. Losses count downwards, so that more is better in all of them but acc."""
        from finetune_trainer.statistics.continual import continual  # of numpy, which readers of records do without

        metric = self.metric
        sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0

        def number(scores: Scores | None) -> float:
            value = None if scores is None else value_of(scores, metric)
            return math.nan if value is None else sign * value

        base = [number(each) for each in self.base]
        known = all(math.isfinite(each) for each in base[1:])
        found = continual([[number(each) for each in row] for row in self.scores], base=base if known else None)
        return Continual(
            tasks=len(self.tasks),
            metric=metric,
            acc=sign * found.acc,
            bwt=found.bwt,
            fwt=found.fwt,
            forgetting=found.forgetting,
        )


def value_of(scores: Scores, metric: Metric) -> float | None:
    by_metric = {"accuracy": scores.accuracy, "bitsPerByte": scores.bits_per_byte, "loss": scores.loss}
    return by_metric[metric]


def held_out(spec: FineTuneJobSpec, labels: tuple[str, ...]) -> HeldOut | None:
    """The test data of a job, by the spec that ran; None without any. labels: those that the job found."""
    data, settings = spec.data, spec.evaluation
    if data.test is None or data.format == "auto":
        return None
    asked = data.classification.instruction if data.classification else None
    return HeldOut(
        uri=data.test.uri,
        format=data.format,
        labels=labels,
        instruction=asked,
        sequence_length=data.sequence_length,
        overlong=data.overlong,
        ignore_keys=data.ignore_keys,
        append_eos=data.append_eos,
        group_by=_group_by(spec, settings),
        max_rows=settings.max_rows,
        seed=spec.training.seed,
    )


def _group_by(spec: FineTuneJobSpec, settings: EvaluationSettings) -> str | None:
    return settings.group_by or (spec.data.validation.group_by if spec.data.validation else None)


def unused(name: str, names: tuple[str, ...]) -> str:
    """The name, with a number where it is taken: invoices, invoices-2."""
    numbered = (f"{name[:60]}-{number}" for number in range(2, MOST_TASKS + 2))
    return next(each for each in (name, *numbered) if each not in names)
