"""The commands that ask a cluster: what they make of kubectl's answers, and of its refusals."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from finetune_api.failures import ExitCode
from finetune_trainer.cli.jobs import Where
from finetune_trainer.cli.logs import kubectl_logs
from finetune_trainer.cli.main import main
from tests.support.manifests import minimal
from tests.support.printed_json import conforms


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that answers with the file `answer`, or fails with the file `refusal`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "kubectl"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {folder}/arguments\n'
        f"[ -f {folder}/refusal ] && cat {folder}/refusal >&2 && exit 1\ncat {folder}/answer\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_status_from_a_cluster(tmp_path: Path, kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = minimal(tmp_path) | {
        "status": {
            "phase": "Failed",
            "attempt": 4,
            "lastFailure": {"class": "Data", "reason": "DataEmpty", "message": "no rows", "hint": "Give some."},
        }
    }
    answer["metadata"] = {"name": "tiny", "namespace": "team", "uid": "u", "managedFields": [{"manager": "kubectl"}]}
    (kubectl / "answer").write_text(json.dumps(answer))
    assert main(["status", "tiny", "-n", "team", "--context", "prod"]) == ExitCode.OK
    said = capsys.readouterr().out
    for word in ("Failed", "DataEmpty (class Data)", "no rows", "Give some."):
        assert word in said
    asked = (kubectl / "arguments").read_text().split()
    assert asked == [
        "--context",
        "prod",
        "--namespace",
        "team",
        "get",
        "finetunejobs.finetune.dev",
        "tiny",
        "--output",
        "json",
    ]


def job_on_cluster(name: str, phase: str, gpus: int, **status: object) -> dict[str, object]:
    spec = {
        "model": {"uri": "hf://org/model"}, "data": {"train": [{"uri": "s3://corp/train.jsonl"}]},
        "output": {"uri": "s3://corp/out"}, "nodes": 2, "resources": {"limits": {"nvidia.com/gpu": gpus}},
    }  # fmt: skip
    meta = {"name": name, "namespace": "team", "uid": "u"}
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": meta}
    return head | {"spec": spec, "status": {"phase": phase, "attempt": 1, "nodes": 2} | status}


RUNNING = {
    "progress": {"step": 30, "totalSteps": 120, "etaSeconds": 3785, "tokensPerSecond": 1234.5},
    "usage": {"gpuHours": 12.5, "wastedGpuHours": 2.5, "money": 31.25, "currency": "EUR"},
    "restarts": {"counted": 1, "free": 0},
}
JOBS = [
    job_on_cluster("small", "Starting", 1),
    job_on_cluster("large", "Running", 4, **RUNNING),
    job_on_cluster("over", "Succeeded", 8, usage={"gpuHours": 1.0, "wastedGpuHours": 0.0}),
    {"kind": "FineTuneJob", "metadata": {"name": "of another version"}, "spec": 7},
]


def test_top_lists_the_jobs_that_hold_gpus(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "answer").write_text(json.dumps({"items": JOBS}))

    assert main(["top", "-n", "team"]) == ExitCode.OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == "team/large Running 2 8 25 % 1h03m 1,234 1 12.5 20 % 31.25 EUR"
    assert lines[3] == "team/small Starting 2 2 0"
    assert lines[5] == "2 jobs, 10 GPUs, 12.5 GPU hours (2.5 wasted), 31.25 EUR"
    assert (kubectl / "arguments").read_text() == "--namespace team get finetunejobs.finetune.dev --output json\n"


def test_top_as_json(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "answer").write_text(json.dumps({"items": JOBS}))

    assert main(["top", "--all-namespaces", "--all", "-o", "json"]) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    conforms("top", found)
    assert [each["name"] for each in found] == ["large", "small", "over"]
    assert found[0] == {
        "namespace": "team", "name": "large", "phase": "Running", "nodes": 2, "gpus": 8, "percent": 25,
        "etaSeconds": 3785, "tokensPerSecond": 1234.5, "restarts": 1, "gpuHours": 12.5, "wastedGpuHours": 2.5,
        "money": 31.25, "currency": "EUR",
    }  # fmt: skip
    assert found[2]["gpus"] == 0
    assert "--all-namespaces" in (kubectl / "arguments").read_text()


def test_top_of_a_cluster_where_nothing_runs(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "answer").write_text(json.dumps({"items": []}))

    assert main(["top"]) == ExitCode.OK
    assert capsys.readouterr().out == "no running jobs\n"


def test_status_shows_usage(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "answer").write_text(json.dumps(JOBS[1]))

    assert main(["status", "large", "-n", "team"]) == ExitCode.OK
    assert "12.5 GPU hours (2.5 wasted), 31.25 EUR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        ('Error from server (NotFound): finetunejobs "tiny" not found', ExitCode.NO_INPUT, "no FineTuneJob named tiny"),
        ("error: the server doesn't have a resource type", ExitCode.UNAVAILABLE, "CustomResourceDefinition"),
        ("The connection to the server was refused", ExitCode.UNAVAILABLE, "reason   ClusterUnavailable"),
    ],
)
def test_a_cluster_that_refuses(
    refusal: str, code: int, words: str, kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kubectl / "refusal").write_text(refusal)
    assert main(["status", "tiny", "-n", "team"]) == code
    assert words in capsys.readouterr().err
    if code == ExitCode.UNAVAILABLE:
        assert main(["top"]) == code


def test_a_mistyped_run_of_this_machine_is_suggested_though_no_cluster_answers(
    kubectl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kubectl / "refusal").write_text("The connection to the server was refused")
    run = tmp_path / "home" / "runs" / "tickets" / "job.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    assert main(["status", "tikcets", "--home", str(tmp_path / "home")]) == ExitCode.UNAVAILABLE
    said = " ".join(capsys.readouterr().err.split())
    assert f"no run named tikcets in {tmp_path}/home; on the cluster: " in said
    assert "Did you mean tickets, a run of this machine?" in said
    assert main(["status", "other", "--home", str(tmp_path / "home")]) == ExitCode.UNAVAILABLE
    said = " ".join(capsys.readouterr().err.split())
    assert "Runs on this machine: tickets. For a job on a cluster: Check the kubeconfig" in said
    assert main(["status", "other", "--home", str(tmp_path / "none")]) == ExitCode.UNAVAILABLE
    assert "For a run on this machine: pass its folder .finetune with --home." in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    "command", [["verify"], ["compare"], ["chat", "--prompt", "a"], ["serve-manifest", "--for", "vllm"]], ids=str
)
def test_a_path_without_a_folder_is_no_name_of_a_job(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], "./tunde", *command[1:]]) == ExitCode.NO_INPUT
    said = " ".join(capsys.readouterr().err.split())
    assert "there is no folder ./tunde hint Give the folder of an artifact" in said


@pytest.mark.parametrize("columns", [40, 60])
def test_messages_fit_a_narrow_terminal(
    columns: int, kubectl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    (kubectl / "refusal").write_text("The connection to the server was refused")
    assert main(["status", "other", "-n", "team"]) == ExitCode.UNAVAILABLE
    assert max(map(len, capsys.readouterr().err.splitlines())) <= columns


@pytest.mark.parametrize(
    ("status", "arguments", "code", "words"),
    [
        ({"phase": "Queued", "attempt": 1}, [], ExitCode.OK, "tiny is Queued: see `finetune status tiny`"),
        ({}, [], ExitCode.OK, "tiny is Pending: see"),
        ({"phase": "Running", "attempt": 2}, ["--attempt", "7"], ExitCode.NO_INPUT, "no attempt 7: the current"),
    ],
)
def test_logs_that_are_not_there_yet(
    status: dict[str, object],
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    kubectl: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (kubectl / "answer").write_text(json.dumps(minimal(tmp_path) | {"status": status}))
    assert main(["logs", "tiny", "-n", "team", *arguments]) == code
    assert words in capsys.readouterr().err


def test_logs_from_a_cluster_are_chosen_by_the_operators_labels() -> None:
    where = Where(home=Path("none"), namespace="team")
    command = " ".join(kubectl_logs("tiny", where, node=1, attempt=3, follow=True))
    assert "--namespace team logs --selector finetune.dev/job-name=tiny,finetune.dev/attempt=3," in command
    assert "batch.kubernetes.io/job-completion-index=1" in command
    assert command.endswith("--follow")


@pytest.mark.parametrize(
    ("phase", "says"), [("Failed", "has no artifact (phase Failed)"), ("Running", "no artifact yet")]
)
def test_no_report(phase: str, says: str, tmp_path: Path, kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "answer").write_text(json.dumps(minimal(tmp_path) | {"status": {"phase": phase}}))
    assert main(["report", "tiny", "-n", "team"]) == ExitCode.NO_INPUT
    assert says in capsys.readouterr().err
