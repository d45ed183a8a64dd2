"""spec.diagnostics in one process: each attempt measures the base model itself; without it nothing is measured."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.data import Data, DataSource, TrainSource
from finetune_api.diagnostics import ConceptProbe, Diagnostics
from finetune_api.failures import FinetuneError, Reason
from finetune_api.measurements import Evaluation
from finetune_api.methods import Lora, Method
from finetune_api.plan import RunPlan
from finetune_api.spec import Training
from finetune_trainer.agent.preflight import check
from finetune_trainer.parallel.single import Single
from finetune_trainer.report.html import render
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train import diagnosing
from finetune_trainer.train.diagnosing import Diagnosing, compared_layers
from finetune_trainer.train.setup import Setup, prepare
from finetune_trainer.transfer.diagnostics.inside import inside
from finetune_trainer.transfer.evaluate import Stopped
from tests.support.small_report import record
from tests.support.tiny_model import numbers_as_text, tiny_corpus, tiny_model
from tests.support.tokenizers import write_jsonl
from tests.support.training import CPU, plan_for

LORA = Method(type="lora", lora=Lora(rank=4, layers=1))


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlan:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return _plan(tmp_path, general=240, diagnostics=Diagnostics(similarity="cka", probes=(_probe(tmp_path),)))


def _probe(folder: Path) -> ConceptProbe:
    """What was two tokens before."""
    texts = [f"a{n}b{7 * n}c" * 3 for n in range(40)]
    rows = [
        {
            "text": text,
            "spans": [{"start": at, "end": at + 1, "label": _kind(text[at - 2])} for at in range(2, len(text))],
        }
        for text in texts
    ]
    return ConceptProbe(name="digits", uri=write_jsonl(folder / "digits.jsonl", *rows))


def _kind(letter: str) -> str:
    return "digit" if letter.isdigit() else "letter"


def _plan(folder: Path, *, general: int, **spec: Any) -> RunPlan:
    tiny_model(folder / "model")
    tiny_corpus(folder)
    text = numbers_as_text(folder / "general.jsonl", rows=general)
    data = Data(
        train=(TrainSource(uri=f"file://{folder}/train.jsonl"),),
        general=DataSource(uri=text.as_uri()),
        sequence_length=128,
        overlong="truncate",
    )
    training = Training(batch_size=4, max_steps=3, learning_rate=0.02)
    return plan_for(folder, **{"data": data, "method": LORA, "training": training, **spec})


def _prepared(plan: RunPlan, folder: Path) -> Setup:
    output = open_folder(plan.spec.output.uri, prefix="")
    return prepare(plan, gang=Single(), device=CPU, output=output, run_dir=RunDir(folder / "run"))


def _begun(setup: Setup) -> Diagnosing:
    assert setup.data.general is not None
    assert setup.data.validation is not None
    begun = Diagnosing.of(setup, {"general": setup.data.general, "validation": setup.data.validation})
    begun.measure_base()
    return begun


def test_an_attempt_that_resumes_compares_with_the_base_and_not_with_what_it_resumed(
    plan: RunPlan, tmp_path: Path
) -> None:
    setup = _prepared(plan, tmp_path)
    first = _begun(setup)
    state = setup.trainer.run(setup.trainer.checkpointer.resume(setup.trainer.weights).update(base={}))
    setup.trainer.checkpointer.wait()
    found = first.compared()
    again = _prepared(plan, tmp_path)
    second = _begun(again)
    assert again.trainer.checkpointer.resume(again.trainer.weights).step == state.step == 3
    assert second.compared() == found
    assert found is not None
    [general] = found.similarity
    assert [each.cka == 1 for each in general.layers] == [True, True, False]
    [(base, tuned)] = found.concepts
    assert base.best.accuracy > base.majority + 0.05
    assert base.layers[:2] == tuned.layers[:2]
    assert base.layers[2] != tuned.layers[2]
    assert found.notes[0].startswith("validation is not compared layer by layer: it has")


def test_a_run_that_asks_for_nothing_measures_nothing(plan: RunPlan, tmp_path: Path) -> None:
    for changed in ({"spec": plan.spec.model_copy(update={"diagnostics": Diagnostics()})}, {"rung": "lora"}):
        setup = _prepared(plan.model_copy(update=changed), tmp_path)
        setup.trainer.model.network.forward = None  # type: ignore[assignment]
        assert _begun(setup).compared() is None


def test_a_request_to_stop_ends_the_measurement(plan: RunPlan, tmp_path: Path) -> None:
    setup = _prepared(plan, tmp_path)
    setup.trainer.reporter.run_dir.request_stop("test")
    with pytest.raises(Stopped):
        _begun(setup)


def test_too_few_held_out_tokens_are_refused_before_anything_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    asked = _plan(tmp_path, general=4, diagnostics=Diagnostics(similarity="cka"))
    with pytest.raises(FinetuneError, match=r"validation has .* tokens, .*; general has .* tokens") as refused:
        check(asked, cache=tmp_path / "cache")
    assert refused.value.reason is Reason.InvalidSpec
    assert "at least 1,024 tokens" in refused.value.hint
    check(_plan(tmp_path, general=4), cache=tmp_path / "cache")


def test_a_probe_without_labels_is_refused_before_anything_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    probe = ConceptProbe(name="names", uri=f"file://{tmp_path}/general.jsonl", labels="pythonNames")
    asked = _plan(tmp_path, general=15, diagnostics=Diagnostics(probes=(probe,)))
    with pytest.raises(FinetuneError, match=r"diagnostics\.probes names: .* has 0 labelled spans") as refused:
        check(asked, cache=tmp_path / "cache")
    assert refused.value.reason is Reason.InvalidSpec


def test_a_deep_model_is_compared_in_17_layers_with_the_first_and_the_last() -> None:
    assert compared_layers(2) == (0, 1, 2)
    assert compared_layers(30) == (*range(0, 30, 2), 30)
    assert max(len(compared_layers(blocks)) for blocks in range(1, 130)) == diagnosing.MOST_LAYERS + 1


def test_the_report_has_a_chart_whose_numbers_can_be_read_aloud(plan: RunPlan, tmp_path: Path) -> None:
    setup = _prepared(plan, tmp_path)
    begun = _begun(setup)
    with torch.no_grad():
        for parameter in setup.attached.trainable.values():
            parameter.add_(0.3)
    found = begun.compared()
    assert found is not None
    told = inside(found, Evaluation(), rows=64)
    root = ET.fromstring(render(record(inside=told)).removeprefix("<!DOCTYPE html>"))
    labels = [each.get("aria-label", "") for each in root.iter("svg")]
    [label] = [each for each in labels if each.startswith("unbiased CKA by layer")]
    assert "CKA: 1 at 0, 1 at 1" in label
    assert "documents permuted" in label
    assert any("base: " in each and "tuned: " in each and "random labels: " in each for each in labels)
    page = "".join(root.itertext())
    assert "digits (" in page
    assert "; after tuning layer " in page
    assert "layers changed from 2 on" in page
    assert "guards.forgetting, and regularization.replay or klToBase" in page
