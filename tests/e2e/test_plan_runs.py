"""The plan against whole runs: their largest resident size, from the interpreter's start to the committed artifact."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent.preflight import workload_of
from finetune_trainer.data.load import load_datasets
from finetune_trainer.planning.devices import nameless
from finetune_trainer.planning.model import read_shape
from finetune_trainer.planning.table import Planner
from finetune_trainer.rundir import RunDir
from tests.support.tiny_model import tiny_model

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "his", "they"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 32 million weights; rows of 200 to 300 tokens, and of up to 1,500."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(folder / "model", hidden=768, layers=6)
    config = folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 2048}))
    for name, longest in (("short", 300), ("long", 1500)):
        chosen = random.Random(1)
        rows = [" ".join(chosen.choices(WORDS, k=400))[: chosen.randint(200, longest) - 40] for _ in range(20)]
        lines = [json.dumps({"prompt": row, "completion": " one two three"}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("short", {"method": {"type": "full"}}),
    "lora": ("short", {}),
    "lora of long rows": ("long", {}),
    "dora": ("short", {"method": {"type": "dora"}}),
    "partial": ("short", {"method": {"type": "partial", "partial": {"layers": 4}}}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_takes_what_was_planned(inputs: Path, tmp_path: Path, name: str) -> None:
    """Within 30 %."""
    data, changes = RUNS[name]
    content = {
        "model": {"uri": (inputs / "model").as_uri()},
        "data": {"train": [{"uri": (inputs / f"{data}.jsonl").as_uri()}], "validation": {"fraction": 0.1}},
        "training": {"maxSteps": 2, "batchSize": 4, "evaluateEvery": 1},
        "output": {"uri": (tmp_path / "output").as_uri()},
    }
    spec = FineTuneJobSpec.model_validate({**content, **changes}, strict=False)
    measured = _peak(spec, tmp_path)
    read = load_datasets(spec.data, tokenizer_path=inputs / "model", cache=tmp_path / "cache", seed=1)
    planner = Planner(
        spec=spec,
        shape=read_shape(inputs / "model"),
        device=nameless("cpu", memory=1 << 40),
        workload=workload_of(read),
    )
    planned = planner.row(spec.method, planner.spread("ddp")).need.total
    print(f"{name}: {measured >> 20} MiB measured, {planned >> 20} planned")
    assert measured == pytest.approx(planned, rel=0.3)


def _peak(spec: FineTuneJobSpec, folder: Path) -> int:
    """VmHWM of the rank, in bytes."""
    run_dir = RunDir(folder / "run")
    run_dir.path.mkdir()
    plan = RunPlan(job=JobIdentity(namespace="test", name="memory", uid="u"), spec=spec)
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    command = [sys.executable, "-m", "finetune_trainer.train.main", "--plan", folder / "plan.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", names.ENV_CACHE: str(folder / "cache")}
    with (folder / "log").open("w") as log:
        rank = subprocess.Popen([*command, "--run-dir", run_dir.path], env=environment, stdout=log, stderr=log)
        peak = 0
        while rank.poll() is None:
            status = Path(f"/proc/{rank.pid}/status").read_text()
            peak = max([peak, *(int(line.split()[1]) << 10 for line in status.splitlines() if "VmHWM" in line)])
            time.sleep(0.05)
    assert rank.returncode == 0, (folder / "log").read_text()[-3000:]
    return peak
