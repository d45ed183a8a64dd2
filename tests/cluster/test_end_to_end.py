"""`kubectl apply` → two pods on two addresses train SmolLM2 → Complete → the adapter in the bucket, as measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.jobs import CHECKOUT, SMOLLM2, Json, Place, example
from tests.cluster.operator_process import Operator
from tests.cluster.rig import S3, Prometheus, Rig

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(1800)]


@pytest.fixture
def place(cluster: Rig, s3: S3, restricted_namespace: str) -> Place:
    if not SMOLLM2.exists():
        pytest.skip("SmolLM2-135M-Instruct is not in the cache: run tools/models.py")
    return Place.of(cluster, s3, restricted_namespace, models=SMOLLM2)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    sizes = ["--train", "48", "--heldout", "6", "--general", "3"]
    subprocess.run([sys.executable, CHECKOUT / "tools" / "corpora.py", folder, *sizes], check=True)
    return folder


def scrape(rig: Rig, operator: Operator, namespace: str) -> Json:
    """The operator at its address; the pods as a cluster's Prometheus finds them, by the API and the port's name."""
    return {
        "scrape_configs": [
            {"job_name": "operator", "static_configs": [{"targets": [operator.metrics_address]}]},
            {
                "job_name": "pods",
                "kubernetes_sd_configs": [
                    {"role": "pod", "kubeconfig_file": str(rig.kubeconfig), "namespaces": {"names": [namespace]}}
                ],
                "relabel_configs": [
                    {
                        "source_labels": ["__meta_kubernetes_pod_container_port_name"],
                        "regex": "metrics",
                        "action": "keep",
                    },
                    {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                ],
            },
        ]
    }


def test_apply_trains_and_commits_what_was_measured(
    place: Place,
    operator: Operator,
    corpus: Path,
    prometheus: Callable[[dict[str, Any]], Prometheus],
    tmp_path: Path,
) -> None:
    rig = place.rig
    place.upload(corpus, "sentiment")
    server = prometheus(scrape(rig, operator, place.namespace))

    place.apply(place.on_this_rig(example(), model=SMOLLM2))
    place.wait("sentiment", lambda s: s.get("phase") == "Running", what="running")
    addresses = {pod["status"].get("podIP") for pod in place.pods("sentiment")}
    assert len(addresses) == 2
    assert None not in addresses

    # a real Prometheus sees progress and loss, from the operator and from the pods
    server.wait_for(f'finetune_job_progress_ratio{{namespace="{place.namespace}",name="sentiment"}} > 0', seconds=400)
    server.wait_for(f'finetune_job_loss{{namespace="{place.namespace}",name="sentiment"}} > 0', seconds=200)
    server.wait_for("count(max_over_time(finetune_train_loss[10m]) > 0) >= 1")
    server.wait_for('count(max_over_time(up{job="pods"}[10m]) == 1) == 2')

    place.wait("sentiment", lambda s: s.get("phase") == "Succeeded", what="its end")
    rig.kubectl("wait", "--for=condition=Complete", "finetunejob/sentiment", "-n", place.namespace, "--timeout=60s")
    status = place.status("sentiment")
    assert status["phase"] == "Succeeded"
    assert status["artifact"]["uri"] == f"s3://{place.bucket}/models/sentiment"
    data = {each["name"]: each for each in status["evaluation"]["data"]}
    assert {name for name, each in data.items() if each["kind"] == "slice"} == {"tweets", "amazon", "nyt"}
    assert data["test"]["metric"] == "accuracy"
    assert data["test"]["verdict"] == "inconclusive", "six rows are too few for an interval"
    assert status["progress"]["percent"] == 100

    # what lies in the bucket verifies, and plain PEFT measures what the status says
    adapter = place.download("models/sentiment", tmp_path / "adapter")
    environment = {"PATH": "/usr/bin:/bin", **{f"FINETUNE_OUTPUT_{k}": v for k, v in rig.s3.environment.items()}}
    finetune = CHECKOUT / ".venv" / "bin" / "finetune"
    verified = subprocess.run(
        [finetune, "verify", status["artifact"]["uri"]], env=environment, capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert status["artifact"]["digest"] in verified.stdout
    measured = plain_peft_loss(adapter, corpus / "movie-test.jsonl")
    record = json.loads((adapter / "run.json").read_text())
    [test] = [each for each in record["measurements"] if (each["name"], each["metric"]) == ("test", "loss")]
    assert test["tuned"] < test["base"]
    assert abs(measured - test["tuned"]) < 1e-5


def plain_peft_loss(adapter: Path, rows: Path) -> float:
    """Nats per trained token of the rows, by transformers and PEFT alone, one row at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from finetune_trainer.data.load import load_datasets

    torch.set_num_threads(2)
    job = example()["spec"]["data"]
    base = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    corpus = _corpus(load_datasets, job, rows)
    nats, tokens = 0.0, 0
    for index in range(len(corpus)):
        row = corpus.row(index)
        ids = torch.tensor(row.tokens.astype("int64"))[None]
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
        trained = torch.tensor(row.trained.astype(bool))[1:]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        nats += float(losses[trained].sum())
        tokens += int(trained.sum())
    return nats / tokens


def _corpus(load_datasets: Callable[..., Any], data: Json, rows: Path) -> Any:
    """The rows as the trainer renders them: tokens and which of them are targets."""
    from finetune_api.data import Data

    spec = Data.model_validate_json(
        yaml_to_json(
            {
                "train": [{"uri": rows.as_uri()}],
                "test": {"uri": rows.as_uri()},
                "allowDuplicates": True,
                "classification": data["classification"],
            }
        )
    )
    sets = load_datasets(spec, tokenizer_path=SMOLLM2, cache=rows.parent / "cache", seed=1)
    return sets.test


def yaml_to_json(value: Json) -> str:
    import json

    return json.dumps(yaml.safe_load(yaml.safe_dump(value)))
