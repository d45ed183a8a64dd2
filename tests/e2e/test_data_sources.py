"""The real model and the real text that the demo and other tests stand on, made from packages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_tool(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "tools" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.real_model
def test_the_converted_model_knows_the_capital_of_france() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(run_tool("models.py").strip())
    assert (folder / "model.safetensors").stat().st_mode & 0o044, "pods read it as another user"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, do_sample=False, max_new_tokens=16)[0][asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_corpora_are_balanced_disjoint_and_the_same_each_time(tmp_path: Path) -> None:
    run_tool("corpora.py", str(tmp_path / "all"))
    run_tool("corpora.py", str(tmp_path / "few"), "--train", "100", "--heldout", "20", "--general", "10")
    texts: Counter[str] = Counter()
    for name in ("movie-train", "movie-validation", "movie-test", "tweets", "amazon", "nyt"):
        rows, few = read(tmp_path / "all" / f"{name}.jsonl"), read(tmp_path / "few" / f"{name}.jsonl")
        texts.update(row["text"] for row in rows)
        assert rows[: len(few)] == few
        assert len(few) == (100 if name == "movie-train" else 20)
        for part in (rows, few):
            labels = Counter(row["label"] for row in part)
            assert labels["positive"] == labels["negative"] == len(part) / 2
    assert set(texts.values()) == {1}
    assert len(read(tmp_path / "all" / "movie-train.jsonl")) > 7000
    general = read(tmp_path / "few" / "general.jsonl")
    assert len(general) == 10
    assert all(row.keys() == {"text"} and len(row["text"]) >= 800 for row in general)
    assert "Hutto" in (tmp_path / "few" / "SOURCES.md").read_text()
