"""A network whose weights are read from safetensors files piece by piece: no process ever holds all of them.

empty_network   parameters without memory, buffers as the constructor makes them
Files           the tensors of a folder by the names that a network gives them, whole or in part
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason


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
    """`places`: tensor name to file."""

    places: dict[str, Path]
    prefix: str
    """That a network puts before the names of its body, and files of a bare body lack."""

    @classmethod
    def of(cls, folder: Path, network: Any) -> Files:
        places: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                places |= dict.fromkeys(opened.keys(), file)
        return cls(places, f"{network.base_model_prefix}.")

    def read(self, names: list[str], rows: slice = slice(None)) -> Tensor:
        """The tensor with one of these names (a tied weight has several), or some of its rows. ModelUnsupported where
        the files name it otherwise."""
        wanted = [*names, *(name.removeprefix(self.prefix) for name in names)]
        name = next((name for name in wanted if name in self.places), None)
        if name is None:
            raise FinetuneError(
                Reason.ModelUnsupported,
                f"the model's files have no tensor {names[0]}, and a sharded model is read by these names",
                "Set strategy.type: ddp, or save the model with the transformers release that trains it.",
            )
        with safe_open(self.places[name], framework="pt") as opened:
            part = opened.get_slice(name)
            read: Tensor = part[rows] if part.get_shape() else opened.get_tensor(name)
            return read


def names_by_parameter(network: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter; tied weights have more than one."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        found.setdefault(parameter, []).append(name)
    return found
