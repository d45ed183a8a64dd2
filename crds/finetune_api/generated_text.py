"""FineTuneJob.status.evaluation: what base and tuned model answered to held-out prompts, in figures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import ApiModel
from .fields import LIST_MAP, MAP_KEYS
from .generation import GenerationMetric
from .verdicts import GuardVerdict, Verdict

Mode = Literal["greedy", "sampled"]
Figure = Literal["distinct1", "distinct2", "distinct4", "entropy"]


class GenerationScore(ApiModel):
    """Greedy answers by one metric: base against tuned model on the same prompts."""

    metric: GenerationMetric
    base: float | None = None
    tuned: float | None = None
    difference: float | None = Field(None, description="tuned minus base.")
    low: float | None = Field(None, description="Lower limit of the 95 % interval of difference.")
    high: float | None = Field(None, description="Upper limit of the 95 % interval of difference.")
    minimum_detectable: float | None = Field(None, description="See data.")
    verdict: Verdict | None = Field(None, description="See data. Unset for length, of which more is not better.")


class Generation(ApiModel):
    """Answers to held-out prompts."""

    name: Literal["test", "validation"] = Field(description="Data set of the prompts: data.test, else data.validation.")
    rows: int = Field(0, description="Prompts that were answered.")
    groups: int = Field(0, description="See data.")
    scores: Annotated[tuple[GenerationScore, ...], Field(max_length=8)] = Field(
        (), json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["metric"]}
    )


class CollapseFigure(ApiModel):
    """One figure of the variety of generated text, a mean over prompts."""

    name: Figure = Field(
        description="distinct1, 2, 4: different n-grams by n-grams. entropy: bits per token of the text's own tokens."
    )
    mode: Mode = Field(description="sampled: at temperature 1.")
    base: float
    tuned: float
    drop: float = Field(description="1 − tuned/base: from the base model or from the reference answers, the smaller.")
    low: float
    high: float


class Ending(ApiModel):
    """Length and end of the answers, a mean over prompts."""

    mode: Mode
    base_length: float = Field(description="Tokens.")
    tuned_length: float
    base_stops: float = Field(description="Share of answers that end by themselves.")
    tuned_stops: float


class Collapse(ApiModel):
    """Whether the tuned model repeats itself."""

    verdict: GuardVerdict = Field(
        description="violated: a figure dropped by more than bound. passed: none did. inconclusive: too few prompts."
    )
    bound: float = Field(description="guards.collapse.maxDrop, or 0.2.")
    rows: int = 0
    figures: Annotated[tuple[CollapseFigure, ...], Field(max_length=8)] = Field(
        (), json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["mode", "name"]}
    )
    endings: Annotated[tuple[Ending, ...], Field(max_length=2)] = Field(
        (), json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["mode"]}
    )

    def told(self) -> str:
        """the variety of generated text drops by +0.62 [+0.55, +0.69] (greedy distinct2): violated at 0.2."""
        worst = max(self.figures, key=lambda each: (each.low > self.bound, each.high), default=None)
        if worst is None:
            return f"the variety of generated text was not judged on {self.rows} prompts: {self.verdict}"
        return (
            f"the variety of generated text drops by {worst.drop:+.2f} [{worst.low:+.2f}, {worst.high:+.2f}] "
            f"({worst.mode} {worst.name}): {self.verdict} at {self.bound:g}"
        )
