"""A frozen second adapter: the earlier artifact's, under the one that trains.

The model that a run starts from is base + earlier adapter, and it stays at hand: with the new adapter switched off the
network is that model again, so evaluation, KL, L2-SP, EWC and the scale of the adapter take it as their reference and
nothing is copied. What is written is one adapter on the original base: per matrix the factors of both, one below the
other, of rank r₁ + r₂ and of the scale of the new one,

    s₂ · [B₁ · s₁/s₂, B₂] · [A₁; A₂]  =  s₁ · B₁ · A₁ + s₂ · B₂ · A₂

so servers load it as they load any LoRA adapter. Layers that only one of the two adapts get zeros for the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason

from .frozen_adapter import FrozenAdapter
from .lean import lean_peft
from .peft_layout import write_adapter

EARLIER = "earlier"
"""PEFT's name of the frozen adapter; what trains is called default."""

_PREFIX = "base_model.model."


def stack(adapter: Any, folder: Path) -> None:
    """Puts the adapter of an exported folder under the one of `adapter`, and freezes it. ModelUnsupported where it does
    not fit this model."""
    with lean_peft():
        from peft import LoraConfig

    found = FrozenAdapter.read(folder)
    own = adapter.peft_config["default"]
    blocks = _both(found.layers_to_transform, own.layers_to_transform)
    # Nothing else of what was written is taken: PEFT would read files and more by some of its settings.
    config = LoraConfig(
        r=found.r,
        lora_alpha=cast(int, found.lora_alpha),  # PEFT divides by it, and no more
        use_rslora=found.use_rslora,
        target_modules=sorted({*found.target_modules, *own.target_modules}),
        layers_to_transform=blocks,
        layers_pattern=own.layers_pattern if blocks else None,
        task_type="CAUSAL_LM",
        bias="none",
    )
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    with lean_peft():
        adapter.add_adapter(EARLIER, config)
    _fill(adapter, load_file(folder / "adapter_model.safetensors"), where=folder)
    for layer in layers_of(adapter):
        layer._active_adapter = [EARLIER, "default"]
    adapter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def is_stacked(adapter: Any) -> bool:
    return EARLIER in adapter.peft_config


def layers_of(adapter: Any) -> list[Any]:
    with lean_peft():
        from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in adapter.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def only_earlier(adapter: Any) -> Iterator[None]:
    """Inside, the network is the model that the run started from. What requires gradients stays so."""
    layers = layers_of(adapter)
    for layer in layers:
        layer._active_adapter = [EARLIER]
    try:
        yield
    finally:
        for layer in layers:
            layer._active_adapter = [EARLIER, "default"]


def write_stacked(adapter: Any, folder: Path) -> None:
    """One adapter on the original base, in PEFT's layout."""
    network: nn.Module = adapter.get_base_model()
    own, earlier = adapter.peft_config["default"], adapter.peft_config[EARLIER]
    modules = {name: cast(Any, module) for name, module in network.named_modules() if hasattr(module, "lora_A")}
    scales = next(module.scaling for module in modules.values() if "default" in module.lora_A)
    scale = scales["default"] or scales[EARLIER]  # 0: a sweep of scales chose the earlier model
    rank = earlier.r + own.r
    alpha = scale * rank
    tensors = {}
    for name, module in modules.items():
        a, b = both_factors(module, scale=scale, ranks={EARLIER: earlier.r, "default": own.r})
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a.contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b.contiguous()
    changes = {
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "use_rslora": False,
        "target_modules": list(earlier.target_modules),
        "layers_to_transform": earlier.layers_to_transform,
        "layers_pattern": earlier.layers_pattern,
    }
    write_adapter(adapter, folder, sets=("target_modules",), changes=changes, tensors=tensors)


@torch.no_grad()
def both_factors(module: Any, *, scale: float, ranks: dict[str, int]) -> tuple[Tensor, Tensor]:
    """((r₁ + r₂, in), (out, r₁ + r₂)), of one layer: their product times `scale` is the update by both adapters."""
    parts = []
    for name, rank in ranks.items():
        if name in module.lora_A:
            a, b = module.lora_A[name].weight, module.lora_B[name].weight
            parts.append((a, b if module.scaling[name] == scale else b * (module.scaling[name] / scale)))
        else:
            like_a, like_b = (matrix[EARLIER].weight for matrix in (module.lora_A, module.lora_B))
            parts.append((like_a.new_zeros(rank, like_a.shape[1]), like_b.new_zeros(len(like_b), rank)))
    return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1)


def _both(one: tuple[int, ...] | None, other: list[int] | None) -> list[int] | None:
    """Blocks that either adapts; None: all."""
    return None if one is None or other is None else sorted({*one, *other})


@torch.no_grad()
def _fill(adapter: Any, tensors: dict[str, Tensor], *, where: Path) -> None:
    """The matrices of the earlier adapter; zeros where it has none."""
    left = dict(tensors)
    for name, module in adapter.get_base_model().named_modules():
        if EARLIER not in getattr(module, "lora_A", {}):
            continue
        for side in ("lora_A", "lora_B"):
            weight = getattr(module, side)[EARLIER].weight
            given = left.pop(f"{_PREFIX}{name}.{side}.weight", None)
            if given is not None and given.shape != weight.shape:
                shapes = f"{tuple(given.shape)}, and the model takes {tuple(weight.shape)}"
                raise _misfit(f"{side} of {name} is {shapes}", where)
            weight.zero_() if given is None else weight.copy_(given)
    if left:
        raise _misfit(f"the model has no layers for {len(left)} of its matrices, such as {sorted(left)[0]}", where)


def _misfit(what: str, where: Path) -> FinetuneError:
    return FinetuneError(
        Reason.ModelUnsupported,
        f"the adapter in {where} does not fit this model: {what}",
        "Set model to what the earlier job trained; its artifact's run.json names it.",
    )
