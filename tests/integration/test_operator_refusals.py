"""Who says no on a real API server, and that every no but one may pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_operator.kube.resources import EVENTS, JOBS
from tests.cluster.rig.control_plane import FAKE_PODS_LABEL
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Operator, Start
from tests.support.operator_rbac import allow

ADMISSION = "admissionregistration.k8s.io/v1"


def deny_jobs(kube: Kube, **validation: Any) -> None:
    """A ValidatingAdmissionPolicy that lets no Job be made in the namespace; it answers 422 unless told otherwise."""
    selector = {"matchLabels": {"kubernetes.io/metadata.name": kube.namespace}}
    rules = [{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}]
    policy = {
        "apiVersion": ADMISSION,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": kube.namespace},
        "spec": {
            "matchConstraints": {"resourceRules": rules},
            "validations": [{"expression": "false", "message": "no Jobs at night", **validation}],
        },
    }
    binding = {
        "apiVersion": ADMISSION,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": kube.namespace},
        "spec": {
            "policyName": kube.namespace,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": selector},
        },
    }
    kube.rig.apply([policy, binding])
    wait_for(lambda: _denied(kube), what="the policy is in force", seconds=60)


def _denied(kube: Kube) -> bool:
    container = {"name": "x", "image": "x"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "probe"}, "spec": {"template": template}}
    try:
        kube.create(body | {"spec": body["spec"] | {"suspend": True}}, JOBS)  # type: ignore[operator]
    except Exception as error:
        return "no Jobs at night" in str(error)
    kube.delete("probe", JOBS)
    return False


def allow_jobs(kube: Kube) -> None:
    for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
        kube.rig.kubectl("delete", kind, kube.namespace)


def test_a_policy_that_denies_is_told_and_waited_for(start: Start, kube: Kube) -> None:
    deny_jobs(kube)
    start()
    kube.create(manifest("a"))
    wait_for(lambda: "no Jobs at night" in kube.condition("a", "Running").get("message", ""), what="told")
    assert (kube.phase("a"), kube.status("a")["lastFailure"]["reason"]) == ("Pending", "PodsRefused")
    assert "ValidatingAdmissionPolicy" in kube.condition("a", "Running")["message"]
    allow_jobs(kube)
    kube.await_gang("a", 1)
    wait_for(lambda: kube.condition("a", "Running")["reason"] == "GangCreated", what="taken back")


def test_what_an_earlier_job_of_the_name_left_is_named(start: Start, kube: Kube) -> None:
    first = start()
    kube.create(manifest("a", nodes=1))
    kube.run("a", 1)
    first.stop()
    kube.delete("a", policy="Orphan")
    wait_for(lambda: kube.get("a") is None, what="the FineTuneJob is gone")
    left = kube.get("a-1", JOBS)
    assert left is not None
    assert "ownerReferences" not in left["metadata"]

    start()
    uid = kube.create(manifest("a", nodes=1))["metadata"]["uid"]
    wait_for(lambda: "belongs to an earlier" in kube.condition("a", "Running").get("message", ""), what="told")
    for resource in ("services", "jobs"):
        wait_for(lambda kind=resource: f"kubectl delete {kind} a" in kube.condition("a", "Running")["message"],
                 what=resource)  # fmt: skip
        kube.rig.kubectl("delete", resource, "-n", kube.namespace, "--all")

    def gang_of_the_new_job() -> bool:
        # The earlier job's pod is collected some time after its Job; until then both have the name and the attempt.
        return [pod["metadata"]["labels"][names.LABEL_UID] for pod in kube.gang("a", 1)] == [uid]

    wait_for(gang_of_the_new_job, what="only the new job's pod")


def test_a_job_of_somebody_else_costs_a_number_and_nothing_more(start: Start, kube: Kube) -> None:
    start()
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
    spec = {"suspend": True, "template": template}
    kube.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a-2"}, "spec": spec}, JOBS)
    kube.create(manifest("a", nodes=1))
    (pod,) = kube.run("a", 1)
    kube.end(pod, code=70)
    kube.run("a", 3)
    assert kube.status("a")["restarts"] == {"counted": 1, "free": 0}
    assert [event for event in kube.list(EVENTS) if event["reason"] == "NameTaken" and "Job a-2" in event["message"]]
    assert kube.get("a-2", JOBS) is not None


def test_a_namespace_without_rights_stops_no_other(operator_kubeconfig: Path, kube: Kube) -> None:
    closed = kube.rig.create_namespace("closed", labels={FAKE_PODS_LABEL: "fake"})
    operator = Operator(operator_kubeconfig, closed, kube.namespace)
    try:
        kube.create(manifest("a"))
        kube.await_gang("a", 1)
        other = Kube(kube.rig, closed)
        other.create(manifest("b"))
        assert not other.jobs()
        allow(kube.rig, closed)
        wait_for(lambda: other.jobs() == ["b-1"], what="the other namespace, once there are rights")
        other.close()
    finally:
        operator.stop()
        kube.rig.delete_namespace(closed)
