"""Bottleneck adapters: a small network after each half of a frozen decoder block, h ← h + W_up·σ(W_down·LN(h)).

Houlsby et al. 2019 put one after attention and one after feed-forward, before the residual sum; Pfeiffer et al. 2020
only the second. W_up starts at zero, so a fresh adapter changes no bit; with d the width of the model and m that of the
bottleneck it has 2dm + m + d weights. An adapter is not linear in h: it can be switched off, but never be merged.

On disk: `adapter_model.safetensors` and an `adapter_config.json` of type BOTTLENECK, which PEFT refuses by name.

    model = load(base, Path("artifact"))
    with disabled(model): ...              # the base model, to the bit
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Adapter as Settings
from finetune_trainer.decoder_blocks import Layers, decoder_layers, lowest_layer

from .base import Base
from .halves import halves

TYPE = "BOTTLENECK"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PLACES = {"houlsby": ("attention", "mlp"), "pfeiffer": ("mlp",)}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Bottleneck(nn.Module):
    """down: (bottleneck, width), up: (width, bottleneck), both with bias, in fp32; computes in its input's dtype."""

    def __init__(self, width: int, settings: Settings) -> None:
        super().__init__()
        self.down = nn.Linear(width, settings.bottleneck)
        self.up = nn.Linear(settings.bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activate = _ACTIVATIONS[settings.activation]
        self.enabled = True

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, width) → (…, width)"""
        dtype = hidden.dtype
        normed = F.layer_norm(hidden, hidden.shape[-1:])
        narrow = self.activate(F.linear(normed, self.down.weight.to(dtype), self.down.bias.to(dtype)))
        return hidden + F.linear(narrow, self.up.weight.to(dtype), self.up.bias.to(dtype))

    def behind(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        """A forward hook. Attention answers with a tuple, of which the first is the hidden state."""
        if not self.enabled:
            return output
        if isinstance(output, tuple):
            return (self(output[0]), *output[1:])
        return self(output)


@dataclass(frozen=True)
class AdapterAttached:
    network: nn.Module
    trainable: Mapping[str, nn.Parameter]
    lowest_layer: int
    config: Mapping[str, Any]
    kind: Literal["adapter"] = "adapter"

    def settle(self) -> None:
        """Adapters are written as they are."""

    def as_base(self) -> AbstractContextManager[None]:
        return disabled(self.network)

    def export(self, folder: Path) -> None:
        weights = {name: parameter.detach().cpu().contiguous() for name, parameter in self.trainable.items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Adapter:
    settings: Settings

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> AdapterAttached:
        layers = decoder_layers(network)
        width = int(cast(Any, network).config.get_text_config().hidden_size)
        network.requires_grad_(False)
        torch.manual_seed(seed)
        _insert(network, layers, width, self.settings)
        trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
        config = {
            "type": TYPE,
            "version": 1,
            "base_model_name_or_path": base.name,
            "revision": base.revision,
            "width": width,
            "layers": layers.count,
            **self.settings.to_json(),
        }
        lowest = lowest_layer(trainable, layers, embeddings=cast(Any, network).get_input_embeddings())
        return AdapterAttached(network, trainable, lowest, config)

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        return load(network, folder)


def load(network: nn.Module, folder: Path) -> nn.Module:
    """`network`, the untouched base, with the adapters of `folder` in it. ModelUnsupported names what does not fit."""
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    if config.get("type") != TYPE or config.get("version") != 1:
        raise FinetuneError(Reason.ModelUnsupported, f"{folder / CONFIG_FILE} is not of type {TYPE}, version 1")
    layers = decoder_layers(network)
    width = int(cast(Any, network).config.get_text_config().hidden_size)
    if (config["layers"], config["width"]) != (layers.count, width):
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"the adapter is for {config['layers']} layers of width {config['width']}, the model has {layers.count} "
            f"of width {width}",
            f"Load it onto {config['base_model_name_or_path']}.",
        )
    _insert(network, layers, width, Settings.model_validate(config, strict=False))
    weights = load_file(folder / WEIGHTS_FILE)
    missing = {name for name, _ in network.named_parameters() if ".bottleneck_" in name} ^ weights.keys()
    if missing:
        raise FinetuneError(Reason.ModelUnsupported, f"{WEIGHTS_FILE} and its config differ in {min(missing)}")
    network.load_state_dict(weights, strict=False)
    return network


@contextmanager
def disabled(network: nn.Module) -> Iterator[None]:
    """Without its adapters the network is the base model, to the bit."""
    adapters = [module for module in network.modules() if isinstance(module, Bottleneck)]
    before = [adapter.enabled for adapter in adapters]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter, enabled in zip(adapters, before, strict=True):
            adapter.enabled = enabled


def _insert(network: nn.Module, layers: Layers, width: int, settings: Settings) -> None:
    for block in cast(nn.ModuleList, network.get_submodule(layers.prefix)):
        found = halves(block)
        device = next(block.parameters()).device
        for place in _PLACES[settings.placement]:
            if place not in found:
                raise FinetuneError(
                    Reason.ModelUnsupported,
                    f"no {place} part was found in {type(block).__name__}, after which an adapter could be inserted",
                    "Use method.type: lora.",
                )
            adapter = Bottleneck(width, settings).to(device)  # made on the CPU: the same weights on every device
            block.add_module(f"bottleneck_{place}", adapter)
            found[place].register_forward_hook(adapter.behind)
