"""A model that was trained to repeat itself: the loss looks fine, and the answers keep it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet

from finetune_api.failures import ExitCode
from finetune_api.status import Phase
from finetune_trainer.report.record import decode
from tests.support.local_runs import Workspace
from tests.support.tiny_model import tiny_corpus

pytestmark = pytest.mark.timeout(600)


def test_a_model_that_learned_to_loop_is_flagged_and_kept_back(files: Path, tmp_path: Path) -> None:
    workspace = Workspace(folder=tmp_path, files=files)
    corpus = tiny_corpus(tmp_path / "corpus", rows=96, heldout=40)
    train = corpus / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    train.write_text("\n".join(json.dumps(row | {"completion": "ab" * 16}) for row in rows))
    made = workspace.manifest(
        nodes=1,
        method={"type": "full"},
        training={"epochs": 10, "batchSize": 16, "learningRate": 0.01, "evaluateEvery": 99},
        evaluation={"generate": {"maxNewTokens": 24, "maxRows": 40, "metrics": ["rougeL", "length"], "samples": 2}},
        guards={"collapse": {"maxDrop": 0.2}, "generation": {"minStops": 0.9}},
    )
    made["spec"]["data"] |= {"train": [{"uri": train.as_uri()}], "test": {"uri": (corpus / "heldout.jsonl").as_uri()}}

    assert workspace.run(made) == ExitCode.GUARD, workspace.story()

    status = workspace.job().status
    assert status.phase is Phase.Failed
    assert status.evaluation is not None
    assert status.evaluation.collapse is not None
    assert status.evaluation.generation is not None
    assert {each.name: each.verdict for each in status.evaluation.guards}["collapse"] == "violated"
    assert [each.metric for each in status.evaluation.generation.scores] == ["rougeL", "length", "stops"]
    assert status.evaluation.generation.rows == 40
    assert "collapse: the variety of generated text drops by" in workspace.said()
    assert "test, generated" in workspace.said()
    assert "tuned model: 0 of 40 prompts answered, greedy, at most 24 tokens each" in workspace.story()

    assert status.candidate is not None
    kept = Path(status.candidate.uri.removeprefix("file://"))
    assert len(parquet.read_table(kept / "evaluation" / "generated" / "test.parquet")) == 2 * 2 * 40
    record = decode((kept / "run.json").read_text())
    assert [each.why for each in record.answers][:2] == ["sample", "sample"]
    assert set(record.answers[0].tuned) <= {"a", "b"}
    page = (kept / "report.html").read_text()
    assert "Answers side by side" in page
    assert "The variety of generated text drops by" in (kept / "README.md").read_text()
