"""The Job and the Service of an attempt, as the API server will get them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import names
from finetune_api.admin_policy import AdminPolicy
from finetune_api.plan import RunPlan
from finetune_api.pod import Pod as PodSpec
from finetune_operator.objects import attempt_job, claims, pod_spec, service
from finetune_operator.state.observe import Defaults
from tests.support.operator_objects import DEFAULTS, job, spec


def built(attempt: int = 1, **fields: Any) -> dict[str, Any]:
    made = spec(**fields)
    return attempt_job(job(), made, attempt=attempt, nodes=made.max_nodes, defaults=DEFAULTS)


def pod_of(made: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = made["spec"]["template"]["spec"]
    return pod


def unrestricted(pod: dict[str, Any]) -> list[str]:
    """What the `restricted` Pod Security Standard would refuse."""
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    wrong = [key for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers") if pod.get(key)]
    wrong += [f"volume {v['name']}" for v in pod["volumes"] if not set(v) - {"name"} <= allowed]
    shared = pod["securityContext"]
    if not shared.get("runAsNonRoot") or shared.get("runAsUser") == 0:
        wrong.append("root")
    if shared.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        wrong.append("seccomp")
    for container in pod["containers"]:
        own = container["securityContext"]
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            wrong.append("privilege")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            wrong.append("capabilities")
        wrong += ["hostPort" for port in container["ports"] if port.get("hostPort")]
    return wrong


def test_nothing_inside_an_attempt_restarts_anything() -> None:
    made = built()["spec"]
    assert (made["backoffLimit"], made["podReplacementPolicy"], made["completionMode"]) == (0, "Failed", "Indexed")
    assert (made["completions"], made["parallelism"]) == (2, 2)
    assert made["template"]["spec"]["restartPolicy"] == "Never"


def test_the_plan_travels_with_the_pod_and_without_the_pods_own_settings() -> None:
    made = built(attempt=3, pod={"env": [{"name": "TOKEN", "value": "canary"}], "termination_grace_period": "45s"})
    text = made["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN]
    plan = RunPlan.model_validate_json(text)
    assert (plan.attempt, plan.nodes, plan.master_address) == (3, 2, "a-3-0.a.ml.svc")
    assert "canary" not in text
    assert pod_of(made)["terminationGracePeriodSeconds"] == plan.grace_seconds == 45
    (volume,) = [v for v in pod_of(made)["volumes"] if v["name"] == "finetune-plan"]
    (item,) = volume["downwardAPI"]["items"]
    assert item["path"] == names.PLAN_FILE
    assert names.ANNOTATION_PLAN in item["fieldRef"]["fieldPath"]


SCRIPT: dict[str, Any] = {"model": None, "data": None, "output": None, "command": ["python", "train.py", "--lr=1e-4"]}


def test_a_script_of_ones_own_has_the_same_pod_and_the_agent_starts_it() -> None:
    made, ours = built(**SCRIPT), built()
    text = made["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN]
    plan = RunPlan.model_validate_json(text)
    assert plan.spec.command == ("python", "train.py", "--lr=1e-4")
    assert not {"model", "data", "output", "given_model"} & set(json.loads(text)["spec"])
    assert pod_of(made) == {**pod_of(ours)}
    assert pod_of(made)["containers"][0]["command"] == ["finetune", "agent"]
    assert unrestricted(pod_of(made)) == []


def test_a_scripts_output_gives_it_the_claim_and_the_secret() -> None:
    fields = SCRIPT | {"output": {"uri": "pvc://models/a", "credentials": {"secret_name": "keys"}}}
    assert claims(spec(**fields)) == {"models": True}
    env = pod_of(built(**fields))["containers"][0]["envFrom"]
    assert env == [{"prefix": names.PREFIX_OUTPUT, "secretRef": {"name": "keys"}}]


OF_THE_POD: dict[str, Any] = {
    "service_account_name": "reader",
    "node_selector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priority_class_name": "high",
    "runtime_class_name": "nvidia",
    "scheduler_name": "volcano",
    "image_pull_secrets": [{"name": "registry"}],
    "env": [{"name": "A", "value": "b"}],
    "volumes": [{"name": "scratch", "mount_path": "/scratch", "empty_dir": {}}],
    "labels": {"team": "a"},
    "annotations": {"team": "a"},
    "shm_size": "8Gi",
    "run_as_user": 1000,
    "run_as_group": 3000,
    "fs_group": 2000,
    "resource_claims": [{"name": "gpus", "resource_claim_template_name": "two-gpus"}],
    "termination_grace_period": "5m",
}


def test_each_setting_of_the_pod_is_known_here() -> None:
    assert set(OF_THE_POD) == set(PodSpec.model_fields)


@pytest.mark.parametrize("field", OF_THE_POD)
def test_each_setting_of_the_pod_has_an_effect(field: str) -> None:
    assert built(pod={field: OF_THE_POD[field]})["spec"]["template"] != built()["spec"]["template"]


def test_the_kubelet_asks_the_agent_rarely_and_nothing_waits_for_its_answer() -> None:
    made = pod_spec("a", spec(), defaults=DEFAULTS, grace_seconds=30)["containers"][0]
    probe = made["readinessProbe"]
    assert probe["httpGet"] == {"path": "/healthz", "port": made["ports"][0]["name"]}
    assert probe["periodSeconds"] >= 30
    assert "livenessProbe" not in made, "a restart inside of an attempt is never right"
    assert service(job())["spec"]["publishNotReadyAddresses"]


def test_whose_the_files_are() -> None:
    security = pod_of(built(pod={"run_as_user": 1000, "fs_group": 2000}))["securityContext"]
    assert [security[key] for key in ("runAsUser", "runAsGroup", "fsGroup")] == [1000, 1000, 2000]


@pytest.mark.parametrize(
    ("pod", "then"),
    [
        ({"run_as_user": None}, {"fsGroup": 65532}),
        ({"run_as_user": None, "fs_group": None}, {}),
        ({"run_as_group": None}, {"runAsUser": 65532, "fsGroup": 65532}),
        ({"run_as_group": 0, "run_as_user": None, "fs_group": None}, {"runAsGroup": 0}),
    ],
    ids=["no user", "nobody", "no group", "OpenShift's group of its images"],
)
def test_ids_that_are_left_to_the_namespace(pod: dict[str, Any], then: dict[str, int]) -> None:
    """OpenShift gives each namespace a range, and refuses pods that name a number out of it."""
    made = pod_of(built(pod=pod))
    security = made["securityContext"]
    assert {key: security[key] for key in ("runAsUser", "runAsGroup", "fsGroup") if key in security} == then
    assert security["runAsNonRoot"] is True
    assert unrestricted(made) == []


def test_claims_of_devices_are_the_trainers() -> None:
    claims = [{"name": "gpus", "resource_claim_template_name": "two-gpus"}]
    made = pod_of(built(pod={"resource_claims": claims}, processes_per_node=2))
    assert made["resourceClaims"] == [{"name": "gpus", "resourceClaimTemplateName": "two-gpus"}]
    assert made["containers"][0]["resources"]["claims"] == [{"name": "gpus"}]
    assert "claims" not in pod_of(built())["containers"][0]["resources"]


def test_the_pod_has_no_token_and_no_service_links() -> None:
    pod = pod_of(built(pod={"service_account_name": "reader"}))
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert pod["serviceAccountName"] == "reader"


def test_what_the_trainer_writes_to_is_writable_and_nothing_else_is() -> None:
    (container,) = pod_of(built())["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/tmp", names.RUN_DIR, names.CACHE_DIR, "/dev/shm"}


def test_a_users_volume_takes_the_place_of_ours() -> None:
    volume = {"name": "big", "mount_path": names.CACHE_DIR, "persistent_volume_claim": {"claim_name": "disk"}}
    pod = pod_of(built(pod={"volumes": [volume]}))
    mounts = [m["name"] for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == names.CACHE_DIR]
    assert mounts == ["big"]
    assert "finetune-cache" not in {v["name"] for v in pod["volumes"]}


def test_secrets_enter_the_environment_under_their_sections_prefix() -> None:
    made = built(
        model={"uri": "hf://org/model", "credentials": {"secret_name": "hub"}},
        output={"uri": "s3://corp/out", "credentials": {"secret_name": "bucket"}},
    )
    assert pod_of(made)["containers"][0]["envFrom"] == [
        {"prefix": names.PREFIX_MODEL, "secretRef": {"name": "hub"}},
        {"prefix": names.PREFIX_OUTPUT, "secretRef": {"name": "bucket"}},
    ]


def test_the_trainer_is_told_only_what_it_cannot_know() -> None:
    """The places in a pod are its defaults; the Job controller adds the rank of the node."""
    assert pod_of(built())["containers"][0]["env"] == [{"name": "HOME", "value": "/tmp"}]


def test_a_users_variable_replaces_ours() -> None:
    env = [{"name": "HOME", "value": "/home"}, {"name": "KEY", "secret_key_ref": {"name": "s", "key": "k"}}]
    made = pod_of(built(pod={"env": env}))["containers"][0]["env"]
    assert [e for e in made if e["name"] in ("HOME", "KEY")] == [
        {"name": "HOME", "value": "/home"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]


CLAIMS = [
    ("none", {}, {}),
    ("read the data", {"data": {"train": [{"uri": "pvc://d/a.jsonl"}, {"uri": "pvc://d/b.jsonl"}]}}, {"d": False}),
    ("write the output", {"output": {"uri": "pvc://disk/out"}}, {"disk": True}),
    ("both on one", {"model": {"uri": "pvc://disk/model"}, "output": {"uri": "pvc://disk/out"}}, {"disk": True}),
    ("validation by fraction names no file",
     {"data": {"train": [{"uri": "pvc://d/a"}], "validation": {"fraction": 0.1}, "test": {"uri": "pvc://t/x"}}},
     {"d": False, "t": False}),
    ("read earlier adapters", {"output": {"uri": "s3://corp/o", "switchTest": ["pvc://old/a"]}}, {"old": False}),
    ("read the artifact that a job continues from", {"continue_from": "pvc://old/a"}, {"old": False}),
    ("read earlier artifacts", {"evaluation": {"references": [{"name": "a", "uri": "pvc://old/a"}]}}, {"old": False}),
]  # fmt: skip


def test_the_trainer_knows_which_uris_of_an_earlier_artifact_are_allowed() -> None:
    """They are not in the manifest. Plans of other jobs are as before."""
    allowed = replace(DEFAULTS, policy=AdminPolicy.model_validate({"uriPrefixes": ["s3://corp"]}))

    def prefixes(defaults: Defaults, **fields: Any) -> Any:
        made = attempt_job(job(), spec(**fields), attempt=1, nodes=1, defaults=defaults)
        notes = made["spec"]["template"]["metadata"]["annotations"]
        return json.loads(notes[names.ANNOTATION_PLAN]).get("uriPrefixes")

    assert prefixes(allowed, continue_from="s3://corp/a") == ["s3://corp"]
    assert prefixes(DEFAULTS, continue_from="s3://corp/a") is None
    assert prefixes(allowed) is None


@pytest.mark.parametrize(("fields", "then"), [c[1:] for c in CLAIMS], ids=[c[0] for c in CLAIMS])
def test_claims_of_pvc_uris(fields: dict[str, Any], then: dict[str, bool]) -> None:
    assert claims(spec(**fields)) == then
    mounts = {m["mountPath"]: m for m in pod_of(built(**fields))["containers"][0]["volumeMounts"]}
    for claim, writable in then.items():
        assert mounts[f"{names.PVC_ROOT}/{claim}"].get("readOnly", False) is not writable


def test_the_image_is_the_jobs_or_the_operators() -> None:
    assert pod_of(built())["containers"][0]["image"] == DEFAULTS.image
    assert pod_of(built(image="mine:1"))["containers"][0]["image"] == "mine:1"


def test_children_belong_to_the_job_and_say_so() -> None:
    for made in (built(), service(job())):
        (owner,) = made["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["kind"], owner["controller"]) == ("u", names.KIND, True)
        assert made["metadata"]["labels"][names.LABEL_UID] == "u"


def test_a_users_label_does_not_hide_ours() -> None:
    labels = built(pod={"labels": {"team": "x", names.LABEL_UID: "forged"}})["spec"]["template"]["metadata"]["labels"]
    assert (labels["team"], labels[names.LABEL_UID]) == ("x", "u")


def test_the_service_finds_pods_that_are_not_ready() -> None:
    made = service(job())["spec"]
    assert (made["clusterIP"], made["publishNotReadyAddresses"]) == ("None", True)
    labels = built()["spec"]["template"]["metadata"]["labels"]
    assert made["selector"].items() <= labels.items()


names_ = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
volumes = st.lists(
    st.fixed_dictionaries(
        {"name": names_, "mount_path": names_.map(lambda n: f"/{n}"), "read_only": st.booleans()},
    ).flatmap(
        lambda base: st.sampled_from(
            [{"empty_dir": {"medium": "Memory"}}, {"secret": {"name": "s"}}, {"config_map": {"name": "c"}},
             {"persistent_volume_claim": {"claim_name": "p"}}]
        ).map(lambda source: base | source)
    ),
    max_size=4,
    unique_by=lambda v: v["name"],
)  # fmt: skip
pods = st.fixed_dictionaries(
    {},
    optional={
        "volumes": volumes,
        "run_as_user": st.integers(1, 2**31 - 1),
        "shm_size": st.sampled_from(["1Gi", 1024]),
        "tolerations": st.just([{"operator": "Exists"}]),
        "affinity": st.just({"podAntiAffinity": {}}),
        "runtime_class_name": names_,
        "scheduler_name": names_,
        "labels": st.dictionaries(names_, names_, max_size=3),
    },
)


@given(pod=pods, nodes=st.integers(1, 1024), output=st.sampled_from(["s3://corp/o", "pvc://c/o", "file:///o"]))
def test_every_pod_is_restricted(pod: dict[str, Any], nodes: int, output: str) -> None:
    made = built(pod=pod, nodes=nodes, output={"uri": output})
    assert unrestricted(pod_of(made)) == []
    mounted = [m["name"] for m in pod_of(made)["containers"][0]["volumeMounts"]]
    assert sorted(mounted) == sorted(v["name"] for v in pod_of(made)["volumes"])
