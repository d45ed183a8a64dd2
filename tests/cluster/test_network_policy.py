"""A gang trains behind its NetworkPolicy; a real pod of another tenant is refused, and one that may read metrics reads
them alone. The rig's enforcer drops the packets (tests/cluster/rig/network_policy.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_api import names
from tests.cluster.jobs import CHECKOUT, Place, endless, tiny_inputs
from tests.cluster.operator_process import ACCOUNT, SYSTEM, Operator
from tests.cluster.rig import Rig, apply_host_trees, host_trees
from tests.cluster.rig.host_trees import restricted_pod
from tests.cluster.rig.machine import has_nft
from tests.cluster.rig.network_policy import accepted, enforced

pytestmark = pytest.mark.timeout(900)
PYTHON = str(CHECKOUT / ".venv" / "bin" / "python")
KNOCK = """
import socket, sys, time
while True:
    found = []
    for port in (9400, 29500):
        try: socket.create_connection((sys.argv[1], port), 1).close(); found.append("open")
        except TimeoutError: found.append("refused")
        except OSError as error: found.append(type(error).__name__)
    print(*found, flush=True)
    time.sleep(0.5)
"""


def knocking(rig: Rig, namespace: str, address: str) -> None:
    """A pod that tries the agent's port and the rendezvous port of the address, again and again."""
    trees = host_trees(CHECKOUT)
    apply_host_trees(rig, namespace, trees)
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"knock.py": KNOCK}}
    spec = restricted_pod(trees, [PYTHON, "-I", "/code/knock.py", address])
    spec["securityContext"] |= {"runAsUser": 65532}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "knock"}, "spec": spec}
    rig.apply([code, pod], namespace=namespace)


def heard(rig: Rig, namespace: str) -> str:
    """What it found last: of the agent's port, and of the rendezvous port."""
    return rig.log("knock", namespace, tailLines="1").strip()


@pytest.mark.skipif(not has_nft(), reason="nftables: nft is not installed")
def test_another_tenant_is_refused_and_the_gang_trains(cluster: Rig, tmp_path: Path) -> None:
    model, corpus = tiny_inputs(tmp_path)
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    home, stranger, watcher = (cluster.create_namespace(name, labels=level) for name in ("home", "stranger", "watcher"))
    place = Place.of(cluster, cluster.s3, home, models=model)
    place.upload(corpus, "tiny")
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": watcher}}}]
    operator = Operator.of(cluster, tmp_path, "--all-namespaces", f"--job-network-policy={json.dumps(peers)}")
    cluster.apply(CHECKOUT / "operator" / "rbac-network.yaml")
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "finetune-operator-network"}
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": SYSTEM}
    cluster.apply({**binding, "metadata": {"name": role["name"]}, "roleRef": role, "subjects": [account]})
    operator.start()
    try:
        manifest = endless("closed", nodes=2, every=1000)
        with enforced(cluster):
            place.apply(place.on_this_rig(manifest, model=model))
            place.wait("closed", lambda s: s.get("phase") == "Running", what="running")
            (master,) = (
                p for p in place.pods("closed") if p["metadata"]["labels"][names.LABEL_COMPLETION_INDEX] == "0"
            )
            address = master["status"]["podIP"]
            for namespace in (stranger, watcher):
                knocking(cluster, namespace, address)
            place.wait("closed", lambda s: s.get("progress", {}).get("step", 0) > 0, what="training")
            assert accepted(f"{home}/closed") > 0, "the gang's connections pass by the policy's rules"
            cluster.wait_until(lambda: heard(cluster, stranger) == "refused refused", what="the stranger is refused")
            cluster.wait_until(lambda: heard(cluster, watcher) == "open refused", what="the watcher reads metrics only")
        cluster.wait_until(
            lambda: heard(cluster, stranger).startswith("open"), what="without the enforcer, the stranger gets through"
        )
    finally:
        operator.stop()
        cluster.kubectl("delete", "clusterrolebinding", role["name"])
        for namespace in (home, stranger, watcher):
            cluster.delete_namespace(namespace)
