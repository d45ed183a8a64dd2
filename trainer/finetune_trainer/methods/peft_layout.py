"""PEFT around a network, and its layout on disk: what the methods share whose adapters PEFT loads."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from finetune_trainer.decoder_blocks import Layers, lowest_layer

from .base import Base
from .lean import lean_peft


def wrapped(network: nn.Module, layers: Layers, config: Any, base: Base) -> tuple[Any, dict[str, nn.Parameter], int]:
    """(PEFT's model around the network, what trains, the lowest layer that trains). Nothing in the network may train
    before."""
    with lean_peft():
        from peft import get_peft_model

    with lean_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between PEFT and transformers, and what the config says
        adapter = get_peft_model(cast(Any, network), config)
    # Set afterwards: PEFT takes the name from the model, which knows only the folder that it was loaded from.
    adapter.peft_config["default"].base_model_name_or_path = base.name
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    embeddings = cast(Any, network).get_input_embeddings()
    return adapter, trainable, lowest_layer(trainable, layers, embeddings=embeddings)


@contextmanager
def switched_off(adapter: Any) -> Iterator[None]:
    """Without its adapters the network is the base model. PEFT's own `disable_adapter` would also take the gradients
    from what trains, in the middle of a step."""
    with lean_peft():
        from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in adapter.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def write_adapter(
    adapter: Any,
    folder: Path,
    *,
    sets: tuple[str, ...],
    changes: Mapping[str, Any] = MappingProxyType({}),
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """In PEFT's layout, the same bytes from every process. `sets`: lists of its configuration without an order.
    `changes` of that configuration, and `tensors` in place of the adapter's own."""
    adapter.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's template; the run's own card takes its place
    if tensors is not None:
        save_file(
            {name: tensor.cpu() for name, tensor in sorted(tensors.items())}, folder / "adapter_model.safetensors"
        )
    settle_config(folder, sets=sets, changes=changes)


def settle_config(
    folder: Path, *, sets: tuple[str, ...] = (), changes: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """The configuration that PEFT wrote, with `changes`, and with its keys and its `sets` in order."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | dict(changes)
    for modules in sets:
        config[modules].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_adapter(network: nn.Module, folder: Path) -> nn.Module:
    """The adapter or prompt in an exported folder, around the network."""
    with lean_peft():
        from peft import PeftModel

    loaded: nn.Module = PeftModel.from_pretrained(cast(Any, network), folder)
    return loaded
