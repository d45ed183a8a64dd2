"""Tokenizers made on the spot, and rows, for the tests of the data room."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from finetune_trainer.data.read import Row
from finetune_trainer.data.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "ll o", "he llo", "Ġ w", "c d", "Ġ hello", "o r", "e l")


def byte_level() -> Backend:
    """Bytes, a handful of merges, three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = [*alphabet, *("".join(merge.split(" ")) for merge in MERGES)]
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in MERGES)]
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return backend


def sentencepiece_like() -> Backend:
    """Words that begin with ▁, bytes for what the vocabulary lacks, and a begin-of-text token before every text."""
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz:"]
    backend = Backend(
        models.BPE(vocab={t: i for i, t in enumerate(vocab)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in vocab[:3]])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def tokenizer_folder(
    folder: Path, *, backend: Backend | None = None, template: str | None = CHATML, **config: object
) -> Path:
    """A model's folder, as far as its tokenizer goes. pad = eos, as in the models that people use."""
    folder.mkdir(parents=True, exist_ok=True)
    (backend or byte_level()).save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **(names if backend is None else {}), **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def tiny(folder: Path, **options: Any) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder(folder, **options))


def row(**fields: object) -> Row:
    return Row("train.jsonl", 7, fields)


def write_jsonl(path: Path, *rows: Mapping[str, object]) -> str:
    """The file's URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(fields) + "\n" for fields in rows))
    return f"file://{path}"


def real_model() -> Path:
    """SmolLM2's folder in the cache; these tests make no downloads."""
    cache = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator")
    folder = cache / "models" / "SmolLM2-135M-Instruct"
    if not (folder / "tokenizer.json").exists():
        pytest.skip("SmolLM2-135M-Instruct is not in the cache: `python tools/models.py` makes it")
    return folder
