"""The commands for the jobs of a cluster: what they print, and what to type next."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from finetune_api.client import AsyncFineTuneJobs, FineTuneJobs
from finetune_api.failures import ExitCode, FinetuneError
from finetune_trainer.cli.main import main
from tests.support.documents import ROOT
from tests.support.fake_cluster import FakeCluster, raw_job, with_job
from tests.support.printed_json import conforms


def test_a_command_prints_what_it_did_and_what_to_type_next(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    with_job(cluster, "Running")

    assert main(["stop", "tickets", "-n", "team"]) == ExitCode.OK
    assert capsys.readouterr().out == (
        "tickets stops after a checkpoint and releases its nodes\n"
        "next  finetune resume tickets -n team\n"
        "      finetune watch tickets -n team\n"
    )


def test_json_has_the_documented_fields(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    with_job(cluster, "Running")

    assert main(["resume", "tickets", "-o", "json"]) == ExitCode.OK
    printed = json.loads(capsys.readouterr().out)
    assert (printed["action"], printed["changed"]) == ("resumed", False)
    conforms("resume", printed)
    page = (ROOT / "docs" / "cli.md").read_text()
    assert [field for field in printed if f"| `{field}` |" not in page] == []


def test_the_commands_of_a_life(tmp_path: Path, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw_job()))

    assert main(["submit", str(file), "--dry-run"]) == ExitCode.OK
    assert main(["submit", str(file)]) == ExitCode.OK
    assert main(["submit", str(file)]) == ExitCode.CONFIG
    assert main(["retry", "tickets"]) == ExitCode.USAGE
    cluster.jobs["tickets"]["status"] = {"phase": "Failed"}
    assert main(["retry", "tickets", "--file", str(file)]) == ExitCode.OK
    assert main(["clone", "tickets", "b", "--set", "training.learningRate=1e-4", "--to", "s3://corp/b"]) == ExitCode.OK
    assert cluster.jobs["b"]["spec"]["training"]["learningRate"] == 1e-4
    assert main(["delete", "tickets"]) == ExitCode.OK
    assert main(["delete", "tickets"]) == ExitCode.NO_INPUT
    capsys.readouterr()
    assert main(["clone", "b", "c", "--print", "--to", "s3://corp/c"]) == ExitCode.OK
    assert yaml.safe_load(capsys.readouterr().out)["metadata"]["name"] == "c"
    assert main(["clone", "b", "c", "--set", "epochs"]) == ExitCode.CONFIG
    assert set(cluster.jobs) == {"b"}


def test_every_problem_of_a_manifest_is_printed(
    tmp_path: Path, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw_job(spec={"nodes": 0, "method": {"type": "lorra"}})))

    assert main(["submit", str(file)]) == ExitCode.CONFIG
    assert f"{file}: 2 problems" in capsys.readouterr().err
    assert main(["submit", "missing.yaml"]) == ExitCode.CONFIG
    assert "cannot read missing.yaml" in capsys.readouterr().err


def test_kubectl_is_run_in_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "kubectl"
    job = json.dumps(raw_job(phase="Running"))
    program.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/arguments\ncat > {tmp_path}/stdin\necho '{job}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    where = {"namespace": "team", "context": "prod"}

    assert FineTuneJobs(**where).get("tickets").phase == "Running"
    assert asyncio.run(AsyncFineTuneJobs(**where).submit(raw_job())).name == "tickets"
    get, create = (tmp_path / "arguments").read_text().splitlines()
    assert get == "--context prod --namespace team get finetunejobs.finetune.dev tickets --output json"
    assert create == "--context prod --namespace team create --filename - --output json"
    assert json.loads((tmp_path / "stdin").read_text())["metadata"]["name"] == "tickets"

    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(FinetuneError, match="kubectl is not installed"):
        FineTuneJobs().get("tickets")
    with pytest.raises(FinetuneError, match="kubectl is not installed"):
        asyncio.run(AsyncFineTuneJobs().get("tickets"))


def test_the_example_of_the_documentation_runs(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(yaml.safe_dump(raw_job()))
    code, asynchronous = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    done = {
        "phase": "Succeeded",
        "artifact": {"uri": "s3://corp/m", "digest": "0" * 64, "sizeBytes": 1, "kind": "adapter"},
    }
    cluster.later = [{"phase": "Running"}, done]
    monkeypatch.setattr("time.sleep", lambda _: None)

    exec(compile(code, "python.md", "exec"), {})
    assert "s3://corp/m" in capsys.readouterr().out
    cluster.jobs["tickets"]["status"] = {"phase": "Running"}
    cluster.later = [done]
    exec(compile(asynchronous, "python.md", "exec"), {})
    assert "Succeeded" in capsys.readouterr().out
