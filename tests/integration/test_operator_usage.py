"""GPU hours on a real API server: in the writes that happen anyway, over restarts of job and operator; and `top`."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest

from finetune_api.failures import ExitCode
from finetune_trainer.cli.main import main
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Start
from tests.support.operator_scenarios import BROKEN, DONE

GPUS = {"resources": {"limits": {"nvidia.com/gpu": 2}}}
HOUR = 3600


@pytest.fixture
def kubectl(kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubectl in the path that is the administrator's."""
    program = tmp_path / "kubectl"
    command = [*map(str, kube.rig._kubectl()), "--kubeconfig", str(kube.rig.kubeconfig)]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_gpu_hours_are_counted_over_restarts_and_cost_no_write(
    start: Start, kube: Kube, kubectl: None, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start()
    kube.create(manifest("a", **GPUS))
    kube.schedule(*kube.await_gang("a", 1))
    began = time.monotonic()
    pods = kube.run("a", 1)
    first.stop()
    time.sleep(3)  # trains on while no operator is there

    second = start()
    kube.end(pods[0], code=70, words=BROKEN)
    kube.schedule(*kube.await_gang("a", 2))
    lost = kube.status("a")["usage"]
    passed = time.monotonic() - began
    assert lost["gpuHours"] * HOUR > 2 * 2 * 3 - 0.5
    assert lost["gpuHours"] * HOUR <= 2 * 2 * (passed + 2)
    assert lost["wastedGpuHours"] == lost["gpuHours"], "there was no checkpoint"

    pods = kube.run("a", 2)
    assert main(["top", "-n", kube.namespace, "-o", "json"]) == ExitCode.OK
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["name"], line["phase"], line["gpus"], line["restarts"]) == ("a", "Running", 4, 1)
    assert line["gpuHours"] >= lost["gpuHours"]

    time.sleep(2)
    for pod in pods:
        kube.end(pod, words=DONE)
    wait_for(lambda: kube.phase("a") == "Succeeded", what="success")
    usage = kube.status("a")["usage"]
    assert usage["gpuHours"] > line["gpuHours"]
    assert usage["wastedGpuHours"] < usage["gpuHours"]
    second.settle()
    assert second.writes["update finetunejobs/status"] <= 4, second.writes
