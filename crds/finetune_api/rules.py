"""Validation rules that types cannot express. Each message says how to fix the manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from . import accelerators, sizes
from .base import Rule
from .continuing import CONTINUING_RULES
from .diagnostics import DIAGNOSTICS_RULES
from .evaluation import DIVERGENCE_RULES, PRIOR_RULES, REFERENCE_RULES, SAME_GROUPS
from .generation import GENERATION_RULES
from .guards import GUARD_RULES
from .ladder import LADDER_RULES
from .methods import TRAITS, Traits, type_of
from .regularization import REGULARIZATION_RULES
from .strategy import METHODS_FIT
from .switching import SWITCH_RULES
from .vocabulary import VOCABULARY_RULES

LAUNCHERS = "torchrun|accelerate|deepspeed"

DECIDED_BY_COMMAND = (
    "model", "data", "continueFrom", "method", "training", "evaluation", "guards", "regularization", "diagnostics",
    "vocabulary", "strategy", "checkpoint",
)  # fmt: skip
"""Fields that do not apply to a custom script, which decides these things itself."""

IMMUTABLE = (
    "model", "data", "continueFrom", "output", "command", "method", "training", "evaluation", "guards",
    "regularization", "diagnostics", "vocabulary", "ladder", "checkpoint", "managedBy",
)  # fmt: skip
"""Fields that define the run: a different run needs a new job."""

MUTABLE_WHILE_SUSPENDED = ("nodes", "processesPerNode", "strategy", "resources", "image", "pod", "queueName")
"""Fields of the pods. They can be changed while no pod exists; one request may change them and resume the job."""

UNTYPED = ("nodes",)
"""Fields that hold a number or an object, which CEL sees only as a dynamic value."""


def _unchanged(field: str) -> Rule:
    return Rule(
        cel=f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        message=f"spec.{field} is immutable: create a new FineTuneJob",
        holds=lambda new, old: old is None or new.get(field) == old.get(field),
    )


def _unchanged_unless_suspended(field: str) -> Rule:
    new, old = (f"dyn({object}).{field}" if field in UNTYPED else f"{object}.{field}" for object in ("self", "oldSelf"))
    return Rule(
        cel=f"(has(oldSelf.suspend) && oldSelf.suspend) || (has({new}) == has({old}) && "
        f"(!has({new}) || {new} == {old}))",
        message=f"spec.{field} can be changed only while the job is suspended: set spec.suspend: true first",
        holds=lambda new, old: old is None or bool(old.get("suspend")) or new.get(field) == old.get(field),
    )


def _processes_hold(new: dict[str, Any]) -> bool:
    value = new.get("processesPerNode", "auto")
    if isinstance(value, str):
        return value == "auto"
    return not isinstance(value, int) or 1 <= value <= 64  # of another type the schema is the judge


MODEL_RULES = (
    Rule(
        cel="!has(self.revision) || self.uri.startsWith('hf://')",
        message="model.revision is only for hf:// models: remove it, or include the version in the URI",
        holds=lambda new, _: "revision" not in new or str(new.get("uri", "")).startswith("hf://"),
    ),
)


STEPPED = (
    "epochs", "maxSteps", "batchSize", "learningRate", "schedule", "warmupRatio", "optimizer", "weightDecay",
    "maxGradNorm", "evaluateEvery", "earlyStopping",
)  # fmt: skip
"""Fields of training that apply to optimizer steps."""


def _asks_for_steps(new: dict[str, Any]) -> bool:
    training = new.get("training") or {}
    if "checkpoint" in new or "regularization" in new:
        return True
    return any(field in training for field in STEPPED) or bool(training.get("skipBadBatch"))


def _takes_rows_as_they_are(new: dict[str, Any]) -> bool:
    data = new.get("data") or {}
    if data.get("mixing"):
        return False
    return not data.get("augmentation") and all(source.get("weight", 1) == 1 for source in data.get("train", ()))


def _is_other_than(method: Traits) -> str:
    """The CEL of "the method is another one", for a method that has to be named to be chosen."""
    return f"!has(self.method) || !has(self.method.type) || self.method.type != '{method.name}'"


def _makes_no_steps(method: Traits) -> Rule:
    return Rule(
        cel=f"{_is_other_than(method)} || !(has(self.checkpoint) || has(self.regularization) || "
        f"(has(self.training) && ({' || '.join(f'has(self.training.{field})' for field in STEPPED)} || "
        "(has(self.training.skipBadBatch) && self.training.skipBadBatch))))",
        message=f"method.type {method.name} is fitted without optimizer steps: remove checkpoint, regularization, and "
        f"from training {', '.join(STEPPED)} and skipBadBatch",
        holds=lambda new, _: type_of(new) != method.name or not _asks_for_steps(new),
    )


def _takes_each_row_once(method: Traits) -> Rule:
    return Rule(
        cel=f"{_is_other_than(method)} || !has(self.data) || "
        "(!has(self.data.mixing) && (!has(self.data.augmentation) || self.data.augmentation.size() == 0) && "
        "self.data.train.all(source, !has(source.weight) || source.weight == 1.0))",
        message=f"method.type {method.name} uses each row once and unchanged: remove data.augmentation, data.mixing "
        "and the weights of sources",
        holds=lambda new, _: type_of(new) != method.name or _takes_rows_as_they_are(new),
    )


def _needs_labels(method: Traits) -> Rule:
    return Rule(
        cel=f"{_is_other_than(method)} || !has(self.data) || "
        "!has(self.data.format) || "
        "self.data.format in ['auto', 'classification']",
        message=f"method.type {method.name} is only for data.format classification",
        holds=lambda new, _: (
            type_of(new) != method.name or (new.get("data") or {}).get("format", "auto") in ("auto", "classification")
        ),
    )


_FITTED = tuple(method for method in TRAITS.values() if not method.steps)
_OF_LABELS = tuple(method for method in TRAITS.values() if method.labels_only)


def _eight_bits(new: dict[str, Any]) -> bool:
    return (new.get("training") or {}).get("optimizer") == "adamw8bit"


_MERGEABLE = tuple(method.name for method in TRAITS.values() if method.mergeable)
_WHOLE = tuple(method.name for method in TRAITS.values() if method.trains_the_model)
_APART = tuple(name for name in TRAITS if name not in (*_MERGEABLE, *_WHOLE))


def _merged_fits(new: dict[str, Any]) -> bool:
    return not (new.get("output") or {}).get("merged") or type_of(new) in (*_MERGEABLE, *_WHOLE)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


MERGED_FITS = Rule(
    cel=f"!has(self.method) || !has(self.method.type) || self.method.type in {[*_MERGEABLE, *_WHOLE]} || "
    "!has(self.output) || !has(self.output.merged) || !self.output.merged",
    message=f"output.merged is for method.type {_listed(_MERGEABLE)}: {_listed(_APART)} do not "
    "change the model's weights, so remove it",
    holds=lambda new, _: _merged_fits(new),
)

_SCALABLE = tuple(method.name for method in TRAITS.values() if method.scalable)


def _asks_for_scales(new: dict[str, Any]) -> bool:
    remedy = (new.get("guards") or {}).get("onViolation") == "remedy"
    return remedy or bool((new.get("evaluation") or {}).get("scaleSweep"))


SCALE_FITS = Rule(
    cel=f"!has(self.method) || !has(self.method.type) || self.method.type in {list(_SCALABLE)} || "
    "!((has(self.guards) && has(self.guards.onViolation) && self.guards.onViolation == 'remedy') || "
    "(has(self.evaluation) && has(self.evaluation.scaleSweep) && self.evaluation.scaleSweep))",
    message="guards.onViolation remedy and evaluation.scaleSweep change the scale of an adapter, which only "
    f"method.type {' and '.join(_SCALABLE)} can do: set guards.onViolation: fail and remove evaluation.scaleSweep",
    holds=lambda new, _: type_of(new) in _SCALABLE or not _asks_for_scales(new),
)

_OF_ARTIFACTS = ("merged", "overwrite", "switchTest")
"""Fields of output that are about the artifact."""

COMMAND_RULES = (
    sizes.COMMAND,
    Rule(
        cel="has(self.command) || (has(self.model) && has(self.data) && has(self.output))",
        message="model, data and output are required, or command to run a custom script",
        holds=lambda new, _: "command" in new or all(field in new for field in ("model", "data", "output")),
    ),
    Rule(
        cel=f"!has(self.command) || !({' || '.join(f'has(self.{field})' for field in DECIDED_BY_COMMAND)})",
        message="model, data, continueFrom, method, training, evaluation, guards, regularization, diagnostics, "
        "vocabulary, strategy and checkpoint do not apply to a command: remove them, and pass arguments to the script "
        "instead",
        holds=lambda new, _: "command" not in new or not any(field in new for field in DECIDED_BY_COMMAND),
    ),
    Rule(
        cel="!has(self.command) || !has(self.output) || "
        f"!({' || '.join(f'has(self.output.{field})' for field in _OF_ARTIFACTS)})",
        message="a job with a command writes no artifact: remove "
        f"{_listed([f'output.{field}' for field in _OF_ARTIFACTS])}",
        holds=lambda new, _: "command" not in new or not {*_OF_ARTIFACTS} & set(new.get("output") or {}),
    ),
    Rule(
        cel=f"!has(self.command) || !self.command[0].matches('(^|/)({LAUNCHERS})$')",
        message="torchrun already starts the command in each process: name the script itself, not torchrun, accelerate "
        "or deepspeed",
        holds=lambda new, _: not new.get("command") or not re.search(rf"(^|/)({LAUNCHERS})$", str(new["command"][0])),
    ),
)

STEP_RULES = (
    Rule(
        cel="!has(self.training) || !has(self.training.optimizer) || self.training.optimizer != 'adamw8bit' || "
        "!has(self.strategy) || !has(self.strategy.type) || self.strategy.type != 'deepspeed'",
        message="training.optimizer adamw8bit is not supported by strategy.type deepspeed, which splits weights at "
        "arbitrary positions: set strategy.type: fsdp, or optimizer: adamw",
        holds=lambda new, _: not _eight_bits(new) or (new.get("strategy") or {}).get("type") != "deepspeed",
    ),
    *map(_makes_no_steps, _FITTED),
)

SPEC_RULES = (
    *COMMAND_RULES,
    *STEP_RULES,
    MERGED_FITS,
    SCALE_FITS,
    SAME_GROUPS,
    *REFERENCE_RULES,
    *DIVERGENCE_RULES,
    *PRIOR_RULES,
    *DIAGNOSTICS_RULES,
    *SWITCH_RULES,
    *GUARD_RULES,
    *GENERATION_RULES,
    *REGULARIZATION_RULES,
    *VOCABULARY_RULES,
    *LADDER_RULES,
    *CONTINUING_RULES,
    *map(_takes_each_row_once, _FITTED),
    Rule(
        cel="!has(self.processesPerNode) || (type(self.processesPerNode) == int ? "
        "self.processesPerNode >= 1 && self.processesPerNode <= 64 : self.processesPerNode == 'auto')",
        message="processesPerNode must be auto or a number from 1 to 64",
        holds=lambda new, _: _processes_hold(new),
    ),
    *map(_needs_labels, _OF_LABELS),
    Rule(cel=accelerators.CEL, message=accelerators.ASK, holds=lambda new, _: not accelerators.unclear(new)),
    *METHODS_FIT,
    *(_unchanged(field) for field in IMMUTABLE),
    *(_unchanged_unless_suspended(field) for field in MUTABLE_WHILE_SUSPENDED),
)
