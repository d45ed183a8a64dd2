"""The presets in examples/ train on real text: each as it is, with a small model, few rows and few steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_trainer.report.record import RunRecord
from tests.support import preset_rows
from tests.support.documents import ROOT
from tests.support.in_process import climbed, trained
from tests.support.preset_rows import Rows, write

pytestmark = pytest.mark.timeout(600)

SMALL = {"maxSteps": 4, "batchSize": 8, "learningRate": 0.003}
"""In place of the preset's epochs and of the automatic rate."""


def preset(name: str, rows: Mapping[str, Rows], *, files: Path, folder: Path, **steps: Any) -> dict[str, Any]:
    """The preset's spec with files that are here. `rows`: by the end of each URI of rows that it names."""
    text = (ROOT / "examples" / f"{name}.yaml").read_text()
    named = set(re.findall(r"s3://\S+\.jsonl", text))
    for place, (end, given) in enumerate(rows.items()):
        (uri,) = (each for each in named if each.endswith(f"/{end}"))
        text = re.sub(rf"{re.escape(uri)}\b", write(folder / "rows", f"{place}.jsonl", given), text)
        named.remove(uri)
    assert not named, "every file of the preset has rows"
    spec: dict[str, Any] = _here(yaml.safe_load(text)["spec"])
    kept = {key: value for key, value in spec.get("training", {}).items() if key in ("optimizer", "earlyStopping")}
    spec["data"]["sequenceLength"] = 400  # of the 512 positions of the small model
    spec |= {"model": {"uri": (files / "model").as_uri()}, "training": {**kept, **SMALL, **steps}}
    spec["output"]["uri"] = (folder / "output" / name).as_uri()
    return spec


def _here(node: Any) -> Any:
    """Without what only a cluster has."""
    if isinstance(node, dict):
        return {key: _here(value) for key, value in node.items() if key not in ("credentials", "resources")}
    return [_here(each) for each in node] if isinstance(node, list) else node


def guards(record: RunRecord) -> dict[str, str]:
    return {guard.name: guard.verdict for guard in record.evaluation.guards}


def test_medical_summaries(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = preset_rows.medical()
    oncology = [row for row in rows if row["patient"][0] == "C"]
    others = [row for row in rows if row["patient"][0] != "C"]
    given = {
        "train.jsonl": others[:48], "test.jsonl": others[1000:1020], "oncology.jsonl": oncology[:24],
        "general.jsonl": preset_rows.english()[:12],
    }  # fmt: skip
    spec = preset("medical-summaries", given, files=files, folder=tmp_path)
    spec["evaluation"]["generate"] |= {"maxNewTokens": 4, "maxRows": 20}
    record = trained(spec, tmp_path, monkeypatch)
    assert guards(record).keys() == {"minGain", "slices", "forgetting"}
    assert record.evaluation.generation is not None
    assert [score.metric for score in record.evaluation.generation.scores] == ["rougeL", "stops"]


def test_a_niche_language(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = preset_rows.cython()
    given = {
        "files.jsonl": rows[:60],
        "tinylang/test.jsonl": rows[-16:],
        "python/test.jsonl": preset_rows.python()[:16],
    }
    record = trained(preset("niche-language", given, files=files, folder=tmp_path), tmp_path, monkeypatch)
    assert guards(record).keys() == {"minGain", "slices"}
    assert (tmp_path / "output" / "niche-language" / "merged" / "model.safetensors").is_file()


def test_a_low_resource_language(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, english = preset_rows.upper_sorbian(), preset_rows.english()
    given = {
        "books.jsonl": rows[:80], "hsb/test.jsonl": rows[80:], "general-test.jsonl": english[:16],
        "english/general.jsonl": english[16:],
    }  # fmt: skip
    record = trained(preset("low-resource-language", given, files=files, folder=tmp_path), tmp_path, monkeypatch)
    assert guards(record).keys() == {"minGain", "forgetting"}
    assert record.data.replayed is not None


def test_a_support_bot_with_a_second_adapter_for_policy(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = preset_rows.documentation()
    given = {
        "train.jsonl": rows[:40], "validation.jsonl": rows[40:120], "test.jsonl": rows[120:130],
        "general.jsonl": preset_rows.english()[-8:],
    }  # fmt: skip
    bot = preset("support-bot", given, files=files, folder=tmp_path)
    del bot["training"]["learningRate"]  # each rung has its own
    ladder = climbed(bot, tmp_path, monkeypatch)
    assert [rung.name for rung in ladder.rungs] == ["prompt", "lora"]
    assert ladder.best == "lora", ladder.story

    licences = preset_rows.licences()
    given = {"train.jsonl": licences[:40], "test.jsonl": licences[40:60]}
    policy = preset("support-bot-policy", given, files=files, folder=tmp_path)
    assert policy["output"]["switchTest"] == ["s3://corp/models/support-bot"]
    policy["output"]["switchTest"] = [bot["output"]["uri"]]
    second = trained(policy, tmp_path, monkeypatch)
    assert second.switch_test is not None
    assert second.switch_test.verdict == "passed", second.switch_test.reason
