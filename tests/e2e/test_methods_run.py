"""Every frozen method, from a manifest to an artifact that is whole and computes what was measured."""

from __future__ import annotations

import os
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api import names
from finetune_api.failures import FinetuneError, TerminationMessage
from finetune_api.methods import TRAITS, Method
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.load import load_datasets
from finetune_trainer.kernels import attention, candidates, loss, timing
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.single import Single
from finetune_trainer.report.record import decode
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.artifact import verify
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train import kernel_selection
from finetune_trainer.train.capabilities import probe
from finetune_trainer.train.model import LanguageModel, load_network
from finetune_trainer.train.reporter import Reporter
from finetune_trainer.train.run import run
from finetune_trainer.transfer.evaluate import Layout, evaluate
from tests.support import kernel_doubles as doubles
from tests.support.scored import scored
from tests.support.tiny_model import tiny_corpus, tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(folder / "model", layers=3)
    tiny_corpus(folder / "data", rows=48)
    from transformers import LlamaForCausalLM

    tiny_model(folder / "half", layers=3)
    LlamaForCausalLM.from_pretrained(folder / "half", dtype=torch.bfloat16).save_pretrained(folder / "half")
    return folder


def _spec(inputs: Path, folder: Path, **changes: Any) -> FineTuneJobSpec:
    spec: dict[str, Any] = {
        "model": {"uri": f"file://{inputs}/model"},
        "data": {
            "train": [{"uri": f"file://{inputs}/data/train.jsonl"}],
            "test": {"uri": f"file://{inputs}/data/heldout.jsonl"},
            "sequenceLength": 128,
        },
        "output": {"uri": f"file://{folder}/output"},
        "training": {"epochs": 2, "batchSize": 8, "learningRate": 0.003},
    }
    return FineTuneJobSpec.model_validate(spec | changes, strict=False)


def _run(folder: Path, spec: FineTuneJobSpec, monkeypatch: pytest.MonkeyPatch) -> TerminationMessage:
    monkeypatch.setenv(names.ENV_CACHE, str(folder / "cache"))
    run_dir = RunDir(folder / "run")
    run_dir.clear()
    job = JobIdentity(namespace="test", name="tiny", uid=f"u-{spec.method.type}")
    run(RunPlan(job=job, spec=spec), run_dir, dict(os.environ))
    words = run_dir.result()
    assert words is not None
    return words


METHODS: list[tuple[dict[str, Any], str]] = [
    ({"type": "partial"}, "merged"),
    ({"type": "dora", "dora": {"rank": 4}}, "hf-only"),
    ({"type": "qlora", "qlora": {"rank": 4}}, "lora"),
    ({"type": "adapter", "adapter": {"bottleneck": 8}}, "hf-only"),
]
_ELSEWHERE = {"full", "lora", "prompt", "ptuning", "prefix", "probe"}
"""Methods whose whole runs are in test_train_main.py, test_train_main_kinds.py and test_methods_input_run.py."""
METHODS += [
    ({"type": name}, "hf-only") for name in TRAITS if name not in _ELSEWHERE | {method["type"] for method, _ in METHODS}
]


@pytest.mark.parametrize(("method", "servable"), METHODS, ids=[m["type"] for m, _ in METHODS])
def test_from_a_manifest_to_a_measured_artifact(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], servable: str
) -> None:
    spec = _spec(inputs, tmp_path, method=method)
    words = _run(tmp_path, spec, monkeypatch)
    assert words.artifact is not None
    assert words.plan is not None
    base, tuned = scored(words.evaluation)
    assert (words.plan.method, words.artifact.servable) == (method["type"], servable)
    assert (words.plan.trained_layers is not None) == (method["type"] == "partial")
    assert tuned < base
    output = open_folder(spec.output.uri, prefix="")
    assert verify(output, words.artifact.digest).ok
    record = decode(output.read("run.json"))
    assert record.servable == servable
    assert any("hf-only" in note for note in record.notes) == (servable == "hf-only")
    measured = _loss_of(tmp_path / "output", inputs, spec, words)
    assert measured == pytest.approx(tuned, rel=1e-5)


def _loss_of(artifact: Path, inputs: Path, spec: FineTuneJobSpec, words: TerminationMessage) -> float:
    """Of the artifact, loaded as a user would, on the test rows."""
    assert words.plan is not None
    base, _ = load_network(inputs / "model", dtype=torch.float32, strategy=Single(), device=CPU)
    settings = spec.method
    if words.plan.trained_layers:
        settings = settings.model_validate({"type": "partial", "partial": {"layers": words.plan.trained_layers}})
    loaded: Any = method_of(settings).load(base, artifact)
    network = (
        loaded.get_base_model() if hasattr(loaded, "peft_config") and hasattr(loaded, "get_base_model") else loaded
    )
    network.eval()
    data = load_datasets(spec.data, tokenizer_path=inputs / "model", cache=artifact.parent / "cache", seed=1)
    assert data.test is not None
    layout = Layout(max_tokens=1024, sequence_length=128, packing=True, pad_id=data.pad_id)
    model = LanguageModel(network, CPU, None, probe(network, CPU))
    with torch.no_grad():
        return evaluate(model, data.test, layout=layout, strategy=Single(), going_on=lambda: True).scores.loss


def test_partial_in_low_precision_keeps_what_is_frozen_as_it_is_stored(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    training = {"epochs": 1, "batchSize": 8, "learningRate": 0.003, "precision": "bfloat16"}
    half = {"uri": f"file://{inputs}/half"}
    spec = _spec(inputs, tmp_path, model=half, training=training, method={"type": "partial", "partial": {"layers": 1}})
    words = _run(tmp_path, spec, monkeypatch)
    base, tuned = scored(words.evaluation)
    assert tuned < base
    before, after = (load_file(folder / "model.safetensors") for folder in (inputs / "half", tmp_path / "output"))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name]) == (".layers.2." not in name), name


def test_frozen_layers_are_kept_or_not_as_the_manifest_says(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two epochs, of which the second would run the two frozen layers again: the same losses, to rounding."""
    losses = []
    for kept in (True, False):
        training = {"epochs": 2, "batchSize": 8, "learningRate": 0.003, "frozenLayerCache": kept}
        folder = tmp_path / str(kept)
        spec = _spec(inputs, folder, method={"type": "partial", "partial": {"layers": 1}}, training=training)
        _run(folder, spec, monkeypatch)
        assert ("2 frozen layers run once over" in capsys.readouterr().out) is kept
        assert (folder / "cache" / "frozen").exists() is kept
        record = decode(open_folder(spec.output.uri, prefix="").read("run.json"))
        losses.append([point.loss for point in record.curve] + [p.scores.loss for p in record.validation])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
def test_a_merged_model_lies_beside_the_adapter_and_is_verified_with_it(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    spec = _spec(
        inputs,
        tmp_path,
        method={"type": kind, kind: {"rank": 4}},
        output={"uri": f"file://{tmp_path}/output", "merged": True},
    )
    words = _run(tmp_path, spec, monkeypatch)
    whole = Method(type="full")
    found = _loss_of(tmp_path / "output" / "merged", inputs, spec.model_copy(update={"method": whole}), words)
    assert found == pytest.approx(scored(words.evaluation)[1], abs=1e-4)
    output = open_folder(spec.output.uri, prefix="")
    record = decode(output.read("run.json"))
    assert any("merged/ is the whole model" in note and note.endswith("servable as merged") for note in record.notes)
    assert 'from_pretrained("path/of/this/folder/merged")' in output.read("README.md").decode()
    assert (tmp_path / "output" / "merged" / "tokenizer.json").exists()
    assert verify(output).ok
    file = tmp_path / "output" / "merged" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert [(p.path, p.fault) for p in verify(output).problems] == [("merged/model.safetensors", "corrupted")]


def test_a_run_says_which_kernels_it_uses(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        torch, "compile", lambda forward, **_: forward
    )  # what it does: tests/unit/test_train_compilation.py
    training = {"maxSteps": 1, "batchSize": 8, "compile": True}
    _run(tmp_path, _spec(inputs, tmp_path, method={"type": "adapter"}, training=training), monkeypatch)
    assert (
        "parameters float32, compute float32, attention sdpa, loss fused, documents share rows, "
        "optimizer fused AdamW, 3 blocks compiled\n"
    ) in capsys.readouterr().out


def test_a_run_uses_kernels_that_prove_right_and_says_when_they_are_gone(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernels in plain torch, on a CPU that says it is an A100."""
    training = {"maxSteps": 4, "batchSize": 8, "precision": "bfloat16", "evaluateEvery": 4}
    spec = _spec(inputs, tmp_path, method={"type": "lora"}, training=training)
    times = cycle([1.0, 2.0])
    installed = {"flash-attn": "2.8.3", "torch": "2.13.0", "liger-kernel": "0.8.5"}
    monkeypatch.setattr(kernel_selection, "machine", lambda _: candidates.Machine("cuda", (8, 0), installed))
    monkeypatch.setattr(timing, "clock", lambda _: lambda work: (work(), next(times))[1])
    monkeypatch.setitem(attention.KERNELS, "flash-attn", doubles.leaky)
    monkeypatch.setitem(attention.KERNELS, "torch", doubles.varlen)
    monkeypatch.setitem(loss.KERNELS, "liger-kernel", doubles.cross_entropy)
    written = Reporter.step

    def stopping(reporter: Reporter, state: Any, step: Any) -> None:
        written(reporter, state, step)
        if state.step == 2:
            reporter.run_dir.request_stop("test")

    monkeypatch.setattr(Reporter, "step", stopping)
    with pytest.raises(FinetuneError, match="stopped on request after step 3"):
        _run(tmp_path, spec, monkeypatch)
    monkeypatch.setattr(Reporter, "step", written)
    said = capsys.readouterr().out
    assert "attention is not computed by flash-attn 2.8.3: its output is off by" in said
    assert "compute bfloat16, attention torch 2.13.0, loss liger-kernel 0.8.5, documents share rows" in said

    installed.pop("liger-kernel")
    _run(tmp_path, spec, monkeypatch)
    said = capsys.readouterr().out
    assert "not computed" not in said  # what was refused once is not asked again
    assert "attention torch 2.13.0, loss fused (liger-kernel is not installed), documents share rows" in said
    assert "attempt 1 continues, but not bit for bit: it computes with" in said
    record = decode(open_folder(spec.output.uri, prefix="").read("run.json"))
    assert ["liger" in attempt.computed for attempt in record.attempts] == [True, False]
    assert any("not bit for bit" in note for note in record.notes)
