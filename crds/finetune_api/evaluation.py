"""FineTuneJob.spec.evaluation: how base and tuned model are measured on held-out rows."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .base import ApiModel, Rule
from .fields import LIST_MAP, MAP_KEYS, Name, OutputUri
from .generation import Generate
from .methods import TRAITS, type_of

BASE = "base"
"""The untouched model, as a reference of slices."""


class Reference(ApiModel):
    name: Name = Field(description="Name of the reference in reports and status.")
    uri: OutputUri = Field(description="Artifact of an earlier job that measured slices of the same names and rows.")


class EvaluationSettings(ApiModel):
    max_rows: int | None = Field(
        None,
        ge=20,
        le=1_000_000_000,
        description="The most rows to measure of each held-out data set: a sample by content and training.seed, the "
        "same for base and tuned model and in every attempt. Default: all.",
    )
    group_by: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Key of held-out rows that belong together, such as patient: intervals count groups, not rows. A "
        "row without the key is a group of its own. Default: data.validation.groupBy, else each row of the file.",
    )
    scale_sweep: bool = Field(
        False,
        description="Measure the trained adapter at 0.25, 0.5 and 0.75 of its scale as well, and publish it at the "
        "scale that gains most and keeps the guards. One half of the rows of data.validation, data.general and (with "
        "guards.slices) data.slices chooses, the other half is what is reported. For methods lora and qlora.",
    )
    kl_to_base: bool = Field(
        False,
        description="Measure how far the tuned model's next-token distributions are from the base model's on the test "
        "rows (without data.test, the validation rows), in nats per token. It predicts forgetting without general "
        "text. Costs two passes over these rows. For methods with an adapter that can be switched off.",
    )
    prior_gain: bool = Field(
        False,
        description="Measure what pretraining is worth on this task: a linear classifier on the states of the model as "
        "it is, against one on those of a copy with random weights, on the rows of data.test (else of "
        "data.validation). For classification rows. Costs passes over at most 2000 training rows and over these rows, "
        "twice, and a second copy of the weights, before the first step of each attempt.",
    )
    references: Annotated[tuple[Reference, ...], Field(max_length=8)] = Field(
        (),
        description="Artifacts of earlier, perhaps cheaper jobs. Slices on which one of them, or the base model, is "
        "better than the tuned model are listed in status.evaluation.negativeTransfer. They are read with "
        "output.credentials. Needs data.slices.",
        json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]},
    )
    generate: Generate | None = Field(
        None,
        description="Let base and tuned model answer held-out prompts, score the answers, and check that the tuned "
        "model does not repeat itself. Default: only if guards.collapse or guards.generation needs it.",
    )


def _same_groups(new: dict[str, object]) -> bool:
    evaluation, data = new.get("evaluation"), new.get("data")
    validation = data.get("validation") if isinstance(data, dict) else None
    if not isinstance(evaluation, dict) or not isinstance(validation, dict):
        return True
    if "groupBy" not in evaluation or "groupBy" not in validation:
        return True
    return bool(evaluation["groupBy"] == validation["groupBy"])


SAME_GROUPS = Rule(
    cel="!has(self.evaluation) || !has(self.evaluation.groupBy) || !has(self.data) || !has(self.data.validation) || "
    "!has(self.data.validation.groupBy) || self.data.validation.groupBy == self.evaluation.groupBy",
    message="evaluation.groupBy and data.validation.groupBy must be equal: leave evaluation.groupBy out",
    holds=lambda new, _: _same_groups(new),
)


def _references(new: dict[str, Any]) -> list[Any]:
    return list((new.get("evaluation") or {}).get("references") or ())


_HAS_REFERENCES = "has(self.evaluation) && has(self.evaluation.references) && self.evaluation.references.size() > 0"

REFERENCE_RULES = (
    Rule(
        cel=f"!({_HAS_REFERENCES}) || !has(self.data) || (has(self.data.slices) && self.data.slices.size() > 0)",
        message="evaluation.references needs data.slices, which it compares: add slices, or remove it",
        holds=lambda new, _: not _references(new) or bool((new.get("data") or {"slices": True}).get("slices")),
    ),
    Rule(
        cel=f"!({_HAS_REFERENCES}) || self.evaluation.references.all(each, each.name != '{BASE}')",
        message=f"evaluation.references: {BASE} is the untouched model, which is always compared: choose another name",
        holds=lambda new, _: all(each.get("name") != BASE for each in _references(new)),
    ),
)

_WITH_A_COPY = tuple(method.name for method in TRAITS.values() if method.steps and not method.four_bits)
_ASKS_PRIOR = "has(self.evaluation) && has(self.evaluation.priorGain) && self.evaluation.priorGain"


def _asks_for_prior(new: dict[str, Any]) -> bool:
    return bool((new.get("evaluation") or {}).get("priorGain"))


PRIOR_RULES = (
    Rule(
        cel=f"!({_ASKS_PRIOR}) || !has(self.method) || !has(self.method.type) || self.method.type in "
        f"{list(_WITH_A_COPY)}",
        message="evaluation.priorGain compares with a copy that has random weights, which only method.type "
        f"{', '.join(_WITH_A_COPY)} have: use one of these, or remove it",
        holds=lambda new, _: not _asks_for_prior(new) or type_of(new) in _WITH_A_COPY,
    ),
    Rule(
        cel=f"!({_ASKS_PRIOR}) || !has(self.strategy) || !has(self.strategy.type) || self.strategy.type in "
        "['auto', 'ddp']",
        message="evaluation.priorGain needs a whole copy of the model on each process: set strategy.type: ddp, or "
        "remove it",
        holds=lambda new, _: (
            not _asks_for_prior(new) or (new.get("strategy") or {}).get("type", "auto") in ("auto", "ddp")
        ),
    ),
    Rule(
        cel=f"!({_ASKS_PRIOR}) || !has(self.data) || !has(self.data.format) || self.data.format in "
        "['auto', 'classification']",
        message="evaluation.priorGain needs rows of data.format classification: remove it",
        holds=lambda new, _: (
            not _asks_for_prior(new) or (new.get("data") or {}).get("format", "auto") in ("auto", "classification")
        ),
    ),
)

_SWITCHED = tuple(method.name for method in TRAITS.values() if method.switches_off)
_ASKS = "has(self.evaluation) && has(self.evaluation.klToBase) && self.evaluation.klToBase"


def _asks_for_divergence(new: dict[str, Any]) -> bool:
    return bool((new.get("evaluation") or {}).get("klToBase"))


DIVERGENCE_RULES = (
    Rule(
        cel=f"!({_ASKS}) || !has(self.method) || !has(self.method.type) || self.method.type in {list(_SWITCHED)}",
        message=f"evaluation.klToBase compares with the base model, and only method.type {', '.join(_SWITCHED)} can "
        "switch back to it without a second copy: use one of these, or remove it",
        holds=lambda new, _: not _asks_for_divergence(new) or type_of(new) in _SWITCHED,
    ),
    Rule(
        cel=f"!({_ASKS}) || !has(self.strategy) || !has(self.strategy.type) || self.strategy.type != 'deepspeed'",
        message="evaluation.klToBase is not supported by strategy.type deepspeed: set strategy.type: ddp or fsdp",
        holds=lambda new, _: not _asks_for_divergence(new) or (new.get("strategy") or {}).get("type") != "deepspeed",
    ),
)
