"""Manifests that must be refused, and what a user must read: judged by `finetune validate` in tests/unit and by a real
API server in tests/integration. Both must refuse each of them, and both must take each of GOOD."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

BASE: Json = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "cardiology"},
    "spec": {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        "data": {"train": [{"uri": "s3://corp/train.jsonl"}]},
        "output": {"uri": "s3://corp/models/cardiology"},
    },
}


class _Missing:
    """Marks a field that the change takes away."""


MISSING = _Missing()


def changed(base: Json, changes: dict[str, Any]) -> Json:
    """`base` with fields set by dotted path; list indices are numbers, MISSING removes."""
    result = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node: Any = result
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is MISSING:
            node.pop(last)
        else:
            node[last] = value
    return result


@dataclass(frozen=True)
class Bad:
    """`path` is where both verdicts point, `says` what ours says, `server` what the API server says (default: the same)."""

    name: str
    changes: dict[str, Any]
    path: str
    says: str
    server: str = ""
    before: dict[str, Any] | None = None
    """For updates: the stored object, as changes to BASE."""
    server_path: str = ""
    """Where the API server points, if not there."""

    @property
    def new(self) -> Json:
        return changed(changed(BASE, self.before or {}), self.changes)

    @property
    def old(self) -> Json | None:
        return None if self.before is None else changed(BASE, self.before)


NEEDED = "model, data and output are required (or command, to run a script of your own)"
SCRIPT_DECIDES = "with command the script decides: remove model, data, method, training, strategy and checkpoint"
SCRIPT: dict[str, Any] = {
    "spec.model": MISSING,
    "spec.data": MISSING,
    "spec.command": ["python", "train.py", "--epochs=3"],
}

BAD = (
    # what must be there
    Bad("no model", {"spec.model": MISSING}, "spec", NEEDED),
    Bad("no data", {"spec.data": MISSING}, "spec", NEEDED),
    Bad("no output", {"spec.output": MISSING}, "spec", NEEDED),
    Bad("nothing but an output", {"spec.model": MISSING, "spec.data": MISSING}, "spec", NEEDED),
    # a script of one's own
    Bad("a command beside a model", {"spec.command": ["train.py"], "spec.data": MISSING}, "spec", SCRIPT_DECIDES),
    Bad("a command beside data", {"spec.command": ["train.py"], "spec.model": MISSING}, "spec", SCRIPT_DECIDES),
    *(
        Bad(f"a command with {field}", {**SCRIPT, f"spec.{field}": {}}, "spec", SCRIPT_DECIDES)
        for field in ("method", "training", "strategy", "checkpoint")
    ),
    Bad("a command with a merged artifact", {**SCRIPT, "spec.output.merged": True}, "spec", "a command commits no artifact"),
    Bad("a launcher as command", {**SCRIPT, "spec.command": ["/opt/bin/torchrun", "train.py"]}, "spec",
        "torchrun runs the command in each process: name the script itself"),
    Bad("another launcher", {**SCRIPT, "spec.command": ["accelerate", "launch", "train.py"]}, "spec",
        "torchrun runs the command in each process: name the script itself"),
    Bad("a command as text", {**SCRIPT, "spec.command": "python train.py"}, "spec.command", "must be a list", "must be of type array"),
    Bad("an empty command", {**SCRIPT, "spec.command": []}, "spec.command", "at least 1 entry", "at least 1 items"),
    Bad("an empty argument", {**SCRIPT, "spec.command": ["python", ""]}, "spec.command[1]", "at least 1 characters", "at least 1 chars"),
    Bad("a number as argument", {**SCRIPT, "spec.command": ["python", "train.py", 3]}, "spec.command[2]", "must be text",
        "must be of type string"),
    Bad("another command", {"spec.command": ["python", "other.py"]}, "spec", "spec.command cannot be changed", before=SCRIPT),
    Bad("no spec", {"spec": MISSING}, "spec", "is required", "Required value"),
    Bad("labels that are no labels", {"metadata.labels": 3}, "metadata.labels", "must be an object, not 3", "unmarshal number",
        server_path="labels"),
    Bad("no training rows", {"spec.data.train": []}, "spec.data.train", "at least 1 entry", "at least 1 items"),
    Bad("a slice without a name", {"spec.data.slices": [{"uri": "s3://corp/a.jsonl"}]}, "spec.data.slices[0].name", "is required",
        "Required value"),
    Bad("credentials without a Secret", {"spec.output.credentials": {}}, "spec.output.credentials.secretName", "is required",
        "Required value"),
    # types
    Bad("batch size as text", {"spec.training.batchSize": "64"}, "spec.training.batchSize", "whole number", "must be of type integer"),
    Bad("epochs with a fraction", {"spec.training.epochs": 1.5}, "spec.training.epochs", "whole number", "must be of type integer"),
    Bad("learning rate as text", {"spec.training.learningRate": "auto"}, "spec.training.learningRate", "must be a number",
        "must be of type number"),
    Bad("packing as text", {"spec.data.packing": "yes"}, "spec.data.packing", "true or false", "must be of type boolean"),
    Bad("train is no list", {"spec.data.train": "s3://corp/a.jsonl"}, "spec.data.train", "must be a list", "must be of type array"),
    Bad("model as text", {"spec.model": "hf://a/b"}, "spec.model", "must be an object", "must be of type object"),
    Bad("a label that is a number", {"spec.pod": {"labels": {"team": 7}}}, "spec.pod.labels.team", "must be text", "must be of type string"),
    Bad("checkpoint every 1.5", {"spec.checkpoint": {"every": 1.5}}, "spec.checkpoint.every", "whole number or text", "integer,string"),
    Bad("memory in a unit of its own", {"spec.resources": {"limits": {"memory": "10GB"}}}, "spec.resources.limits.memory",
        "does not have the form 2, 500m or 4Gi", "spec.resources.limits.memory in body should match"),
    Bad("half a core without quotes", {"spec.resources": {"requests": {"cpu": 0.5}}}, "spec.resources.requests.cpu",
        "must be a whole number or text, not 0.5 (quote it)", "integer,string"),
    Bad("fewer than no GPUs", {"spec.resources": {"limits": {"nvidia.com/gpu": -1}}}, "spec.resources.limits.nvidia.com/gpu",
        "must be at least 0", "should be greater than or equal to 0"),
    Bad("GPUs by the gibibyte", {"spec.resources": {"limits": {"nvidia.com/gpu": "2Gi"}}}, "spec.resources",
        "resources.limits of GPUs must be whole numbers"),
    Bad("shared memory of no size", {"spec.pod": {"shmSize": "lots"}}, "spec.pod.shmSize", "2, 500m or 4Gi", "spec.pod.shmSize in body should match"),
    # words
    Bad("a letter that no model's name has", {"spec.model.uri": "hf://org/modèle"}, "spec.model.uri", "hf://org/name",
        "spec.model.uri in body should match"),
    Bad("an unknown method", {"spec.method": {"type": "lorra"}}, "spec.method.type", "must be one of full", "Unsupported value"),
    Bad("an unknown format", {"spec.data.format": "alpaca"}, "spec.data.format", "must be one of", "Unsupported value"),
    Bad("an unknown schedule", {"spec.training.schedule": "step"}, "spec.training.schedule", "must be one of", "Unsupported value"),
    Bad("an unknown optimizer", {"spec.training.optimizer": "sgd"}, "spec.training.optimizer", "must be one of",
        "Unsupported value"),
    Bad("moments in 8 bits for DeepSpeed's engine", {"spec.training.optimizer": "adamw8bit", "spec.strategy": {"type": "deepspeed"}},
        "spec", "training.optimizer adamw8bit does not go with strategy.type deepspeed"),
    Bad("moments of a probe", {"spec.training.optimizer": "adamw8bit", "spec.method": {"type": "probe"}}, "spec",
        "method.type probe makes no optimizer steps"),
    Bad("an unknown precision", {"spec.training.precision": "fp16"}, "spec.training.precision", "must be one of", "Unsupported value"),
    Bad("unknown kernels", {"spec.training.kernels": "liger"}, "spec.training.kernels", "must be one of", "Unsupported value"),
    Bad("lora in no layer", {"spec.method": {"lora": {"layers": 0}}}, "spec.method.lora.layers", "at least 1",
        "should be greater than or equal to 1"),
    Bad("rsLora as a number", {"spec.method": {"lora": {"rsLora": 16}}}, "spec.method.lora.rsLora", "must be true or false", "boolean"),
    Bad("unknown targets", {"spec.method": {"lora": {"targets": "q_proj"}}}, "spec.method.lora.targets", "must be one of",
        "Unsupported value"),
    # unions
    Bad("an unknown strategy", {"spec.strategy": {"type": "tp"}}, "spec.strategy.type", "must be one of auto", "Unsupported value"),
    Bad("a ZeRO stage for fsdp", {"spec.strategy": {"type": "fsdp", "zeroStage": 2}}, "spec.strategy",
        "strategy.zeroStage is only for type deepspeed"),
    Bad("a fourth ZeRO stage", {"spec.strategy": {"type": "deepspeed", "zeroStage": 4}}, "spec.strategy.zeroStage", "at most 3",
        "less than or equal to 3"),
    Bad("offloading without deepspeed", {"spec.strategy": {"offload": "optimizer"}}, "spec.strategy",
        "strategy.offload is only for type deepspeed"),
    Bad("offloading weights that nobody shares", {"spec.strategy": {"type": "deepspeed", "offload": "all"}}, "spec.strategy",
        "strategy.offload all needs zeroStage 3"),
    Bad("a sharded prompt", {"spec.strategy": {"type": "fsdp"}, "spec.method": {"type": "prompt"}}, "spec",
        "strategy.type fsdp shards a model only for method.type full, partial, lora, adapter, dora, qlora"),
    Bad("dora under ZeRO", {"spec.strategy": {"type": "deepspeed"}, "spec.method": {"type": "dora"}}, "spec",
        "strategy.type deepspeed shards a model only for method.type full, partial, lora, adapter"),
    Bad("lora settings for full", {"spec.method": {"type": "full", "lora": {"rank": 8}}}, "spec.method",
        "method.lora is only for type lora: remove it or set method.type: lora"),
    Bad("prompt settings for lora", {"spec.method": {"prompt": {"virtualTokens": 8}}}, "spec.method",
        "method.prompt is only for type prompt: remove it or set method.type: prompt"),
    Bad("partial settings for the default method", {"spec.method": {"partial": {"layers": 2}}}, "spec.method",
        "method.partial is only for type partial: remove it or set method.type: partial"),
    Bad("dora settings for lora", {"spec.method": {"type": "lora", "dora": {"rank": 8}}}, "spec.method",
        "method.dora is only for type dora"),
    Bad("qlora settings for lora", {"spec.method": {"type": "lora", "qlora": {"rank": 8}}}, "spec.method",
        "method.qlora is only for type qlora"),
    Bad("adapter settings for full", {"spec.method": {"type": "full", "adapter": {"bottleneck": 8}}}, "spec.method",
        "method.adapter is only for type adapter"),
    Bad("no layers", {"spec.method": {"type": "partial", "partial": {"layers": 0}}}, "spec.method.partial",
        "method.partial.layers must be auto or a number from 1 to 1024"),
    Bad("layers by a word", {"spec.method": {"type": "partial", "partial": {"layers": "all"}}}, "spec.method.partial",
        "method.partial.layers must be auto or a number from 1 to 1024"),
    Bad("an unknown placement", {"spec.method": {"type": "adapter", "adapter": {"placement": "parallel"}}},
        "spec.method.adapter.placement", "must be one of", "Unsupported value"),
    Bad("no bottleneck", {"spec.method": {"type": "adapter", "adapter": {"bottleneck": 0}}}, "spec.method.adapter.bottleneck",
        "at least 1", "greater than or equal to 1"),
    Bad("qlora of rank zero", {"spec.method": {"type": "qlora", "qlora": {"rank": 0}}}, "spec.method.qlora.rank", "at least 1",
        "greater than or equal to 1"),
    Bad("ptuning settings for prompt", {"spec.method": {"type": "prompt", "ptuning": {}}}, "spec.method",
        "method.ptuning is only for type ptuning"),
    Bad("prefix settings for full", {"spec.method": {"type": "full", "prefix": {"virtualTokens": 8}}}, "spec.method",
        "method.prefix is only for type prefix"),
    Bad("probe settings for lora", {"spec.method": {"probe": {"kind": "ridge"}}}, "spec.method", "method.probe is only for type probe"),
    Bad("a probe of chat", {"spec.method": {"type": "probe"}, "spec.data.format": "chat"}, "spec",
        "method.type probe is only for data.format classification"),
    Bad("an unknown probe", {"spec.method": {"type": "probe", "probe": {"kind": "svm"}}}, "spec.method.probe.kind", "must be one of",
        "Unsupported value"),
    Bad("a probe of no layer", {"spec.method": {"type": "probe", "probe": {"layers": []}}}, "spec.method.probe.layers",
        "at least 1 entry", "at least 1 items"),
    Bad("a probe of a layer below the first", {"spec.method": {"type": "probe", "probe": {"layers": [-1]}}},
        "spec.method.probe.layers[0]", "at least 0", "greater than or equal to 0"),
    Bad("two kinds of validation", {"spec.data.validation": {"uri": "s3://corp/v.jsonl", "fraction": 0.1}}, "spec.data.validation",
        "data.validation needs exactly one of uri or fraction"),
    Bad("no kind of validation", {"spec.data.validation": {}}, "spec.data.validation",
        "data.validation needs exactly one of uri or fraction"),
    Bad("groupBy without fraction", {"spec.data.validation": {"uri": "s3://corp/v.jsonl", "groupBy": "patient"}}, "spec.data.validation",
        "data.validation.groupBy needs fraction"),
    Bad("labels for chat", {"spec.data.format": "chat", "spec.data.classification": {"labels": ["a", "b"]}}, "spec.data",
        "data.classification is only for format classification"),
    Bad("a revision of a bucket", {"spec.model": {"uri": "s3://corp/model", "revision": "main"}}, "spec.model",
        "model.revision is only for hf:// models"),
    Bad("a volume of two kinds", {"spec.pod": {"volumes": [{"name": "v", "mountPath": "/v", "emptyDir": {}, "secret": {"name": "s"}}]}},
        "spec.pod.volumes[0]", "pod.volumes needs exactly one of"),
    Bad("a volume of no kind", {"spec.pod": {"volumes": [{"name": "v", "mountPath": "/v"}]}}, "spec.pod.volumes[0]",
        "pod.volumes needs exactly one of"),
    Bad("env with two values", {"spec.pod": {"env": [{"name": "A", "value": "1", "secretKeyRef": {"name": "s", "key": "k"}}]}},
        "spec.pod.env[0]", "pod.env needs exactly one of value or secretKeyRef"),
    Bad("no time to start", {"spec.deadlines": {"startup": "0s"}}, "spec.deadlines", "deadlines.startup must be more than nothing"),
    Bad("no time at all", {"spec.deadlines": {"active": "0h0m"}}, "spec.deadlines", "deadlines.active must be more than nothing"),
    Bad("no time to think", {"spec.deadlines": {"stall": "0m"}}, "spec.deadlines", "deadlines.stall must be more than nothing"),
    Bad("a deadline in other words", {"spec.deadlines": {"active": "1 day"}}, "spec.deadlines.active", "does not have the form",
        "should match"),
    # bounds
    Bad("no batch", {"spec.training.batchSize": 0}, "spec.training.batchSize", "at least 1", "greater than or equal to 1"),
    Bad("no epochs", {"spec.training.epochs": 0}, "spec.training.epochs", "at least 1", "greater than or equal to 1"),
    Bad("a negative rate", {"spec.training.learningRate": -0.1}, "spec.training.learningRate", "more than 0", "should be greater than 0"),
    Bad("rank zero", {"spec.method": {"lora": {"rank": 0}}}, "spec.method.lora.rank", "at least 1", "greater than or equal to 1"),
    Bad("no virtual tokens", {"spec.method": {"type": "prompt", "prompt": {"virtualTokens": 0}}}, "spec.method.prompt.virtualTokens",
        "at least 1", "greater than or equal to 1"),
    Bad("too long a prefix", {"spec.method": {"type": "prefix", "prefix": {"virtualTokens": 5000}}}, "spec.method.prefix.virtualTokens",
        "at most 1024", "less than or equal to 1024"),
    Bad("a prompt of no text", {"spec.method": {"type": "prompt", "prompt": {"initText": ""}}}, "spec.method.prompt.initText",
        "at least 1 characters", "at least 1 chars"),
    Bad("dropout of one", {"spec.method": {"lora": {"dropout": 1}}}, "spec.method.lora.dropout", "less than 1", "should be less than 1"),
    Bad("more than half for validation", {"spec.data.validation": {"fraction": 0.9}}, "spec.data.validation.fraction", "at most 0.5",
        "less than or equal to 0.5"),
    Bad("no nodes", {"spec.nodes": 0}, "spec.nodes", "at least 1", "greater than or equal to 1"),
    Bad("too many nodes", {"spec.nodes": 5000}, "spec.nodes", "at most 1024", "less than or equal to 1024"),
    Bad("nodes in words", {"spec.nodes": "two"}, "spec.nodes", "must be a whole number", "Too long"),
    Bad("half a node", {"spec.nodes": 2.5}, "spec.nodes", "must be a whole number", "multiple of 1"),
    Bad("nodes by yes or no", {"spec.nodes": True}, "spec.nodes", "must be a whole number", "must not validate the schema (not)"),
    Bad("a list of nodes", {"spec.nodes": [1, 4]}, "spec.nodes", "must be a whole number", "must have at most 0 items"),
    Bad("elastic from nothing", {"spec.nodes": {"min": 0, "max": 4}}, "spec.nodes.min", "at least 1", "greater than or equal to 1"),
    Bad("elastic beyond all", {"spec.nodes": {"min": 1, "max": 5000}}, "spec.nodes.max", "at most 1024", "less than or equal to 1024"),
    Bad("elastic without an end", {"spec.nodes": {"min": 1}}, "spec.nodes.max", "is required", "Required value"),
    Bad("elastic by a word", {"spec.nodes": {"min": "one", "max": 4}}, "spec.nodes.min", "must be a whole number", "type integer"),
    Bad("elastic in other words", {"spec.nodes": {"min": 1, "max": 4, "step": 2}}, "spec.nodes.step", "unknown field", "at most 2 items",
        server_path="spec.nodes"),
    Bad("no processes", {"spec.processesPerNode": 0}, "spec", "processesPerNode must be auto or a number from 1 to 64"),
    Bad("processes by a word", {"spec.processesPerNode": "all"}, "spec", "processesPerNode must be auto or a number from 1 to 64"),
    Bad("a source of no weight", {"spec.data.train.0.weight": 0}, "spec.data.train[0].weight", "more than 0", "should be greater than 0"),
    Bad("a sample of no rows", {"spec.data.train.0.maxRows": 0}, "spec.data.train[0].maxRows", "at least 1", "greater than or equal to 1"),
    Bad("a sample of the test rows", {"spec.data.test": {"uri": "s3://corp/t.jsonl", "maxRows": 9}}, "spec.data.test.maxRows",
        "unknown field", 'unknown field "spec.data.test.maxRows"'),
    Bad("a weight for the test rows", {"spec.data.test": {"uri": "s3://corp/t.jsonl", "weight": 2}}, "spec.data.test.weight",
        "unknown field", 'unknown field "spec.data.test.weight"'),
    Bad("augmentation by an unknown way", {"spec.data.augmentation": [{"type": "synonyms", "probability": 0.1}]},
        "spec.data.augmentation[0].type", "must be one of", "Unsupported value"),
    Bad("augmentation of more than all", {"spec.data.augmentation": [{"type": "casing", "probability": 1.5}]},
        "spec.data.augmentation[0].probability", "at most 1", "less than or equal to 1"),
    Bad("templates without templates", {"spec.data.augmentation": [{"type": "templates", "probability": 0.1}]}, "spec.data.augmentation[0]",
        "data.augmentation needs templates for type templates"),
    Bad("templates without a place", {"spec.data.augmentation": [{"type": "templates", "probability": 0.1, "templates": ["a text"]}]},
        "spec.data.augmentation[0]", "needs {text}, where the text goes"),
    Bad("a rate for casing", {"spec.data.augmentation": [{"type": "casing", "probability": 0.1, "rate": 0.1}]}, "spec.data.augmentation[0]",
        "rate is only for characterNoise and backoff"),
    Bad("augmentation of plain text", {"spec.data.format": "text", "spec.data.augmentation": [{"type": "casing", "probability": 0.1}]},
        "spec.data", "rows of format text are all answer"),
    Bad("augmentation for a probe", {"spec.method": {"type": "probe"},
        "spec.data.augmentation": [{"type": "casing", "probability": 0.1}]}, "spec", "method probe is fitted once to each row as it is"),
    Bad("weights for a probe", {"spec.method": {"type": "probe"}, "spec.data.train.0.weight": 2}, "spec",
        "method probe is fitted once to each row as it is"),
    Bad("sequences of one", {"spec.data.sequenceLength": 1}, "spec.data.sequenceLength", "at least 8", "greater than or equal to 8"),
    Bad("a checkpoint never", {"spec.checkpoint": {"every": "never"}}, "spec.checkpoint", "checkpoint.every must be a duration such as 10m"),
    Bad("a checkpoint at step zero", {"spec.checkpoint": {"every": 0}}, "spec.checkpoint", "checkpoint.every must be a duration such as 10m"),
    Bad("root", {"spec.pod": {"runAsUser": 0}}, "spec.pod.runAsUser", "at least 1", "greater than or equal to 1"),
    Bad("negative restarts", {"spec.retry": {"maxRestarts": -1}}, "spec.retry.maxRestarts", "at least 0", "greater than or equal to 0"),
    Bad("one label", {"spec.data.classification": {"labels": ["only"]}}, "spec.data.classification.labels", "at least 2 entries",
        "at least 2 items"),
    # forms
    Bad("a model from the web", {"spec.model.uri": "https://host/model"}, "spec.model.uri", "hf://org/name", "should match"),
    Bad("a hub model without an owner", {"spec.model.uri": "hf://model"}, "spec.model.uri", "hf://org/name", "should match"),
    Bad("a relative file", {"spec.data.train.0.uri": "train.jsonl"}, "spec.data.train[0].uri", "s3://bucket/path", "should match"),
    Bad("data from a model on the hub", {"spec.data.train.0.uri": "hf://a/b"}, "spec.data.train[0].uri", "s3://bucket/path", "should match"),
    Bad("a bucket with a space", {"spec.output.uri": "s3://my bucket/x"}, "spec.output.uri", "s3://bucket/path", "should match"),
    Bad("an output on the hub", {"spec.output.uri": "hf://org/name"}, "spec.output.uri", "s3://bucket/path", "should match"),
    *(
        Bad(f"a merged model of method {kind}", {"spec.method": {"type": kind}, "spec.output.merged": True}, "spec",
            "output.merged is for method.type lora, dora and qlora")
        for kind in ("adapter", "prompt", "ptuning", "prefix")
    ),
    Bad("a grace period without a unit", {"spec.pod": {"terminationGracePeriod": "120"}}, "spec.pod.terminationGracePeriod", "90s, 10m",
        "should match"),
    Bad("a Secret's name with capitals", {"spec.output.credentials": {"secretName": "Corp"}}, "spec.output.credentials.secretName",
        "Kubernetes name", "should match"),
    Bad("an environment name with a dash", {"spec.pod": {"env": [{"name": "A-B", "value": "1"}]}}, "spec.pod.env[0].name", "of a variable's name",
        "should match"),
    Bad("a slice with a long name", {"spec.data.slices": [{"name": "a" * 64, "uri": "s3://corp/a.jsonl"}]}, "spec.data.slices[0].name",
        "at most 63", "may not be more than 63"),
    # names
    Bad("a long name", {"metadata.name": "a" * 49}, "", "metadata.name must have at most 48 characters"),
    Bad("a name with a dot", {"metadata.name": "team.job"}, "", "metadata.name must start with a letter"),
    Bad("a name that begins with a digit", {"metadata.name": "7b-run"}, "", "metadata.name must start with a letter"),
    # unknown fields
    Bad("a typing mistake", {"spec.training.epoch": 3}, "spec.training.epoch", "unknown field; did you mean epochs?",
        'unknown field "spec.training.epoch"'),
    Bad("a field of another system", {"spec.numNodes": 2}, "spec.numNodes", "unknown field", 'unknown field "spec.numNodes"'),
    Bad("a pod that wants the host", {"spec.pod": {"hostNetwork": True}}, "spec.pod.hostNetwork", "unknown field",
        'unknown field "spec.pod.hostNetwork"'),
    Bad("a volume from the host", {"spec.pod": {"volumes": [{"name": "v", "mountPath": "/v", "hostPath": {"path": "/"}}]}},
        "spec.pod.volumes[0].hostPath", "unknown field", 'unknown field "spec.pod.volumes[0].hostPath"'),
    # updates
    Bad("another model", {"spec.model.uri": "hf://org/other"}, "spec", "spec.model cannot be changed", before={}),
    Bad("other data", {"spec.data.train.0.uri": "s3://corp/other.jsonl"}, "spec", "spec.data cannot be changed", before={}),
    Bad("a method where none was given", {"spec.method": {"type": "full"}}, "spec", "spec.method cannot be changed", before={}),
    Bad("another learning rate", {"spec.training.learningRate": 0.1}, "spec", "spec.training cannot be changed",
        before={"spec.training": {"learningRate": 0.01}}),
    Bad("another output", {"spec.output.uri": "s3://corp/else"}, "spec", "spec.output cannot be changed", before={}),
    Bad("a manager that is no name", {"spec.managedBy": "my manager"}, "spec.managedBy", "example.com/name", "spec.managedBy in body should match"),
    Bad("a queue that is no name", {"spec.queueName": "Team A"}, "spec.queueName", "of a DNS label", "spec.queueName in body should match"),
    Bad("another queue while running", {"spec.queueName": "team-b"}, "spec", "spec.queueName can be changed only while the job is suspended",
        before={"spec.queueName": "team-a"}),
    Bad("another manager", {"spec.managedBy": "kueue.x-k8s.io/multikueue"}, "spec", "spec.managedBy cannot be changed", before={}),
    Bad("more nodes while running", {"spec.nodes": 4}, "spec", "spec.nodes can be changed only while the job is suspended",
        before={"spec.nodes": 2}),
    Bad("elastic while running", {"spec.nodes": {"min": 1, "max": 2}}, "spec",
        "spec.nodes can be changed only while the job is suspended", before={"spec.nodes": 2}),
    Bad("fewer while running", {"spec.nodes": {"min": 1, "max": 2}}, "spec",
        "spec.nodes can be changed only while the job is suspended", before={"spec.nodes": {"min": 1, "max": 4}}),
    Bad("another image while running", {"spec.image": "trainer:2"}, "spec", "spec.image can be changed only while the job is suspended",
        before={}),
)  # fmt: skip

UNSEEN: tuple[Bad, ...] = (
    Bad(
        "the most is less than the fewest",
        {"spec.nodes": {"min": 4, "max": 2}},
        "spec.nodes",
        "raise max, or lower min",
    ),
)
"""What CEL cannot look at: the API server takes it, and the operator tells what is wrong."""

GOOD: tuple[tuple[str, dict[str, Any], dict[str, Any] | None], ...] = (
    ("the short form", {}, None),
    ("a script of one's own", SCRIPT, None),
    ("a script that keeps nothing", {**SCRIPT, "spec.output": MISSING}, None),
    (
        "a program in a gang",
        {**SCRIPT, "spec.command": ["/opt/train"], "spec.nodes": 4, "spec.processesPerNode": 2},
        None,
    ),
    ("a probe on sources of weight one", {"spec.method": {"type": "probe"}, "spec.data.train.0.weight": 1}, None),
    (
        "data of several files, weighted and augmented",
        {
            "spec.data": {
                "train": [
                    {"uri": "s3://corp/train/*.jsonl"},
                    {"uri": "pvc://claim/more/", "weight": 0.5, "maxRows": 1000},
                    {"uri": "hf://datasets/org/name@refs%2Fconvert%2Fparquet/default/train/*.parquet", "weight": 3},
                ],
                "test": {"uri": "hf://datasets/org/name"},
                "allowDuplicates": True,
                "augmentation": [
                    {"type": "casing", "probability": 1},
                    {"type": "characterNoise", "probability": 0.1, "rate": 0.1},
                    {"type": "templates", "probability": 0.5, "templates": ["Text: {text}", "{text}?"]},
                    {"type": "backoff", "probability": 0.1},
                ],
            }
        },
        None,
    ),
    ("ZeRO", {"spec.strategy": {"type": "deepspeed", "zeroStage": 3, "offload": "all"}}, None),
    ("a sharded base model", {"spec.strategy": {"type": "fsdp"}}, None),
    ("dora on a sharded base model", {"spec.strategy": {"type": "fsdp"}, "spec.method": {"type": "dora"}}, None),
    ("4 bits of a base on each process", {"spec.strategy": {"type": "fsdp"}, "spec.method": {"type": "qlora"}}, None),
    ("moments in 8 bits", {"spec.training.optimizer": "adamw8bit"}, None),
    (
        "the usual moments by name, for DeepSpeed",
        {"spec.training.optimizer": "adamw", "spec.strategy": {"type": "deepspeed"}},
        None,
    ),
    ("sharded moments in 8 bits", {"spec.training.optimizer": "adamw8bit", "spec.strategy": {"type": "fsdp"}}, None),
    ("a sharded model", {"spec.strategy": {"type": "fsdp"}, "spec.method": {"type": "full"}}, None),
    ("a checkpoint each 50 steps", {"spec.checkpoint": {"every": 50}}, None),
    ("a checkpoint each 90 seconds", {"spec.checkpoint": {"every": "1m30s"}}, None),
    (
        "one process for each GPU",
        {"spec.processesPerNode": "auto", "spec.resources": {"limits": {"nvidia.com/gpu": 8}}},
        None,
    ),
    ("quantities as text and as numbers", {"spec.resources": {"limits": {"cpu": 2, "memory": "4Gi"}}}, None),
    (
        "quantities of all kinds",
        {
            "spec.resources": {
                "limits": {"cpu": "0.5", "memory": "1e9", "nvidia.com/gpu": "2"},
                "requests": {"cpu": "250m"},
            }
        },
        None,
    ),
    ("a prompt", {"spec.method": {"type": "prompt", "prompt": {"virtualTokens": 8, "initText": "Classify:"}}}, None),
    ("the last layers, counted", {"spec.method": {"type": "partial", "partial": {"layers": 4}}}, None),
    ("the last layers, as measured", {"spec.method": {"type": "partial", "partial": {"layers": "auto"}}}, None),
    ("dora", {"spec.method": {"type": "dora", "dora": {"rank": 8, "targets": "mlp"}}}, None),
    ("qlora", {"spec.method": {"type": "qlora"}}, None),
    ("rsLora", {"spec.method": {"lora": {"rank": 256, "rsLora": True}}}, None),
    (
        "a bottleneck",
        {"spec.method": {"type": "adapter", "adapter": {"placement": "pfeiffer", "bottleneck": 16}}},
        None,
    ),
    ("a prompt by a network", {"spec.method": {"type": "ptuning", "ptuning": {"hidden": 128}}}, None),
    ("a probe", {"spec.method": {"type": "probe", "probe": {"kind": "logistic", "layers": [0, 12]}}}, None),
    ("a prefix", {"spec.method": {"type": "prefix"}}, None),
    ("a merged model beside the adapter", {"spec.output.merged": True}, None),
    ("a merged model of a method", {"spec.method": {"type": "qlora"}, "spec.output.merged": True}, None),
    ("a model that is whole anyway", {"spec.method": {"type": "full"}, "spec.output.merged": True}, None),
    ("no merged model of a prompt", {"spec.method": {"type": "prompt"}, "spec.output.merged": False}, None),
    ("a small learning rate", {"spec.training": {"learningRate": 1e-5}}, None),
    ("torch's own kernels", {"spec.training": {"kernels": "reference"}}, None),
    (
        "more nodes while suspended, and on at once",
        {"spec.nodes": 4, "spec.suspend": False},
        {"spec.nodes": 2, "spec.suspend": True},
    ),
    ("another manager's from the start", {"spec.managedBy": "kueue.x-k8s.io/multikueue"}, None),
    ("a queue", {"spec.queueName": "team-a"}, None),
    (
        "another queue while suspended, and on at once",
        {"spec.queueName": "b", "spec.suspend": False},
        {"spec.suspend": True},
    ),
    ("suspending", {"spec.suspend": True}, {}),
    ("elastic", {"spec.nodes": {"min": 1, "max": 4}}, None),
    ("the same range again", {"spec.retry": {"maxRestarts": 9}}, {"spec.nodes": {"min": 1, "max": 4}}),
    (
        "elastic from now on",
        {"spec.nodes": {"min": 2, "max": 2}, "spec.suspend": False},
        {"spec.nodes": 2, "spec.suspend": True},
    ),
    (
        "deadlines",
        {"spec.deadlines": {"startup": "1h", "active": "7d", "stall": "90s"}, "spec.ttlAfterFinished": "7d"},
        None,
    ),
    ("a longer deadline while running", {"spec.deadlines": {"active": "2d"}}, {"spec.deadlines": {"active": "1d"}}),
    ("more restarts while running", {"spec.retry": {"maxRestarts": 9}}, {}),
    (
        "everything of a pod",
        {
            "spec.pod": {
                "env": [{"name": "A", "value": "1"}, {"name": "B", "secretKeyRef": {"name": "s", "key": "k"}}],
                "volumes": [
                    {"name": "a", "mountPath": "/a", "persistentVolumeClaim": {"claimName": "c"}, "readOnly": True},
                    {"name": "b", "mountPath": "/b", "emptyDir": {"sizeLimit": "1Gi"}},
                ],
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "labels": {"team": "a"},
                "shmSize": "2Gi",
            }
        },
        None,
    ),
)
