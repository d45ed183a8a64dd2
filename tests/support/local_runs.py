"""A folder in which somebody runs `finetune run`: agents on loopback, a tiny model, and everything that is said."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from finetune_api.job import FineTuneJob
from finetune_trainer.agent.home import Home
from finetune_trainer.rundir import RunDir
from tests.support.pause_at_step import PauseAtStep
from tests.support.tiny_model import tiny_corpus, tiny_model

Json = dict[str, Any]


def model_and_corpus(folder: Path) -> Path:
    tiny_model(folder / "model")
    tiny_corpus(folder / "corpus", rows=64)
    return folder


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder in which somebody runs `finetune`."""

    folder: Path
    files: Path
    environ: dict[str, str] = field(default_factory=dict)

    def manifest(self, *, name: str = "tiny", **changes: object) -> Json:
        spec: Json = {
            "model": {"uri": (self.files / "model").as_uri()},
            "data": {
                "train": [{"uri": (self.files / "corpus" / "train.jsonl").as_uri()}],
                "test": {"uri": (self.files / "corpus" / "heldout.jsonl").as_uri()},
                "sequenceLength": 128,
            },
            "training": {"epochs": 3, "batchSize": 16, "learningRate": 0.001},
            "output": {"uri": (self.folder / "output" / name).as_uri()},
            "retry": {"maxRestarts": 1},
            "nodes": 2,
        }
        spec.update(changes)
        return {
            "apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec,
        }  # fmt: skip

    def start(self, manifest: Json, *arguments: str) -> psutil.Popen:
        name = manifest["metadata"]["name"]
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(manifest))
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.environ
        command = [sys.executable, "-m", "finetune_trainer.cli.main", "run", str(file), *arguments]
        with self.log(name).open("ab") as log:
            return psutil.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, manifest: Json, *arguments: str) -> int:
        return int(self.start(manifest, *arguments).wait(500))

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str = "tiny") -> str:
        return self.log(name).read_text()

    @property
    def home(self) -> Home:
        return Home(self.folder / ".finetune")

    def job(self, name: str = "tiny") -> FineTuneJob:
        job = self.home.load(name)
        assert job is not None
        return job

    def story(self, name: str = "tiny") -> str:
        """All that was said, for a failed assertion."""
        logs = sorted(self.home.run(name).glob("node-*/attempt-*.log"))
        return "\n".join([self.said(name), *(f"--- {log}\n{log.read_text()}" for log in logs)])

    def wait(self, process: psutil.Popen, ready: Callable[[], bool], *, name: str = "tiny") -> None:
        deadline = time.monotonic() + 300
        while not ready():
            assert process.poll() is None, self.story(name)
            assert time.monotonic() < deadline, self.story(name)
            time.sleep(0.02)

    def steps_done(self, name: str = "tiny") -> int:
        """By rank 0's heartbeat."""
        beat = RunDir(self.home.node(name, 0)).heartbeats().get(0)
        return beat.step if beat else 0

    def pause_at(self, step: int) -> PauseAtStep:
        """Ranks of runs that start from now on stop after this step, until it is released."""
        pause = PauseAtStep(self.folder / "pause", step)
        self.environ.update(pause.environment)
        return pause


def rank_below(process: psutil.Popen, rank: int) -> psutil.Process:
    """The training process of the rank."""
    for below in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # somebody else, who has ended
            if below.environ().get("RANK") == str(rank):
                return below
    raise AssertionError(f"rank {rank} does not run")
