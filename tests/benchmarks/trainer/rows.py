"""The rows of the comparison: who takes part, over what, and what is wanted of ours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Side:
    script: str
    setting: str = "default"
    environment: str | None = None
    """Of tools/rivals.sh; None: our own, which has the Trainer, PEFT and all that they want."""
    method: str = "lora"
    layers: int | None = None
    epochs: int = 1


SIDES = {
    "ours": Side("ours"),
    "ours-compiled": Side("ours", "compiled"),
    "ours-2-epochs": Side("ours", epochs=2),
    "hf": Side("hf"),
    "hf-grouped": Side("hf", "grouped"),
    "hf-flattened": Side("hf", "flattened"),
    "trl-default": Side("trl_sft", environment="trl"),
    "trl": Side("trl_sft", "no checkpointing", environment="trl"),
    "trl-padded": Side("trl_sft", "padded", environment="trl"),
    "llamafactory-default": Side("llamafactory_sft", environment="llamafactory"),
    "llamafactory": Side("llamafactory_sft", "no checkpointing", environment="llamafactory"),
    "axolotl": Side("axolotl_sft", environment="axolotl"),
    "ours-full": Side("ours", method="full"),
    "ours-last4": Side("ours", method="partial", layers=4),
    "ours-last4-uncached": Side("ours", "uncached", method="partial", layers=4),
}


@dataclass(frozen=True)
class Target:
    """`side` over `rival` is at most this."""

    side: str
    rival: str
    most: float
    of: str | tuple[str, str] = "cpu"
    """What is measured, of both or of each."""


@dataclass(frozen=True)
class Row:
    sides: tuple[str, ...]
    targets: tuple[Target, ...]
    lengths: tuple[int, ...]
    """Of a step's documents, in tokens."""
    layers: int | None = None
    packing: bool = False
    tiny: bool = False
    """A model that computes next to nothing, with the tokenizer of the real one."""


_VARIABLE = tuple(int(n) for n in np.random.default_rng(5).integers(8, 257, 16))

ROWS = {
    "lora": Row(
        ("ours", "ours-compiled", "hf", "trl", "trl-default", "llamafactory", "llamafactory-default", "axolotl"),
        (
            Target("ours", "hf", 0.95),
            Target("ours", "trl", 0.72),
            Target("ours", "trl-default", 0.55),
            Target("ours-compiled", "hf", 0.88),
            Target("ours", "hf", 0.88, "peak"),
            Target("ours-compiled", "hf", 0.62, "peak"),
        ),
        lengths=(256,) * 4,
    ),
    "packing": Row(
        ("ours", "hf", "hf-grouped", "hf-flattened", "trl", "trl-padded", "llamafactory", "axolotl"),
        tuple(
            Target("ours", rival, round(1 / 1.15, 3))
            for rival in ("hf", "hf-grouped", "hf-flattened", "trl", "trl-padded", "llamafactory", "axolotl")
        ),
        lengths=_VARIABLE,
        packing=True,
    ),
    "top4": Row(
        ("ours", "ours-2-epochs", "hf", "trl", "trl-default", "llamafactory", "axolotl"),
        (
            Target("ours", "hf", 0.76),
            Target("ours", "trl-default", 0.35),
            Target("ours", "hf", 0.7, "peak"),
            Target("ours-2-epochs", "hf", 0.76),  # where states of frozen layers are kept
        ),
        lengths=(256,) * 4,
        layers=4,
    ),
    "last4": Row(
        ("ours-last4", "ours-last4-uncached", "ours-full"),
        (
            Target("ours-last4", "ours-full", 0.62, "first_epoch"),
            Target("ours-last4", "ours-last4", 0.55, ("cpu", "first_epoch")),
        ),
        lengths=(256,) * 4,
        packing=True,
    ),
    "start": Row(
        ("ours", "hf", "trl"),
        (Target("ours", "trl", 0.8, "start"), Target("ours", "hf", 0.9, "start")),
        lengths=(64,) * 4,
        tiny=True,
    ),
}
