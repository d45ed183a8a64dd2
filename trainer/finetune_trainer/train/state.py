"""What a run is made of besides its tensors. Everything that a resumed run must know is here, and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.measurements import Scores
from finetune_trainer.report.record import AttemptRecord, CurvePoint, ValidationPoint
from finetune_trainer.rundir import now

CURVE_POINTS = 1000
"""At most so many logged steps: enough for any screen, small enough for every checkpoint."""


class Best(ApiModel):
    step: int
    loss: float


class State(ApiModel):
    """After `step` optimizer steps. Row order and random numbers are functions of (seed, step) and not kept."""

    step: int = 0
    left_out: int = Field(0, description="Of these steps, those in which nothing was learned.")
    trained_tokens: int = 0
    train_seconds: float = 0.0
    base: dict[str, Scores] | None = Field(None, description="The untouched model, by data set.")
    best: Best | None = None
    mark: float | None = Field(None, description="Validation loss that the next improvement is measured from.")
    misses: int = Field(0, description="Evaluations since the last improvement.")
    stopped_early: str = Field("", description="Why, in words; empty while it was not.")
    passed_over: str = Field("", description="Which better weights are lost, in words; empty where none are.")
    curve: tuple[CurvePoint, ...] = ()
    validation: tuple[ValidationPoint, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()
    start_time: str = ""

    def update(self, **changes: Any) -> State:
        return self.model_copy(update=changes)

    def begun(self, attempt: AttemptRecord) -> State:
        """With an attempt more. One before it that was still open in the checkpoint came at least this far."""
        before = tuple(each if each.outcome else self._continued(each) for each in self.attempts)
        return self.update(attempts=(*before, attempt), start_time=self.start_time or attempt.start_time)

    def _continued(self, attempt: AttemptRecord) -> AttemptRecord:
        return attempt.model_copy(update={"last_step": self.step, "outcome": f"continued after step {self.step}"})

    def ended(self, outcome: str) -> State:
        """With the end of the present attempt noted."""
        *before, present = self.attempts
        closed = present.model_copy(update={"last_step": self.step, "end_time": now(), "outcome": outcome})
        return self.update(attempts=(*before, closed))

    def evaluated(self, scores: Scores, *, patience: int | None, min_delta: float) -> State:
        """After a validation. The best is the lowest loss by any margin; patience counts margins of `min_delta`."""
        best = self.best
        if best is None or scores.loss < best.loss:
            best = Best(step=self.step, loss=scores.loss)
        improved = self.mark is None or scores.loss < self.mark - min_delta
        misses = 0 if improved else self.misses + 1
        stops = patience is not None and misses >= patience
        return self.update(
            validation=(*self.validation, ValidationPoint(step=self.step, scores=scores)),
            best=best,
            mark=scores.loss if improved else self.mark,
            misses=misses,
            stopped_early=f"validation did not improve in {misses} evaluations" if stops else "",
        )


@dataclass(frozen=True)
class Step:
    """One optimizer step as it went."""

    nats: float
    tokens: int
    processed: int
    """Tokens without padding."""
    rate: float
    norm: float
    seconds: float
    regularization: Mapping[str, float] = field(default_factory=dict)
    """Means by key of spec.regularization, of those that the step has."""

    @property
    def loss(self) -> float:
        return self.nats / max(1, self.tokens)

    @property
    def tokens_per_second(self) -> float:
        return self.processed / max(self.seconds, 1e-9)

    def point(self, step: int) -> CurvePoint:
        return CurvePoint(
            step=step,
            loss=self.loss,
            learning_rate=self.rate,
            gradient_norm=self.norm,
            tokens_per_second=round(self.tokens_per_second, 1),
            regularization=dict(self.regularization) or None,
        )
