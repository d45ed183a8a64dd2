"""A model and a corpus made on the spot: real architectures and files, small enough to train in seconds on one core."""

from __future__ import annotations

import json
import random
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_tokenizer(folder: Path) -> None:
    """Bytes and three special tokens; pad = eos, as in the models that people use."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def tiny_model(folder: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2) -> Path:
    """A Llama of 0.2 million parameters with its tokenizer, as a folder that `file://` models may name."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=257,
        eos_token_id=258,
        pad_token_id=258,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_corpus(folder: Path, *, rows: int = 64, heldout: int = 16, seed: int = 0) -> Path:
    """train.jsonl and heldout.jsonl of {"prompt", "completion"}: words to say backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < rows + heldout:
        seen.add("".join(chosen.choice("abcdef") for _ in range(chosen.randint(4, 12))))
    words = sorted(seen)
    chosen.shuffle(words)
    for name, part in (("train", words[:rows]), ("heldout", words[rows:])):
        lines = [json.dumps({"prompt": f"backwards {w}: ", "completion": w[::-1]}) for w in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def numbers_as_text(file: Path, *, rows: int = 240) -> Path:
    """General text that has nothing to do with the corpus: documents of ten lines full of digits."""
    lines = [f"No. {n}: {n * n * 7919} STEMI, {n}:30 h" for n in range(10 * rows)]
    texts = (" ".join(lines[start : start + 10]) for start in range(0, len(lines), 10))
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return file


WORDS = ("river", "stone", "window", "paper", "winter", "garden", "letter", "silver", "morning", "bridge")


def worded(count: int, *, seed: int, script: str = "latin") -> list[dict[str, object]]:
    """Rows of 20 of ten words. greek: each letter replaced by one that takes two bytes."""
    chosen = random.Random(seed)
    rows = [" ".join(chosen.choices(WORDS, k=20)) for _ in range(count)]
    if script == "greek":
        rows = [row.translate({ord("a") + i: 0x3B1 + i for i in range(26)}) for row in rows]
    return [{"text": row} for row in rows]
