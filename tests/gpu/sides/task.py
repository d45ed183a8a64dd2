"""What every side is given, and what it answers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu.memory import begin_peak, peaks, wait
from tests.gpu.sizes import Load
from tests.gpu.workshop import Drive, plan_of

if TYPE_CHECKING:
    import torch

RANK, RATE = 16, {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Task:
    load: Load
    folder: Path
    device: torch.device
    warm: int
    """Steps before the clock starts."""
    steps: int
    compiled: bool = False
    liger: bool = True
    """Whether a rival takes Liger's kernels, where they are installed."""
    checkpointing: bool = False
    """Of a rival's activations: a third more time, for runs that do not fit without."""

    @property
    def setting(self) -> str:
        """In words, of a rival."""
        checkpointing = "checkpointing" if self.checkpointing else "no checkpointing"
        return f"sdpa, {checkpointing}{', liger' if self.uses_liger else ''}"

    @property
    def uses_liger(self) -> bool:
        return self.liger and self.device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None

    def rows(self) -> list[list[int]]:
        """The documents as tokens, as our own data path makes them, in the order of the file."""
        from finetune_trainer.data.load import load_datasets

        drive = Drive(self.load, self.folder, self.device, self.steps, lambda _: None)
        data = plan_of(drive.spec(), name="rival").spec.data
        corpus = load_datasets(data, tokenizer_path=self.folder / "model", cache=self.folder / "rows", seed=1).train
        if {int(length) for length in corpus.lengths} != {self.load.document}:
            raise AssertionError(f"documents of other lengths than {self.load.document} tokens")
        made = corpus.tokens.reshape(-1, self.load.document).tolist()
        return made[: self.steps * self.load.documents]

    def filled(self) -> list[list[int]]:
        """The same tokens in rows that are full, documents one after another."""
        tokens = [token for row in self.rows() for token in row]
        size = self.load.row
        return [tokens[start:end] for start, end in pairwise(range(0, len(tokens) + 1, size))]


@dataclass
class Timed:
    """The clock of a side: it starts when `warm` steps are done, and nobody waits for the GPU before the last one."""

    task: Task
    losses: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    """Seconds from one step's end to the next's, as the host sees them."""
    seconds: float = 0.0
    reserved: int = 0
    allocated: int = 0
    trainable: int = 0
    setting: str = ""
    versions: str = ""
    computed: str = ""
    _since: float = 0.0
    _last: float = 0.0

    def step(self, done: int) -> None:
        """`done` steps are done; 0: none yet."""
        device, now = self.task.device, time.perf_counter()
        if done == 0:
            begin_peak(device)
        if done > self.task.warm:
            self.each.append(now - self._last)
        if done == self.task.warm:
            wait(device)
            self._since = now = time.perf_counter()
        if done == self.task.steps:
            wait(device)
            self.seconds = time.perf_counter() - self._since
            self.reserved, self.allocated = peaks(device)
        self._last = now


def versions(*packages: str) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def common(task: Task, folder: Path) -> dict[str, Any]:
    """TrainingArguments that make a side comparable, with what its documentation recommends for speed."""
    load, gpu = task.load, task.device.type == "cuda"
    return {
        "output_dir": str(folder),
        "max_steps": task.steps,
        "per_device_train_batch_size": load.tokens // load.row,
        "gradient_accumulation_steps": 1,
        "bf16": gpu,
        "use_cpu": not gpu,
        "learning_rate": RATE[load.method],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": task.checkpointing,
        "logging_steps": max(1, task.warm),  # each step's loss would be waited for
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
        "seed": 1,
        "use_liger_kernel": task.uses_liger,
    }


def network(task: Task) -> Any:
    """For a rival, with the weights that ours has. Full fine-tuning in float32 weights, as ours; a frozen base in
    bfloat16, or in 4 bits."""
    import torch
    from transformers import AutoConfig

    from tests.gpu.workshop import random_network

    config = AutoConfig.from_pretrained(task.folder / "model")
    config.use_cache = False
    dtype = torch.float32 if task.load.method == "full" else torch.bfloat16
    made = random_network(config, task.device, dtype, "sdpa")
    if task.load.method == "qlora":
        _pack(made, task.device)
    return made


def _pack(made: Any, device: torch.device) -> None:
    """As transformers' BitsAndBytesConfig does for QLoRA: NF4, twice quantised, products in bfloat16."""
    import bitsandbytes as bnb
    import torch
    from torch import nn

    linear = [n for n, m in made.named_modules() if type(m) is nn.Linear and ".layers." in f".{n}"]
    for name in linear:
        old = made.get_submodule(name)
        new = bnb.nn.Linear4bit(
            old.in_features, old.out_features, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
        made.set_submodule(name, new.to(device))
    made.is_loaded_in_4bit = True  # by which PEFT chooses its layers


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")


def watching(timed: Timed) -> Any:
    """A callback for transformers.Trainer and its descendants."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
            timed.trainable = sum(_numel(p) for p in model.parameters() if p.requires_grad)
            timed.step(0)

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            timed.step(state.global_step)

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                timed.losses.append(float(logs["loss"]))

    return Watch()


def _numel(parameter: Any) -> int:
    return int(parameter.numel())
