"""`helm test` on the cluster: the operator runs from its image as the chart's Deployment, the chart's hook trains a
real model to its artifact on a real kubelet, and cleans up. With FINETUNE_TRAINER_IMAGE=1 (`make images`) the trainer
runs from its image, too, which has gigabytes; without, from this machine's folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.jobs import CHECKOUT, readable
from tests.cluster.operator_process import BIN, Operator
from tests.cluster.rig import Helm, Rig, RigError, apply_host_trees, host_trees, job_volumes
from tests.cluster.rig.host_trees import IMAGE, pod_volumes
from tools import image_build

pytestmark = pytest.mark.timeout(2400 if os.environ.get("FINETUNE_TRAINER_IMAGE") else 900)

CHART = CHECKOUT / "charts" / "finetune-operator"
REPOSITORY, TAG = "docker.io/finetune/operator", "operator"
TRAINER = "docker.io/finetune/trainer"


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
    cluster: Rig, operator_image: image_build.Image | str, helm: Helm, restricted_namespace: str, claim: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Where the image cannot be built, no replica of the Deployment runs and a process beside the cluster acts in its
    place: the test is then skipped at its end, since the image was not proven."""
    trainer, test = (_from_image if os.environ.get("FINETUNE_TRAINER_IMAGE") else _from_host)(
        cluster, restricted_namespace
    )
    values = {
        "namespaces": [restricted_namespace],
        "crds": {"enabled": False},
        "operator": {"image": {"repository": REPOSITORY, "tag": TAG}, "replicas": 1},
        "trainer": trainer,
        "test": {"claim": "shared", "timeoutSeconds": 300, **test},
    }
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    admin = Helm.at(tmp_path / "helm", kubeconfig=cluster.kubeconfig)
    where = ("finetune-operator", "-n", restricted_namespace)
    process = Operator.of(cluster, tmp_path)
    if isinstance(operator_image, str):
        process.start()
    else:
        cluster.import_image(operator_image.archive, repository=REPOSITORY)
    admin("install", where[0], CHART, *where[1:], "-f", file)
    try:
        told = admin("test", *where, "--logs", "--timeout", "420s")
        if not isinstance(operator_image, str):
            _runs_as_the_chart_says(cluster, restricted_namespace)
    except RigError:
        for pod in ("finetune-operator-test", "deployment/finetune-operator"):
            print(cluster.kubectl("logs", "-n", restricted_namespace, pod, check=False))
        raise
    finally:
        process.stop()
        admin("uninstall", *where)

    assert "adapter_model.safetensors" in told
    assert "the operator trains: test passed" in told
    assert list(claim.iterdir()) == []
    left = cluster.kubectl("get", "finetunejobs,jobs,configmap", "-n", restricted_namespace, "-o", "name").split()
    assert [name for name in left if "kube-root-ca" not in name] == []
    if isinstance(operator_image, str):
        pytest.skip(f"passed with the operator as a process; its image was not run: {operator_image}")


def _from_host(cluster: Rig, namespace: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of `trainer` and `test` where pods run this checkout from the machine's folders."""
    trees = host_trees(CHECKOUT)
    apply_host_trees(cluster, namespace, trees)
    volumes, mounts = pod_volumes(trees)
    for each in volumes:
        each["persistentVolumeClaim"].pop("readOnly")
    repository, _, tag = IMAGE.rpartition(":")
    return (
        {"image": {"repository": repository, "tag": tag}, "command": f"{BIN / 'finetune'} agent"},
        {
            "python": str(BIN / "python"), "volumes": volumes, "volumeMounts": mounts,
            "jobPod": {"volumes": job_volumes(trees)},
        },
    )  # fmt: skip


def _from_image(cluster: Rig, namespace: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of `trainer` and `test` where pods run the trainer's image, built here, as the chart has them."""
    cluster.import_image(image_build.build("trainer").archive, repository=TRAINER)
    return {"image": {"repository": TRAINER, "tag": "trainer"}}, {}


def _runs_as_the_chart_says(cluster: Rig, namespace: str) -> None:
    """The Deployment's pod: the built image, not root, a root file system that cannot be written, its bill of
    materials."""
    labels = "app.kubernetes.io/name=finetune-operator,finetune.dev/chart-test!=finetune-operator-test"
    (pod,) = cluster.get("pods", "-n", namespace, "-l", labels)["items"]
    (container,) = pod["status"]["containerStatuses"]
    assert (container["image"], container["restartCount"], container["ready"]) == (f"{REPOSITORY}:{TAG}", 0, True)
    script = "id -u; touch /usr/written || echo refused; cat /usr/share/finetune/operator.cdx.json"
    told = cluster.kubectl("exec", "-n", namespace, pod["metadata"]["name"], "--", "sh", "-c", script)
    user, refused, bill = told.split("\n", 2)
    assert (user, refused) == ("65532", "refused")
    assert {"kopf", "pydantic", "libc6"} <= {each["name"] for each in json.loads(bill)["components"]}
