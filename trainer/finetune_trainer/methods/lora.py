"""LoRA: low-rank updates of the frozen linear layers of the decoder blocks, in PEFT's layout on disk.

What servers load without custom code (vLLM reads rank, alpha, targets, and refuses or ignores the rest): one rank
and one alpha for all layers, no extra saved modules, no bias, the head untouched, and the base model by its real name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora as Settings
from finetune_trainer.decoder_blocks import Layers, decoder_layers

from .base import Base, Product
from .called import is_called
from .experts import has_experts, is_reached
from .halves import half_of
from .lean import lean_peft
from .merged import Change, low_rank_changes
from .peft_layout import read_adapter, switched_off, wrapped, write_adapter
from .stacked import is_stacked, only_earlier, stack, write_stacked


@dataclass(frozen=True)
class LoraAttached:
    adapter: Any
    """The PeftModel around the network."""
    trainable: Mapping[str, nn.Parameter]
    lowest_layer: int
    fused: int
    """Layers with the fused forward."""
    without: int
    """Weights of the blocks' matrices that no adapter can be attached to, such as those of experts."""
    kind: Literal["adapter"] = "adapter"

    def settle(self) -> None:
        """Adapters are written as they are."""

    @property
    def continues(self) -> bool:
        return is_stacked(self.adapter)

    def as_base(self) -> AbstractContextManager[None]:
        return only_earlier(self.adapter) if self.continues else switched_off(self.adapter)

    def as_original(self) -> AbstractContextManager[None]:
        return switched_off(self.adapter)

    def changes(self) -> Iterator[Change]:
        return low_rank_changes(self.adapter.get_base_model())

    def export(self, folder: Path) -> None:
        if self.continues:
            write_stacked(self.adapter, folder)
        else:
            write_adapter(self.adapter, folder, sets=("target_modules",))


@dataclass(frozen=True)
class ScalableLora(LoraAttached):
    """An update s·B·A that nothing else depends on, so s alone decides how much of it applies."""

    alpha: float = 1.0
    """As trained."""

    def products(self) -> Iterator[Product]:
        for module in self.adapter.get_base_model().modules():
            if "default" in getattr(module, "lora_A", ()):
                a, b = (cast(Any, factors)["default"].weight for factors in (module.lora_A, module.lora_B))
                yield Product(a, b, cast(Any, module).scaling["default"], module)

    def apply_at(self, scale: float) -> None:
        for module in self.adapter.get_base_model().modules():
            if "default" in getattr(module, "lora_A", ()):
                cast(Any, module).set_scale("default", scale)
        self.adapter.peft_config["default"].lora_alpha = _whole(self.alpha * scale)


@dataclass(frozen=True)
class Lora:
    settings: Settings
    name: ClassVar[str] = "lora"
    """As in the manifest."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Of PEFT's configuration, in which a variant differs."""

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> LoraAttached:
        with lean_peft():
            from peft import LoraConfig

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
        adapter, trainable, lowest = wrapped(network, layers, config, base)
        if base.earlier is not None:
            stack(adapter, base.earlier)
        return self.attached(LoraAttached(adapter, trainable, lowest, fused=fuse(network), without=without))

    def attached(self, made: LoraAttached) -> LoraAttached:
        """With what this variant can do besides."""
        return ScalableLora(**vars(made), alpha=self.alpha)

    @property
    def alpha(self) -> float:
        return _whole(self.settings.effective_alpha)

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        return read_adapter(network, folder)


def _whole(alpha: float) -> float:
    """An integer where it is one: some servers read no other."""
    return int(alpha) if float(alpha).is_integer() else alpha


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
    inside = reached(network, layers)
    wanted = inside if targets == "all-linear" else [n for n in inside if _half(n, layers) == targets]
    if not wanted:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{type(network).__name__} has no linear layers that method.{method}.targets {targets} would name",
            f"Set method.{method}.targets: all-linear, or method.type: full.",
        )
    return endings(network, wanted)


def endings(network: nn.Module, names: Iterable[str]) -> list[str]:
    """The shortest endings that these modules have and no others."""
    wanted, every_name = set(names), [name for name, _ in network.named_modules()]
    return sorted({_shortest_ending(name, wanted, every_name) for name in wanted})


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


def reached(network: nn.Module, layers: Layers) -> list[str]:
    """The linear layers of the blocks that an adapter may be attached to."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) or _is_conv1d(module)]
    inside = [name for name in linear if layers.index(name) >= 0 and is_called(network, name)]
    config = cast(Any, network).config
    if not has_experts(config.to_dict(), (name for name, _ in network.named_parameters())):
        return inside
    return [name for name in inside if is_reached(name, model_type=config.model_type)]


def _without(network: nn.Module, layers: Layers) -> int:
    there = {id(network.get_submodule(name).weight) for name in reached(network, layers)}
    inside = (p for name, p in network.named_parameters() if layers.index(name) >= 0)
    return sum(p.numel() for p in inside if p.ndim > 1 and id(p) not in there)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, which transformers keeps transposed."""
    return type(module).__name__ == "Conv1D"
