"""The model card: front matter that machines read, a table and a snippet that people do."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from finetune_api.measurements import Evaluation, GuardResult
from finetune_api.status import ResolvedPlan
from finetune_trainer.report.card import model_card
from finetune_trainer.report.record import Provenance
from tests.support.small_report import DIGEST, EVALUATION, record, spec


def front(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(matter))


def test_the_front_matter_says_where_it_came_from_and_how_it_does() -> None:
    found = front(model_card(record()))
    assert found["base_model"] == "org/tiny"
    assert found["base_model_revision"] == "12fd25f7"
    assert found["library_name"] == "peft"
    assert found["datasets"] == [{"uri": "s3://corp/train.jsonl", "sha256": DIGEST}]
    assert found["versions"] == {"peft": "0.21.2", "torch": "2.13.0"}
    assert found["configuration"]["training"] == {"epochs": 2, "batchSize": 16}
    assert found["run"] == {"namespace": "team", "name": "cardiology", "uid": "uid-1"}
    assert found["metrics"][0] == {
        "name": "test",
        "kind": "test",
        "rows": 400,
        "groups": 400,
        "accuracy": {
            "base": 0.623,
            "tuned": 0.883,
            "difference": 0.26,
            "low": 0.22,
            "high": pytest.approx(0.3),
            "verdict": "better",
        },
        "loss": {
            "base": 1.187,
            "tuned": 0.212,
            "difference": -0.975,
            "low": -1.075,
            "high": -0.875,
            "verdict": "better",
        },
    }


def test_the_text_has_table_and_snippet() -> None:
    card = model_card(record())
    line = next(line for line in card.splitlines() if line.startswith("| test |"))
    assert line.startswith("| test | 400 | 62.3 % | 88.3 % | +26.0 points | [+22.0, +30.0] | 1.187 | 0.212 | −0.975 |")
    assert line.endswith("| better |")
    assert "PeftModel.from_pretrained(base" in card
    assert "from_pretrained('org/tiny', revision='12fd25f7')" in card
    assert "`finetune verify URI`" in card


def test_each_guard_has_a_line_and_an_artifact_that_one_kept_back_says_so() -> None:
    guards = (
        GuardResult(name="minGain", bound=0.1, value=0.26, low=0.22, high=0.3, verdict="passed"),
        GuardResult(name="forgetting", bound=0.05, value=0.21, low=0.18, high=0.24, verdict="violated"),
        GuardResult(
            name="generation", bound=0.9, value=0.9, low=0.8, high=0.95, verdict="inconclusive", rows_needed=900
        ),
    )
    judged = record(
        evaluation=EVALUATION.model_copy(update={"guards": guards}), refused="guards.forgetting is violated"
    )
    card = model_card(judged)
    told = card.partition("## Guards")[2].partition("\n## ")[0]
    assert [line for line in told.splitlines() if line.startswith("- ")] == [
        "- minGain is passed: +0.26 [+0.22, +0.3], at least 0.1 is required",
        "- forgetting is violated: +0.21 [+0.18, +0.24], at most 0.05 is allowed",
        "- generation is inconclusive: +0.9 [+0.8, +0.95], at least 0.9 is required; about 900 rows would decide",
    ]
    assert "This artifact was kept back by a guard" in card
    assert "## Guards" not in model_card(record())


def test_an_adapter_with_new_tokens_is_loaded_onto_its_own_base() -> None:
    card = model_card(record(spec=spec(vocabulary={"terms": ["STEMI"], "mine": True, "maxNewTokens": 64})))
    assert "base = AutoModelForCausalLM.from_pretrained('path/of/this/folder/base')" in card
    assert "- Vocabulary: extended by 1 term and merges learned from the training rows, at most 64 tokens" in card
    full = model_card(
        record(plan=ResolvedPlan(method="full"), spec=spec(method={"type": "full"}, vocabulary={"mine": True}))
    )
    assert "folder/base" not in full


def test_whole_models_load_without_peft() -> None:
    card = model_card(record(plan=ResolvedPlan(method="full"), spec=spec(method={"type": "full"})))
    assert front(card)["library_name"] == "transformers"
    assert "peft import" not in card


def test_rows_of_the_table_survive_odd_names() -> None:
    card = model_card(record(evaluation=Evaluation(), measurements=(), provenance=Provenance()))
    assert "## Before and after" not in card
    assert front(card)["base_model"] == "org/tiny"
