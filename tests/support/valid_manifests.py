"""Manifests that must be taken, by `finetune validate` in tests/unit and by a real API server in tests/integration: a
name, the changes, and for an update the changes before."""

from __future__ import annotations

from typing import Any

from tests.support.manifests import MISSING, SCRIPT

GOOD: tuple[tuple[str, dict[str, Any], dict[str, Any] | None], ...] = (
    ("the short form", {}, None),
    ("a script of one's own", SCRIPT, None),
    ("a script that keeps nothing", {**SCRIPT, "spec.output": MISSING}, None),
    (
        "a program in a gang",
        {**SCRIPT, "spec.command": ["/opt/train"], "spec.nodes": 4, "spec.processesPerNode": 2},
        None,
    ),
    ("a command of 32768 characters", {**SCRIPT, "spec.command": ["x" * 4096] * 8}, None),
    (
        "variables of 32768 characters",
        {"spec.pod": {"env": [{"name": f"A{n:07}", "value": "é" * 4088} for n in range(8)]}},
        None,
    ),
    ("annotations of 32768 characters", {"spec.pod": {"annotations": {f"a{n}": "x" * 4094 for n in range(8)}}}, None),
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
    (
        "64 sources, half of them with names, at a temperature",
        {
            "spec.data": {
                "train": [
                    {"uri": f"s3://corp/{n}.jsonl", **({"name": f"task-{n}"} if n % 2 else {})} for n in range(64)
                ],
                "mixing": {"temperature": 2},
            }
        },
        None,
    ),
    (
        "an evaluation of a sample of rows in groups",
        {
            "spec.evaluation": {"maxRows": 2000, "groupBy": "patient"},
            "spec.data.validation": {"fraction": 0.1, "groupBy": "patient"},
        },
        None,
    ),
    ("an artifact to continue from", {"spec.continueFrom": "s3://corp/models/before"}, None),
    (
        "a whole model to continue from under deepspeed",
        {
            "spec.continueFrom": "s3://corp/models/before",
            "spec.method": {"type": "full"},
            "spec.strategy": {"type": "deepspeed"},
        },
        None,
    ),
    (
        "a ladder whose rungs race",
        {"spec.method": {"type": "auto"}, "spec.ladder": {"learningRates": [1, 0.33, 3]}},
        None,
    ),
    (
        "a ladder with a budget of money",
        {"spec.method": {"type": "auto"}, "spec.ladder": {"budget": {"money": 100}, "folds": 0}},
        None,
    ),
    (
        "a rung with nodes and resources of its own",
        {
            "spec.method": {"type": "auto"},
            "spec.ladder": {
                "rungs": ["lora", "full"],
                "overrides": [{"rung": "full", "nodes": 1, "resources": {"limits": {"nvidia.com/gpu": 8}}}],
            },
        },
        None,
    ),
    (
        "an adapter that is tested with others",
        {"spec.output.switchTest": ["s3://corp/models/a", "pvc://claim/b"], "spec.strategy": {"type": "ddp"}},
        None,
    ),
    ("what pretraining is worth", {"spec.evaluation": {"priorGain": True}, "spec.method": {"type": "full"}}, None),
    (
        "slices that are compared with earlier artifacts",
        {
            "spec.evaluation": {"klToBase": True, "references": [{"name": "cheap", "uri": "s3://corp/models/cheap"}]},
            "spec.data.slices": [{"name": "books", "uri": "s3://corp/books.jsonl"}],
        },
        None,
    ),
    (
        "a comparison of the layers, of a sharded model",
        {
            "spec.diagnostics": {
                "similarity": "cka",
                "probes": [
                    {"name": "pos", "uri": "s3://corp/pos.jsonl"},
                    {"name": "code", "uri": "s3://corp/code.parquet", "labels": "pythonNames"},
                    {"name": "words", "uri": "s3://corp/en.jsonl", "labels": "wordnet", "dictionary": "pvc://wordnet"},
                ],
            },
            "spec.method": {"type": "full"},
            "spec.strategy": {"type": "fsdp"},
        },
        None,
    ),
    (
        "a remedy by scale, and a sweep of scales",
        {
            "spec.method": {"type": "qlora"},
            "spec.guards": {"minGain": 0, "onViolation": "remedy", "maxAttempts": 3},
            "spec.evaluation": {"scaleSweep": True},
        },
        None,
    ),
    (
        "generated text by all metrics, and its guards",
        {
            "spec.evaluation": {
                "generate": {
                    "metrics": ["exactMatch", "rougeL", "jsonValid", "jsonSchema", "regex", "stops", "length"],
                    "schema": {"type": "object", "properties": {"code": {"enum": ["a", 1, None]}}, "x-any": [{}]},
                    "pattern": "^[A-Z]",
                    "samples": 0,
                }
            },
            "spec.guards": {"collapse": {}, "generation": {"minJsonValid": 0.99}},
            "spec.strategy": {"type": "fsdp"},
        },
        None,
    ),
    (
        "guards of all kinds",
        {
            "spec.guards": {
                "minGain": 0,
                "forgetting": {},
                "slices": {"maxRegression": 0.1},
                "calibration": {"maxIncrease": 0.02},
                "onViolation": "warn",
                "onInconclusive": "fail",
            },
            "spec.data.general": {"uri": "s3://corp/general.jsonl"},
            "spec.data.slices": [{"name": "books", "uri": "s3://corp/books.jsonl"}],
            "spec.data.test": {"uri": "s3://corp/test.jsonl"},
        },
        None,
    ),
    (
        "replay of the general text, and of other text",
        {
            "spec.regularization": {"replay": {"fraction": 0.25, "source": "general"}},
            "spec.data.general": {"uri": "s3://corp/general.jsonl"},
        },
        None,
    ),
    (
        "a divergence from the base",
        {"spec.regularization": {"klToBase": {"beta": 0.1}}, "spec.strategy": {"type": "fsdp"}},
        None,
    ),
    ("a pull to the start", {"spec.regularization": {"l2sp": {"strength": 2}}, "spec.method": {"type": "full"}}, None),
    (
        "importance by the text of a replay",
        {"spec.regularization": {"ewc": {}, "replay": {"uri": "s3://corp/general.jsonl"}}},
        None,
    ),
    (
        "new tokens",
        {
            "spec.vocabulary": {"terms": ["STEMI", "心電図", "acute care"], "mine": True, "maxNewTokens": 64},
            "spec.method": {"type": "qlora", "qlora": {"rank": 8}},
            "spec.strategy": {"type": "fsdp"},
            "spec.guards": {
                "minGain": 0.01,
                "forgetting": {},
                "slices": {},
                "calibration": {},
                "generation": {"minStops": 0.9},
            },
            "spec.data.general": {"uri": "s3://corp/general.jsonl"},
            "spec.data.slices": [{"name": "a", "uri": "s3://corp/a.jsonl"}],
            "spec.data.test": {"uri": "s3://corp/test.jsonl"},
        },
        None,
    ),
    ("new tokens of a whole model", {"spec.vocabulary": {"mine": True}, "spec.method": {"type": "full"}}, None),
    (
        "existing rows",
        {
            "spec.vocabulary": {"terms": ["STEMI"], "existingRows": True},
            "spec.regularization": {},
            "spec.guards": {"forgetting": {}},
            "spec.data.general": {"uri": "s3://corp/general.jsonl"},
        },
        None,
    ),
    (
        "activations of a quantized model with shards",
        {
            "spec.regularization": {"drift": {}},
            "spec.method": {"type": "qlora"},
            "spec.strategy": {"type": "fsdp"},
            "spec.data.general": {"uri": "s3://corp/general.jsonl"},
        },
        None,
    ),
    ("replay of the model's own text", {"spec.regularization": {"replay": {"source": "self"}, "klToBase": {}}}, None),
    (
        "replay of earlier tasks",
        {
            "spec.continueFrom": "s3://corp/models/before",
            "spec.regularization": {"replay": {"source": "earlier"}, "ewc": {}, "klToBase": {}},
        },
        None,
    ),
    ("replay of other text", {"spec.regularization": {"replay": {"uri": "s3://corp/general.jsonl"}}}, None),
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
    (
        "a probe that is told how to compute",
        {
            "spec.method": {"type": "probe"},
            "spec.training": {
                "seed": 3,
                "microBatchTokens": 4096,
                "precision": "float32",
                "kernels": "reference",
                "skipBadBatch": False,
            },
        },
        None,
    ),
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
    ("another window while running", {"spec.retry": {"maxRestarts": 3, "window": "30d"}}, {}),
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
    (
        "variables and volumes in another order while it runs",
        {
            "spec.pod": {
                "env": [{"name": "B", "value": "1"}, {"name": "A", "value": "2"}],
                "volumes": [
                    {"name": "w", "mountPath": "/w", "emptyDir": {}},
                    {"name": "v", "mountPath": "/v", "emptyDir": {}},
                ],
            }
        },
        {
            "spec.pod": {
                "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "1"}],
                "volumes": [
                    {"name": "v", "mountPath": "/v", "emptyDir": {}},
                    {"name": "w", "mountPath": "/w", "emptyDir": {}},
                ],
            }
        },
    ),
    (
        "slices in another order while it runs",
        {"spec.data.slices": [{"name": "b", "uri": "s3://corp/b"}, {"name": "a", "uri": "s3://corp/a"}]},
        {"spec.data.slices": [{"name": "a", "uri": "s3://corp/a"}, {"name": "b", "uri": "s3://corp/b"}]},
    ),
    (
        "ten years of everything",
        {
            "spec.deadlines": {"startup": "3650d", "active": "87600h", "stall": "999999m"},
            "spec.ttlAfterFinished": "3649d24h",
            "spec.checkpoint": {"every": "365d"},
        },
        None,
    ),
    ("one slice of a GPU", {"spec.resources": {"limits": {"nvidia.com/mig-1g.5gb": 1, "memory": "8Gi"}}}, None),
    (
        "slices and claims, with a number",
        {
            "spec.resources": {"limits": {"nvidia.com/gpu.shared": 2}},
            "spec.pod": {"resourceClaims": [{"name": "gpus", "resourceClaimName": "mine"}]},
            "spec.processesPerNode": 2,
        },
        None,
    ),
    ("whole GPUs and a network", {"spec.resources": {"limits": {"nvidia.com/gpu": 8, "rdma/hca": 4}}}, None),
    ("ids that the namespace gives", {"spec.pod": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}, None),
)
