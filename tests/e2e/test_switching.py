"""output.switchTest for real: a second job is tested with the adapter of the first; `finetune switch-test` agrees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_api.failures import ExitCode
from finetune_trainer.cli.main import main
from finetune_trainer.report.record import decode
from finetune_trainer.store.manifest import decode as decode_manifest
from tests.support.local_runs import Workspace

pytestmark = pytest.mark.timeout(600)


def test_a_second_adapter_is_tested_with_the_first(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(folder=tmp_path, files=files)
    small = {"nodes": 1, "training": {"maxSteps": 3, "batchSize": 8, "learningRate": 0.01}}
    first = workspace.manifest(name="first", **small)
    assert workspace.run(first) == ExitCode.OK, workspace.story("first")
    output = {"uri": (tmp_path / "output" / "second").as_uri(), "switchTest": [first["spec"]["output"]["uri"]]}
    method = {"type": "lora", "lora": {"rank": 4, "targets": "attention", "rsLora": True}}
    assert workspace.run(workspace.manifest(name="second", **small, output=output, method=method)) == ExitCode.OK

    artifact = workspace.job("second").status.artifact
    assert artifact is not None
    found = artifact.switch_test
    assert found is not None, workspace.story("second")
    assert (found.verdict, found.adapters, found.switches, found.refused) == ("passed", 2, 200, 4), found.reason
    assert found.largest_difference == 0.0
    folder = tmp_path / "output" / "second"
    assert decode_manifest((folder / "manifest.json").read_bytes()).switch_test == found
    assert decode((folder / "run.json").read_bytes()).switch_test == found
    assert "Switching adapters" in (folder / "report.html").read_text()
    assert "switch test" in workspace.said("second")

    named = [str(tmp_path / "output" / name) for name in ("second", "first")]
    assert (
        main(["switch-test", *named, "--switches", "8", "-o", "json", "--home", str(tmp_path / "home")]) == ExitCode.OK
    )
    assert json.loads(capsys.readouterr().out)["maxRank"] == 16

    (tmp_path / "output" / "first" / "adapter_model.safetensors").write_bytes(b"damaged")
    output["uri"] = (tmp_path / "output" / "third").as_uri()
    assert workspace.run(workspace.manifest(name="third", **small, output=output)) == ExitCode.DATA
    assert "is not the file that the artifact's manifest names" in workspace.said("third")
