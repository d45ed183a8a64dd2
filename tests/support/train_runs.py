"""Runs of `train.main` as torchrun starts it, from a plan to an artifact: real processes, real files, a tiny model.

Most processes are forked from one that has imported torch, which takes longer than what they do.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from finetune_api import names
from finetune_api.failures import TerminationMessage
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.load import load_datasets
from finetune_trainer.parallel.single import Single
from finetune_trainer.rundir import RunDir
from finetune_trainer.train.capabilities import probe
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.transfer.evaluate import Layout, evaluate
from tests.support import rank_processes
from tests.support.pause_at_step import PauseAtStep
from tests.support.tiny_model import tiny_corpus, tiny_model

JOB = JobIdentity(namespace="test", name="tiny", uid="u-1")


def inputs_in(folder: Path) -> Path:
    """A tiny model and its corpus."""
    tiny_model(folder / "model")
    tiny_corpus(folder / "data")
    return folder


def spec_of(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    spec = {
        "model": {"uri": f"file://{inputs}/model"},
        "data": {
            "train": [{"uri": f"file://{inputs}/data/train.jsonl"}],
            "validation": {"fraction": 0.2},
            "test": {"uri": f"file://{inputs}/data/heldout.jsonl"},
            "slices": [{"name": "again", "uri": f"file://{inputs}/data/heldout.jsonl"}],
        },
        "output": {"uri": f"file://{output}"},
        "training": {"epochs": 5, "batchSize": 8, "learningRate": 0.003},
        "checkpoint": {"every": 5},
    }
    return {**spec, **changes}


class Gang:
    """The ranks of one attempt, each a process; `command`: started as torchrun does, and not forked."""

    def __init__(
        self,
        folder: Path,
        spec: dict[str, Any],
        *,
        ranks: int = 1,
        held_at: int | None = None,
        command: bool = False,
        **plan_fields: Any,
    ) -> None:
        self.folder, self.ranks, self.run_dir = folder, ranks, RunDir(folder / "run")
        self.command = command
        folder.mkdir(parents=True, exist_ok=True)
        self.pause = PauseAtStep(folder / "pause", held_at) if held_at else None
        self.run_dir.clear()
        typed = FineTuneJobSpec.model_validate(spec, strict=False)
        plan = RunPlan(job=JOB, spec=typed, processes_per_node=ranks, **plan_fields)
        (folder / "plan.json").write_text(plan.model_dump_json(by_alias=True, exclude_none=True))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [self._start(rank, port) for rank in range(ranks)]

    def _start(self, rank: int, port: int) -> rank_processes.TrainMain | subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks), "OMP_NUM_THREADS": "1"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            names.ENV_CACHE: str(self.folder.parent / "cache"),
            **(self.pause.environment if self.pause else {}),
        }
        arguments = ["--plan", str(self.folder / "plan.json"), "--run-dir", str(self.run_dir.path)]
        log = self.folder / f"log.{rank}"
        if not self.command:
            return rank_processes.TrainMain(arguments, environment=environment, log=log)
        command = [sys.executable, "-m", "finetune_trainer.train.main", *arguments]
        with log.open("wb") as out:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def wait(self) -> list[int]:
        return [process.wait(timeout=500) for process in self.processes]

    def log(self, rank: int = 0) -> str:
        return (self.folder / f"log.{rank}").read_text()

    def when_held(self, act: Callable[[], None]) -> None:
        """Act once rank 0 has done the step at which the ranks are held, and let them go."""
        assert self.pause is not None
        self.until(lambda: (beat := self.run_dir.heartbeats().get(0)) is not None and beat.step == self.pause.step)
        act()
        self.pause.release()

    def until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not ready():
            assert self.processes[0].poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)


def succeeded(
    folder: Path, spec: dict[str, Any], *, ranks: int = 1, command: bool = False
) -> tuple[Gang, TerminationMessage]:
    gang = Gang(folder, spec, ranks=ranks, command=command)
    assert gang.wait() == [0] * ranks, "\n".join(gang.log(rank) for rank in range(ranks))
    result = gang.run_dir.result()
    assert result is not None
    return gang, result


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter_model.safetensors")


def difference(left: Path, right: Path) -> float:
    one, other = adapter(left), adapter(right)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def loss_on_test(network: torch.nn.Module, inputs: Path, output: Path, cache: Path) -> float:
    spec = FineTuneJobSpec.model_validate(spec_of(inputs, output), strict=False)
    data = load_datasets(spec.data, tokenizer_path=output, cache=cache, seed=1)
    assert data.test is not None
    device = torch.device("cpu")
    scorer = LanguageModel(network.eval(), device, None, probe(network, device))
    layout = Layout(max_tokens=256, sequence_length=2048, packing=False, pad_id=0)
    with torch.no_grad():
        return evaluate(scorer, data.test, layout=layout, strategy=Single(), going_on=lambda: True).scores.loss
