"""What an exported folder can be served by, found in its files and not believed of its method.

lora      hot-swapped by servers of LoRA adapters: vLLM reads r, lora_alpha, target_modules and use_rslora, refuses
          modules_to_save, bias and DoRA, and ignores patterns of ranks and alphas, which then serve a wrong scale
merged    a whole model: any server
hf-only   transformers, PEFT or our own code
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.status import Servable

LARGEST_RANK = 512
"""Of the values that vLLM takes for max_lora_rank; its default is 16."""

_HEADER_LIMIT = 100 << 20
_LORA_KEY = re.compile(r"base_model\.model\..+\.lora_[AB]\.weight")
_MUST_BE_EMPTY = (
    "modules_to_save", "use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "target_parameters",
    "trainable_token_indices", "lora_bias", "alora_invocation_tokens",
)  # fmt: skip


class Verdict(NamedTuple):
    servable: Servable
    reasons: tuple[str, ...] = ()
    """Why it is not more, in words."""


def judge(folder: Path) -> Verdict:
    """Of an exported folder. OSError or ValueError where its files cannot be read."""
    if (folder / "adapter_config.json").is_file():
        config = json.loads((folder / "adapter_config.json").read_bytes())
        reasons = tuple(_against_lora(config, _keys(folder / "adapter_model.safetensors")))
        return Verdict("hf-only", reasons) if reasons else Verdict("lora")
    reasons = tuple(_against_model(folder))
    return Verdict("hf-only", reasons) if reasons else Verdict("merged")


def _against_lora(config: dict[str, Any], keys: list[str]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"the adapter is of type {config.get('peft_type') or config.get('type') or 'unknown'}, and no LoRA"
        return
    for name in _MUST_BE_EMPTY:
        if config.get(name):
            yield f"{name} is set"
    if config.get("bias", "none") != "none":
        yield f"bias is {config['bias']}"
    if not 1 <= config["r"] <= LARGEST_RANK:
        yield f"rank {config['r']} is more than {LARGEST_RANK}"
    if not config.get("base_model_name_or_path"):
        yield "the base model has no name"
    if strange := [key for key in keys if not _LORA_KEY.fullmatch(key)]:
        yield f"{len(strange)} of its weights are no LoRA matrices, for instance {strange[0]}"
    if not keys:
        yield "it has no weights"


def _against_model(folder: Path) -> Iterator[str]:
    config_file = folder / "config.json"
    if not config_file.is_file():
        yield "there is neither an adapter_config.json nor a config.json"
        return
    config = json.loads(config_file.read_bytes())
    if not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or ()):
        yield "config.json names no causal language model"
    if not any(folder.glob("*.safetensors")):
        yield "it has no weights in safetensors"
    if config.get("auto_map"):
        yield "it needs code of its own (auto_map)"


def _keys(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > _HEADER_LIMIT:
            raise ValueError(f"{file.name} is no safetensors file")
        return sorted(json.loads(opened.read(length)).keys() - {"__metadata__"})
