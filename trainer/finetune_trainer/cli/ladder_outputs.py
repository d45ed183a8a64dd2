"""Of what commands print with `-o json`, the models of a ladder: see `outputs`."""

from __future__ import annotations

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.fields import Quantity


class LadderRule(ApiModel):
    """The rule that plans the rungs of method.type auto, whatever the manifest's method is."""

    rule: str
    reason: str
    rungs: tuple[str, ...] = Field(description="Methods, in the order in which they are tried.")
    folds: int = Field(description="Of cross-fitting; 0: the validation rows decide.")


class PlannedPods(ApiModel):
    """Of a rung."""

    nodes: int
    processes_per_node: int
    limits: dict[str, Quantity] = Field(description="Of each pod.")
    requests: dict[str, Quantity] = Field(description="Of each pod.")


class PlannedRung(ApiModel):
    """A rung of a ladder."""

    method: str
    reserved_gpu_hours: float | None = Field(description="Upper estimate; null if it is not known.")
    reserved_money: float | None = Field(description="The same in currency; null without a price.")
    pods: PlannedPods
    why: str


class SkippedRung(ApiModel):
    """A rung that the rule leaves out."""

    method: str
    reason: str


class PlannedLadder(ApiModel):
    """With method.type: auto."""

    rule: str
    reason: str
    folds: int = Field(description="Of cross-fitting; 0: the validation rows decide.")
    few_shot: int = Field(description="Examples in the prompt with which the base model is measured too; 0: off.")
    rungs: tuple[PlannedRung, ...]
    skipped: tuple[SkippedRung, ...]
