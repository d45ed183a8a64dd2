"""A rate 30 times too high on the cluster: under `fail` nothing is published and the alert fires until the job is gone,
under `remedy` the same adapter is published at a smaller scale. A job with maxAttempts trains again in its pod."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.jobs import Json, Place, endless, tiny_inputs
from tests.cluster.operator_process import Operator
from tests.cluster.rig import S3, Prometheus, Rig
from tests.support.tiny_model import numbers_as_text
from tools import alerts

pytestmark = pytest.mark.timeout(900)

ALERT = "FineTuneJobGuardViolated"
RATE = 0.00015
"""At which the tiny model learns without harm to the general text."""


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    """Model and corpus, with general text."""
    model, corpus = tiny_inputs(tmp_path)
    numbers_as_text(corpus / "general.jsonl")
    return model, corpus


@pytest.fixture
def place(cluster: Rig, s3: S3, restricted_namespace: str, inputs: tuple[Path, Path]) -> Place:
    model, corpus = inputs
    place = Place.of(cluster, s3, restricted_namespace, models=model)
    place.upload(corpus, "tiny")
    return place


def job(on_violation: str) -> Json:
    made = endless(on_violation, nodes=1, every=20)
    made["spec"]["data"] |= {
        "test": {"uri": "s3://corp/tiny/heldout.jsonl"},
        "general": {"uri": "s3://corp/tiny/general.jsonl"},
    }
    made["spec"]["training"] |= {"epochs": 5, "learningRate": 30 * RATE}
    made["spec"]["guards"] = {"forgetting": {"maxBitsPerByteIncrease": 0.008}, "onViolation": on_violation}
    return made


def again() -> Json:
    """A gain that is out of reach: replay and klToBase would not help, so the job trains at a lower rate."""
    made = job("again")
    made["spec"]["guards"] = {"minGain": 50, "onViolation": "remedy", "maxAttempts": 1}
    made["spec"]["data"] |= {
        "test": made["spec"]["data"]["train"][0],
        "allowDuplicates": True,
    }  # enough for an interval
    return made


def below(place: Place, prefix: str) -> set[str]:
    """Paths of the bucket's files, without the prefix."""
    found = (entry["path"] for batch in place.s3.store(place.bucket).list(prefix) for entry in batch)
    return {path.removeprefix(prefix) for path in found}


def test_an_adapter_that_forgets_is_held_back_or_scaled_down(
    place: Place,
    operator: Operator,
    inputs: tuple[Path, Path],
    prometheus: Callable[[dict[str, Any]], Prometheus],
    tmp_path: Path,
) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(alerts.group([alerts.render(alerts.load()[ALERT])])))
    scrape = {"job_name": "operator", "static_configs": [{"targets": [operator.metrics_address]}]}
    server = prometheus({"scrape_configs": [scrape], "rule_files": [str(rules)]})
    for made in (job("fail"), job("remedy"), again()):
        place.apply(place.on_this_rig(made, model=inputs[0]))

    def ended(name: str) -> Json:
        place.rig.wait_until(
            lambda: place.status(name).get("phase") in ("Succeeded", "Failed"), what=f"the end of {name}", seconds=400
        )
        return place.status(name)

    failed = ended("fail")
    assert failed["phase"] == "Failed", place.story("fail")
    failure = failed["lastFailure"]
    assert (failure["class"], failure["reason"], failure["exitCode"]) == ("Guard", "GuardViolated", 84)
    assert failure["message"].startswith("guards.forgetting is violated")
    assert "relax the bound" in failure["hint"]
    assert failed.get("restarts", {}).get("counted", 0) == 0
    [guard] = failed["evaluation"]["guards"]
    assert (guard["name"], guard["verdict"]) == ("forgetting", "violated")
    conditions = {each["type"]: (each["status"], each["reason"]) for each in failed["conditions"]}
    assert conditions["GuardsPassed"] == ("False", "GuardViolated")
    candidate = f"models/fail/.finetune/{place.get('fail')['metadata']['uid']}/candidate/"
    assert failed["candidate"]["uri"].rstrip("/") == f"s3://{place.bucket}/{candidate}".rstrip("/")
    assert {"manifest.json", "adapter_model.safetensors"} <= below(place, candidate)
    assert "manifest.json" not in below(place, "models/fail/"), "nothing is published"
    assert "artifact" not in failed

    firing = f'ALERTS{{alertname="{ALERT}", alertstate="firing"}}'
    firing_of_fail = firing.replace("}", ',name="fail"}')
    [alert] = server.wait_for(firing_of_fail)
    assert (alert.labels["namespace"], alert.labels["name"]) == (place.namespace, "fail")
    assert alert.labels["guard"] == "forgetting"

    remedied = ended("remedy")
    assert remedied["phase"] == "Succeeded", place.story("remedy")
    assert 0 < remedied["evaluation"]["scale"]["chosen"] < 1
    assert remedied["evaluation"]["guards"][0]["verdict"] != "violated"
    config = json.loads((place.download("models/remedy", tmp_path / "adapter") / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 2 * config["r"] * remedied["evaluation"]["scale"]["chosen"]
    found = {sample.labels["name"] for sample in server.query(firing)}
    assert found - {"again"} == {"fail"}, "the remedied job raises no alert"

    last = ended("again")
    assert last["phase"] == "Failed", place.story("again")
    assert last["lastFailure"]["reason"] == "GuardViolated"
    assert [(run["name"], run["outcome"]) for run in last["evaluation"]["remedies"]] == [
        ("asWritten", "violated"),
        ("learningRate", "violated"),
    ]
    assert (last["attempt"], last.get("restarts", {}).get("counted", 0)) == (1, 0)
    assert "/remedies/learningRate/" in last["candidate"]["uri"]
    assert "manifest.json" not in below(place, "models/again/")

    for name in ("fail", "again"):
        place.rig.kubectl("delete", "finetunejob", name, "-n", place.namespace)
    server.wait_for(f"absent({firing})")
