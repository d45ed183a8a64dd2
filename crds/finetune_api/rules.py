"""Statements about a manifest that types cannot make. Each names the fix in its message."""

from __future__ import annotations

import re
from typing import Any

from .base import Rule
from .methods import MERGEABLE
from .strategy import METHODS_FIT

LAUNCHERS = "torchrun|accelerate|deepspeed"

DECIDED_BY_COMMAND = ("model", "data", "method", "training", "strategy", "checkpoint")
"""What a script of the user's own decides by itself."""

IMMUTABLE = ("model", "data", "output", "command", "method", "training", "checkpoint", "managedBy")
"""What a run is about: another run needs another job."""

MUTABLE_WHILE_SUSPENDED = ("nodes", "processesPerNode", "strategy", "resources", "image", "pod", "queueName")
"""What the pods look like: changeable while no pod exists; a request may change it and resume at once."""

UNTYPED = ("nodes",)
"""A number or an object: CEL sees it only as the dynamic value that it is."""


def exactly_one(*fields: str, where: str) -> Rule:
    """One of the fields must be set and no other."""
    has = ", ".join(f"has(self.{f})" for f in fields)
    names = ", ".join(fields[:-1]) + f" or {fields[-1]}"
    return Rule(
        cel=f"[{has}].filter(set, set).size() == 1",
        message=f"{where} needs exactly one of {names}",
        holds=lambda new, _: sum(f in new for f in fields) == 1,
    )


def _unchanged(field: str) -> Rule:
    return Rule(
        cel=f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        message=f"spec.{field} cannot be changed: create another FineTuneJob",
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
    return value == "auto" if isinstance(value, str) else 1 <= value <= 64


def _probe_has_labels(new: dict[str, Any]) -> bool:
    is_probe = (new.get("method") or {}).get("type") == "probe"
    return not is_probe or (new.get("data") or {}).get("format", "auto") in ("auto", "classification")


MODEL_RULES = (
    Rule(
        cel="!has(self.revision) || self.uri.startsWith('hf://')",
        message="model.revision is only for hf:// models: remove it, or put the version into the URI",
        holds=lambda new, _: "revision" not in new or str(new.get("uri", "")).startswith("hf://"),
    ),
)


STEPPED = (
    "epochs", "maxSteps", "batchSize", "learningRate", "schedule", "warmupRatio", "optimizer", "weightDecay",
    "maxGradNorm", "evaluateEvery", "earlyStopping",
)  # fmt: skip
"""Fields of training that say how steps are made."""


def _probe_makes_no_steps(new: dict[str, Any]) -> bool:
    training = new.get("training") or {}
    stepped = "checkpoint" in new or any(field in training for field in STEPPED) or training.get("skipBadBatch")
    return not stepped or (new.get("method") or {}).get("type") != "probe"


def _probe_takes_rows_as_they_are(new: dict[str, Any]) -> bool:
    data = new.get("data") or {}
    plain = not data.get("augmentation") and all(source.get("weight", 1) == 1 for source in data.get("train", ()))
    return plain or new.get("method", {}).get("type") != "probe"


def _eight_bits(new: dict[str, Any]) -> bool:
    return (new.get("training") or {}).get("optimizer") == "adamw8bit"


def _merged_fits(new: dict[str, Any]) -> bool:
    kind = new.get("method", {}).get("type", "lora")
    return not (new.get("output") or {}).get("merged") or kind in (*MERGEABLE, "full", "partial")


MERGED_FITS = Rule(
    cel=f"!has(self.method) || !has(self.method.type) || self.method.type in {[*MERGEABLE, 'full', 'partial']} || "
    "!has(self.output) || !has(self.output.merged) || !self.output.merged",
    message="output.merged is for method.type lora, dora and qlora: what adapter, prompt, ptuning, prefix and probe "
    "learn is no change of the model's weights, remove it",
    holds=lambda new, _: _merged_fits(new),
)

COMMAND_RULES = (
    Rule(
        cel="has(self.command) || (has(self.model) && has(self.data) && has(self.output))",
        message="model, data and output are required (or command, to run a script of your own)",
        holds=lambda new, _: "command" in new or all(field in new for field in ("model", "data", "output")),
    ),
    Rule(
        cel=f"!has(self.command) || !({' || '.join(f'has(self.{field})' for field in DECIDED_BY_COMMAND)})",
        message="with command the script decides: remove model, data, method, training, strategy and checkpoint, and "
        "give it arguments instead",
        holds=lambda new, _: "command" not in new or not any(field in new for field in DECIDED_BY_COMMAND),
    ),
    Rule(
        cel="!has(self.command) || !has(self.output) || !(has(self.output.merged) || has(self.output.overwrite))",
        message="a command commits no artifact: remove output.merged and output.overwrite",
        holds=lambda new, _: "command" not in new or not {"merged", "overwrite"} & set(new.get("output") or {}),
    ),
    Rule(
        cel=f"!has(self.command) || !self.command[0].matches('(^|/)({LAUNCHERS})$')",
        message="torchrun runs the command in each process: name the script itself, not torchrun, accelerate or "
        "deepspeed",
        holds=lambda new, _: not new.get("command") or not re.search(rf"(^|/)({LAUNCHERS})$", str(new["command"][0])),
    ),
)

STEP_RULES = (
    Rule(
        cel="!has(self.training) || !has(self.training.optimizer) || self.training.optimizer != 'adamw8bit' || "
        "!has(self.strategy) || !has(self.strategy.type) || self.strategy.type != 'deepspeed'",
        message="training.optimizer adamw8bit does not go with strategy.type deepspeed, whose engine cuts weights "
        "anywhere: set strategy.type: fsdp, or optimizer: adamw",
        holds=lambda new, _: not _eight_bits(new) or (new.get("strategy") or {}).get("type") != "deepspeed",
    ),
    Rule(
        cel="!has(self.method) || !has(self.method.type) || self.method.type != 'probe' || !(has(self.checkpoint) || "
        f"(has(self.training) && ({' || '.join(f'has(self.training.{field})' for field in STEPPED)} || "
        "(has(self.training.skipBadBatch) && self.training.skipBadBatch))))",
        message="method.type probe is fitted at once and makes no steps: remove checkpoint, and of training "
        f"{', '.join(STEPPED)} and skipBadBatch",
        holds=lambda new, _: _probe_makes_no_steps(new),
    ),
)

SPEC_RULES = (
    *COMMAND_RULES,
    *STEP_RULES,
    MERGED_FITS,
    Rule(
        cel="!has(self.method) || !has(self.method.type) || self.method.type != 'probe' || !has(self.data) || "
        "((!has(self.data.augmentation) || self.data.augmentation.size() == 0) && "
        "self.data.train.all(source, !has(source.weight) || source.weight == 1.0))",
        message="method probe is fitted once to each row as it is: remove data.augmentation and the weights of sources",
        holds=lambda new, _: _probe_takes_rows_as_they_are(new),
    ),
    Rule(
        cel="!has(self.processesPerNode) || (type(self.processesPerNode) == int ? "
        "self.processesPerNode >= 1 && self.processesPerNode <= 64 : self.processesPerNode == 'auto')",
        message="processesPerNode must be auto or a number from 1 to 64",
        holds=lambda new, _: _processes_hold(new),
    ),
    Rule(
        cel="!has(self.method) || !has(self.method.type) || self.method.type != 'probe' || !has(self.data) || "
        "!has(self.data.format) || "
        "self.data.format in ['auto', 'classification']",
        message="method.type probe is only for data.format classification: it tells labels apart",
        holds=lambda new, _: _probe_has_labels(new),
    ),
    *METHODS_FIT,
    *(_unchanged(field) for field in IMMUTABLE),
    *(_unchanged_unless_suspended(field) for field in MUTABLE_WHILE_SUSPENDED),
)
