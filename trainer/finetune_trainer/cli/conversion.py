"""Converts the configuration of other trainers into the spec of a FineTuneJob: Axolotl, LLaMA-Factory, Hugging Face's
TrainingArguments (as JSON or YAML), and Kubeflow's TrainJob and PyTorchJob.

Each is one record of its keys. What a record does not name is reported and never guessed: `ignored` lists every such
key with its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import TRAITS

Config = Mapping[str, Any]
Spec = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The spec, and the keys that have no equivalent, as `key: value`."""

    spec: Spec
    ignored: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One kind of configuration.

    `keys` maps its keys to paths of the spec. `read` names keys that `finish` uses. `same` are keys with values that
    the trainer has anyway, so that nothing is lost: `{"bf16": (True, "auto")}`. `finish` adds the rest to the spec,
    and yields what it could not convert, or what the user should check.
    """

    name: str
    knows: Callable[[Config], bool]
    keys: Mapping[str, str]
    read: frozenset[str]
    same: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    finish: Callable[[Config, Spec], Iterator[str]]


def converted(config: Config) -> Converted:
    """The spec of a configuration. Raises FinetuneError if no dialect knows it."""
    dialect = next((each for each in DIALECTS if each.knows(config)), None)
    if dialect is None:
        known = ", ".join(each.name for each in DIALECTS)
        message = f"not a configuration that can be converted; known are those of {known}"
        raise FinetuneError(Reason.InvalidSpec, message, "Without --from, finetune init asks three questions.")
    spec: Spec = {}
    ignored = []
    for key, value in config.items():
        if key in dialect.keys and value is not None:
            path, value = dialect.keys[key], _value(value)
            _set(spec, path, math.ceil(value) if path == "training.epochs" else value)
            if path == "training.epochs" and value % 1:
                ignored.append(f"{key}: {value} (rounded up)")
        elif key not in dialect.read and value not in (None, False, "", *dialect.same.get(key, ())):
            ignored.append(f"{key}: {value}")
    ignored += dialect.finish(config, spec)
    if uri := spec.get("output", {}).get("uri"):
        spec["output"]["uri"] = _path(uri)
    return Converted(spec=spec, ignored=tuple(ignored))


def _set(spec: Spec, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        spec = spec.setdefault(parent, {})
    spec[last] = value


def _value(value: Any) -> Any:
    """PyYAML reads 2e-4, without a dot, as a string; fields that are integers get 3 for 3.0."""
    try:
        value = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _path(text: str) -> str:
    return text if "://" in text or text.startswith((".", "/", "~")) else f"./{text}"


def _hub(value: Any, scheme: str = "hf://") -> str:
    """A name on the hub, or a path, as a URI."""
    text = str(value)
    return text if "://" in text or text.startswith((".", "/", "~")) else f"{scheme}{text}"


def _batch(config: Config, spec: Spec, key: str) -> Iterator[str]:
    """Rows a step: of a device, times accumulated steps. The number of devices is not in these files."""
    if key in config or "gradient_accumulation_steps" in config:
        rows = int(config.get(key) or 1) * int(config.get("gradient_accumulation_steps") or 1)
        _set(spec, "training.batchSize", rows)
        yield f"the number of devices: training.batchSize {rows} is for one; multiply it by those that you used"


def _schedule(config: Config, spec: Spec, key: str) -> Iterator[str]:
    named = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
    if config.get(key) in named:
        _set(spec, "training.schedule", named[config[key]])
    elif config.get(key) is not None:
        yield f"{key}: {config[key]}"


def _optimizer(config: Config, spec: Spec, key: str) -> Iterator[str]:
    if config.get(key) in ("adamw_8bit", "adamw_bnb_8bit"):
        _set(spec, "training.optimizer", "adamw8bit")
    elif config.get(key) not in (None, "adamw_torch", "adamw_torch_fused"):
        yield f"{key}: {config[key]}"


def _adapter(config: Config, spec: Spec, *, method: str, targets: Any) -> None:
    """Rank, alpha and dropout are keys of the method that is used."""
    spec["method"] = {"type": method}
    traits = TRAITS.get(method)
    if traits is None or not traits.low_rank:
        return
    named = (("lora_r", "rank"), ("lora_rank", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout"))
    given = {ours: config[theirs] for theirs, ours in named if config.get(theirs) is not None}
    if chosen := _targets(targets):
        given["targets"] = chosen
    spec["method"][method] = given


ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
MLP = frozenset({"gate_proj", "up_proj", "down_proj"})


def _targets(value: Any) -> str | None:
    """all-linear, attention or mlp; None (the default, all-linear) for every other choice of modules."""
    names = set(value.split(",") if isinstance(value, str) else value or ())
    if names in ({"all"}, {"all-linear"}, ATTENTION | MLP):
        return "all-linear"
    return {ATTENTION: "attention", MLP: "mlp"}.get(frozenset(names))


# --- Axolotl --------------------------------------------------------------------------------------------------------


def _finish_axolotl(config: Config, spec: Spec) -> Iterator[str]:
    spec["model"] = {"uri": _hub(config["base_model"])}
    if revision := config.get("revision_of_model"):
        spec["model"]["revision"] = revision
    for number, source in enumerate(config.get("datasets") or ()):
        path = str(source.get("path", ""))
        local = path.startswith((".", "/")) or path.endswith((".jsonl", ".json", ".parquet", ".arrow", ".txt"))
        uri = _path(path) if local else f"{_hub(path, 'hf://datasets/').rstrip('/')}/"
        spec.setdefault("data", {}).setdefault("train", []).append({"uri": uri})
        yield from (f"datasets[{number}].{key}: {value}" for key, value in source.items() if key != "path")
    if 0 < float(config.get("val_set_size") or 0) <= 0.5:
        _set(spec, "data.validation.fraction", float(config["val_set_size"]))
    method = config.get("adapter") or "full"
    targets = "all-linear" if config.get("lora_target_linear") else config.get("lora_target_modules")
    _adapter(config, spec, method=method, targets=targets)
    yield from _schedule(config, spec, "lr_scheduler")
    yield from _optimizer(config, spec, "optimizer")
    yield from _batch(config, spec, "micro_batch_size")


AXOLOTL = Dialect(
    name="Axolotl",
    knows=lambda config: "base_model" in config,
    keys={
        "sequence_len": "data.sequenceLength", "sample_packing": "data.packing", "num_epochs": "training.epochs",
        "max_steps": "training.maxSteps", "learning_rate": "training.learningRate", "seed": "training.seed",
        "warmup_ratio": "training.warmupRatio", "weight_decay": "training.weightDecay",
        "max_grad_norm": "training.maxGradNorm", "gradient_checkpointing": "training.activationCheckpointing",
        "output_dir": "output.uri", "torch_compile": "training.compile",
    },
    read=frozenset({
        "base_model", "revision_of_model", "datasets", "val_set_size", "adapter", "lora_target_linear", "optimizer",
        "lr_scheduler",
        "micro_batch_size", "lora_target_modules", "lora_r", "lora_alpha", "lora_dropout", "load_in_4bit",
        "gradient_accumulation_steps",
    }),
    same={"bf16": (True, "auto"), "tf32": (True,), "flash_attention": (True,),
          "logging_steps": (1,), "eval_sample_packing": (True,)},
    finish=_finish_axolotl,
)  # fmt: skip


# --- LLaMA-Factory --------------------------------------------------------------------------------------------------


def _finish_llama_factory(config: Config, spec: Spec) -> Iterator[str]:
    if config.get("stage", "sft") != "sft":
        message = f"stage {config['stage']} is not supported: the built-in trainer does supervised fine-tuning"
        hint = "Run your trainer's script with spec.command; see docs/scripts.md."
        raise FinetuneError(Reason.InvalidSpec, message, hint)
    spec["model"] = {"uri": _hub(config["model_name_or_path"])}
    names = [name.strip() for name in str(config.get("dataset") or "train").split(",")]
    spec.setdefault("data", {})["train"] = [{"uri": f"./{name}.jsonl"} for name in names]
    yield f"dataset: {', '.join(names)} (names of dataset_info.json; write the files into data.train)"
    if 0 < float(config.get("val_size") or 0) <= 0.5:
        _set(spec, "data.validation.fraction", float(config["val_size"]))
    adapter = "qlora" if config.get("quantization_bit") == 4 else "lora"
    method = {"full": "full", "freeze": "partial"}.get(config.get("finetuning_type", "lora"), adapter)
    _adapter(config, spec, method=method, targets=config.get("lora_target"))
    yield from _schedule(config, spec, "lr_scheduler_type")
    yield from _optimizer(config, spec, "optim")
    yield from _batch(config, spec, "per_device_train_batch_size")


_ARGUMENTS = {
    "num_train_epochs": "training.epochs", "learning_rate": "training.learningRate", "seed": "training.seed",
    "warmup_ratio": "training.warmupRatio", "weight_decay": "training.weightDecay", "output_dir": "output.uri",
    "max_grad_norm": "training.maxGradNorm", "gradient_checkpointing": "training.activationCheckpointing",
    "torch_compile": "training.compile",
}  # fmt: skip
_SAME = {"bf16": (True,), "do_train": (True,)}
_READ = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps", "optim", "lr_scheduler_type"})

LLAMA_FACTORY = Dialect(
    name="LLaMA-Factory",
    knows=lambda config: "model_name_or_path" in config and bool({"finetuning_type", "stage"} & set(config)),
    keys={**_ARGUMENTS, "cutoff_len": "data.sequenceLength", "packing": "data.packing"},
    read=_READ | {
        "stage", "model_name_or_path", "dataset", "val_size", "finetuning_type", "quantization_bit", "lora_target",
        "lora_rank", "lora_alpha", "lora_dropout",
    },
    same=_SAME,
    finish=_finish_llama_factory,
)  # fmt: skip


# --- Hugging Face's TrainingArguments -------------------------------------------------------------------------------


def _finish_arguments(config: Config, spec: Spec) -> Iterator[str]:
    spec["model"] = {"uri": _hub(config.get("model_name_or_path") or "HuggingFaceTB/SmolLM2-135M-Instruct")}
    spec.setdefault("data", {})["train"] = [{"uri": "./train.jsonl"}]
    named = "data" if "model_name_or_path" in config else "model and data"
    yield f"{named}, which this file does not name: write yours, or use --model and --data"
    yield from _schedule(config, spec, "lr_scheduler_type")
    yield from _optimizer(config, spec, "optim")
    yield from _batch(config, spec, "per_device_train_batch_size")
    if int(config.get("max_steps") or -1) > 0:
        _set(spec, "training.maxSteps", int(config["max_steps"]))


ARGUMENTS = Dialect(
    name="Hugging Face's TrainingArguments",
    knows=lambda config: bool({"num_train_epochs", "per_device_train_batch_size"} & set(config)),
    keys={**_ARGUMENTS, "max_length": "data.sequenceLength", "packing": "data.packing"},
    read=_READ | {"model_name_or_path", "max_steps"},
    same=_SAME,
    finish=_finish_arguments,
)  # fmt: skip


# --- Kubeflow -------------------------------------------------------------------------------------------------------


def _container(spec: Spec, container: Config, where: str) -> Iterator[str]:
    """A container that runs a script: the agent starts torchrun, so the command is what torchrun would start."""
    spec["command"] = without_torchrun(
        [str(word) for word in [*container.get("command", ()), *container.get("args", ())]]
    )
    if image := container.get("image"):
        spec["image"] = image
    if resources := container.get("resources"):
        spec["resources"] = {key: resources[key] for key in ("limits", "requests") if key in resources}
    if env := [each for each in container.get("env", ()) if "value" in each]:
        spec["pod"] = {"env": [{"name": each["name"], "value": each["value"]} for each in env]}
    yield from (f"{where}.env {each['name']}" for each in container.get("env", ()) if "value" not in each)
    yield from _rest(container, {"command", "args", "image", "resources", "env", "name"}, where)


def _rest(config: Config, read: set[str], where: str) -> Iterator[str]:
    yield from (f"{where}.{key}: {value}" for key, value in config.items() if key not in read)


def without_torchrun(command: list[str]) -> list[str]:
    """['torchrun', '--nproc-per-node=2', 'train.py', '--epochs=3'] → ['python', 'train.py', '--epochs=3']"""
    if not command or command[0].rpartition("/")[2] != "torchrun":
        return command
    at = next((number for number, word in enumerate(command) if word.endswith(".py")), 1)
    return ["python", *command[at:]]


def _finish_train_job(config: Config, spec: Spec) -> Iterator[str]:
    trainer = dict(config["spec"].get("trainer") or {})
    if nodes := trainer.pop("numNodes", None):
        spec["nodes"] = nodes
    if isinstance(processes := trainer.pop("numProcPerNode", None), int):
        spec["processesPerNode"] = processes
    resources = trainer.pop("resourcesPerNode", {})
    yield from _container(spec, {**trainer, "resources": resources}, "spec.trainer")
    yield from _rest(config["spec"], {"trainer"}, "spec")


def _finish_pytorch_job(config: Config, spec: Spec) -> Iterator[str]:
    replicas = config["spec"].get("pytorchReplicaSpecs") or {}
    first = next((name for name in ("Master", "Worker") if name in replicas), None)
    if first is None:
        raise FinetuneError(Reason.InvalidSpec, "the PyTorchJob has no spec.pytorchReplicaSpecs.Master or Worker")
    where = f"spec.pytorchReplicaSpecs.{first}"
    pod = replicas[first]["template"]["spec"]
    spec["nodes"] = sum(int(each.get("replicas", 1)) for each in replicas.values())
    yield from _container(spec, pod["containers"][0], f"{where} container")
    yield from _rest(pod, {"containers"}, f"{where} pod")
    yield from _rest(replicas[first], {"replicas", "template"}, where)
    yield from _rest(config["spec"], {"pytorchReplicaSpecs"}, "spec")


def _kind(name: str) -> Callable[[Config], bool]:
    return lambda config: config.get("kind") == name and isinstance(config.get("spec"), dict)


_OBJECT = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})
TRAIN_JOB = Dialect(
    name="Kubeflow's TrainJob", knows=_kind("TrainJob"), keys={}, read=_OBJECT, finish=_finish_train_job
)
PYTORCH_JOB = Dialect(name="PyTorchJob", knows=_kind("PyTorchJob"), keys={}, read=_OBJECT, finish=_finish_pytorch_job)

DIALECTS = (TRAIN_JOB, PYTORCH_JOB, AXOLOTL, LLAMA_FACTORY, ARGUMENTS)
"""In the order in which they are tried."""
