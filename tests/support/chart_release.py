"""The chart's release on a real API server. A pytest plugin.

Fixtures: `admin`, the real Helm with all rights; `without_crd`, a cluster that never saw the operator; `home`, the
release's namespace; `teams`, two namespaces of users. `acting` runs the operator as the release's Deployment says,
since nothing runs pods."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from tests.cluster.rig import Helm, NotOursError, Rig
from tests.cluster.rig.control_plane import FAKE_PODS_LABEL
from tests.cluster.rig.state import free_ports
from tests.support.kube_client import wait_for
from tests.support.operator_rbac import ROOT

CHART = ROOT / "charts" / "finetune-operator"
CRD = f"{names.PLURAL}.{names.GROUP}"
CRD_FILE = ROOT / "crds" / f"{CRD}.yaml"


@pytest.fixture
def admin(helm: Helm, control_plane: Rig, tmp_path: Path) -> Helm:
    return Helm.at(tmp_path / "helm", kubeconfig=control_plane.kubeconfig)


@pytest.fixture
def without_crd(control_plane: Rig) -> Iterator[Rig]:
    """A cluster that never saw the operator. The CRD of other tests is put back."""
    if control_plane.external:
        raise NotOursError("a test that deletes the CRD, and all FineTuneJobs with it, wants a rig of our own")
    control_plane.kubectl("delete", "crd", CRD, "--ignore-not-found")
    yield control_plane
    control_plane.kubectl("delete", "crd", CRD, "--ignore-not-found")
    control_plane.install_crd(CRD_FILE)


@pytest.fixture
def home(control_plane: Rig) -> Iterator[str]:
    """The release's namespace, under Pod Security's strictest level."""
    labels = {FAKE_PODS_LABEL: "fake", "pod-security.kubernetes.io/enforce": "restricted"}
    name = control_plane.create_namespace("chart", labels=labels)
    control_plane.kubectl(
        "label", "namespace", name, "--overwrite", *(f"{key}={value}" for key, value in labels.items())
    )
    yield name
    control_plane.delete_namespace(name)


@pytest.fixture
def teams(control_plane: Rig) -> Iterator[tuple[str, str]]:
    first, second = (control_plane.create_namespace("team", labels={FAKE_PODS_LABEL: "fake"}) for _ in range(2))
    yield first, second
    for name in (first, second):
        control_plane.delete_namespace(name)


@contextlib.contextmanager
def acting(rig: Rig, home: str) -> Iterator[None]:
    """The operator as the release's Deployment and account run it, but for its port; inside the block it leads."""
    pod = rig.get("deployment", "finetune-operator", "-n", home)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    kubeconfig = rig.service_account_kubeconfig(home, pod["serviceAccountName"])
    instead = [f"--listen=127.0.0.1:{free_ports(1)[0]}", f"--lease-namespace={home}", f"--kubeconfig={kubeconfig}"]
    before = _holder(rig, home)
    with tempfile.TemporaryDirectory() as folder:
        instead += _policy(rig, home, pod, Path(folder))
        process = subprocess.Popen([sys.executable, "-m", "finetune_operator", *container["args"], *instead])
        try:
            wait_for(lambda: _holder(rig, home) not in ("", before), what="the release's operator leads")
            yield
        finally:
            process.terminate()
            assert process.wait(120) == 0


def _holder(rig: Rig, home: str) -> str:
    where = ("lease", "finetune-operator", "-n", home, "--ignore-not-found")
    return rig.kubectl("get", *where, "-o", "jsonpath={.spec.holderIdentity}")


def _policy(rig: Rig, home: str, pod: dict[str, Any], folder: Path) -> list[str]:
    """The policy's ConfigMap as the file that a kubelet would make of it."""
    names = [each["configMap"]["name"] for each in pod.get("volumes", ()) if each["name"] == "policy"]
    for name in names:
        (folder / "policy.json").write_text(rig.get("configmap", name, "-n", home)["data"]["policy.json"])
    return [f"--policy={folder}/policy.json" for _ in names]
