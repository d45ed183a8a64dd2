"""Shapes of a causal LM, read from config.json and safetensors headers: no weights, no torch, any family."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ALIASES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "vocabulary": ("vocab_size",),
}
_LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
_TRANSPOSED = ("gpt2", "openai-gpt")
"""Families whose matrices are (in, out) on disk."""
_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
_HEADER_LIMIT = 100 << 20
_BLOCK = re.compile(r"\.(\d+)\.")
_EXPERTS = re.compile(r"\.experts\.|\.gate\.weight$")
"""Matrices of experts, and of what chooses among them: transformers keeps them in other layers than torch.nn.Linear."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes that memory depends on. `linears`: (out, in) of every linear layer inside the decoder blocks, by tensor
    name; matrices of experts are none."""

    hidden: int
    layers: int
    vocabulary: int
    intermediate: int
    key_value: int
    """Width of keys (and of values): key-value heads times head size."""
    parameters: int
    linears: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    blocks: tuple[int, ...] = ()
    """Parameters of each decoder block, norms and biases too."""

    def adapted(self, targets: str, last: int | None = None) -> list[tuple[int, int]]:
        """The matrices that `targets` of a low-rank method means, in the `last` blocks or in all."""
        first = 0 if last is None else self.layers - last
        return [
            shape
            for name, shape in self.linears.items()
            if (targets == "all-linear" or _part(name) == targets) and _block(name) >= first
        ]


def read_shape(folder: Path, *, weightless: bool = False) -> ModelShape:
    """ValueError names what config.json lacks; OSError where a file cannot be read. With `weightless` the tensors of a
    folder without safetensors files are those that a Llama of these sizes has, if that is what the model is."""
    config = json.loads((folder / "config.json").read_bytes())
    config = {**config, **(config.get("text_config") or {})}
    sizes = {ours: _first(config, aliases) for ours, aliases in _ALIASES.items()}
    hidden, heads = sizes["hidden"], sizes["heads"]
    head_size = config.get("head_dim") or hidden // heads
    tensors = _tensors(folder)
    if weightless and not tensors:
        tensors = _llama(config, sizes, head_size)
    linears = {name: (s[0], s[1]) for name, s in tensors.items() if len(s) == 2 and _BLOCK.search(name)}
    if any(".experts." in name for name in tensors):
        linears = {name: shape for name, shape in linears.items() if not _EXPERTS.search(name)}
    if config.get("model_type") in _TRANSPOSED:
        linears = {name: (d_out, d_in) for name, (d_in, d_out) in linears.items()}
    return ModelShape(
        hidden=hidden,
        layers=sizes["layers"],
        vocabulary=sizes["vocabulary"],
        intermediate=config.get("intermediate_size") or config.get("n_inner") or config.get("ffn_dim") or 4 * hidden,
        key_value=(config.get("num_key_value_heads") or heads) * head_size,
        parameters=sum(math.prod(shape) for shape in tensors.values()),
        linears=linears,
        blocks=_blocks(tensors),
    )


def _llama(config: Mapping[str, Any], sizes: Mapping[str, int], head_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a dense decoder with gated feed-forward. ValueError for another kind of model."""
    if config.get("model_type") not in _LIKE_LLAMA:
        raise ValueError(f"there are no weights, and {config.get('model_type')} is not laid out like Llama")
    h, f, q = sizes["hidden"], config["intermediate_size"], sizes["heads"] * head_size
    k = (config.get("num_key_value_heads") or sizes["heads"]) * head_size
    block = {
        "self_attn.q_proj.weight": (q, h), "self_attn.k_proj.weight": (k, h), "self_attn.v_proj.weight": (k, h),
        "self_attn.o_proj.weight": (h, q), "mlp.gate_proj.weight": (f, h), "mlp.up_proj.weight": (f, h),
        "mlp.down_proj.weight": (h, f), "input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,),
    }  # fmt: skip
    tensors: dict[str, tuple[int, ...]] = {"model.norm.weight": (h,)}
    tensors |= {f"model.layers.{i}.{name}": shape for i in range(sizes["layers"]) for name, shape in block.items()}
    outside = ("model.embed_tokens.weight",) if config.get("tie_word_embeddings") else _EMBEDDINGS
    return tensors | dict.fromkeys(outside, (sizes["vocabulary"], h))


def find_shape(folder: Path) -> ModelShape | None:
    """None for a model whose sizes go by names that we do not know: it may still train, only unplanned."""
    try:
        return read_shape(folder)
    except (ValueError, KeyError, TypeError):
        return None


def _blocks(tensors: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    counted: dict[int, int] = {}
    for name, shape in tensors.items():
        if found := _BLOCK.search(name):
            counted[int(found[1])] = counted.get(int(found[1]), 0) + math.prod(shape)
    return tuple(counted[index] for index in sorted(counted))


def _first(config: Mapping[str, Any], aliases: tuple[str, ...]) -> int:
    for alias in aliases:
        if isinstance(value := config.get(alias), int):
            return value
    raise ValueError(f"config.json has none of {', '.join(aliases)}")


def _tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape over all .safetensors files of a folder: a header is a length (8 bytes) and JSON."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _HEADER_LIMIT:
                raise ValueError(f"{path.name} is no safetensors file")
            header = json.loads(file.read(length))
        found |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return found


def _block(name: str) -> int:
    """`model.layers.3.self_attn.q_proj.weight` → 3."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else 0


def _part(name: str) -> str:
    """`model.layers.0.self_attn.q_proj.weight` → `attention`."""
    return "attention" if re.search(r"attn|attention", name) else "mlp"
