"""`helm test` on the cluster: the chart's hook trains a real model to its artifact on a real kubelet, and cleans up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.jobs import CHECKOUT, readable
from tests.cluster.operator_process import BIN, Operator
from tests.cluster.rig import Helm, Rig, RigError, apply_host_trees, host_trees, job_volumes
from tests.cluster.rig.host_trees import IMAGE, pod_volumes

pytestmark = pytest.mark.timeout(900)

CHART = CHECKOUT / "charts" / "finetune-operator"


@pytest.fixture
def claim(cluster: Rig, restricted_namespace: str, tmp_path: Path) -> Iterator[Path]:
    """A folder of this machine as the claim `shared`, which any user may write to."""
    folder = tmp_path / "shared"
    folder.mkdir()
    readable(folder)
    folder.chmod(0o777)
    size, modes, name = {"storage": "1Gi"}, ["ReadWriteOnce"], f"{restricted_namespace}-shared"
    volume: dict[str, Any] = {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": size, "accessModes": modes, "storageClassName": "",
            "claimRef": {"namespace": restricted_namespace, "name": "shared"},
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }  # fmt: skip
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared", "namespace": restricted_namespace},
        "spec": {
            "accessModes": modes, "storageClassName": "", "volumeName": name, "resources": {"requests": size}
        },
    }  # fmt: skip
    cluster.apply([volume, claim])
    yield folder
    cluster.kubectl("delete", "pv", name, "--wait=false")


def test_helm_test_trains_to_an_artifact_and_cleans_up(
    cluster: Rig, operator: Operator, helm: Helm, restricted_namespace: str, claim: Path, tmp_path: Path
) -> None:
    """The release's Deployment has no replica that runs: the operator beside the cluster acts in its place."""
    trees = host_trees(CHECKOUT)
    apply_host_trees(cluster, restricted_namespace, trees)
    volumes, mounts = pod_volumes(trees)
    for each in volumes:
        each["persistentVolumeClaim"].pop("readOnly")
    repository, _, tag = IMAGE.rpartition(":")
    values = {
        "namespaces": [restricted_namespace],
        "crds": {"enabled": False},
        "trainer": {"image": {"repository": repository, "tag": tag}},
        "test": {
            "claim": "shared", "timeoutSeconds": 300, "python": str(BIN / "python"), "volumes": volumes,
            "volumeMounts": mounts, "jobPod": {"volumes": job_volumes(trees)},
        },
    }  # fmt: skip
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    admin = Helm.at(tmp_path / "helm", kubeconfig=cluster.kubeconfig)
    where = ("finetune-operator", "-n", restricted_namespace)
    admin("install", where[0], CHART, *where[1:], "-f", file)
    try:
        told = admin("test", *where, "--logs", "--timeout", "420s")
    except RigError:
        print(cluster.kubectl("logs", "-n", restricted_namespace, "finetune-operator-test"))
        raise
    finally:
        admin("uninstall", *where)

    assert "adapter_model.safetensors" in told
    assert "the operator trains: test passed" in told
    assert list(claim.iterdir()) == []
    left = cluster.kubectl("get", "finetunejobs,jobs,configmap", "-n", restricted_namespace, "-o", "name").split()
    assert [name for name in left if "kube-root-ca" not in name] == []
