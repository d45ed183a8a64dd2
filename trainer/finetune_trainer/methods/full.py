"""Full fine-tuning: every weight trains, and the artifact is a whole model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from finetune_trainer.decoder_blocks import decoder_layers, language_weights, lowest_layer

from .base import Base
from .source import Source


@dataclass(frozen=True)
class FullAttached:
    network: nn.Module
    trainable: Mapping[str, nn.Parameter]
    lowest_layer: int
    stored: torch.dtype
    """Of the weights on disk: what the base model came in."""
    kind: Literal["model"] = "model"

    source: Source | None = None
    """The files of the base model, where they are known."""

    def settle(self) -> None:
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(parameter.to(self._dtype(name)))

    def export(self, folder: Path) -> None:
        network = cast(Any, self.network)
        weights: dict[str, torch.Tensor] = {}
        converted: dict[tuple[int, torch.Size], torch.Tensor] = {}
        for name, tensor in network.state_dict().items():
            place = (tensor.data_ptr(), tensor.shape)
            if place not in converted:
                converted[place] = self._as_written(name, tensor)
            weights[name] = converted[place]  # tied weights stay one tensor, which save_pretrained writes once
        if self.source:
            weights |= {name: self.source.read(name) for name in self.source.left_out}
        network.save_pretrained(folder, state_dict=weights)
        # transformers notes the dtype that training had; loaders read this one.
        config = json.loads((folder / "config.json").read_text())
        _state_dtype(config, str(self.stored).removeprefix("torch."))
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def _as_written(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What trained, in the dtype that it came in; all else, buffers too, to the bit as it came."""
        if name not in self.trainable and self.source and name in self.source.names:
            return self.source.read(self.source.names[name])
        return tensor.to(self._dtype(name)) if tensor.is_floating_point() else tensor

    def _dtype(self, name: str) -> torch.dtype:
        return (self.source.dtypes.get(name) if self.source else None) or self.stored


def _state_dtype(config: dict[str, Any], dtype: str) -> None:
    """Of the whole, and of parts that state one."""
    config["dtype"] = dtype
    for part in config.values():
        if isinstance(part, dict) and "dtype" in part:
            _state_dtype(part, dtype)


@dataclass(frozen=True)
class Full:
    def attach(self, network: nn.Module, *, seed: int, base: Base) -> FullAttached:  # noqa: ARG002
        network.requires_grad_(False)
        trainable = language_weights(network)  # a tied weight appears once
        for parameter in trainable.values():
            parameter.requires_grad_(True)
        hugging = cast(Any, network)
        lowest = lowest_layer(trainable, decoder_layers(network), embeddings=hugging.get_input_embeddings())
        return FullAttached(network, trainable, lowest, stored=base.dtype, source=Source.of(base))

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        """`network` only says of which class the model is."""
        loaded: nn.Module = cast(Any, type(network)).from_pretrained(folder, dtype=torch.float32)
        return loaded
