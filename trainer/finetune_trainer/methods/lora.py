"""LoRA: low-rank updates beside the frozen linear layers of the decoder blocks, in PEFT's layout on disk.

What servers load without a word of ours (vLLM reads rank, alpha, targets, and refuses or ignores the rest): one rank
and one alpha for all layers, no extra saved modules, no bias, the head untouched, and the base model by its real name.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora as Settings
from finetune_trainer.blocks import Layers, decoder_layers, lowest_layer

from .base import Base
from .experts import has_experts, is_reached
from .halves import half_of
from .lean import lean_peft


@dataclass(frozen=True)
class LoraAttached:
    adapter: Any
    """The PeftModel around the network."""
    trainable: Mapping[str, nn.Parameter]
    lowest_layer: int
    fused: int
    """Layers with the fused forward."""
    without: int
    """Weights of the blocks' matrices that no adapter can be put beside, such as those of experts."""
    kind: Literal["adapter"] = "adapter"

    def settle(self) -> None:
        """Adapters are written as they are."""

    def export(self, folder: Path) -> None:
        self.adapter.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's template; the run's own card takes its place
        config = json.loads((folder / "adapter_config.json").read_text())
        config["target_modules"].sort()  # a set, else in another order with each process
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Lora:
    settings: Settings
    name: ClassVar[str] = "lora"
    """As in the manifest."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Of PEFT's configuration, in which a variant differs."""

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> LoraAttached:
        with lean_peft():
            from peft import LoraConfig, get_peft_model

            from .fused import fuse

        layers = decoder_layers(network)
        config = LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.alpha,
            use_rslora=self.settings.rs_lora,
            lora_dropout=self.settings.dropout,
            target_modules=target_suffixes(network, layers, self.settings.targets, method=self.name),
            task_type="CAUSAL_LM",
            bias="none",
            revision=base.revision,
            **_last(layers, self.settings.layers),
            **self.options,
        )
        network.requires_grad_(False)
        without = _without(network, layers)
        torch.manual_seed(seed)
        with lean_peft(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations between PEFT and transformers, and what the config says
            adapter = get_peft_model(cast(Any, network), config)
        # Set afterwards: PEFT takes the name from the model, which knows only the folder that it was loaded from.
        adapter.peft_config["default"].base_model_name_or_path = base.name
        trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
        embeddings = cast(Any, network).get_input_embeddings()
        lowest = lowest_layer(trainable, layers, embeddings=embeddings)
        return LoraAttached(adapter, trainable, lowest, fused=fuse(network), without=without)

    @property
    def alpha(self) -> float:
        # 16 is that of rsLoRA's paper (2312.03732): at rank 64 it is the scale that twice the rank gives without.
        alpha = self.settings.alpha or (16 if self.settings.rs_lora else 2 * self.settings.rank)
        return int(alpha) if float(alpha).is_integer() else alpha

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        with lean_peft():
            from peft import PeftModel

        loaded: nn.Module = PeftModel.from_pretrained(cast(Any, network), folder)
        return loaded


def _last(layers: Layers, count: int | None) -> dict[str, Any]:
    """PEFT's words for the last `count` blocks. Without the list's name it would take the last number in a module's
    name for its block, which in a mixture of experts is the expert."""
    if count is None or count >= layers.count:
        return {}
    chosen = list(range(layers.count - count, layers.count))
    return {"layers_to_transform": chosen, "layers_pattern": layers.prefix.rpartition(".")[2]}


def target_suffixes(network: nn.Module, layers: Layers, targets: str, *, method: str = "lora") -> list[str]:
    """The shortest endings of names that select the wanted linear layers and no others: `["down_proj", "q_proj", …]`.

    ModelUnsupported where the blocks have no such layers.
    """
    inside = _reached(network, layers)
    wanted = inside if targets == "all-linear" else [n for n in inside if _half(n, layers) == targets]
    if not wanted:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{type(network).__name__} has no linear layers that method.{method}.targets {targets} would name",
            f"Set method.{method}.targets: all-linear, or method.type: full.",
        )
    every_name = [name for name, _ in network.named_modules()]
    return sorted({_shortest_ending(name, set(wanted), every_name) for name in wanted})


def _half(name: str, layers: Layers) -> str | None:
    """attention or mlp, from the part of the name inside the block."""
    return half_of(name[len(layers.prefix) + 1 :].partition(".")[2])


def _shortest_ending(name: str, wanted: set[str], every_name: list[str]) -> str:
    parts = name.split(".")
    for length in range(1, len(parts)):
        ending = ".".join(parts[-length:])
        if all(other in wanted for other in every_name if other == ending or other.endswith("." + ending)):
            return ending
    return name


def _reached(network: nn.Module, layers: Layers) -> list[str]:
    """The linear layers of the blocks that an adapter may be put beside."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) or _is_conv1d(module)]
    inside = [name for name in linear if layers.index(name) >= 0]
    config = cast(Any, network).config
    if not has_experts(config.to_dict(), (name for name, _ in network.named_parameters())):
        return inside
    return [name for name in inside if is_reached(name, model_type=config.model_type)]


def _without(network: nn.Module, layers: Layers) -> int:
    reached = {id(network.get_submodule(name).weight) for name in _reached(network, layers)}
    inside = (p for name, p in network.named_parameters() if layers.index(name) >= 0)
    return sum(p.numel() for p in inside if p.ndim > 1 and id(p) not in reached)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, which transformers keeps transposed."""
    return type(module).__name__ == "Conv1D"
