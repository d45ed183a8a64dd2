"""`finetune run` for real: two agents on loopback train a tiny model; interrupted, killed, resumed and begun again."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune_api.failures import ExitCode
from finetune_api.status import Phase
from tests.support.local_runs import Workspace, rank_below
from tests.support.scored import scored

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Workspace:
    """A run that nobody disturbs."""
    workspace = Workspace(folder=tmp_path_factory.mktemp("calm"), files=files)
    assert workspace.run(workspace.manifest()) == ExitCode.OK, workspace.story()
    return workspace


def adapter(workspace: Workspace, name: str = "tiny") -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(workspace.folder / "output" / name / "adapter_model.safetensors"))


def finetune(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune_trainer.cli.main", *arguments]
    return subprocess.run(command, cwd=workspace.folder, capture_output=True, text=True, check=False)


def test_two_nodes_train_and_the_artifact_is_whole(calm: Workspace) -> None:
    status = calm.job().status
    assert status.phase is Phase.Succeeded
    assert status.artifact is not None
    assert status.plan is not None
    assert status.plan.world_size == 2
    base, tuned = scored(status.evaluation)
    assert tuned < base
    verified = finetune(calm, "verify", status.artifact.uri)
    assert verified.returncode == ExitCode.OK, verified.stderr


def test_the_end_of_a_run_shows_before_and_after_artifact_and_report(calm: Workspace) -> None:
    said = calm.said()
    for word in ("95 % interval", "base", "tuned", (calm.folder / "output" / "tiny").as_uri(), "report.html"):
        assert word in said
    shown = finetune(calm, "report", "tiny")
    assert Path(shown.stdout.strip()).is_file(), shown.stderr
    assert "Succeeded" in finetune(calm, "status", "tiny").stdout
    assert "step" in finetune(calm, "logs", "tiny").stdout


def test_a_second_run_of_a_finished_job_says_so(calm: Workspace) -> None:
    before = (calm.folder / "output" / "tiny" / "manifest.json").stat().st_mtime_ns
    assert calm.run(calm.manifest()) == ExitCode.OK
    assert "already complete" in calm.said()
    assert (calm.folder / "output" / "tiny" / "manifest.json").stat().st_mtime_ns == before


def test_interrupted_and_resumed_equals_uninterrupted(calm: Workspace, workspace: Workspace) -> None:
    slow = workspace.manifest(checkpoint={"every": 1})
    pause = workspace.pause_at(2)
    process = workspace.start(slow)
    workspace.wait(process, lambda: workspace.steps_done() >= 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == ExitCode.INTERRUPTED, workspace.story()
    pause.release()
    assert "run again to resume" in workspace.said()
    assert workspace.job().status.phase is Phase.Suspended
    assert not (workspace.folder / "output" / "tiny" / "manifest.json").exists()

    assert workspace.run(slow) == ExitCode.OK, workspace.story()

    assert "resuming after step" in workspace.story()
    expected, found = adapter(calm), adapter(workspace)
    assert found.keys() == expected.keys()
    for name in expected:
        assert abs(found[name] - expected[name]).max() <= 1e-6, name


def test_a_killed_rank_restarts_and_ends_the_same(calm: Workspace, workspace: Workspace) -> None:
    pause = workspace.pause_at(2)
    process = workspace.start(workspace.manifest(checkpoint={"every": 1}))
    workspace.wait(process, lambda: workspace.steps_done() >= 2)
    rank_below(process, 1).kill()
    pause.release()
    assert process.wait(300) == ExitCode.OK, workspace.story()
    status = workspace.job().status
    assert status.restarts is not None
    assert (status.attempt, status.restarts.counted) == (2, 1)
    assert status.last_failure is not None
    assert status.last_failure.rank == 1
    assert "rank 1 was killed (SIGKILL)" in status.last_failure.message
    expected, found = adapter(calm), adapter(workspace)
    for name in expected:
        assert abs(found[name] - expected[name]).max() <= 1e-6, name


def test_a_second_interrupt_ends_at_once_and_leaves_nobody(workspace: Workspace) -> None:
    process = workspace.start(workspace.manifest(training={"epochs": 500, "batchSize": 16}))
    workspace.wait(process, lambda: workspace.steps_done() >= 1)
    below = process.children(recursive=True)
    process.send_signal(signal.SIGINT)
    workspace.wait(process, lambda: "Ctrl-C again" in workspace.said())
    with contextlib.suppress(psutil.NoSuchProcess):  # the checkpoint was quicker
        process.send_signal(signal.SIGINT)
    assert process.wait(120) == ExitCode.INTERRUPTED, workspace.story()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


def test_a_run_that_is_killed_takes_its_ranks_along(workspace: Workspace) -> None:
    process = workspace.start(workspace.manifest(training={"epochs": 500, "batchSize": 16}))
    workspace.wait(process, lambda: workspace.steps_done() >= 1)
    below = process.children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


def test_one_run_of_a_name_at_a_time(workspace: Workspace) -> None:
    process = workspace.start(workspace.manifest(training={"epochs": 500, "batchSize": 16}))
    workspace.wait(process, lambda: workspace.home.load("tiny") is not None)
    second = finetune(workspace, "run", "tiny.yaml")
    assert second.returncode == ExitCode.CONFIG
    assert "already running" in second.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == ExitCode.INTERRUPTED


def test_fresh_starts_again_and_replaces_its_own_result(calm: Workspace, files: Path, tmp_path: Path) -> None:
    workspace = Workspace(folder=tmp_path / "again", files=files)
    shutil.copytree(calm.folder, workspace.folder)
    again = calm.manifest()  # the same output as before
    assert workspace.run(again, "--fresh") == ExitCode.OK, workspace.story()
    assert "resuming after step" not in (workspace.home.log("tiny", node=0, attempt=1)).read_text()


def test_a_model_that_forgets_general_text_is_held_back_and_can_be_promoted(tmp_path: Path, files: Path) -> None:
    """At thirty times the rate of the other runs it learns six letters, and nothing else is left."""
    workspace = Workspace(folder=tmp_path, files=files)
    general = tmp_path / "general.jsonl"
    general.write_text("\n".join(json.dumps({"text": f"No. {n}: {n * n * 7919} STEMI, {n}:30 h"}) for n in range(40)))
    guards = {"forgetting": {"maxBitsPerByteIncrease": 0.05}}
    manifest = workspace.manifest(nodes=1, guards=guards, method={"type": "full"})
    manifest["spec"]["data"]["general"] = {"uri": general.as_uri()}
    manifest["spec"]["training"]["learningRate"] = 0.03
    assert workspace.run(manifest) == ExitCode.GUARD, workspace.story()
    status = workspace.job().status
    assert status.phase is Phase.Failed
    assert status.last_failure is not None
    assert (status.last_failure.failure_class, status.last_failure.reason) == ("Guard", "GuardViolated")
    assert "guards.forgetting is violated" in status.last_failure.message
    assert "finetune promote" in status.last_failure.hint
    assert status.evaluation is not None
    [guard] = status.evaluation.guards
    assert guard.low is not None
    assert guard.low > guard.bound == 0.05
    output = tmp_path / "output" / "tiny"
    assert status.artifact is None
    assert not (output / "manifest.json").exists()
    assert status.candidate is not None
    assert finetune(workspace, "verify", status.candidate.uri).returncode == ExitCode.OK
    assert workspace.run(manifest) == ExitCode.GUARD, "the verdict stands, and nothing trains again"
    assert workspace.job().status.candidate == status.candidate

    promoted = finetune(workspace, "promote", "tiny")
    assert promoted.returncode == ExitCode.OK, promoted.stderr
    assert finetune(workspace, "verify", output.as_uri()).returncode == ExitCode.OK
    committed = json.loads((output / "manifest.json").read_text())
    assert [task["name"] for task in committed["trainedOn"]["tasks"]] == ["tiny"], "a later job can replay its rows"
    promotion = committed["promotion"]
    assert promotion["candidate"] == status.candidate.uri
    assert "guards.forgetting is violated" in promotion["refused"]
    assert finetune(workspace, "promote", "tiny").returncode == ExitCode.NO_INPUT

    told = finetune(workspace, "compare", output.as_uri(), "--output", "json")
    assert told.returncode == ExitCode.OK, told.stderr
    again = {(each["name"], each["metric"]): each for each in json.loads(told.stdout)["data"]}
    for each in status.evaluation.data:  # what status says is what the records say, to four digits
        compared = again[each.name, each.metric]
        assert compared["verdict"] == each.verdict
        assert compared["difference"] == pytest.approx(each.difference, rel=1e-3)
        assert (compared["low"] is None) == (each.low is None)
        if each.low is not None:
            assert [compared["low"], compared["high"]] == pytest.approx([each.low, each.high], rel=1e-3)
