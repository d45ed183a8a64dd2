"""Which tensor of a model's files becomes which weight of a network, found before a byte of them is read.

transformers fills what a file lacks with random numbers and leaves out what it cannot place. Its own rules say here
what that would be, for a network without memory; the verdict is that of `store.weights_report`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.decoder_blocks import decoder_layers, has_towers
from finetune_trainer.store.tensors import StoredTensor, stored_tensors
from finetune_trainer.store.weights_report import WeightsReport, mismatched

_CONSTANTS = re.compile(r"(^|\.)(inv_freq|masked_bias|cos_cached|sin_cached|position_ids)$")
"""Names of buffers by which older releases of transformers saved constants."""

_EXPERT = re.compile(r"(.+\.experts\.)(\d+)\.(.+)")

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def class_of(config: Any) -> Any:
    """The transformers class that config.json names. ModelUnsupported where transformers has none of the name."""
    import transformers

    name = (config.architectures or ["?"])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise FinetuneError(Reason.ModelUnsupported, f"transformers {transformers.__version__} has no class {name}")
    return kind


def account_of(folder: Path) -> WeightsReport:
    """The report of the model in `folder`, by its own config.json."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder)
    return account(class_of(config), config, folder)


def account(kind: Any, config: Any, folder: Path) -> WeightsReport:
    """The report for the transformers class `kind`; only headers are read, and no weight takes memory.
    ModelUnsupported for a dtype that is not known."""
    tensors = stored_tensors(folder)
    empty = {name: _empty(name, tensor) for name, tensor in tensors.items()}
    try:
        network, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except RuntimeError as error:
        if lacking := _missing_experts(tensors):
            return WeightsReport(kind.__name__, missing=lacking)
        raise FinetuneError(
            Reason.ModelUnsupported, f"the model's files do not hold a {kind.__name__}: {error}"
        ) from error
    if has_towers(network):
        decoder_layers(network)  # there is a language model inside
    names = network.state_dict().keys()
    sources, converted, placed = _sources(network, tensors)
    missing = set(found["missing_keys"])
    tied = cast("dict[str, str]", network.all_tied_weights_keys)
    pairs = [(name, other) for name, other in tied.items() if name in sources and other in sources]
    # What the class leaves out it has dropped from its list already.
    unread = [name for name in tensors if name not in placed]
    computed = {name for name, _ in network.named_buffers()} - names
    unexpected = sorted(name for name in found["unexpected_keys"] if not _is_constant(name, tensors[name], computed))
    return WeightsReport(
        kind.__name__,
        missing=tuple(sorted(missing)),
        unexpected=tuple(unexpected),
        mismatched=mismatched(
            {name: wanted for name, _, wanted in found["mismatched_keys"]},
            {name: there for name, there, _ in found["mismatched_keys"]},
        ),
        untied=tuple(
            f"{name} and {other}"
            for name, other in pairs
            if not _equal(tensors[sources[name]], tensors[sources[other]])
        ),
        sources=sources,
        converted=tuple(sorted(converted)),
        tied=tuple(sorted(name for name in names if name not in sources and name in {*tied, *tied.values()})),
        left_out=tuple(sorted(unread)) if not unexpected else (),
    )


def _is_constant(name: str, tensor: StoredTensor, computed: set[str]) -> bool:
    """Whether older releases saved what a class makes by itself, and what is never trained: masks, positions, tables of
    rotary embeddings. `computed`: buffers that today's class does not save."""
    mask = name.endswith("attn.bias") or name.endswith("attention.bias")
    return (
        _CONSTANTS.search(name) is not None
        or (mask and len(tensor.shape) > 1)
        or any(f".{buffer}".endswith(f".{name}") for buffer in computed)
    )


def _missing_experts(tensors: Iterable[str]) -> tuple[str, ...]:
    """Of the experts of each block, stored one by one, the tensors that some have and others lack."""
    found: dict[str, set[tuple[str, str]]] = {}
    for name in tensors:
        if match := _EXPERT.fullmatch(name):
            found.setdefault(match[1], set()).add((match[2], match[3]))
    kinds = {kind for members in found.values() for _, kind in members}
    return tuple(
        sorted(
            f"{block}{number}.{kind}"
            for block, members in found.items()
            for number in {number for number, _ in members}
            for kind in kinds
            if (number, kind) not in members
        )
    )


def sources_of(network: nn.Module, tensors: Iterable[str]) -> dict[str, str]:
    """Weight or saved buffer → the one tensor that it is read from, unchanged."""
    return _sources(network, tensors)[0]


def _sources(network: nn.Module, tensors: Iterable[str]) -> tuple[dict[str, str], set[str], set[str]]:
    """(weight → its tensor, weights that are converted, tensors that become weights), by transformers' own rules."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(cast(Any, network))
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    there = network.state_dict()
    prefix = cast(Any, network).base_model_prefix
    sources: dict[str, str] = {}
    converted: set[str] = set()
    placed: set[str] = set()
    for tensor in tensors:
        name, pattern = rename_source_key(tensor, renamings, converters, prefix, there)
        if name not in there and tensor in there:
            name, pattern = rename_source_key(tensor, [], [], prefix, there)
        if name not in there:
            continue
        placed.add(tensor)
        if pattern is None:
            sources[name] = tensor
        else:
            converted.add(name)
    return sources, converted, placed


def _empty(name: str, tensor: StoredTensor) -> torch.Tensor:
    if tensor.dtype not in DTYPES:
        raise FinetuneError(Reason.ModelUnsupported, f"the tensor {name} is of type {tensor.dtype}, which is not known")
    return torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype], device="meta")


def _equal(left: StoredTensor, right: StoredTensor) -> bool:
    """Byte for byte."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    one, other = (np.memmap(t.file, np.uint8, "r", offset=t.start, shape=(t.size,)) for t in (left, right))
    return bool(np.array_equal(one, other))
