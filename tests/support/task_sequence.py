"""Jobs that continue from each other, each a whole run in this process: preflight, training, artifact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent.preflight import check
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.artifact import read_manifest
from finetune_trainer.store.manifest import Manifest
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.run import run
from tests.support.tiny_model import tiny_corpus


def task(root: Path, name: str, *, seed: int = 0, after: str = "", **changes: Any) -> dict[str, Any]:
    """The spec of a job with data of its own, below `root`; `after`: the job that it continues from."""
    data = tiny_corpus(root / "data" / name, rows=24, heldout=24, seed=seed)
    spec: dict[str, Any] = {
        "model": {"uri": (root / "model").as_uri()},
        "data": {
            "train": [{"uri": (data / "train.jsonl").as_uri()}],
            "test": {"uri": (data / "heldout.jsonl").as_uri()},
            "sequenceLength": 128,
        },
        "method": {"type": "lora", "lora": {"rank": 4}},
        "training": {"maxSteps": 6, "batchSize": 8, "learningRate": 0.01},
        "output": {"uri": output(root, name).as_uri()},
    }
    return spec | ({"continueFrom": output(root, after).as_uri()} if after else {}) | changes


def output(root: Path, name: str) -> Path:
    return root / "output" / name


def plan(name: str, spec: dict[str, Any]) -> RunPlan:
    typed = FineTuneJobSpec.model_validate(spec, strict=False)
    return RunPlan(job=JobIdentity(namespace="test", name=name, uid=f"u-{name}"), spec=typed)


def refused(root: Path, name: str, spec: dict[str, Any]) -> None:
    """Runs the preflight alone."""
    check(plan(name, spec), cache=root / "cache")


def trained(root: Path, name: str, spec: dict[str, Any], patch: pytest.MonkeyPatch) -> Manifest:
    """The manifest of what the job commits."""
    patch.setenv(names.ENV_CACHE, str(root / "cache"))
    made = plan(name, spec)
    check(made, cache=root / "cache")
    folder = RunDir(root / "runs" / name)
    folder.clear()
    run(made, folder, dict(os.environ))
    return read_manifest(open_folder(output(root, name).as_uri(), prefix=""))
