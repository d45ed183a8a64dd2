"""FineTuneJob.spec.ladder and status.ladder: method.type auto starts with a cheap method and steps up on evidence."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from .base import ApiModel, Rule
from .fields import LIST_MAP, MAP_KEYS
from .methods import AUTO, TRAITS, type_of
from .rung_pods import OVERRIDE_RULES, MethodName, RungPods


class LadderBudget(ApiModel):
    """A rung starts only if its upper estimate fits into what is left of both."""

    gpu_hours: Annotated[float, Field(gt=0, le=10_000_000)] | None = Field(
        None, description="Hours of all processes together: GPU hours where each process has a GPU."
    )
    money: Annotated[float, Field(gt=0, le=1e12)] | None = Field(
        None,
        description="In the currency of the prices that the administrator has set, or of finetune run --prices. "
        "Refused where no price is known for the job's devices.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.gpuHours) || has(self.money)",
            message="ladder.budget is empty: set gpuHours, money or both",
            holds=lambda new, _: "gpuHours" in new or "money" in new,
        ),
    )


class Price(ApiModel):
    """What the devices of one process cost."""

    per_hour: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    currency: str = Field(max_length=16)


Factor = Annotated[float, Field(gt=0, le=100)]


class Ladder(ApiModel):
    min_gain: float = Field(
        0.01,
        ge=0,
        le=100,
        description="The least that a rung must gain over the best one so far to be taken, by the main metric of the "
        "validation rows: 0.01 is 1 point of accuracy, or 0.01 nats per token less loss.",
    )
    target: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None,
        description="Stop when the best rung reaches this score on the validation rows with its whole interval: "
        "accuracy at least, or loss at most.",
    )
    budget: LadderBudget | None = Field(None, description="What all rungs together may cost. Default: unlimited.")
    rungs: Annotated[tuple[MethodName, ...], Field(max_length=8)] = Field(
        (),
        description="Methods to try, in this order, each at most once. Default: by a rule for the size and kind of the "
        "data; finetune plan shows it.",
        json_schema_extra={LIST_MAP: "set"},
    )
    learning_rates: Annotated[tuple[Factor, ...], Field(max_length=5)] = Field(
        (),
        description="Multiples of each rung's default learning rate to try, such as [1, 0.33, 3]. All train a tenth of "
        "the steps, the better half three tenths, and the best continues to the end, each from its own checkpoint. "
        "Three cost 1.4 times one. Default: only the default rate.",
        json_schema_extra={LIST_MAP: "atomic"},
    )
    overrides: Annotated[tuple[RungPods, ...], Field(max_length=8)] = Field(
        (),
        description="Rungs whose pods differ from those of the job. Consecutive rungs with the same pods share an "
        "attempt; a rung with others gets an attempt of its own, which is not a restart.",
        json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["rung"]},
    )

    folds: Annotated[int, Field(ge=0, le=10)] | None = Field(
        None,
        description="Decide by cross-fitting: each rung trains once more for each of so many parts of the training "
        "rows, without that part, and is measured on it. 0: off. Default: 5 for 20 to 999 training rows, unless "
        "data.validation.uri is set; else 0.",
    )

    few_shot: int = Field(
        4,
        ge=0,
        le=64,
        description="Training rows that the prompt of the base model shows as examples, to measure what prompting "
        "without training reaches. Not for plain text. 0: off.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.folds) || self.folds != 1",
            message="ladder.folds: 1 leaves no rows to train on: set 0 (off), or 2 to 10",
            holds=lambda new, _: new.get("folds") != 1,
        ),
    )

    @property
    def factors(self) -> tuple[float, ...]:
        """Each once, in the order of the manifest."""
        return tuple(dict.fromkeys(self.learning_rates)) or (1.0,)


BASE = "base"
"""The model as it is: what the first rung is compared with. It needs no run of its own, since every run measures it."""

RungState = Literal["planned", "running", "done", "skipped"]
RungDecision = Literal["taken", "noGain", "inconclusive", "blocked"]
LadderStop = Literal["targetMet", "guard", "noGain", "inconclusive", "topRung", "memory", "budget", "unavailable"]
Sentence = Annotated[str, Field(max_length=1024)]


class RungStatus(ApiModel):
    name: str = Field(
        max_length=32, description="The method, or fewShot: the base model with examples in its prompt, untrained."
    )
    state: RungState
    estimate: float | None = Field(None, description="Upper estimate of the cost, in GPU hours.")
    cost: float | None = Field(None, description="Measured cost, in GPU hours.")
    money: float | None = Field(None, description="Measured cost, in the ladder's currency, where a price is known.")
    learning_rate: float | None = None
    score: float | None = Field(None, description="On the select half of the validation rows, by the main metric.")
    gain: float | None = Field(None, description="Over the best rung before it; more is better.")
    low: float | None = Field(None, description="Of the interval of gain, adjusted for the number of planned rungs.")
    high: float | None = Field(None, description="See low.")
    minimum_detectable: float | None = Field(None, description="The smallest gain that these rows would have shown.")
    rows: int | None = Field(None, description="Of the select half of the validation rows.")
    rows_needed: int | None = Field(None, description="About so many validation rows would decide.")
    decision: RungDecision | None = None
    reason: Sentence = ""


class LadderStatus(ApiModel):
    rule: str = Field(max_length=64, description="Name of the rule that planned the rungs.")
    rule_reason: Sentence = ""
    metric: str | None = Field(None, max_length=32, description="By which rungs are compared.")
    base_score: float | None = Field(None, description="Of the model as it is, on the same rows.")
    rungs: Annotated[tuple[RungStatus, ...], Field(max_length=16)] = Field(
        (), json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]}
    )
    spent: float = Field(0.0, description="GPU hours of all rungs.")
    budget: float | None = Field(None, description="GPU hours; unset: unlimited.")
    money_spent: float | None = Field(None, description="Cost of all rungs, where a price is known.")
    money_budget: float | None = Field(None, description="ladder.budget.money.")
    currency: str | None = Field(None, max_length=16, description="Of money, moneySpent and moneyBudget.")
    best: str | None = Field(None, max_length=32, description="The best rung so far, or base.")
    stop_reason: LadderStop | None = None
    story: Sentence = Field("", description="Why the ladder stopped where it did, in words.")

    def costs(self) -> str:
        """`1.2 of 4 GPU hours and 3.1 of 100 EUR`."""
        parts = [(self.spent, self.budget, "GPU hours"), (self.money_spent, self.money_budget, self.currency or "")]
        told = [(spent or 0.0, limit, unit) for spent, limit, unit in parts if spent is not None or limit is not None]
        return " and ".join(
            f"{spent:.3g} {unit}" if limit is None else f"{spent:.3g} of {limit:g} {unit}"
            for spent, limit, unit in told
        )

    def short(self) -> LadderStatus:
        """Without the reasons of the rungs, which the story has too, and with its beginning and its end only."""
        rungs = tuple(rung.model_copy(update={"reason": ""}) for rung in self.rungs)
        story = self.story if len(self.story) <= 400 else f"{self.story[:150]} ... {self.story[-240:]}"
        return self.model_copy(update={"rungs": rungs, "rule_reason": "", "story": story})


def refused_on_cluster(*, skips: bool) -> str:
    """Why the operator does not run such a ladder, and what to do; empty if it does. skips: training.skipBadBatch."""
    if skips:
        return "the number of a step is another batch in each rung: remove spec.training.skipBadBatch"
    return ""


def unpriced(budget: LadderBudget | None, price: Price | None) -> str:
    """Why a budget of money cannot be kept, and what to do; empty if it can, or is not asked for."""
    if budget is None or budget.money is None or price is not None:
        return ""
    return (
        f"spec.ladder.budget.money: {budget.money:g}, but no price is known for the devices of this job: ask the "
        "administrator to set prices (with finetune run: --prices FILE), or use budget.gpuHours"
    )


def _is_auto(new: dict[str, Any]) -> bool:
    return type_of(new) == AUTO


_AUTO_CEL = f"has(self.method) && has(self.method.type) && self.method.type == '{AUTO}'"

LADDER_RULES = (
    Rule(
        cel=f"!has(self.ladder) || ({_AUTO_CEL})",
        message=f"ladder is only for method.type {AUTO}: remove it, or set method.type: {AUTO}",
        holds=lambda new, _: "ladder" not in new or _is_auto(new),
    ),
    Rule(
        cel="!has(self.ladder) || !has(self.ladder.folds) || self.ladder.folds == 0 || !has(self.data) || "
        "!has(self.data.validation) || !has(self.data.validation.uri)",
        message="ladder.folds decides on training rows, and data.validation.uri has rows for it: remove one of them",
        holds=lambda new, _: (
            not (new.get("ladder") or {}).get("folds") or "uri" not in ((new.get("data") or {}).get("validation") or {})
        ),
    ),
    Rule(
        cel=f"!({_AUTO_CEL}) || !has(self.training) || !has(self.training.learningRate)",
        message=f"method.type {AUTO} uses the default learning rate of each rung: remove training.learningRate",
        holds=lambda new, _: not _is_auto(new) or "learningRate" not in (new.get("training") or {}),
    ),
    *OVERRIDE_RULES,
)

assert set(TRAITS) == set(get_args(MethodName)), "a rung is a method"
