"""FineTuneJob.status.evaluation: whether confidence matches accuracy, and the scale of a published adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import ApiModel
from .fields import LIST_MAP
from .verdicts import GuardVerdict, Verdict


class CalibrationScores(ApiModel):
    """Calibration of one model, at temperature 1."""

    error: float = Field(
        description="Adaptive calibration error: mean distance of accuracy from confidence, over 15 bins of equal size."
    )
    floor: float = Field(description="The error that a perfectly calibrated model would show on this number of rows.")
    brier: float = Field(description="Mean squared distance of the label probabilities from the truth, 0 to 2.")
    nll: float = Field(description="Negative log-likelihood of the right label, in nats.")


class Calibration(ApiModel):
    """Calibration of base and tuned model on classification rows."""

    name: Literal["test", "validation"] = Field(description="Data set: data.test, else data.validation.")
    base: CalibrationScores
    tuned: CalibrationScores
    difference: float | None = Field(
        None, description="Increase of the calibration error from base to tuned model, without what noise adds."
    )
    low: float | None = Field(None, description="Lower limit of the 95 % interval of difference.")
    high: float | None = Field(None, description="Upper limit of the 95 % interval of difference.")
    verdict: Verdict | None = Field(None, description="See data.")
    rows: int = 0
    temperature: float | None = Field(
        None,
        description="Divisor of the tuned model's scores that minimizes the loss on data.validation, 0.25 to 4. Above "
        "1: overconfident. It is recorded in the artifact's manifest.json and applied by nothing.",
    )

    def told(self) -> str:
        """calibration error on test rows: 0.16 → 0.3, without noise +0.278 [+0.159, +0.397], worse."""
        change = "" if self.difference is None else f", without noise {self.difference:+.3g}"
        between = "" if self.low is None or self.high is None else f" [{self.low:+.3g}, {self.high:+.3g}]"
        verdict = "" if self.verdict is None else f", {self.verdict}"
        errors = f"{self.base.error:.3g} → {self.tuned.error:.3g}"
        return f"calibration error on {self.name} rows: {errors}{change}{between}{verdict}"


class ScalePoint(ApiModel):
    """The adapter at one scale, on the half of the rows that chooses the scale."""

    scale: float = Field(description="0: the base model. 1: as trained.")
    gain: float | None = Field(None, description="Gain of data.validation by its main metric, compared with the base.")
    forgetting: float | None = Field(None, description="Increase of bits per byte on data.general.")
    verdict: GuardVerdict | None = Field(None, description="The worst verdict of the guards on these rows.")


class ScaleSweep(ApiModel):
    """Scales at which the adapter was measured, and the scale of the artifact."""

    chosen: float | None = Field(
        None, description="Scale of the artifact. Unset if no scale keeps the guards: then the artifact is as trained."
    )
    curve: Annotated[tuple[ScalePoint, ...], Field(max_length=8)] = Field(
        (), description="Each scale that was measured.", json_schema_extra={LIST_MAP: "atomic"}
    )

    def told(self) -> str:
        """the adapter is published at 0.5 of its trained scale."""
        if self.chosen is None:
            return "no scale of the adapter keeps the guards"
        if self.chosen == 1:
            return "the adapter is published at its trained scale"
        return f"the adapter is published at {self.chosen:g} of its trained scale"
