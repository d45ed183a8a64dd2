"""IA3: factors for keys, values and inner features of the feed-forward network (Liu et al. 2022, arXiv 2205.05638).

The output of the layers that compute keys and values is multiplied by a vector, and so is the input of the layer that
ends the feed-forward network. All factors start at one, so a fresh model computes what the base computes; merged, they
scale rows (with their biases) and columns of the base's matrices. On disk: PEFT's layout.

Where a model computes queries, keys and values in one matrix, queries are scaled too, as PEFT does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.decoder_blocks import decoder_layers

from .base import Base
from .halves import ends_feed_forward, makes_keys_or_values
from .lean import lean_peft
from .lora import endings, reached
from .merged import Change
from .peft_layout import read_adapter, switched_off, wrapped, write_adapter


@dataclass(frozen=True)
class IA3Attached:
    adapter: Any
    """The PeftModel around the network."""
    trainable: Mapping[str, nn.Parameter]
    lowest_layer: int
    kind: Literal["adapter"] = "adapter"

    def settle(self) -> None:
        """Factors are written as they are."""

    def as_base(self) -> AbstractContextManager[None]:
        return switched_off(self.adapter)

    def changes(self) -> Iterator[Change]:
        for name, module in self.adapter.get_base_model().named_modules():
            if hasattr(module, "ia3_l"):
                layer = cast(Any, module)
                (factors,) = layer.ia3_l.values()  # (out, 1), or (1, in) before the layer that ends a feed-forward
                yield f"{name}.weight", partial(_scaled, factors=factors.T if layer.fan_in_fan_out else factors)
                if layer.get_base_layer().bias is not None and not layer.is_feedforward:
                    yield f"{name}.bias", partial(_scaled, factors=factors.flatten())

    def export(self, folder: Path) -> None:
        write_adapter(self.adapter, folder, sets=("target_modules", "feedforward_modules"))


@dataclass(frozen=True)
class IA3:
    def attach(self, network: nn.Module, *, seed: int, base: Base) -> IA3Attached:  # noqa: ARG002
        with lean_peft():
            from peft import IA3Config

        layers = decoder_layers(network)
        names = reached(network, layers)
        ending = endings(network, filter(ends_feed_forward, names))
        scaled = sorted({*endings(network, filter(makes_keys_or_values, names)), *ending})
        if not scaled:
            raise FinetuneError(
                Reason.ModelUnsupported,
                f"{type(network).__name__} has neither keys and values of attention nor a feed-forward network that "
                "method ia3 could scale",
                "Use method.type: lora.",
            )
        config = IA3Config(
            target_modules=scaled, feedforward_modules=ending, task_type="CAUSAL_LM", revision=base.revision
        )
        network.requires_grad_(False)
        return IA3Attached(*wrapped(network, layers, config, base))

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        return read_adapter(network, folder)


@torch.no_grad()
def _scaled(stored: Tensor, *, factors: Tensor) -> Tensor:
    return (stored.float() * factors.detach().to("cpu", torch.float32)).to(stored.dtype)
