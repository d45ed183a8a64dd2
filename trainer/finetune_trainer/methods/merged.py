"""A whole model from a base and its low-rank adapter, for servers that take no adapters: `output.merged`.

The base's safetensors files are copied, and in the copies the adapted matrices are replaced, one after another, each in
the dtype that it has there: beside the run's own weights one matrix is in memory. A base that was kept in 4 bits is
written as it comes back from them, for on that the adapter was trained and measured.

    check     before the first step: whether the files have every adapted matrix by its name
    write     the folder `merged/` of an artifact, which from_pretrained and servers take for a model
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason

FOLDER = "merged"

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_BESIDE = ("config.json", "generation_config.json", "model.safetensors.index.json")


@dataclass(frozen=True)
class Place:
    """Of a tensor in a safetensors file."""

    file: Path
    start: int
    size: int
    shape: tuple[int, ...]
    dtype: str


def check(network: nn.Module, source: Path) -> None:
    """ModelUnsupported where the model in `source` cannot be written with the adapters of `network` in it."""
    _found(network, source)


def write(network: nn.Module, source: Path, target: Path, *, alive: Callable[[], None]) -> None:
    """The model of `source` with the adapters of `network` in it; `alive` is called after each matrix."""
    found = _found(network, source)
    target.mkdir()
    for file in sorted(source.glob("*.safetensors")):
        shutil.copyfile(file, target / file.name)
        alive()
    for place, layer in found:
        with (target / place.file.name).open("r+b") as copy:
            copy.seek(place.start)
            stored = torch.frombuffer(bytearray(copy.read(place.size)), dtype=_DTYPES[place.dtype]).view(place.shape)
            merged = merged_weight(layer, stored).contiguous()
            copy.seek(place.start)
            copy.write(merged.view(-1).view(torch.uint8).numpy().data)
        alive()
    for name in _BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@torch.no_grad()
def merged_weight(layer: nn.Module, stored: Tensor) -> Tensor:
    """W + s·B·A, and with DoRA the magnitude along its direction; `stored`: (out, in), or transposed as in the layer.
    Of a layer in 4 bits without an adapter: what comes back from them."""
    adapted = cast(Any, layer)
    base = adapted.get_base_layer() if hasattr(layer, "get_base_layer") else adapted
    weight = _unpacked(base, stored) if _in_four_bits(base) else stored
    whole = weight.to("cpu", torch.float32, copy=True)
    if layer is not base:
        (name,) = adapted.active_adapters
        a, b = (matrix[name].weight.detach().to("cpu", torch.float32) for matrix in (adapted.lora_A, adapted.lora_B))
        upright = whole.T if adapted.fan_in_fan_out else whole
        upright.addmm_(b, a, alpha=adapted.scaling[name])
        if name in adapted.lora_magnitude_vector:
            magnitude = adapted.lora_magnitude_vector[name].weight.detach().to("cpu", torch.float32)
            upright.mul_((magnitude / torch.linalg.norm(upright, dim=1))[:, None])
    return whole.to(stored.dtype)


def _found(network: nn.Module, source: Path) -> list[tuple[Place, nn.Module]]:
    """Where the weights lie that the merged model has otherwise, with the layers that they belong to."""
    places = _places(source)
    prefix = f"{cast(Any, network).base_model_prefix}."  # which files of a bare body lack
    found = []
    for name, layer in _changed(network):
        place = places.get(name) or places.get(name.removeprefix(prefix))
        if place is None or place.dtype not in _DTYPES:
            what = f"no tensor {name}" if place is None else f"{name} as {place.dtype}"
            raise FinetuneError(
                Reason.ModelUnsupported,
                f"output.merged cannot be made of this model: its safetensors files have {what}",
                "Remove output.merged, or save the model with the transformers release that trains it.",
            )
        found.append((place, layer))
    return found


def _changed(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name of the weight, layer) of all that is adapted or kept in 4 bits."""
    for name, module in network.named_modules():
        inside = name.endswith(".base_layer")
        if hasattr(module, "lora_A") or (_in_four_bits(module) and not inside):
            yield f"{name}.weight", module


def _in_four_bits(module: nn.Module) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state") or hasattr(module, "packed_and_back")


def _unpacked(module: nn.Module, stored: Tensor) -> Tensor:
    """Of a layer whose weights other ranks hold too: packed once more, for they are not at hand."""
    if hasattr(module, "packed_and_back"):
        return cast(Tensor, cast(Any, module).packed_and_back(stored))
    from peft.utils.integrations import dequantize_module_weight

    weight: Tensor = dequantize_module_weight(module)
    return weight


def _places(folder: Path) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = Place(file, 8 + length + begin, end - begin, tuple(entry["shape"]), entry["dtype"])
    return found
