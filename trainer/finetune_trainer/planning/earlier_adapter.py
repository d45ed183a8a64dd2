"""The adapter of an earlier artifact, frozen under the one that trains (spec.continueFrom): memory besides the model's.

It takes the matrices of both adapters, in all blocks that either has, with zeros where it has none (methods.stacked).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from finetune_api.methods import Method
from finetune_trainer.methods.frozen_adapter import WEIGHTS
from finetune_trainer.store.headers import file_header

from .footprints.lora import settings_of
from .model import ModelShape, block_of, find_shape


def planned_shape(model: Path, method: Method, earlier: Path | None) -> ModelShape | None:
    """find_shape of the model, and with_earlier."""
    shape = find_shape(model)
    return None if shape is None else with_earlier(shape, method, earlier)


def with_earlier(shape: ModelShape, method: Method, folder: Path | None) -> ModelShape:
    """The model with the adapter in `folder` under that of `method`; None: there is none. OSError and MalformedHeader
    for a file that is not an adapter's."""
    if folder is None or not method.traits.scalable:
        return shape
    tensors = file_header(folder / WEIGHTS).tensors
    downs = {name.partition(".lora_A.")[0]: tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}
    return _under(shape, method, downs, rank=max(downs.values(), default=0))


def like_its_own(shape: ModelShape, method: Method) -> ModelShape:
    """For an artifact that is not read: an earlier adapter of the size of the new one."""
    return _under(shape, method, (), rank=settings_of(method).rank) if method.traits.scalable else shape


def _under(shape: ModelShape, method: Method, names: Iterable[str], *, rank: int) -> ModelShape:
    lora = settings_of(method)
    own = [name.removesuffix(".weight") for name in shape.targeted(lora.targets, lora.layers)]
    every = [*own, *names]
    kinds, blocks = {name.rpartition(".")[2] for name in every}, {block_of(f"{name}.weight") for name in every}
    taken = (
        sum(size) for name, size in shape.linears.items() if name.split(".")[-2] in kinds and block_of(name) in blocks
    )
    return replace(shape, frozen_adapter=rank * sum(taken))
