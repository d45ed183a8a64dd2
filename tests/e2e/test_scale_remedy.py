"""An adapter that hurts general text, trained by two ranks with shards: published at a scale that does not hurt it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.failures import ExitCode
from finetune_api.status import Phase
from finetune_trainer.transfer.records import decode
from tests.support.local_runs import Workspace
from tests.support.tiny_model import numbers_as_text

pytestmark = pytest.mark.timeout(600)

BOUND = 0.008


def manifest(workspace: Workspace, **guards: object) -> dict[str, Any]:
    """A rate that is too high, and general text that has nothing to do with what is trained."""
    general = numbers_as_text(workspace.folder / "general.jsonl")
    sharded = {"nodes": 2, "strategy": {"type": "fsdp"}}
    made = workspace.manifest(guards={"forgetting": {"maxBitsPerByteIncrease": BOUND}, **guards}, **sharded)
    made["spec"]["data"] |= {"general": {"uri": general.as_uri()}}
    made["spec"]["training"] |= {"learningRate": 0.004, "epochs": 5}
    return made


def test_an_adapter_that_forgets_is_published_at_a_scale_that_does_not(files: Path, tmp_path: Path) -> None:
    workspace = Workspace(folder=tmp_path, files=files)
    asked = manifest(workspace, onViolation="remedy")
    assert workspace.run(asked) == ExitCode.OK, workspace.story()
    status = workspace.job().status
    assert status.phase is Phase.Succeeded
    assert status.evaluation is not None
    sweep = status.evaluation.scale
    assert sweep is not None
    assert sweep.chosen is not None
    assert 0 < sweep.chosen < 1
    assert [point.scale for point in sweep.curve] == [0, 0.25, 0.5, 0.75, 1]
    assert sweep.curve[-1].verdict == "violated"
    assert [guard.verdict for guard in status.evaluation.guards] == ["passed"]
    output = tmp_path / "output" / "tiny"
    assert json.loads((output / "adapter_config.json").read_text())["lora_alpha"] == 32 * sweep.chosen
    told = decode((output / "evaluation" / "general.parquet").read_bytes()).models
    assert set(told) == {"base", "tuned", "scale/0", "scale/0.25", "scale/0.5", "scale/0.75", "scale/1"}
    assert not set(told["tuned"].row) & set(told["scale/0.5"].row), "rows that choose do not judge"
    assert set(told["tuned"].row) == set(told["base"].row)
    general = next(each for each in status.evaluation.data if each.kind == "general")
    assert general.rows == len(told["tuned"]) < len(told["tuned"]) + len(told["scale/1"])
    assert "of its trained scale" in (output / "report.html").read_text()
