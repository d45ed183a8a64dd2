"""What an exported folder can be served by, found in its files and not believed of its method.

lora      hot-swapped by servers of LoRA adapters: vLLM reads r, lora_alpha, target_modules and use_rslora, refuses
          modules_to_save, bias and DoRA, and ignores patterns of ranks and alphas, which then serve a wrong scale
merged    a whole model: any server
hf-only   transformers, PEFT or our own code
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.status import Servable
from finetune_trainer.store.headers import file_header

LARGEST_RANK = 512
"""Of the values that vLLM takes for max_lora_rank; its default is 16."""

_LORA_KEY = re.compile(r"base_model\.model\..+\.lora_[AB]\.weight")
_MUST_BE_EMPTY = (
    "modules_to_save", "use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "target_parameters",
    "trainable_token_indices", "lora_bias", "alora_invocation_tokens",
)  # fmt: skip


TAKES_ADAPTERS = frozenset(
    f"{family}ForConditionalGeneration"
    for family in (
        "Blip2", "Exaone4_5_", "Gemma3", "Glm4v", "Glm4vMoe", "GlmOcr", "Granite4Vision", "GraniteSpeech",
        "GraniteSpeechPlus", "HunYuanVL", "Idefics3", "InternS1", "InternVL", "Lfm2Vl", "LightOnOcr", "Llama4", "Llava",
        "LlavaNextVideo", "Mistral3", "PaliGemma", "Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe", "Qwen3_5",
        "Qwen3_5Moe", "SmolVLM",
    )
)  # fmt: skip
"""Classes with towers for whose language model vLLM's list of supported models names LoRA."""

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Without either of them servers cannot set up a class with towers."""
_LARGER = "ForConditionalGeneration"


class Verdict(NamedTuple):
    servable: Servable
    reasons: tuple[str, ...] = ()
    """Why it is not more, in words."""


def judge(folder: Path, *, kind: str = "", beside: Collection[str] = ()) -> Verdict:
    """Of an exported folder. `kind`: the class of the model that an adapter is for; `beside`: names of files that will
    are in the folder too. OSError or ValueError where its files cannot be read."""
    if (folder / "adapter_config.json").is_file():
        config = json.loads((folder / "adapter_config.json").read_bytes())
        tensors = sorted(file_header(folder / "adapter_model.safetensors").tensors)
        reasons = (*against_lora(config, tensors), *_against_class(kind))
        return Verdict("hf-only", reasons) if reasons else Verdict("lora")
    reasons = tuple(_against_model(folder, beside))
    return Verdict("hf-only", reasons) if reasons else Verdict("merged")


def against_lora(config: dict[str, Any], keys: list[str]) -> Iterator[str]:
    """Why an adapter, by its configuration and the names of its tensors, is not a plain LoRA adapter."""
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
        yield f"{len(strange)} of its weights are not LoRA matrices, for instance {strange[0]}"
    if not keys:
        yield "it has no weights"


def _against_class(kind: str) -> Iterator[str]:
    if kind.endswith(_LARGER) and kind not in TAKES_ADAPTERS:
        yield f"servers are not known to take adapters for the language model of {kind} (output.merged serves it)"


def _against_model(folder: Path, beside: Collection[str]) -> Iterator[str]:
    config_file = folder / "config.json"
    if not config_file.is_file():
        yield "there is neither an adapter_config.json nor a config.json"
        return
    config = json.loads(config_file.read_bytes())
    names = [str(name) for name in config.get("architectures") or ()]
    whole = any(name.endswith(_LARGER) for name in names) and "text_config" in config
    if not whole and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        yield "config.json names no causal language model"
    if whole and not any(name in beside or (folder / name).is_file() for name in _PROCESSORS):
        yield f"the base model has neither {_PROCESSORS[0]} nor {_PROCESSORS[1]}, which servers of {names[0]} read"
    if not any(folder.glob("*.safetensors")):
        yield "it has no weights in safetensors"
    if config.get("auto_map"):
        yield "it needs code of its own (auto_map)"
