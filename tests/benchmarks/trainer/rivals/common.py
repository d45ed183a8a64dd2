"""What every side of a comparison shares, in whichever interpreter it runs: only torch, numpy and transformers.

A side is a script that takes a task as JSON, trains, and prints one line of JSON: its losses, CPU seconds a step, peak
memory, how many parameters trained, and versions. The documents are the same for all, tokenised before, in the order
in which steps take them; so is the adapter's beginning.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

RANK, RATE = 16, 1e-4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Task:
    model: str
    """Folder."""
    documents: str
    """Folder of train.jsonl and of train.npz: `tokens` (tokens,), `offsets` (documents + 1,). All but the first token
    of each document is trained."""
    scratch: str
    steps: int
    rows: int
    """Documents of a step."""
    length: int
    """Tokens of the longest document."""
    layers: int | None
    """How many of the last layers get an adapter; None: all."""
    packing: bool
    """Each step sees all documents, and a side may lay them out as it likes; else the next `rows` of them."""
    setting: str
    """One of the side's own words, such as "default"."""
    method: str = "lora"
    epochs: int = 1

    def adapted(self, layers: int) -> list[int] | None:
        return None if self.layers is None else list(range(layers - self.layers, layers))


def examples(task: Task) -> list[dict[str, list[int]]]:
    held = np.load(f"{task.documents}/train.npz")
    tokens, offsets = held["tokens"].tolist(), held["offsets"].tolist()
    rows = [tokens[a:b] for a, b in pairwise(offsets)]
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, *ids[1:]]} for ids in rows]


@torch.no_grad()
def same_start(named: Iterable[tuple[str, torch.nn.Parameter]]) -> int:
    """The adapter's first values are a function of their names, the same on every side; answers how many parameters
    train."""
    trained = 0
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        trained += parameter.numel()
        if "lora_A" in name:
            known = name[name.index("layers.") : name.index(".lora_A")]
            generator = torch.Generator().manual_seed(zlib.crc32(known.encode()))
            bound = 1 / math.sqrt(parameter.shape[1])
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return trained


class Meter:
    """Losses and CPU seconds of steps, from one step's end to the next."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.cpu: list[float] = []
        self.trainable = 0
        self.dtypes: list[str] = []
        self.start = 0.0
        """From the start of the process to the end of its first step."""
        self.before = 0.0
        """Between loading and the first step, for what later steps save."""
        self._since = 0.0

    def begin(self, named: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        named = list(named)
        self.trainable = same_start(named)
        self.dtypes = sorted({str(p.dtype).removeprefix("torch.") for _, p in named})
        self.restart()

    def restart(self) -> None:
        self._since = time.process_time()

    def step(self) -> None:
        now = time.process_time()
        self.cpu.append(now - self._since)
        self.start = self.start or now
        self._since = now

    def report(self, *packages: str) -> dict[str, Any]:
        return {
            "losses": self.losses,
            "cpu": self.cpu,
            "start": self.start,
            "before": self.before,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "trainable": self.trainable,
            "dtypes": self.dtypes,
            "versions": versions(*packages),
        }


def versions(*packages: str) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def watching(meter: Meter) -> Any:
    """A callback for transformers.Trainer and its descendants."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
            meter.begin(model.named_parameters())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step()

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                meter.losses.append(float(logs["loss"]))

    return Watch()


def constants(task: Task) -> dict[str, Any]:
    """TrainingArguments that make the sides comparable; everything else is the side's own default."""
    steps = {"num_train_epochs": task.steps} if task.packing else {"max_steps": task.steps}
    return {
        **steps,
        "output_dir": task.scratch,
        "use_cpu": True,
        "bf16": False,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 1,
    }


def main(side: Callable[[Task], dict[str, Any]], *, absent: Iterable[str] = ()) -> None:
    """`absent`: packages that a side does not ask for, and would import where it finds them with ours."""
    sys.modules.update(dict.fromkeys(absent))
    torch.set_num_threads(1)
    print("\n" + json.dumps(side(Task(**json.loads(sys.argv[1])))), flush=True)
