"""What a method asks of the trainer and of the model, checked before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method


def check(method: Method, *, layers: int | None) -> None:
    """InvalidSpec where it cannot be met. `layers`: decoder layers of the model, None where unknown."""
    if method.traits.four_bits:
        check_four_bits()
    if layers is None:
        return
    if method.measured is not None:
        check_layers(method.measured, layers)
    if method.traits.picks_layers and (picked := getattr(method.settings, "layers", None)):
        check_probed(picked, layers)


WHOLE = ("single", "ddp")
"""Strategies by which every rank holds all weights."""


def check_strategy(method: Method, strategy: str) -> None:
    """InvalidSpec for what would be wrong, or never measured, on weights in shards."""
    if strategy in WHOLE:
        return
    traits = method.traits
    if method.is_open:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.{method.type}.{traits.measured} auto is measured on whole weights, and strategy {strategy} shards "
            "them",
            f"Give method.{method.type}.{traits.measured} a number.",
        )
    if strategy in traits.shards:
        return
    if traits.reads_weights:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.type {method.type} reads whole weights, and strategy {strategy} shards them",
            "Use strategy ddp, or method.type: lora.",
        )
    raise FinetuneError(
        Reason.InvalidSpec,
        f"method.type {method.type} was never tried with weights that {strategy} shares",
        f"Use strategy {' or '.join(traits.shards)}, which shards it, or ddp."
        if traits.shards
        else "Use strategy ddp.",
    )


def check_compile(method: Method, strategy: str | None = None) -> None:
    """InvalidSpec where training.compile cannot be had: by the method, a strategy that is known, or this machine."""
    hint = "Remove training.compile."
    if because := method.traits.not_compiled:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"training.compile does not go with method.type {method.type}: {because}",
            hint,
        )
    if strategy == "deepspeed":
        raise FinetuneError(
            Reason.InvalidSpec,
            "training.compile does not go with strategy deepspeed: no test proves compiled blocks in its engine",
            "Remove training.compile, or use strategy fsdp or ddp.",
        )
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise FinetuneError(
            Reason.InvalidSpec,
            f"training.compile needs a C++ compiler, and this machine has no {' or '.join(compilers)}",
            "Use a trainer image with g++, or remove training.compile.",
        )
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        raise FinetuneError(
            Reason.InvalidSpec,
            "training.compile needs Python's header files, and this machine has no Python.h",
            "Use a trainer image with python3-dev, or remove training.compile.",
        )


def check_recompute(method: Method, *, compiled: bool = False) -> None:
    """InvalidSpec where training.activationCheckpointing cannot be had: by the method, or with training.compile."""
    why = None
    if method.traits.not_recomputed:
        why = f"method.type {method.type}: {method.traits.not_recomputed}"
    elif compiled:
        why = "training.compile: what is compiled decides by itself what to compute again"
    if why:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"training.activationCheckpointing does not go with {why}",
            "Remove training.activationCheckpointing, and lower training.microBatchTokens for less memory.",
        )


def check_four_bits() -> None:
    """bitsandbytes is an extra of its own."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise FinetuneError(
            Reason.InvalidSpec,
            "method.type qlora needs the package bitsandbytes, which this trainer does not have",
            "Install finetune-operator[qlora] in the trainer's image, or use method.type: lora.",
        )


def check_packed(what: str, *, packed: int, whole: int) -> None:
    """ModelUnsupported where 4 bits would hold less than half of the blocks' weights: what is asked for is not had."""
    if 2 * packed < whole:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{100 - 100 * packed // whole} % of the weights of {what} are in other layers than torch.nn.Linear, such "
            "as experts, and would not be kept in 4 bits",
            "Use method.type: lora.",
        )


def check_experts(method: Method, *, packed: int, whole: int, adapted: int) -> None:
    """ModelUnsupported for a method that a mixture of experts leaves nothing to. Of its blocks: parameters that qlora
    would keep in 4 bits, all of them, and matrices that a low-rank method's targets reach."""
    if method.traits.four_bits:
        check_packed("the model's blocks", packed=packed, whole=whole)
    if method.low_rank is not None and not adapted:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"method.{method.type}.targets {method.low_rank.targets} reaches nothing in this model: its experts, and "
            "the feed-forward networks next to them, take no adapter",
            f"Set method.{method.type}.targets: all-linear, or use method.type: full.",
        )


def check_layers(wanted: int, there: int) -> None:
    if wanted > there:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.partial.layers is {wanted}, and the model has {there} decoder layers",
            f"Set it to at most {there}, or to auto.",
        )


def check_probed(wanted: tuple[int, ...], there: int) -> None:
    if max(wanted) > there:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.probe.layers has {max(wanted)}, and the model has {there} decoder layers",
            f"Name layers from 0 (the embeddings) to {there}, or leave the choice open.",
        )


def check_inputs(method: Method, config: Mapping[str, Any]) -> None:
    """ModelUnsupported for a soft prompt that the model cannot take, by its config.json: one in front of tokens that
    have embeddings in each layer too, or keys and values in front of a window whose masks a class with towers makes."""
    text = config.get("text_config") or config
    kind = str((config.get("architectures") or ["the model"])[0])
    if method.traits.virtual == "tokens" and text.get("hidden_size_per_layer_input"):
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"method.type {method.type} does not go with {kind}: each layer looks up an embedding of every token, and "
            "virtual tokens have none",
            "Choose method.type: lora.",
        )
    windowed = "sliding_attention" in (text.get("layer_types") or ())
    if method.traits.virtual == "cache" and text is not config and windowed:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"method.type {method.type} does not go with {kind}: it makes the masks of layers with a window itself, "
            "and they leave no place for a prefix",
            "Choose method.type: lora or prompt.",
        )


def check_format(method: Method, form: str) -> None:
    """InvalidSpec where the rows are not of the kind that the method learns from."""
    if method.traits.labels_only and form != "classification":
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.type {method.type} needs rows of format classification, and these are {form}",
            "Give rows of {text, label}, or choose another method.type.",
        )
