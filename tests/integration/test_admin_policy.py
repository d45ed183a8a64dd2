"""The admin's policy on a real API server: what the operator holds, and what the chart's admission policy refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.admin_policy import AdminPolicy, violations
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.resources import JOBS
from tests.cluster.rig import Helm, RigError
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Start

CHART = Path(__file__).parents[2] / "charts" / "finetune-operator"


def test_a_job_waits_for_its_admin_and_then_starts_by_itself(start: Start, kube: Kube) -> None:
    first = start(policy=AdminPolicy(max_nodes=1, images=["registry.example/*"]))
    kube.create(manifest("a", image="elsewhere/trainer:1"))
    wait_for(lambda: kube.condition("a", "Running").get("reason") == "PolicyViolated", what="held")
    failure = kube.status("a")["lastFailure"]
    assert (kube.phase("a"), failure["class"], failure["reason"]) == ("Pending", "Config", "PolicyViolated")
    assert "spec.image: elsewhere/trainer:1 is not allowed" in failure["message"]
    assert "spec.nodes: 2 nodes are more than the 1 that a job may have" in failure["message"]
    assert "Use at most 1 nodes." in failure["hint"]
    first.settle()
    assert kube.list(JOBS) == []
    first.stop()

    start(policy=AdminPolicy.model_validate({"podDefaults": {"nodeSelector": {"pool": "gpu"}}}))
    gang = kube.await_gang("a", 1)
    assert [pod["spec"]["nodeSelector"] for pod in gang] == [{"pool": "gpu"}] * 2
    wait_for(lambda: "lastFailure" not in kube.status("a"), what="taken back")
    assert kube.condition("a", "Running")["reason"] == "GangCreated"


PLACEHOLDER = "namespace-of-the-test"
POLICY: dict[str, Any] = {
    "images": ["registry.example/*", "own:1"], "uriPrefixes": ["hf://org", "s3://corp/", "pvc://"],
    "serviceAccounts": ["training"], "priorityClasses": ["low"], "runtimeClasses": ["nvidia"],
    "maxNodes": 3, "maxGpus": 16,
}  # fmt: skip


def gpus(**limits: Any) -> dict[str, Any]:
    return {"limits": {name.replace("__", "/").replace("_", "."): number for name, number in limits.items()}}


def rung(**pods: Any) -> dict[str, Any]:
    return {"method": {"type": "auto"}, "ladder": {"overrides": [{"rung": "full", **pods}]}}


DATA = {"train": [{"uri": "s3://corp/a"}, {"uri": "s3://corp/b"}]}
CASES: dict[str, dict[str, Any]] = {
    "all defaults": {},
    "an image by name": {"image": "own:1"},
    "an image by prefix": {"image": "registry.example/a@sha256:0"},
    "another image": {"image": "own:12"},
    "an account": {"pod": {"serviceAccountName": "training"}},
    "another account": {"pod": {"serviceAccountName": "admin"}},
    "another priority": {"pod": {"priorityClassName": "high"}},
    "another runtime class": {"pod": {"runtimeClassName": "kata"}},
    "another model": {"model": {"uri": "hf://others/model"}},
    "a bucket of the same beginning": {"output": {"uri": "s3://corp-of-others/a"}},
    "a way out of the prefix": {"output": {"uri": "pvc://claim/a/../b"}},
    "the second file": {"data": {"train": [{"uri": "s3://corp/a"}, {"uri": "s3://other/b"}]}},
    "validation": {"data": {**DATA, "validation": {"uri": "file:///a"}}},
    "a slice": {"data": {**DATA, "test": {"uri": "s3://corp/t"}, "slices": [{"name": "a", "uri": "gs://other/s"}]}},
    "as many nodes": {"nodes": {"min": 1, "max": 3}},
    "more nodes": {"nodes": {"min": 1, "max": 4}},
    "a number of nodes": {"nodes": 4},
    "as many GPUs": {"resources": gpus(nvidia_com__gpu=8)},
    "more GPUs": {"resources": gpus(nvidia_com__gpu=9)},
    "more GPUs by name": {"nodes": 1, "resources": gpus(nvidia_com__gpu="17", memory="8Gi")},
    "a rung with as many GPUs": rung(nodes=1, resources=gpus(nvidia_com__gpu=16)),
    "a rung with more GPUs": rung(nodes=1, resources=gpus(nvidia_com__gpu=17)),
    "a rung with more nodes": rung(nodes=4),
    "a rung with more nodes, and so more GPUs": {"resources": gpus(nvidia_com__gpu=8), **rung(nodes=3)},
    "claims of devices": {
        "nodes": 3, "processesPerNode": 6, "pod": {"resourceClaims": [{"name": "a", "resourceClaimName": "b"}]}
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> list[dict[str, Any]]:
    """The chart's admission policy, for one namespace alone."""
    given = json.dumps({"namespaces": [PLACEHOLDER], "policy": {**POLICY, "admission": {"enabled": True}}})
    file = helm.home / "policy.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(given)
    text = helm("template", "it", CHART, "-f", file, "--show-only", "templates/admissionpolicy.yaml")
    return list(yaml.safe_load_all(text))


@pytest.fixture
def guarded(kube: Kube, rendered: list[dict[str, Any]]) -> Iterator[Kube]:
    made = json.loads(json.dumps(rendered).replace(PLACEHOLDER, kube.namespace))
    kube.rig.apply(made)
    wait_for(lambda: _refusal(kube, {"image": "own:12"}), what="the policy is in force", seconds=60)
    yield kube
    for each in made:
        kube.rig.kubectl("delete", each["kind"], each["metadata"]["name"])


def _refusal(kube: Kube, fields: dict[str, Any]) -> str:
    """What the API server says against a manifest; empty if it takes it."""
    body = json.dumps(manifest("a", **fields))
    try:
        kube.rig.kubectl("create", "-n", kube.namespace, "--dry-run=server", "-f", "-", stdin=body)
    except RigError as error:
        return str(error)
    return ""


def test_the_admission_policy_decides_as_the_operator_does(guarded: Kube) -> None:
    policy = AdminPolicy.model_validate(POLICY)
    refused = 0
    for name, fields in CASES.items():
        spec = FineTuneJobSpec.model_validate(manifest("a", **fields)["spec"], strict=False)
        told, found = _refusal(guarded, fields), violations(policy, spec)
        assert bool(told) is bool(found), f"{name}: {told or found}"
        if found:
            words = found[0].message if "uri" in found[0].path else str(found[0])
            assert words in told, name
            refused += 1
    assert 8 < refused < len(CASES) - 4
