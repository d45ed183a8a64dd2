"""Shapes of a causal LM, read from config.json and safetensors headers: no weights, no torch, any family."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.methods import Method
from finetune_trainer.methods.experts import Experts, has_experts, is_forward, is_reached
from finetune_trainer.methods.needs import check_experts
from finetune_trainer.planning.layout import difference, layout
from finetune_trainer.store.tensors import tensors_of, weight_files
from finetune_trainer.store.weights_report import WeightsReport, mismatched

_ALIASES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_blocks", "layers_block_type"),
    "vocabulary": ("vocab_size",),
}
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")
_TRANSPOSED = ("gpt2", "openai-gpt")
"""Families whose matrices are (in, out) on disk."""
_LANGUAGE = {"language_model", "text_model", "llm"}
_TOWER = re.compile(
    "(vision|visual|vit|image|img|audio|speech|encoder|mm|multi_modal|connector|projector|qformer|query_tokens|"
    "language_projection|resampler|perceiver|mlp_AR|sam|mtp)(_.+|er.*)?"
)
"""Modules of towers, and between towers and language model, as transformers names them."""
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings)\.weight$")
_UNCALLED = re.compile(r"\.(mixer|mamba)\.(x_proj|dt_proj|out_proj)\.")
"""Of state-space blocks, which no adapter reaches (see methods.called)."""
_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes that memory and time depend on. `linears`: (out, in) of every linear layer inside the decoder blocks that
    an adapter reaches, by tensor name; experts are none (see methods.experts)."""

    hidden: int
    layers: int
    vocabulary: int
    intermediate: int
    """Width of a block's feed-forward network; with experts, of all together that a token passes through."""
    key_value: int
    """Width of keys (and of values): key-value heads times head size."""
    query: int = 0
    """Width of queries: heads times head size; 0: `hidden`."""
    parameters: int
    """All that are loaded, towers for pictures or sound too."""
    beside: int = 0
    """Those outside of the language model and its head: loaded, and neither run nor trained."""
    linears: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    blocks: tuple[int, ...] = ()
    """Parameters of each decoder block, norms and biases too."""
    idle: tuple[int, ...] = ()
    """Of each block, those of experts that a token does not pass through; empty for a dense model."""
    passed: int = 0
    """Experts of a block that a token passes through."""
    unreached: int = 0
    """With experts: weights of the blocks' matrices that cannot have an adapter."""
    frozen_adapter: int = 0
    """Parameters of an earlier adapter under the one that trains, in fp32 (see earlier_adapter)."""

    @property
    def active(self) -> int:
        """Parameters that a token meets: all of a dense model."""
        return self.language - sum(self.idle)

    @property
    def language(self) -> int:
        """Parameters of the language model and its head."""
        return self.parameters - self.beside

    @property
    def packed(self) -> int:
        """Parameters that qlora keeps in 4 bits."""
        return sum(d_out * d_in for d_out, d_in in self.linears.values())

    @property
    def mostly_experts(self) -> bool:
        """Whether qlora has too little to keep in 4 bits (see needs.check_packed)."""
        return 2 * self.packed < sum(self.blocks)

    def active_in_last(self, count: int) -> int:
        """Of the last `count` blocks."""
        return sum(self.blocks[-count:]) - sum(self.idle[-count:])

    def experts_line(self) -> str:
        """What a reader should know of a mixture of experts."""
        return (
            f"experts: a token passes {self.passed} in each block and meets {self.active:,} of {self.parameters:,} "
            f"parameters; {self.unreached:,} (such as experts) do not get an adapter"
        )

    def adapted(self, targets: str, last: int | None = None) -> list[tuple[int, int]]:
        """The matrices that `targets` of a low-rank method means, in the `last` blocks or in all."""
        return list(self.targeted(targets, last).values())

    def targeted(self, targets: str, last: int | None = None) -> dict[str, tuple[int, int]]:
        """The same by name."""
        first = 0 if last is None else self.layers - last
        return {
            name: shape
            for name, shape in self.linears.items()
            if (targets == "all-linear" or _part(name) == targets) and block_of(name) >= first
        }


def read_shape(folder: Path, *, weightless: bool = False) -> ModelShape:
    """ValueError names what config.json lacks; OSError where a file cannot be read. With `weightless` the tensors of a
    folder without safetensors files are those that its family has (see layout)."""
    config = json.loads((folder / "config.json").read_bytes())
    model_type = str(config.get("model_type"))
    config = {**config, **(config.get("text_config") or {})}
    sizes = {ours: _first(config, aliases) for ours, aliases in _ALIASES.items()}
    hidden, heads = sizes["hidden"], _known(config, _HEADS) or 1  # a state-space model has none
    latent = (config.get("qk_nope_head_dim") or 0) + (config.get("qk_rope_head_dim") or 0)
    head_size = latent or config.get("head_dim") or hidden // heads
    loaded = _shapes(folder)
    if weightless and not loaded:
        loaded = layout(config, head_size)
    language = language_names(loaded.keys()) if config.get("text_config") else set(loaded)
    tensors = {name: shape for name, shape in loaded.items() if name in language}
    matrices = {name: shape for name, shape in tensors.items() if name.endswith(".weight") and _BLOCK.search(name)}
    linears = {name: (s[0], s[1]) for name, s in matrices.items() if len(s) == 2 and not _UNCALLED.search(name)}
    experts = Experts.of(config)
    intermediate = _known(config, _WIDTHS) or 4 * hidden
    if has_experts(config, tensors):
        linears = {name: shape for name, shape in linears.items() if is_reached(name, model_type=model_type)}
    idle: dict[int, int] = {}
    unreached = 0
    if experts:
        inside = {name: shape for name, shape in tensors.items() if len(shape) > 1 and _BLOCK.search(name)}
        unreached = sum(_by_block(inside).values()) - sum(d_out * d_in for d_out, d_in in linears.values())
        idle = _by_block({name: s for name, s in tensors.items() if experts.has(name, s)})
        idle = {block: size - size * experts.passed // experts.count for block, size in idle.items()}
        forward = _by_block({name: s for name, s in tensors.items() if len(s) > 1 and is_forward(name)})
        widths = [(size - idle.get(block, 0)) // (3 * hidden) for block, size in forward.items()]
        intermediate = max(widths, default=intermediate)
    if model_type in _TRANSPOSED:
        linears = {name: (d_out, d_in) for name, (d_in, d_out) in linears.items()}
    blocks = _by_block(tensors)
    return ModelShape(
        hidden=hidden,
        layers=sizes["layers"],
        vocabulary=sizes["vocabulary"],
        intermediate=intermediate,
        key_value=(config.get("num_key_value_heads") or heads) * head_size,
        query=heads * head_size,
        parameters=sum(math.prod(shape) for shape in loaded.values()),
        beside=sum(math.prod(shape) for name, shape in loaded.items() if name not in tensors),
        linears=linears,
        blocks=tuple(blocks[index] for index in sorted(blocks)),
        idle=tuple(idle.get(index, 0) for index in sorted(blocks)) if idle else (),
        passed=experts.passed if experts else 0,
        unreached=unreached,
    )


def language_names(names: Collection[str]) -> set[str]:
    """Of the tensors of a class with towers, those of its language model and head: by the modules that their names go
    through. Older files have no module for the language model, and then all that is not of a tower is meant.

    `model.language_model.layers.0…` and `language_model.lm_head.weight`; with `visual.blocks.0…` `model.layers.0…`.
    """
    inside = {name for name in names if _LANGUAGE & set(name.split("."))}
    if any(_BLOCK.search(name) for name in inside):
        return inside | {name for name in names if "lm_head" in name}
    return {name for name in names if not any(_TOWER.fullmatch(part) for part in name.split("."))}


def check_on_experts(method: Method, shape: ModelShape) -> None:
    """ModelUnsupported where the method has nothing to train, or to save, in a mixture of experts."""
    low_rank = method.low_rank
    adapted = len(shape.adapted(low_rank.targets, low_rank.layers)) if low_rank else 0
    check_experts(method, packed=shape.packed, whole=sum(shape.blocks), adapted=adapted)


def find_shape(folder: Path) -> ModelShape | None:
    """None for a model whose sizes go by names that we do not know: it may still train, only unplanned."""
    try:
        return read_shape(folder)
    except (ValueError, KeyError, TypeError):
        return None


def _by_block(tensors: Mapping[str, tuple[int, ...]]) -> dict[int, int]:
    """Parameters by the number of the decoder block."""
    counted: dict[int, int] = {}
    for name, shape in tensors.items():
        if found := _BLOCK.search(name):
            counted[int(found[1])] = counted.get(int(found[1]), 0) + math.prod(shape)
    return counted


def _first(config: Mapping[str, Any], aliases: tuple[str, ...]) -> int:
    if (found := _known(config, aliases)) is not None:
        return found
    raise ValueError(f"config.json has none of {', '.join(aliases)}")


def check_tensors(folder: Path) -> None:
    """ModelUnsupported names weights that are missing or have another shape, as far as config.json alone can show: of
    dense families all, of other families the embeddings."""
    config = json.loads((folder / "config.json").read_bytes())
    tensors = _shapes(folder)
    if not tensors:
        return
    found = difference(config, tensors)
    if found is None:
        rows = config.get("vocab_size")
        wide = {name: shape for name, shape in tensors.items() if _EMBEDDINGS.search(name) and isinstance(rows, int)}
        wanted = {name: (rows, *shape[1:]) for name, shape in wide.items()}
        found = WeightsReport(str((config.get("architectures") or ["?"])[0]), mismatched=mismatched(wanted, wide))
    found.require_even()


def _known(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of these that config.json has; of one that it gives for each block (Gemma 3n) the largest, of a list
    of the blocks' kinds how many there are."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int):
            return value
        if isinstance(value, list) and value:
            return max(value) if all(isinstance(one, int) for one in value) else len(value)
    return None


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """By name; none where a file that the index names is not here. Without an index all files count: sizes are wanted
    here, and whether they are a model is not."""
    files = weight_files(folder) or sorted(folder.glob("*.safetensors"))
    if not all(file.is_file() for file in files):
        return {}
    return {name: tensor.shape for file in files for name, tensor in tensors_of(file).items()}


def block_of(name: str) -> int:
    """`model.layers.3.self_attn.q_proj.weight` → 3."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else 0


def _part(name: str) -> str:
    """`model.layers.0.self_attn.q_proj.weight` → `attention`."""
    return "attention" if re.search(r"attn|attention", name) else "mlp"
