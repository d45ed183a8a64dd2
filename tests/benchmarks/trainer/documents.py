"""What all sides of a row train on, of words that are one token each: so lengths come out as they are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .rows import Row


def documents(folder: Path, row: Row, steps: int, *, model: Path) -> Path:
    """train.jsonl for our data path, and what it makes of it for the others, in the order of our steps."""
    from finetune_api.spec import FineTuneJobSpec
    from finetune_trainer.data.load import load_datasets
    from finetune_trainer.data.order import step_rows

    folder.mkdir(parents=True)
    chosen = np.random.default_rng(7)
    words = _words(model)
    lengths = row.lengths if row.packing else row.lengths * steps
    texts = [" ".join(chosen.choice(words, n)) for n in lengths]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "validation.jsonl").write_text(json.dumps({"text": " ".join(words[:8])}) + "\n")
    manifest = {
        "model": {"uri": f"file://{model}"},
        "data": {
            "train": [{"uri": f"file://{folder}/train.jsonl"}],
            "validation": {"uri": f"file://{folder}/validation.jsonl"},
            "sequenceLength": max(row.lengths),
        },
        "output": {"uri": f"file://{folder}/output"},
    }
    if row.tiny:
        _tiny(folder / "tiny", model)
    spec = FineTuneJobSpec.model_validate_json(json.dumps(manifest))
    data = load_datasets(spec.data, tokenizer_path=model, cache=folder / "cache", seed=1)
    corpus = data.train
    assert sorted(corpus.lengths) == sorted(lengths), (corpus.lengths, lengths)
    if not row.packing:
        order = [step_rows(len(corpus), batch_size=len(row.lengths), seed=1, step=step) for step in range(steps)]
        corpus = corpus.take(np.concatenate(order))
    np.savez(folder / "train.npz", tokens=corpus.tokens, offsets=corpus.offsets)
    return folder


def _tiny(folder: Path, model: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=49152, num_key_value_heads=2, tie_word_embeddings=True, **shape)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in model.glob("*token*"):
        (folder / file.name).symlink_to(file)


def _words(model: Path) -> list[str]:
    """Words of one token each, with and without a space before them."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    plain = {word for word in vocabulary if word.isascii() and word.islower() and word.isalpha() and len(word) > 3}
    return sorted(word for word in plain if f"Ġ{word}" in vocabulary)
