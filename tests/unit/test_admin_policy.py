"""What an administrator's policy allows, and what it gives to pods: tables of (policy, spec) and what follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from finetune_api.admin_policy import AdminPolicy, begins_with, gpus, read, uris_of, violations, with_defaults
from finetune_api.spec import FineTuneJobSpec
from finetune_operator import main
from tests.support.operator_objects import SPEC, spec


def policy(**fields: Any) -> AdminPolicy:
    return AdminPolicy.model_validate(fields)


RUNG = {"method": {"type": "auto"}, "ladder": {"overrides": [{"rung": "full", "nodes": 4}]}}
A100 = {"resources": {"limits": {"nvidia.com/gpu": 8}}}
ALLOWED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no policy": ({}, {"image": "anything", "pod": {"serviceAccountName": "x"}}),
    "an image by name": ({"images": ["a/b:1"]}, {"image": "a/b:1"}),
    "an image by prefix": ({"images": ["c", "a/*"]}, {"image": "a/b@sha256:0"}),
    "no image: the operator's": ({"images": ["a/*"]}, {}),
    "no account: the default": ({"serviceAccounts": ["a"]}, {}),
    "an account": ({"serviceAccounts": ["a", "b"]}, {"pod": {"serviceAccountName": "b"}}),
    "a runtime class": ({"runtimeClasses": ["nvidia"]}, {"pod": {"runtimeClassName": "nvidia"}}),
    "all URIs below one of the prefixes": ({"uriPrefixes": ["hf://org", "s3://corp/"]}, {}),
    "as many nodes": ({"maxNodes": 2}, {}),
    "as many GPUs": ({"maxGpus": 16}, A100),
    "no GPUs": ({"maxGpus": 1}, {}),
}


@pytest.mark.parametrize(("given", "fields"), ALLOWED.values(), ids=ALLOWED)
def test_it_allows(given: dict[str, Any], fields: dict[str, Any]) -> None:
    assert violations(policy(**given), spec(**fields)) == ()


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "an image": ({"images": ["a/*"]}, {"image": "ab/c"}, "spec.image: ab/c is not allowed", "Use a/*, or remove"),
    "an image that goes on": ({"images": ["a/b:1"]}, {"image": "a/b:12"}, "spec.image: a/b:12", "Use a/b:1"),
    "an account": (
        {"serviceAccounts": ["a", "b"]},
        {"pod": {"serviceAccountName": "admin"}},
        "spec.pod.serviceAccountName: admin is not allowed",
        "Use a or b",
    ),
    "a priority": (
        {"priorityClasses": ["low"]},
        {"pod": {"priorityClassName": "system-node-critical"}},
        "spec.pod.priorityClassName: system-node-critical",
        "Use low",
    ),
    "a runtime class": (
        {"runtimeClasses": ["nvidia"]},
        {"pod": {"runtimeClassName": "kata"}},
        "spec.pod.runtimeClassName: kata",
        "Use nvidia",
    ),
    "a model from the hub": (
        {"uriPrefixes": ["s3://corp"]},
        {},
        "spec.model.uri: hf://org/model is not allowed",
        "Use a URI below s3://corp.",
    ),
    "an output": ({"uriPrefixes": ["hf://", "s3://corp/train.jsonl"]}, {}, "spec.output.uri: s3://corp/out", "below"),
    "data": ({"uriPrefixes": ["hf://", "s3://corp/out"]}, {}, "spec.data.train[0].uri: s3://corp/train.jsonl", "below"),
    "an artifact to continue from": (
        {"uriPrefixes": ["hf://", "s3://corp"]},
        {"continueFrom": "s3://other/model"},
        "spec.continueFrom: s3://other/model is not allowed",
        "below",
    ),
    "nodes": ({"maxNodes": 1}, {}, "spec.nodes: 2 nodes are more than the 1", "at most 1 nodes"),
    "elastic nodes": ({"maxNodes": 3}, {"nodes": {"min": 1, "max": 4}}, "spec.nodes.max: 4 nodes", "at most 3"),
    "nodes of a rung": ({"maxNodes": 2}, RUNG, "spec.ladder.overrides[0].nodes: 4 nodes are more than the 2", "most 2"),
    "GPUs of a rung": (
        {"maxGpus": 16},
        A100 | RUNG,
        "spec.ladder.overrides[0].resources.limits: 32 GPUs on 4 nodes",
        "at most 16",
    ),
    "GPUs of all nodes": ({"maxGpus": 15}, A100, "spec.resources.limits: 16 GPUs on 2 nodes", "at most 15"),
}


@pytest.mark.parametrize(("given", "fields", "told", "hint"), REFUSED.values(), ids=REFUSED)
def test_it_refuses(given: dict[str, Any], fields: dict[str, Any], told: str, hint: str) -> None:
    (found,) = violations(policy(**given), spec(**fields))

    assert str(found).startswith(told)
    assert hint in found.hint


@pytest.mark.parametrize(
    ("uri", "prefix", "below"),
    [
        ("s3://corp/a", "s3://corp/a", True),
        ("s3://corp/a/b", "s3://corp/a", True),
        ("s3://corp/a/b", "s3://corp/a/", True),
        ("s3://corp", "s3://corp/", True),
        ("s3://corp/ab", "s3://corp/a", False),
        ("s3://corp-of-others/a", "s3://corp", False),
        ("s3://corp/a/../b", "s3://corp/a", False),
        ("s3://corp/a/..b", "s3://corp/a", True),
        ("pvc://claim/..", "pvc://claim", False),
        ("s3://other/a", "s3://", True),
        ("hf://datasets/org/a", "hf://datasets/", True),
        ("file:///models/a", "file:///", True),
        ("file:///models/a", "file:///models", True),
    ],
)
def test_a_prefix_ends_where_a_segment_of_the_path_does(uri: str, prefix: str, below: bool) -> None:
    assert begins_with(uri, prefix) is below


def test_uris_are_found_wherever_a_spec_has_one() -> None:
    data = SPEC["data"] | {"validation": {"uri": "s3://corp/v"}, "slices": [{"name": "a", "uri": "pvc://c/s"}]}

    assert dict(uris_of(spec(data=data, pod={"env": [{"name": "A", "value": "s3://not/a/source"}]}))) == {
        "spec.model.uri": "hf://org/model",
        "spec.data.train[0].uri": "s3://corp/train.jsonl",
        "spec.data.validation.uri": "s3://corp/v",
        "spec.data.slices[0].uri": "pvc://c/s",
        "spec.output.uri": "s3://corp/out",
    }


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({}, 0),
        (A100, 16),
        ({"nodes": {"min": 1, "max": 3}, **A100}, 24),
        ({"resources": {"limits": {"nvidia.com/mig-1g.5gb": "2", "memory": "8Gi"}}, "processesPerNode": 2}, 4),
        ({"pod": {"resourceClaims": [{"name": "a", "resourceClaimName": "b"}]}, "processesPerNode": 4}, 8),
    ],
)
def test_gpus_are_those_of_all_nodes(fields: dict[str, Any], number: int) -> None:
    assert gpus(spec(**fields)) == number


# defaults


def test_a_policy_without_defaults_changes_nothing() -> None:
    one = spec()

    assert with_defaults(policy(maxNodes=1, images=["a"]), one) is one


DEFAULT = policy(
    podDefaults={
        "priorityClassName": "training", "nodeSelector": {"pool": "gpu", "zone": "a"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "imagePullSecrets": ["registry"], "labels": {"team": "ml"}, "env": {"NCCL_SOCKET_IFNAME": "eth1"},
    },
    hubEndpoint="https://hub.corp.example",
    trustedCa={"configMap": "corp-ca", "key": "ca.pem"},
    proxy={"https": "http://proxy:3128", "noProxy": ".svc"},
)  # fmt: skip


def test_pods_get_the_defaults() -> None:
    made = with_defaults(DEFAULT, spec()).pod.to_json()

    assert made["priorityClassName"] == "training"
    assert made["nodeSelector"] == {"pool": "gpu", "zone": "a"}
    assert made["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert made["imagePullSecrets"] == [{"name": "registry"}]
    assert {each["name"]: each["value"] for each in made["env"]} == {
        "HF_ENDPOINT": "https://hub.corp.example",
        **dict.fromkeys(
            ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"), "/etc/finetune/ca/ca.pem"
        ),
        **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://proxy:3128"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), ".svc"),
        "NCCL_SOCKET_IFNAME": "eth1",
    }
    (volume,) = made["volumes"]
    assert (volume["mountPath"], volume["configMap"], volume["readOnly"]) == (
        "/etc/finetune/ca",
        {"name": "corp-ca"},
        True,
    )


def test_what_a_job_sets_itself_wins() -> None:
    own = {
        "priorityClassName": "urgent", "nodeSelector": {"zone": "b"}, "labels": {"team": "nlp"},
        "env": [{"name": "HF_ENDPOINT", "value": "https://mine"}],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "imagePullSecrets": [{"name": "registry"}],
    }  # fmt: skip
    made = with_defaults(DEFAULT, spec(pod=own)).pod.to_json()

    assert (made["priorityClassName"], made["labels"]) == ("urgent", {"team": "nlp"})
    assert made["nodeSelector"] == {"pool": "gpu", "zone": "b"}
    assert (len(made["tolerations"]), len(made["imagePullSecrets"])) == (1, 1)
    assert [each["value"] for each in made["env"] if each["name"] == "HF_ENDPOINT"] == ["https://mine"]


# the shared cache of models


CACHE = policy(modelCache={"claim": "models", "sizeGiB": 800})


def test_pods_that_download_a_model_get_the_cache_of_their_namespace() -> None:
    made = with_defaults(CACHE, spec()).pod.to_json()

    assert made["env"] == [
        {"name": names.ENV_MODEL_CACHE, "value": names.MODEL_CACHE_DIR},
        {"name": names.ENV_MODEL_CACHE_GIB, "value": "800"},
    ]
    (volume,) = made["volumes"]
    assert volume["mountPath"] == names.MODEL_CACHE_DIR
    assert volume["persistentVolumeClaim"] == {"claimName": "models"}
    assert not volume["readOnly"]


def test_a_cache_without_a_size_is_bounded_by_its_volume() -> None:
    made = with_defaults(policy(modelCache={"claim": "models"}), spec()).pod

    assert [variable.name for variable in made.env] == [names.ENV_MODEL_CACHE]


OUT = {"output": {"uri": "pvc://models/out"}}
CLAIM = {"name": "own", "mountPath": "/own", "persistentVolumeClaim": {"claimName": "models"}}
WITHOUT: dict[str, dict[str, Any]] = {
    "a model on a claim": {"model": {"uri": "pvc://other/m"}},
    "a model of the image": {"model": {"uri": "file:///m"}},
    "a script": {"command": ["python", "train.py"], "model": None, "data": None},
    "the job opts out": {"pod": {"env": [{"name": names.ENV_MODEL_CACHE, "value": ""}]}},
    "the path is taken": {"pod": {"volumes": [{"name": "own", "mountPath": names.MODEL_CACHE_DIR, "emptyDir": {}}]}},
    "the claim is mounted for the output": OUT,
    "the claim is a volume of the job": {"pod": {"volumes": [CLAIM]}},
}


@pytest.mark.parametrize("fields", WITHOUT.values(), ids=WITHOUT)
def test_other_pods_stay_as_they_are(fields: dict[str, Any]) -> None:
    given = {key: value for key, value in (SPEC | fields).items() if value is not None}
    one = FineTuneJobSpec.model_validate_json(json.dumps(given))

    assert with_defaults(CACHE, one) is one


def test_a_namespace_has_a_cache_of_its_own_or_none() -> None:
    some = policy(
        modelCache={"claim": "models"}, namespaces={"a": {"modelCache": {"claim": "fast"}}, "b": {"modelCache": {}}}
    )

    assert [some.of(name).model_cache.claim for name in ("a", "b", "c")] == ["fast", "", "models"]


# namespaces, and the file


def test_a_namespaces_own_fields_replace_the_general_ones() -> None:
    both = policy(
        maxNodes=2, images=["a/*"], proxy={"http": "p"}, namespaces={"big": {"maxNodes": 64, "images": []}, "same": {}}
    )

    assert (both.of("big").max_nodes, both.of("big").images, both.of("big").proxy.http) == (64, [], "p")
    assert (both.of("same").max_nodes, both.of("elsewhere").images) == (2, ["a/*"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("maxNode: 1", "maxNode: Extra inputs are not permitted"),
        ("maxNodes: -1", "maxNodes: Input should be greater than or equal to 0"),
        ("uriPrefixes: [corp]", "uriPrefixes.0: String should match pattern"),
        ("namespaces: {a: {maxGpu: 1}}", "namespaces.a.maxGpu: Extra inputs"),
        ("modelCache: {pvc: a}", "modelCache.pvc: Extra inputs"),
        ("modelCache: {claim: A_b}", "modelCache.claim: String should match pattern"),
        ("modelCache: {sizeGiB: -1}", "modelCache.sizeGiB: Input should be greater than or equal to 0"),
        ("[1, 2]", "policy: Input should be a valid dictionary"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_in_the_file_are_named(text: str, told: str) -> None:
    with pytest.raises(ValueError, match="^" + told.replace(".", r"\.")):
        read(text)


def test_an_empty_file_restricts_nothing() -> None:
    assert read("") == AdminPolicy()


def test_the_operator_reads_it_at_its_start(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("maxNodes: 4")
    given = ["--all-namespaces", f"--policy={file}"]

    assert main.options(main.parse(given, {})).defaults.policy.max_nodes == 4
    file.write_text("maxNode: 4")
    with pytest.raises(ValueError, match=r"--policy .*/policy\.yaml: maxNode: Extra inputs"):
        main.options(main.parse(given, {}))
    file.unlink()
    with pytest.raises(ValueError, match=r"--policy .*/policy\.yaml: No such file"):
        main.options(main.parse(given, {}))
