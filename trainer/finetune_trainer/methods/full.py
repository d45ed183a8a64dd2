"""Full fine-tuning: every weight trains, and the artifact is a whole model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from finetune_trainer.blocks import decoder_layers, lowest_layer

from .base import Base


@dataclass(frozen=True)
class FullAttached:
    network: nn.Module
    trainable: Mapping[str, nn.Parameter]
    lowest_layer: int
    stored: torch.dtype
    """Of the weights on disk: what the base model came in."""
    kind: Literal["model"] = "model"

    def settle(self) -> None:
        with torch.no_grad():
            for parameter in self.trainable.values():
                parameter.copy_(parameter.to(self.stored))

    def export(self, folder: Path) -> None:
        network = cast(Any, self.network)
        weights: dict[str, torch.Tensor] = {}
        converted: dict[tuple[int, torch.Size], torch.Tensor] = {}
        for name, tensor in network.state_dict().items():
            place = (tensor.data_ptr(), tensor.shape)
            if place not in converted:
                converted[place] = tensor.to(self.stored)
            weights[name] = converted[place]  # tied weights stay one tensor, which save_pretrained writes once
        network.save_pretrained(folder, state_dict=weights)
        # transformers notes the dtype that training had; loaders read this one.
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = str(self.stored).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Full:
    def attach(self, network: nn.Module, *, seed: int, base: Base) -> FullAttached:  # noqa: ARG002
        network.requires_grad_(True)
        trainable = dict(network.named_parameters())  # a tied weight appears once
        hugging = cast(Any, network)
        lowest = lowest_layer(trainable, decoder_layers(network), embeddings=hugging.get_input_embeddings())
        return FullAttached(network, trainable, lowest, stored=base.dtype)

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        """`network` only says of which class the model is."""
        loaded: nn.Module = cast(Any, type(network)).from_pretrained(folder, dtype=torch.float32)
        return loaded
