"""The rig's control plane keeps its promises to the tests that stand on it."""

from __future__ import annotations

import json

import pytest

from tests.cluster.rig import Rig
from tests.cluster.rig.state import RigError

JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "two"},
    "spec": {
        "completions": 2,
        "parallelism": 2,
        "completionMode": "Indexed",
        "template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "docker.io/rig/host:1"}]}
        },
    },
}
READ_JOBS = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "jobs"},
        "rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "create"]}],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "jobs"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "jobs"},
    },
]


def _pods(rig: Rig, namespace: str) -> list[dict]:
    return rig.read(f"/api/v1/namespaces/{namespace}/pods")["items"]


def test_the_job_controller_makes_pods_that_nobody_schedules(control_plane: Rig, namespace: str) -> None:
    control_plane.apply(JOB, namespace=namespace)
    control_plane.wait_until(lambda: len(_pods(control_plane, namespace)) == 2, what="two pods")
    assert {pod["spec"]["schedulerName"] for pod in _pods(control_plane, namespace)} == {"rig-nobody"}
    assert all("conditions" not in pod["status"] for pod in _pods(control_plane, namespace))


def test_a_service_account_may_do_what_its_role_says_and_nothing_else(control_plane: Rig, namespace: str) -> None:
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "operator")
    role, binding = READ_JOBS
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    control_plane.apply([role, {**binding, "subjects": [subject]}], namespace=namespace)
    control_plane.wait_allowed("list", "jobs.batch", namespace=namespace, account=f"{namespace}:operator")
    control_plane.kubectl("get", "jobs", "-n", namespace, kubeconfig=kubeconfig)
    with pytest.raises(RigError, match="forbidden"):
        control_plane.kubectl("get", "secrets", "-n", namespace, kubeconfig=kubeconfig)


def test_the_audit_log_counts_the_writes_of_each_user(control_plane: Rig, namespace: str) -> None:
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "operator")
    role, binding = READ_JOBS
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    control_plane.apply([role, {**binding, "subjects": [subject]}], namespace=namespace)
    control_plane.wait_allowed("create", "jobs.batch", namespace=namespace, account=f"{namespace}:operator")
    mark = control_plane.audit.mark()
    control_plane.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(JOB), kubeconfig=kubeconfig)
    user = f"system:serviceaccount:{namespace}:operator"
    assert control_plane.audit.writes(user, since=mark) == {"create jobs": 1}


@pytest.mark.parametrize("component", ["apiserver", "etcd", "controller-manager"])
def test_objects_outlive_a_killed_component(control_plane: Rig, namespace: str, component: str) -> None:
    control_plane.apply(JOB, namespace=namespace)
    before = control_plane.pid(component)
    with control_plane.outage(component, kill=True):
        assert control_plane.pid(component) is None
    assert control_plane.pid(component) not in (None, before)
    assert control_plane.get("job", "two", "-n", namespace)["spec"]["completions"] == 2


def test_an_unknown_component_is_refused_with_the_names_that_exist(control_plane: Rig) -> None:
    assert control_plane.pid("apiserver")
    with pytest.raises(RigError, match="apiserver"):
        control_plane.stop("api-server")
