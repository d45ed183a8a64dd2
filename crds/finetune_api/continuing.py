"""FineTuneJob.spec.continueFrom: a job that starts from the artifact of an earlier one."""

from __future__ import annotations

from typing import Any

from .base import Rule
from .methods import AUTO, TRAITS, type_of

STACKED = tuple(method.name for method in TRAITS.values() if method.scalable)
"""Methods that can train an adapter on top of the earlier artifact's adapter. All others need a whole model there."""

_FITTED = tuple(method.name for method in TRAITS.values() if not method.steps)

_ASKS = "has(self.continueFrom)"
_METHOD_IS = "has(self.method) && has(self.method.type) && self.method.type"


def _same_folder(new: dict[str, Any]) -> bool:
    earlier, output = str(new.get("continueFrom", "")), (new.get("output") or {}).get("uri")
    return output in (earlier, f"{earlier}/") or f"{output}/" == earlier


def _stacks_under_deepspeed(new: dict[str, Any]) -> bool:
    return (new.get("strategy") or {}).get("type") == "deepspeed" and type_of(new) in STACKED


CONTINUING_RULES = (
    Rule(
        cel=f"!{_ASKS} || !({_METHOD_IS} == '{AUTO}')",
        message=f"continueFrom needs one method: set method.type to another than {AUTO}",
        holds=lambda new, _: "continueFrom" not in new or type_of(new) != AUTO,
    ),
    Rule(
        cel=f"!{_ASKS} || !({_METHOD_IS} in {list(_FITTED)})",
        message=f"continueFrom is not supported by method.type {', '.join(_FITTED)}, which trains no model that later "
        "tasks could start from: remove it, or set method.type: lora",
        holds=lambda new, _: "continueFrom" not in new or type_of(new) not in _FITTED,
    ),
    Rule(
        cel=f"!{_ASKS} || !has(self.vocabulary)",
        message="continueFrom keeps the tokenizer of the earlier artifact: set vocabulary in the first job instead",
        holds=lambda new, _: "continueFrom" not in new or new.get("vocabulary") is None,
    ),
    Rule(
        cel=f"!{_ASKS} || !has(self.output) || !(self.output.uri in [self.continueFrom, self.continueFrom + '/'] || "
        "self.output.uri + '/' == self.continueFrom)",
        message="continueFrom and output.uri must be different folders: the earlier artifact is kept",
        holds=lambda new, _: "continueFrom" not in new or not _same_folder(new),
    ),
    Rule(
        cel=f"!{_ASKS} || !has(self.strategy) || !has(self.strategy.type) || self.strategy.type != 'deepspeed' || "
        f"({_METHOD_IS} in {[name for name in TRAITS if name not in STACKED]})",
        message=f"continueFrom is not supported by strategy.type deepspeed for method.type {' and '.join(STACKED)}: "
        "set strategy.type: ddp or fsdp",
        holds=lambda new, _: "continueFrom" not in new or not _stacks_under_deepspeed(new),
    ),
)
