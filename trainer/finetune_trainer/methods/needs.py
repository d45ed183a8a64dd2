"""What a method asks of the trainer and of the model, checked before anything heavy is imported."""

from __future__ import annotations

import importlib.util

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method


def check(method: Method, *, layers: int | None) -> None:
    """InvalidSpec where it cannot be met. `layers`: decoder layers of the model, None where unknown."""
    if method.type == "qlora":
        check_four_bits()
    wanted = method.partial.layers if method.type == "partial" and method.partial else None
    if isinstance(wanted, int) and layers is not None:
        check_layers(wanted, layers)


def check_four_bits() -> None:
    """bitsandbytes is an extra of its own."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise FinetuneError(
            Reason.InvalidSpec,
            "method.type qlora needs the package bitsandbytes, which this trainer does not have",
            "Install finetune-operator[qlora] in the trainer's image, or use method.type: lora.",
        )


def check_layers(wanted: int, there: int) -> None:
    if wanted > there:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method.partial.layers is {wanted}, and the model has {there} decoder layers",
            f"Set it to at most {there}, or to auto.",
        )
