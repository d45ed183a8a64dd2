"""What a method asks of the trainer and of the model, checked before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method, Partial


def check(method: Method, *, layers: int | None) -> None:
    """InvalidSpec where it cannot be met. `layers`: decoder layers of the model, None where unknown."""
    if method.type == "qlora":
        check_four_bits()
    wanted = method.partial.layers if method.type == "partial" and method.partial else None
    if isinstance(wanted, int) and layers is not None:
        check_layers(wanted, layers)
    if method.type == "probe" and method.probe and method.probe.layers and layers is not None:
        check_probed(method.probe.layers, layers)


WHOLE = ("single", "ddp")
"""Strategies by which every rank holds all weights."""

_READS_WEIGHTS = ("prompt", "ptuning", "prefix", "probe")
"""Methods that look at embeddings or run blocks outside of the loop's passes."""


def check_strategy(method: Method, strategy: str) -> None:
    """InvalidSpec for what would be wrong, or never measured, on weights in shards."""
    if strategy in WHOLE:
        return
    if strategy == "deepspeed" and method.type in ("dora", "qlora"):
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.type {method.type} was never tried with weights that deepspeed shares",
            "Use strategy fsdp, which shards it, or ddp.",
        )
    if is_open(method):
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.partial.layers auto is measured on whole weights, and strategy {strategy} shards them",
            "Give method.partial.layers a number.",
        )
    if method.type in _READS_WEIGHTS:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.type {method.type} reads whole weights, and strategy {strategy} shards them",
            "Use strategy ddp, or method.type: lora.",
        )


_UNCOMPILED = {
    "qlora": "its layers unpack weights in kernels that torch.compile cannot follow",
    "dora": "PEFT's layers break it into a hundred pieces",
    "prefix": "its keys and values reach the blocks as a cache, which torch.compile would compile anew in each step",
    "probe": "it makes no steps",
}


def check_compile(method: Method, strategy: str | None = None) -> None:
    """InvalidSpec where training.compile cannot be had: by the method, a strategy that is known, or this machine."""
    hint = "Remove training.compile."
    if method.type in _UNCOMPILED:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"training.compile does not go with method.type {method.type}: {_UNCOMPILED[method.type]}",
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


_NOT_AGAIN = {
    "prefix": "its keys and values reach the blocks as a cache, which would grow in the second pass",
    "probe": "it computes no gradients",
}


def check_recompute(method: Method, *, compiled: bool = False) -> None:
    """InvalidSpec where training.activationCheckpointing cannot be had: by the method, or beside training.compile."""
    why = None
    if method.type in _NOT_AGAIN:
        why = f"method.type {method.type}: {_NOT_AGAIN[method.type]}"
    elif compiled:
        why = "training.compile: what is compiled decides by itself what to compute again"
    if why:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"training.activationCheckpointing does not go with {why}",
            "Remove training.activationCheckpointing, and lower training.microBatchTokens for less memory.",
        )


def is_open(method: Method) -> bool:
    """Whether something has to be measured before the method is known."""
    return method.type == "partial" and not isinstance((method.partial or Partial()).layers, int)


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
            f"{100 - 100 * packed // whole} % of the weights of {what} lie in other layers than torch.nn.Linear, such "
            "as experts, and would not be kept in 4 bits",
            "Use method.type: lora.",
        )


def check_experts(method: Method, *, packed: int, whole: int, adapted: int) -> None:
    """ModelUnsupported for a method that a mixture of experts leaves nothing to. Of its blocks: parameters that qlora
    would keep in 4 bits, all of them, and matrices that a low-rank method's targets reach."""
    if method.type == "qlora":
        check_packed("the model's blocks", packed=packed, whole=whole)
    if method.low_rank is not None and not adapted:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"method.{method.type}.targets {method.low_rank.targets} reaches nothing in this model: its experts, and "
            "the feed-forward networks beside them, take no adapter",
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


def check_format(method: Method, form: str) -> None:
    """InvalidSpec where the rows are not of the kind that the method learns from."""
    if method.type == "probe" and form != "classification":
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.type probe needs rows of format classification, and these are {form}",
            "Give rows of {text, label}, or choose another method.type.",
        )
