"""`finetune analyze`: the shift of the training rows in text and JSON, and what it recommends."""

from __future__ import annotations

import json
import math
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from finetune_api.failures import ExitCode
from finetune_trainer.cli import analysis
from finetune_trainer.cli.main import main
from tests.support.printed_json import conforms
from tests.support.tiny_model import WORDS, tiny_model, worded
from tests.support.tokenizers import write_jsonl


def _job(
    folder: Path, *, general: bool = True, script: str = "latin", rows: list[dict[str, object]] | None = None,
    slice_rows: list[dict[str, object]] | None = None,
    **spec: Any,
) -> str:  # fmt: skip
    tiny_model(folder / "model")
    data: dict[str, Any] = {
        "train": [{"uri": write_jsonl(folder / "train.jsonl", *(rows or worded(30, seed=1, script=script)))}],
        "sequenceLength": 256,
    }
    if general:
        data["general"] = {"uri": write_jsonl(folder / "general.jsonl", *worded(30, seed=2))}
    if slice_rows:
        data["slices"] = [{"name": "returns", "uri": write_jsonl(folder / "returns.jsonl", *slice_rows)}]
    output = {"uri": f"file://{folder}/output"}
    manifest = {"model": {"uri": f"file://{folder}/model"}, "data": data, "output": output, **spec}
    file = folder / "job.json"
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "shift"}}
    file.write_text(json.dumps({**job, "spec": manifest}))
    return str(file)


def _analyze(file: str, folder: Path, *more: str) -> int:
    return main(["analyze", file, "--home", str(folder / "home"), "--documents", "12", *more])


def test_two_samples_of_one_text_have_no_shift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _analyze(_job(tmp_path), tmp_path, "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    conforms("analyze", told)
    ratio = told["bitsPerByteRatio"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert ratio["value"] == pytest.approx(1, abs=0.03)
    assert (told["shift"], abs(told["jensenShannonExcess"]) < 0.05) == ("small", True)
    assert told["tokensPerByteRatio"] == pytest.approx(1, abs=0.02)
    assert [text["documents"] for text in told["texts"]] == [12, 12]
    assert [source["name"] for source in told["vocabulary"]["sources"]] == ["training rows", "general"]
    assert all(source["fertility"] > 1 for source in told["vocabulary"]["sources"])
    assert told["recommendations"][0]["set"] == "regularization.replay: {fraction: 0.01, uri: …}"


def test_another_script_is_told_with_its_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _analyze(_job(tmp_path, script="greek", method={"type": "full"}), tmp_path) == 0
    told = capsys.readouterr().out
    assert "Jensen-Shannon excess of their tokens: 0." in told
    assert "method: {type: lora}" in told
    assert "source         documents  tokens per byte  tokens per word  in 4 or more" in told
    assert "typical words" in told
    assert "block  gradient / weights  from here on" in told
    assert "rows are few for training the model's own weights" in told
    assert "\nmethod.type auto would try prompt, then lora, by the rule 'few rows': fewer than 100 rows: " in told


def test_without_general_text_and_labels_gradients_show_which_layers_would_move(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _analyze(_job(tmp_path, general=False), tmp_path, "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    conforms("analyze", told)
    assert told["notes"] == [
        "The shift is not measured: data.general is not set.",
        "The layers are not probed: the training rows have no labels.",
    ]
    gradients = told["gradients"]
    held, trained = gradients["heldFromHere"], gradients["trained"]
    assert len(held) == len(gradients["relative"]) == 2
    assert held[0] == pytest.approx(1)
    assert held[2 - trained] >= 0.8
    assert trained == 2 or held[3 - trained] < 0.8
    assert "bitsPerByteRatio" not in told


def test_a_concept_probe_has_its_table_and_its_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = [{"text": f"def f{n}(a, b={n}):\n    return a * {n} + b"} for n in range(12)]
    probe = {"name": "code", "uri": write_jsonl(tmp_path / "code.jsonl", *code), "labels": "pythonTokens"}
    file, page = _job(tmp_path, general=False, diagnostics={"probes": [probe]}), tmp_path / "page.html"
    assert _analyze(file, tmp_path, "--save", str(page)) == 0
    told = capsys.readouterr().out
    assert re.search(r"^code: \d+ tokens of 12 rows, 4 labels; the most frequent one", told, re.MULTILINE)
    assert "layer  accuracy  ± error  selectivity  random labels" in told
    assert "random labels: " in page.read_text()
    assert _analyze(file, tmp_path, "-o", "json") == 0
    [found] = json.loads(capsys.readouterr().out)["concepts"]
    assert found["labels"] == ["keyword", "name", "number", "operator"]
    assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2]
    assert found["layers"][0]["accuracy"] > found["majority"]


def test_labels_that_cannot_be_made_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(analysis, "_shift", lambda *_, **__: measured.append("shift"))
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    probe = {"name": "words", "uri": write_jsonl(tmp_path / "words.jsonl", *worded(12, seed=3)), "labels": "wordnet"}
    assert _analyze(_job(tmp_path, diagnostics={"probes": [probe]}), tmp_path) == ExitCode.CONFIG
    assert "wordnet-base" in capsys.readouterr().err
    assert not measured


def _tickets(count: int, *, known: bool = True, seed: int = 7) -> list[dict[str, object]]:
    """Two kinds of tickets that differ in their words; or, with `known` false, in nothing."""
    chosen = random.Random(seed)
    sides = (WORDS[:5], WORDS[5:]) if known else (WORDS, WORDS)
    return [
        {"text": " ".join(chosen.choices(sides[row % 2], k=6)), "label": ("payment", "delivery")[row % 2]}
        for row in range(count)
    ]


def test_labelled_rows_are_probed_layer_by_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without general text. The labels depend on words, which the embeddings of a tiny model hold."""
    file = _job(tmp_path, general=False, rows=_tickets(60), slice_rows=_tickets(24, seed=8))
    assert _analyze(file, tmp_path, "--rows", "40", "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    conforms("analyze", told)
    assert "bitsPerByteRatio" not in told
    assert told["ladderRule"]["rungs"] == ["probe", "lora"]
    assert (told["ladderRule"]["rule"], told["ladderRule"]["folds"]) == ("few rows", 5), "57 of 60 rows train"
    assert told["notes"] == ["The shift is not measured: data.general is not set."]
    layers = told["layers"]
    assert all(set(each["slices"]) == {"returns"} for each in layers["curve"])
    assert (layers["rows"], [each["layer"] for each in layers["curve"]]) == (40, [0, 1, 2])
    assert all({"accuracy", "standardError", "selectivity", "logMe"} <= set(each) for each in layers["curve"])
    assert layers["enough"] == 0
    assert max(each["accuracy"] for each in layers["curve"]) > 0.9
    assert told["ownAnswers"]["leepUninformed"] == pytest.approx(-math.log(2), abs=0.02)
    assert told["recommendations"][0]["set"].startswith("method: {type: probe, probe: {layers: [")
    assert any(
        "the embeddings alone are within one standard error" in each["because"] for each in told["recommendations"]
    )


def test_labels_that_no_layer_knows_are_reported_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    auto = {"method": {"type": "auto"}, "ladder": {"folds": 4}}
    file = _job(tmp_path, general=False, rows=_tickets(60, known=False), **auto)
    assert _analyze(file, tmp_path, "--save", str(page)) == 0
    html = ET.fromstring(page.read_text().removeprefix("<!DOCTYPE html>"))
    assert [title.text for title in html.iter("h3")] == ["Left-out rows"]
    assert len([*html.iter("svg")]) == 1
    assert "no layer predicts the labels better than chance" in " ".join(" ".join(html.itertext()).split())
    told = capsys.readouterr().out
    assert "layer  accuracy  ± error  selectivity" in told
    assert "no layer predicts the labels better than chance" in " ".join(told.split())
    assert "\nladder, by the rule 'few rows': fewer than 100 rows: " in told
    first, then = re.findall(r"^  (probe|lora)  +(?:reads what|matches full)", told, re.MULTILINE)
    assert (first, then) == ("probe", "lora")
    assert "\nladder.folds is set, so decisions are cross-fitted: each rung trains 4 times more" in told


@pytest.mark.parametrize("wrong", [("--rows", "5"), ("--documents", "0"), ("--tokens", "many")])
def test_samples_that_are_too_small_are_a_usage_error(
    wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", "job.yaml", *wrong]) == ExitCode.USAGE
    assert "is not an integer of at least" in capsys.readouterr().err
