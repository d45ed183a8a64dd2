"""The real scheduler with Kubernetes' own PodGroup: all pods of an attempt get a node, or none does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from finetune_api import names
from finetune_operator.gangs.native import KINDS
from finetune_operator.kube.resources import FINETUNEJOBS, PODS, Raw
from tests.cluster.operator_process import ACCOUNT, CHECKOUT, SYSTEM, Operator
from tests.cluster.rig import Rig
from tests.support.kube_client import manifest

KIND = KINDS[-1]
GATES = "--feature-gates=GenericWorkload=true,GangScheduling=true"


@pytest.fixture(scope="module")
def gangs(cluster: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A cluster that schedules gangs, and an operator that may ask for it."""
    with (
        cluster.flags("apiserver", GATES, f"--runtime-config={KIND.api_version}=true"),
        cluster.flags("controller-manager", GATES),
        cluster.flags("scheduler", GATES),
    ):
        program = Operator.of(cluster, tmp_path_factory.mktemp("operator"))
        cluster.apply(CHECKOUT / "operator" / "rbac-gang.yaml")
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "finetune-operator-gang"}
        account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": SYSTEM}
        binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
        cluster.apply({**binding, "metadata": {"name": role["name"]}, "roleRef": role, "subjects": [account]})
        who = f"{SYSTEM}:{ACCOUNT}"
        cluster.wait_allowed("create", "podgroups.scheduling.k8s.io", namespace="default", account=who)
        try:
            program.start()
            yield cluster
        finally:
            program.stop()
            cluster.kubectl("delete", "clusterrolebinding", role["name"])


def nodes_of(rig: Rig, namespace: str, job: str) -> list[str]:
    """Of each pod of the FineTuneJob, its node; empty while it has none."""
    pods = rig.read(PODS.path(namespace), labelSelector=f"{names.LABEL_JOB}={job}")["items"]
    return [pod["spec"].get("nodeName", "") for pod in pods]


def free_cpu(rig: Rig) -> int:
    """Of the only node, in thousandths."""
    (node,) = rig.get("nodes")["items"]
    return int(node["status"]["allocatable"]["cpu"]) * 1000


def apply(rig: Rig, namespace: str, name: str, cpu: int) -> None:
    rig.apply(manifest(name, resources={"requests": {"cpu": f"{cpu}m"}}), namespace=namespace)


def plain(namespace: str, index: int, cpu: int) -> Raw:
    """A pod without a group, of no FineTuneJob; its label only lets it be found in the same way."""
    container = {
        "name": "c",
        "image": "none",
        "resources": {"requests": {"cpu": f"{cpu}m"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    meta = {"name": f"plain-{index}", "namespace": namespace, "labels": {names.LABEL_JOB: "plain"}}
    spec = {"containers": [container], "securityContext": security}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def test_a_gang_gets_its_nodes_together_or_not_at_all(gangs: Rig, restricted_namespace: str) -> None:
    free = free_cpu(gangs)
    apply(gangs, restricted_namespace, "large", free * 6 // 10)
    gangs.wait_until(lambda: len(nodes_of(gangs, restricted_namespace, "large")) == 2, what="the pods")

    def told() -> dict[str, str]:
        status = gangs.read(FINETUNEJOBS.path(restricted_namespace, "large")).get("status", {})
        return status.get("lastFailure", {})

    gangs.wait_until(lambda: told().get("reason") == "Unschedulable", what="the scheduler's words")
    assert nodes_of(gangs, restricted_namespace, "large") == ["", ""], "one of two pods would have had place"

    apply(gangs, restricted_namespace, "small", free // 10)
    gangs.wait_until(
        lambda: [bool(name) for name in nodes_of(gangs, restricted_namespace, "small")] == [True, True],
        what="both pods of a gang that fits",
    )


def test_without_a_group_one_of_two_gets_the_node(cluster: Rig, restricted_namespace: str) -> None:
    """What the test above would see if nobody scheduled gangs."""
    cpu = free_cpu(cluster) * 6 // 10
    cluster.apply([plain(restricted_namespace, index, cpu) for index in range(2)])

    def placed() -> list[bool]:
        return sorted(bool(name) for name in nodes_of(cluster, restricted_namespace, "plain"))

    cluster.wait_until(lambda: placed() == [False, True], what="one of the two has the node")
    cluster.kubectl("delete", "pods", "-n", restricted_namespace, "--all", "--grace-period=1")
