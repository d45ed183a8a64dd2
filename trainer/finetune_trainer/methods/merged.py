"""A whole model from a base and its adapter, for servers that take no adapters: `output.merged`.

The base's safetensors files are copied, and in the copies the adapted matrices are replaced, one after another, each in
the dtype that it has there: besides the run's own weights one matrix is in memory. A base that was kept in 4 bits is
written as it comes back from them, for on that the adapter was trained and measured.

    check     before the first step: whether the files have every adapted matrix by its name
    write     the folder `merged/` of an artifact, which from_pretrained and servers take for a model
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.parallel.weight_names import account_of
from finetune_trainer.store.manifest import MERGED
from finetune_trainer.store.tensors import StoredTensor, stored_tensors, weight_files

FOLDER = MERGED

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_BESIDE = ("config.json", "generation_config.json", "model.safetensors.index.json")


Change = tuple[str, Callable[[Tensor], Tensor]]
"""Name of a tensor of the base, and what makes the merged tensor of the stored one, in its shape and dtype."""


def check(changes: Iterable[Change], source: Path) -> None:
    """ModelUnsupported where the model in `source` cannot be written with `changes`."""
    _found(changes, source)


def write(changes: Iterable[Change], source: Path, target: Path, *, alive: Callable[[], None]) -> None:
    """The model of `source` with `changes`; `alive` is called after each tensor."""
    found = _found(changes, source)
    target.mkdir()
    for file in weight_files(source):
        shutil.copyfile(file, target / file.name)
        alive()
    for place, merge in found:
        with (target / place.file.name).open("r+b") as copy:
            copy.seek(place.start)
            stored = torch.frombuffer(bytearray(copy.read(place.size)), dtype=_DTYPES[place.dtype]).view(place.shape)
            merged = merge(stored).contiguous()
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
        upright = whole.T if adapted.fan_in_fan_out else whole
        here = [name for name in adapted.active_adapters if name in adapted.lora_A]
        for name in here:
            a, b = (each[name].weight.detach().to("cpu", torch.float32) for each in (adapted.lora_A, adapted.lora_B))
            upright.addmm_(b, a, alpha=adapted.scaling[name])
        for name in here:
            if name not in adapted.lora_magnitude_vector:
                continue
            magnitude = adapted.lora_magnitude_vector[name].weight.detach().to("cpu", torch.float32)
            upright.mul_((magnitude / torch.linalg.norm(upright, dim=1))[:, None])
    return whole.to(stored.dtype)


def _found(changes: Iterable[Change], source: Path) -> list[tuple[StoredTensor, Callable[[Tensor], Tensor]]]:
    """Where the tensors lie that the merged model has otherwise, with what makes them."""
    places = stored_tensors(source)
    sources = account_of(source).sources
    found = []
    for name, merge in changes:
        place = places[sources[name]] if name in sources else None
        if place is None or place.dtype not in _DTYPES:
            what = f"no tensor {name}" if place is None else f"{name} as {place.dtype}"
            raise FinetuneError(
                Reason.ModelUnsupported,
                f"output.merged cannot be made of this model: its safetensors files have {what}",
                "Remove output.merged, or save the model with the transformers release that trains it.",
            )
        found.append((place, merge))
    return found


def low_rank_changes(network: nn.Module) -> Iterator[Change]:
    """Of all matrices that have a low-rank update or are kept in 4 bits."""
    for name, module in network.named_modules():
        inside = name.endswith(".base_layer")
        if hasattr(module, "lora_A") or (_in_four_bits(module) and not inside):
            yield f"{name}.weight", partial(merged_weight, module)


def _in_four_bits(module: nn.Module) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state") or hasattr(module, "packed_and_back")


def _unpacked(module: nn.Module, stored: Tensor) -> Tensor:
    """Of a layer whose weights other ranks hold too: packed once more, for they are not at hand."""
    if hasattr(module, "packed_and_back"):
        return cast(Tensor, cast(Any, module).packed_and_back(stored))
    from peft.utils.integrations import dequantize_module_weight

    weight: Tensor = dequantize_module_weight(module)
    return weight
