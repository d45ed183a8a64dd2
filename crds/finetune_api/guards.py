"""FineTuneJob.spec.guards: what a tuned model must not have lost to be published. A guard runs only if its key is
written."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from .base import ApiModel, Rule
from .generation import GENERATION_GUARDS, GenerationMetric
from .measurements import GuardName


class Forgetting(ApiModel):
    max_bits_per_byte_increase: float = Field(
        0.05, ge=0, le=100, description="The most bits per byte that data.general may cost more than before."
    )


class SliceRegression(ApiModel):
    max_regression: float = Field(
        0.05,
        ge=0,
        le=100,
        description="The most that any slice may lose by its main metric: 0.05 is 5 points of accuracy, or 0.05 nats "
        "per token of loss.",
    )


class CalibrationIncrease(ApiModel):
    max_increase: float = Field(
        0.03, ge=0, le=2, description="The most that the calibration error may rise, compared with the base model."
    )


class CollapseDrop(ApiModel):
    max_drop: float = Field(
        0.2,
        ge=0,
        le=1,
        description="The largest relative drop of the variety of generated text: 0.2 is one fifth fewer different "
        "n-grams.",
    )


class GenerationShares(ApiModel):
    min_stops: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="The least share of greedy answers that end by themselves."
    )
    min_json_valid: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="The least share of greedy answers that are valid JSON."
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.minStops) || has(self.minJsonValid)",
            message="guards.generation needs minStops or minJsonValid: set one, or remove the guard",
            holds=lambda new, _: "minStops" in new or "minJsonValid" in new,
        ),
    )


def _remedies(new: dict[str, Any]) -> bool:
    return new.get("onViolation") == "remedy" and any(name in new for name in get_args(GuardName))


class Guards(ApiModel):
    min_gain: Annotated[float, Field(ge=-100, le=100)] | None = Field(
        None,
        description="The least that the test rows (else the validation rows) must gain by their main metric: 0.01 is 1 "
        "point of accuracy, or 0.01 nats per token less loss.",
    )
    forgetting: Forgetting | None = Field(None, description="Bounds the loss of general text. Needs data.general.")
    slices: SliceRegression | None = Field(None, description="Bounds the loss of the worst slice. Needs data.slices.")
    calibration: CalibrationIncrease | None = Field(
        None,
        description="Bounds the increase of the calibration error on classification rows of data.test, else of "
        "data.validation, at temperature 1.",
    )
    collapse: CollapseDrop | None = Field(
        None, description="Bounds the loss of variety in generated text. See evaluation.generate."
    )
    generation: GenerationShares | None = Field(
        None, description="Bounds shares of the tuned model's answers. See evaluation.generate."
    )
    on_violation: Literal["fail", "warn", "remedy"] = Field(
        "fail",
        description="fail: the artifact is kept as a candidate, not published in output.uri, and the job fails. warn: "
        "it is published, and the condition GuardsPassed says False. remedy: the adapter is published at a smaller "
        "scale that keeps the guards (see evaluation.scaleSweep); if there is none after maxAttempts, as for fail. "
        "remedy is for methods lora and qlora.",
    )
    on_inconclusive: Literal["pass", "warn", "fail"] = Field(
        "warn",
        description="What happens when the rows are too few to decide. pass: the artifact is published, and the "
        "condition GuardsPassed is Unknown. warn: an alert fires as well. fail: as for a violation under onViolation: "
        "fail.",
    )
    max_attempts: int = Field(
        0,
        ge=0,
        le=3,
        description="How often the job may train again while a guard is violated at every scale, on one node: with "
        "replay, then also klToBase, then also 0.3 times the rate. Each costs as much as the job.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.maxAttempts) || self.maxAttempts < 1 || (has(self.onViolation) && "
            "self.onViolation == 'remedy' && ("
            f"{' || '.join(f'has(self.{name})' for name in get_args(GuardName))}))",
            message="guards.maxAttempts needs onViolation: remedy and a guard: set both, or remove it",
            holds=lambda new, _: not new.get("maxAttempts") or _remedies(new),
        ),
    )

    @property
    def bounds(self) -> dict[GuardName, float]:
        """Returns the bound of each guard that is written."""
        found: dict[GuardName, float] = {}
        if self.min_gain is not None:
            found["minGain"] = self.min_gain
        if self.forgetting is not None:
            found["forgetting"] = self.forgetting.max_bits_per_byte_increase
        if self.slices is not None:
            found["slices"] = self.slices.max_regression
        if self.calibration is not None:
            found["calibration"] = self.calibration.max_increase
        if self.collapse is not None:
            found["collapse"] = self.collapse.max_drop
        if self.generation is not None:
            found["generation"] = max(self.shares.values())
        return found

    @property
    def shares(self) -> dict[GenerationMetric, float]:
        """Returns the bound of each share of generated texts that is written."""
        if self.generation is None:
            return {}
        given: dict[GenerationMetric, float | None] = {
            "stops": self.generation.min_stops, "jsonValid": self.generation.min_json_valid,
        }  # fmt: skip
        return {metric: bound for metric, bound in given.items() if bound is not None}

    @property
    def of_rows(self) -> Guards:
        """Returns the guards that judge measured rows, without those that judge generated text."""
        return self.model_copy(update=dict.fromkeys(GENERATION_GUARDS))


def _needs(guard: str, field: str) -> Rule:
    def holds(new: dict[str, Any], _: dict[str, Any] | None) -> bool:
        return guard not in (new.get("guards") or {}) or bool((new.get("data") or {}).get(field))

    there = f"has(self.data.{field})" + (f" && self.data.{field}.size() > 0" if field == "slices" else "")
    return Rule(
        cel=f"!has(self.guards) || !has(self.guards.{guard}) || !has(self.data) || ({there})",
        message=f"guards.{guard} needs data.{field}: add it, or remove the guard",
        holds=holds,
    )


def _labelled(new: dict[str, Any], _: dict[str, Any] | None) -> bool:
    data = new.get("data") or {}
    if "calibration" not in (new.get("guards") or {}) or not data:
        return True
    return ("test" in data or "validation" in data) and data.get("format", "auto") in ("auto", "classification")


_CALIBRATION = Rule(
    cel="!has(self.guards) || !has(self.guards.calibration) || !has(self.data) || ((has(self.data.test) || "
    "has(self.data.validation)) && (!has(self.data.format) || self.data.format in ['auto', 'classification']))",
    message="guards.calibration needs classification rows in data.test or data.validation: add them, or remove the "
    "guard",
    holds=_labelled,
)


def _one_node(new: dict[str, Any], _: dict[str, Any] | None) -> bool:
    nodes = new.get("nodes", 1)
    most = nodes.get("max") if isinstance(nodes, dict) else nodes
    return not (new.get("guards") or {}).get("maxAttempts") or most == 1


_ON_ONE_NODE = Rule(
    cel="",  # nodes has no type
    message="guards.maxAttempts trains again in the pod of the job, which works with one node: set nodes: 1, or remove "
    "guards.maxAttempts",
    holds=_one_node,
)

GUARD_RULES = (_needs("forgetting", "general"), _needs("slices", "slices"), _CALIBRATION, _ON_ONE_NODE)
