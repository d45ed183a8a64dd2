"""`finetune run` for real: two agents on loopback train a tiny model; interrupted, killed, resumed and begun again."""

from __future__ import annotations

import contextlib
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
from tests.desk import Desk, rank_below

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Desk:
    """A run that nobody disturbs."""
    desk = Desk(folder=tmp_path_factory.mktemp("calm"), files=files)
    assert desk.run(desk.manifest()) == ExitCode.OK, desk.story()
    return desk


def adapter(desk: Desk, name: str = "tiny") -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(desk.folder / "output" / name / "adapter_model.safetensors"))


def finetune(desk: Desk, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune_trainer.cli.main", *arguments]
    return subprocess.run(command, cwd=desk.folder, capture_output=True, text=True, check=False)


def test_two_nodes_train_and_the_artifact_is_whole(calm: Desk) -> None:
    status = calm.job().status
    assert status.phase is Phase.Succeeded
    assert status.artifact is not None
    assert status.plan is not None
    assert status.plan.world_size == 2
    assert status.evaluation is not None
    assert status.evaluation.base.test is not None
    assert status.evaluation.tuned.test is not None
    assert status.evaluation.tuned.test.loss < status.evaluation.base.test.loss
    verified = finetune(calm, "verify", status.artifact.uri)
    assert verified.returncode == ExitCode.OK, verified.stderr


def test_the_end_of_a_run_shows_before_and_after_artifact_and_report(calm: Desk) -> None:
    said = calm.said()
    for word in ("test loss", "base", "tuned", (calm.folder / "output" / "tiny").as_uri(), "report.html"):
        assert word in said
    shown = finetune(calm, "report", "tiny")
    assert Path(shown.stdout.strip()).is_file(), shown.stderr
    assert "Succeeded" in finetune(calm, "status", "tiny").stdout
    assert "step" in finetune(calm, "logs", "tiny").stdout


def test_a_second_run_of_a_finished_job_says_so(calm: Desk) -> None:
    before = (calm.folder / "output" / "tiny" / "manifest.json").stat().st_mtime_ns
    assert calm.run(calm.manifest()) == ExitCode.OK
    assert "finished already" in calm.said()
    assert (calm.folder / "output" / "tiny" / "manifest.json").stat().st_mtime_ns == before


def test_interrupted_and_resumed_equals_uninterrupted(calm: Desk, desk: Desk) -> None:
    slow = desk.manifest(checkpoint={"every": 1})
    hold = desk.hold(2)
    process = desk.start(slow)
    desk.wait(process, lambda: desk.steps_done() >= 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == ExitCode.INTERRUPTED, desk.story()
    hold.release()
    assert "run again to resume" in desk.said()
    assert desk.job().status.phase is Phase.Suspended
    assert not (desk.folder / "output" / "tiny" / "manifest.json").exists()

    assert desk.run(slow) == ExitCode.OK, desk.story()

    assert "resuming after step" in desk.story()
    expected, found = adapter(calm), adapter(desk)
    assert found.keys() == expected.keys()
    for name in expected:
        assert abs(found[name] - expected[name]).max() <= 1e-6, name


def test_a_killed_rank_restarts_and_ends_the_same(calm: Desk, desk: Desk) -> None:
    hold = desk.hold(2)
    process = desk.start(desk.manifest(checkpoint={"every": 1}))
    desk.wait(process, lambda: desk.steps_done() >= 2)
    rank_below(process, 1).kill()
    hold.release()
    assert process.wait(300) == ExitCode.OK, desk.story()
    status = desk.job().status
    assert status.restarts is not None
    assert (status.attempt, status.restarts.counted) == (2, 1)
    assert status.last_failure is not None
    assert status.last_failure.rank == 1
    assert "rank 1 was killed (SIGKILL)" in status.last_failure.message
    expected, found = adapter(calm), adapter(desk)
    for name in expected:
        assert abs(found[name] - expected[name]).max() <= 1e-6, name


def test_a_second_interrupt_ends_at_once_and_leaves_nobody(desk: Desk) -> None:
    process = desk.start(desk.manifest(training={"epochs": 500, "batchSize": 16}))
    desk.wait(process, lambda: desk.steps_done() >= 1)
    below = process.children(recursive=True)
    process.send_signal(signal.SIGINT)
    desk.wait(process, lambda: "Ctrl-C again" in desk.said())
    with contextlib.suppress(psutil.NoSuchProcess):  # the checkpoint was quicker
        process.send_signal(signal.SIGINT)
    assert process.wait(120) == ExitCode.INTERRUPTED, desk.story()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


def test_a_run_that_is_killed_takes_its_ranks_along(desk: Desk) -> None:
    process = desk.start(desk.manifest(training={"epochs": 500, "batchSize": 16}))
    desk.wait(process, lambda: desk.steps_done() >= 1)
    below = process.children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


def test_one_run_of_a_name_at_a_time(desk: Desk) -> None:
    process = desk.start(desk.manifest(training={"epochs": 500, "batchSize": 16}))
    desk.wait(process, lambda: desk.home.load("tiny") is not None)
    second = finetune(desk, "run", "tiny.yaml")
    assert second.returncode == ExitCode.CONFIG
    assert "running already" in second.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == ExitCode.INTERRUPTED


def test_fresh_starts_again_and_replaces_its_own_result(calm: Desk, files: Path, tmp_path: Path) -> None:
    desk = Desk(folder=tmp_path / "again", files=files)
    shutil.copytree(calm.folder, desk.folder)
    again = calm.manifest()  # the same output as before
    assert desk.run(again, "--fresh") == ExitCode.OK, desk.story()
    assert "resuming after step" not in (desk.home.log("tiny", node=0, attempt=1)).read_text()
