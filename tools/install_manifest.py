"""operator/install.yaml: the chart as Helm renders it by default, for those who install without Helm.

Without the CRD, which crds/ has, and without labels that say that Helm manages the objects."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "operator" / "install.yaml"
NAME = "finetune-operator"
OF_HELM = frozenset({"helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/instance"})
HEAD = """\
# Generated from charts/finetune-operator by make generate. It is the operator as the chart installs it by default: two
# replicas of which one acts, with only the rights of rbac.yaml and rbac-leader.yaml. Apply the CRD first, then a copy
# with your own images (see the Dockerfile): the operator's, and the trainer's that jobs without spec.image get. For a
# few namespaces alone, take RoleBindings there and --namespace instead of the ClusterRoleBinding and --all-namespaces.
"""
NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": NAME, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
}


def rendered(helm: Path) -> str:
    """The file's text. CalledProcessError if Helm fails."""
    chart = ROOT / "charts" / NAME
    with tempfile.TemporaryDirectory() as home:
        folders = {f"HELM_{kind}_HOME": f"{home}/{kind}" for kind in ("CACHE", "CONFIG", "DATA")}
        command = [
            helm,
            "template",
            NAME,
            chart,
            "-n",
            NAME,
            "--skip-tests",
            "--set",
            "crds.enabled=false,rbac.aggregate=false",
        ]
        done = subprocess.run(command, env=folders, capture_output=True, text=True, check=True)
    objects = [NAMESPACE, *(_plain(each) for each in yaml.safe_load_all(done.stdout) if each)]
    return HEAD + "---\n".join(yaml.safe_dump(each, sort_keys=False, width=100) for each in objects)


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items() if key not in OF_HELM}
    return node
