"""A network whose weights are read from safetensors files piece by piece: no process ever holds all of them.

empty_network   parameters without memory, buffers as the constructor makes them
Files           the tensors of a folder by the names that a network gives them, whole or in part
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store.tensors import StoredTensor, stored_tensors

from .weight_names import sources_of


def empty_network(kind: Any, *, config: Any, **options: Any) -> nn.Module:
    """An instance of a transformers class with its parameters on the meta device; `options` of `_from_config`."""
    with _parameters_without_memory():
        network: nn.Module = kind._from_config(config, **options)
    return network


@contextlib.contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """torch.device("meta") would take the buffers too, and those are in no file: rotary frequencies, for instance."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@dataclass(frozen=True)
class Files:
    """The tensors of a folder by the names that a network gives them."""

    tensors: Mapping[str, StoredTensor]
    sources: Mapping[str, str]
    """Weight or saved buffer → its tensor (see weight_names)."""

    @classmethod
    def of(cls, folder: Path, network: nn.Module) -> Files:
        tensors = stored_tensors(folder)
        return cls(tensors, sources_of(network, tensors))

    def read(self, names: list[str], rows: slice = slice(None)) -> Tensor:
        """The tensor with one of these names (a tied weight has several), or some of its rows. ModelUnsupported where
        it has to be put together from others."""
        source = next((self.sources[name] for name in names if name in self.sources), None)
        if source is None:
            raise FinetuneError(
                Reason.ModelUnsupported,
                f"the model's files have no tensor for {names[0]} alone, and sharded weights are read one by one",
                "Set strategy.type: ddp, or save the model with the transformers release that trains it.",
            )
        with safe_open(self.tensors[source].file, framework="pt") as opened:
            part = opened.get_slice(source)
            read: Tensor = part[rows] if part.get_shape() else opened.get_tensor(source)
            return read

    @torch.no_grad()
    def fill_buffers(self, network: nn.Module) -> None:
        """Buffers that are saved with a model, such as a scale for each layer; all others are as they were made."""
        saved = network.state_dict().keys()
        for name, buffer in network.named_buffers():
            if name in saved:
                buffer.copy_(self.read([name]))


def names_by_parameter(network: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter; tied weights have more than one."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        found.setdefault(parameter, []).append(name)
    return found
