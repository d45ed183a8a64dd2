"""Methods that leave the model alone, from a manifest to an artifact: what was measured is what plain PEFT, or our own
loader, computes from the files."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune_api import names
from finetune_api.data import Data
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.load import load_datasets
from finetune_trainer.methods.probe import load as load_probe
from finetune_trainer.report.record import decode
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.artifact import verify
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.run import run
from tests.support.scored import scored
from tests.support.tiny_model import tiny_model

METHODS: list[dict[str, Any]] = [
    {"type": "prompt", "prompt": {"virtualTokens": 4, "initText": "Good or bad?"}},
    {"type": "ptuning", "ptuning": {"virtualTokens": 4, "hidden": 32}},
    {"type": "prefix", "prefix": {"virtualTokens": 4}},
    {"type": "probe"},
    {"type": "probe", "probe": {"kind": "logistic", "layers": [0, 2]}},
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(folder / "model")
    chosen = random.Random(0)
    rows = []
    for number in range(96):
        label, letters = ("good", "abcde") if number % 3 else ("bad", "vwxyz")
        rows.append(json.dumps({"text": "".join(chosen.choice(letters) for _ in range(8)), "label": label}))
    (folder / "train.jsonl").write_text("\n".join(rows[:72]) + "\n")
    (folder / "test.jsonl").write_text("\n".join(rows[72:]) + "\n")
    (folder / "general.jsonl").write_text(json.dumps({"text": "what must not be forgotten"}) + "\n")
    return folder


def _data(inputs: Path) -> dict[str, Any]:
    return {
        "train": [{"uri": f"file://{inputs}/train.jsonl"}],
        "test": {"uri": f"file://{inputs}/test.jsonl"},
        "general": {"uri": f"file://{inputs}/general.jsonl"},
        "sequenceLength": 256,
    }


@pytest.mark.parametrize("method", METHODS, ids=["prompt", "ptuning", "prefix", "ridge", "logistic"])
def test_from_a_manifest_to_an_artifact(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    monkeypatch.setenv(names.ENV_CACHE, str(tmp_path / "cache"))
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": f"file://{inputs}/model"},
            "data": _data(inputs),
            "output": {"uri": f"file://{tmp_path}/output"},
            "training": {"maxSteps": 4, "batchSize": 16},
            "method": method,
        },
        strict=False,
    )
    run_dir = RunDir(tmp_path / "run")
    run_dir.clear()
    run(RunPlan(job=JobIdentity(namespace="test", name="tiny", uid="u"), spec=spec), run_dir, dict(os.environ))
    words = run_dir.result()
    assert words is not None
    assert words.evaluation is not None
    assert words.artifact is not None
    assert (words.artifact.kind, words.artifact.servable) == ("adapter", "hf-only")
    folder = open_folder(f"file://{tmp_path}/output", prefix="")
    assert not verify(folder).problems
    record = decode(folder.read("run.json"))
    assert record.evaluation == words.evaluation
    untouched, tuned = scored(record.measurements, metric="loss")
    data = load_datasets(
        Data.model_validate(_data(inputs), strict=False),
        tokenizer_path=inputs / "model",
        cache=tmp_path / "cache",
        seed=spec.training.seed,
    )
    assert data.test is not None
    if method["type"] == "probe":
        loss, accuracy = _probe_scores(load_probe(_network(inputs), tmp_path / "output"), data.test)
        assert (record.steps, record.plan.total_steps) == (0, 0)
        before, after = scored(words.evaluation, "general")
        assert before == after
        assert accuracy > 0.9
        assert scored(words.evaluation)[1] == pytest.approx(accuracy)
        assert "from finetune_trainer.methods.probe import load" in folder.read("README.md").decode()
    else:
        from peft import PeftModel

        loss = _loss(
            PeftModel.from_pretrained(_network(inputs), tmp_path / "output"),
            data.test,
            virtual=method["type"] != "prefix",
        )
        assert untouched == pytest.approx(_loss(_network(inputs), data.test, virtual=False), rel=1e-4)
        assert "PeftModel.from_pretrained" in folder.read("README.md").decode()
    assert tuned == pytest.approx(loss, rel=1e-4)


def _network(inputs: Path) -> nn.Module:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(inputs / "model").eval()


@torch.no_grad()
def _loss(network: nn.Module, corpus: Corpus, *, virtual: bool) -> float:
    """Nats for each trained token, a row at a time; `virtual`: logits begin with those of four virtual tokens."""
    nats = 0.0
    for index in range(len(corpus)):
        row = corpus.row(index)
        tokens = torch.from_numpy(row.tokens.astype(np.int64))
        logs = network(input_ids=tokens[None]).logits[0, 4 if virtual else 0 :].log_softmax(-1)
        each = logs[:-1].gather(1, tokens[1:, None])[:, 0]
        nats -= float(each[torch.from_numpy(row.trained[1:].copy())].sum())
    return nats / corpus.trained_tokens


def _probe_scores(probed: nn.Module, corpus: Corpus) -> tuple[float, float]:
    assert corpus.choices is not None
    nats, right = 0.0, 0
    for index in range(len(corpus)):
        prompt = corpus.row(index).tokens[: corpus.choices.prompts[index]]
        logs = probed(torch.from_numpy(prompt.astype(np.int64))[None])[0]
        gold = int(corpus.choices.gold[index])
        nats, right = nats - float(logs[gold]), right + int(logs.argmax() == gold)
    return nats / len(corpus), right / len(corpus)
