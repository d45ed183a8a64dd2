"""Models, data and runs of the trainer, made on the spot: nothing is downloaded, and no large weights touch a disk."""

from __future__ import annotations

import json
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.gpu.sizes import Config, Load, Sizes
from tests.support.tiny_model import tiny_corpus, tiny_tokenizer

if TYPE_CHECKING:
    import torch

    from finetune_trainer.report.record import RunRecord

Spec = dict[str, Any]


def small_model(folder: Path, config: Config) -> Path:
    """With weights in files, in float32: what a user's model is, only smaller."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "dtype"})).save_pretrained(folder)
    return folder


def large_model(folder: Path, config: Config) -> Path:
    """Config, tokenizer, and a weights file that has names and shapes and no weights: see `random_weights`."""
    from finetune_trainer.planning.layout import layout

    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    header, end = {}, 0
    for name, shape in layout(config, config["head_dim"]).items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # a hole, which takes no room on the disk
    return folder


@contextmanager
def random_weights() -> Iterator[None]:
    """Inside, the trainer's models are not read but drawn, on the device: zeros, which a hole in a file has, are faster
    than real weights, and reading 16 GB takes longer than all steps."""
    from finetune_trainer.parallel.replicated import Replicated

    def drawn(_: Replicated, kind: Any, path: Path, *, device: torch.device, **options: Any) -> Any:
        return random_network(options["config"], device, options["dtype"], options["attn_implementation"])

    with patch.object(Replicated, "build", drawn):
        yield


def random_network(config: Any, device: torch.device, dtype: Any, attention: str) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation=attention).eval()


def text_of_a_library(length: int) -> str:
    """So many characters of Python's own library, in ASCII."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts, have = [], 0
    for file in sorted(folder.glob("*.py")):
        text = file.read_text(errors="replace").encode("ascii", "ignore").decode().replace("\r", "")
        parts.append(text)
        have += len(text)
        if have >= length:
            break
    text = "".join(parts)
    return (text * (1 + length // len(text)))[:length]


def documents(folder: Path, *, count: int, length: int) -> Path:
    """train.jsonl of texts that are `length` tokens each to a tokenizer of bytes and a data path that adds one for the
    end of a text, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    text = text_of_a_library(count * length)
    rows = []
    for number in range(count):
        mark = f"{number:06d} "
        rows.append(mark + text[number * length : (number + 1) * length - 1 - len(mark)])
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (folder / "validation.jsonl").write_text(json.dumps({"text": "held out: " + text[:22]}) + "\n")
    return folder


@dataclass(frozen=True)
class Desk:
    """A small model with its rows, and runs over them."""

    folder: Path
    steps: int

    @classmethod
    def of(cls, folder: Path, sizes: Sizes, *, steps: int) -> Desk:
        """However many steps: the rows are the same on every desk, and so are those of a step."""
        small_model(folder / "model", sizes.small)
        tiny_corpus(folder, rows=8 * sizes.steps + 24, heldout=8)
        return cls(folder, steps)

    def spec(self, name: str, *, method: Mapping[str, Any] | str = "lora", **changes: Any) -> Spec:
        """A manifest's spec; `changes` of whole parts, those of `training` and `data` one by one."""
        training = {
            "maxSteps": self.steps, "epochs": 100, "batchSize": 8, "learningRate": 1e-3, "schedule": "constant",
            "warmupRatio": 0.0, "evaluateEvery": 1000, "microBatchTokens": 128, "precision": "float32",
        } | changes.pop("training", {})  # fmt: skip
        if training["precision"] == "float32":  # third-party kernels are proved to 1e-4, and these runs are held closer
            training.setdefault("kernels", "reference")
        data = {
            "train": [{"uri": f"file://{self.folder}/train.jsonl"}],
            "validation": {"uri": f"file://{self.folder}/heldout.jsonl"},
            "sequenceLength": 128,
        } | changes.pop("data", {})
        return {
            "model": {"uri": f"file://{self.folder}/model"},
            "data": data,
            "output": {"uri": f"file://{self.folder}/out/{name}"},
            "method": {"type": method} if isinstance(method, str) else dict(method),
            "training": training,
            **changes,
        }

    def run(self, name: str, *, plan: Mapping[str, Any] | None = None, **changes: Any) -> Ran:
        return run(self.spec(name, **changes), self.folder / "runs" / name, name=name, plan=plan)


@dataclass(frozen=True)
class Ran:
    """What a run left behind."""

    folder: Path
    """Of the artifact."""
    record: RunRecord
    seconds: float

    @property
    def losses(self) -> list[float]:
        return [float(point.loss or 0.0) for point in self.record.curve]

    @property
    def computed(self) -> str:
        return self.record.attempts[-1].computed

    def weights(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted(self.folder.glob("*.safetensors"))}


def run(spec: Spec, folder: Path, *, name: str, plan: Mapping[str, Any] | None = None) -> Ran:
    """A whole run in this process, as torchrun starts it: from the manifest to the committed artifact."""
    from finetune_api import uris
    from finetune_trainer.report.record import RECORD_FILE, decode
    from finetune_trainer.train.run import run as train

    began = time.monotonic()
    made = plan_of(spec, name=name, **(plan or {}))
    train(made, _run_dir(folder), _alone())
    output = Path("/" + uris.parse(spec["output"]["uri"]).path.lstrip("/"))
    return Ran(output, decode((output / RECORD_FILE).read_bytes()), time.monotonic() - began)


def plan_of(spec: Spec, *, name: str, **plan: Any) -> Any:
    from finetune_api.plan import RunPlan

    job = {"namespace": "kit", "name": "kit", "uid": name}
    return RunPlan.model_validate_json(json.dumps({"job": job, "spec": spec, **plan}))


def _run_dir(folder: Path) -> Any:
    from finetune_trainer.rundir import RunDir

    return RunDir(folder)


def _alone() -> dict[str, str]:
    import os

    return dict(os.environ)


class Enough(BaseException):
    """The last step that anybody wanted is done: the rest of the run would only write a model that nobody reads."""


@dataclass
class Drive:
    """A whole run of the trainer that ends after its last step, watched from outside.

    `before(steps)` is called when training begins and after each step; what it raises ends the run."""

    load: Load
    folder: Path
    device: torch.device
    steps: int
    watch: Callable[[int], None]
    compiled: bool = False
    losses: list[float] = field(default_factory=list)
    computed: str = ""
    trainable: int = 0

    def go(self) -> None:
        from finetune_trainer.train.reporter import Reporter
        from finetune_trainer.train.run import run as train

        plain_phase, plain_step, plain_say = Reporter.phase, Reporter.step, Reporter.say
        drive = self

        def phase(reporter: Reporter, name: str, message: str = "") -> None:
            plain_phase(reporter, name, message)
            if name == "training":
                drive.trainable = reporter.resolved.trainable_parameters or 0
                if reporter.resolved.longest_row != drive.load.document:
                    raise AssertionError(
                        f"documents of {reporter.resolved.longest_row} tokens, not {drive.load.document}"
                    )
                drive.watch(0)

        def step(reporter: Reporter, state: Any, done: Any) -> None:
            drive.losses.append(done.loss)
            plain_step(reporter, state, done)
            drive.watch(state.step)
            if state.step >= drive.steps:
                raise Enough

        def say(reporter: Reporter, text: str) -> None:
            if text.startswith("parameters "):
                drive.computed = text
            plain_say(reporter, text)

        with ExitStack() as stack:
            stack.enter_context(random_weights())
            for name, new in (("phase", phase), ("step", step), ("say", say)):
                stack.enter_context(patch.object(Reporter, name, new))
            try:
                train(plan_of(self.spec(), name="drive"), _run_dir(self.folder / "run"), _alone())
            except Enough:
                return

    def spec(self) -> Spec:
        """Every step has the same number of tokens, computed at once."""
        load, data = self.load, self.folder / "data"
        return {
            "model": {"uri": f"file://{self.folder}/model"},
            "data": {
                "train": [{"uri": f"file://{data}/train.jsonl"}],
                "validation": {"uri": f"file://{data}/validation.jsonl"},
                "sequenceLength": load.row,
            },
            "output": {"uri": f"file://{self.folder}/out"},
            "method": {"type": load.method},
            "training": {
                "maxSteps": self.steps + 1,
                "epochs": 100,
                "batchSize": load.documents,
                "microBatchTokens": load.tokens,
                "learningRate": 1e-5 if load.method == "full" else 1e-4,
                "schedule": "constant",
                "warmupRatio": 0.0,
                "evaluateEvery": 100000,
                "precision": "bfloat16",
                "compile": self.compiled,
                "frozenLayerCache": False,
            },
            "checkpoint": {"every": 100000},
        }


def prepared(folder: Path, load: Load, *, steps: int) -> Path:
    """What a Drive, or a rival, works on."""
    large_model(folder / "model", load.config)
    documents(folder / "data", count=(steps + 1) * load.documents, length=load.document)
    return folder
