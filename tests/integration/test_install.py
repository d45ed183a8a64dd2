"""What the README says to apply to a cluster: the API server takes it, pods are made, and they may what they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune_operator import __version__
from finetune_operator.main import parse
from tests.cluster.rig import Rig

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "operator" / "install.yaml"
NAME = "finetune-operator"
ACCOUNT = f"{NAME}:{NAME}"


@pytest.fixture(scope="module")
def installed(control_plane: Rig) -> Iterator[Rig]:
    control_plane.install_crd(ROOT / "crds" / "finetunejobs.finetune.dev.yaml")
    control_plane.apply(ROOT / "operator" / "rbac.yaml")
    control_plane.apply(INSTALL)
    control_plane.apply(ROOT / "operator" / "rbac-leader.yaml", namespace=NAME)
    yield control_plane
    control_plane.kubectl("delete", "clusterrolebinding", NAME)
    control_plane.delete_namespace(NAME)


def test_two_pods_are_made_under_the_restricted_standard(installed: Rig) -> None:
    def pods() -> str:
        return installed.kubectl("get", "pods", "-n", NAME, "-o", "name")

    installed.wait_until(lambda: len(pods().splitlines()) == 2, what="two pods of the operator")


@pytest.mark.parametrize(
    ("verb", "resource", "namespace"),
    [
        ("watch", "finetunejobs.finetune.dev", "elsewhere"),
        ("create", "jobs.batch", "elsewhere"),
        ("create", "leases.coordination.k8s.io", NAME),
    ],
)
def test_they_may_what_they_need(installed: Rig, verb: str, resource: str, namespace: str) -> None:
    installed.wait_allowed(verb, resource, namespace=namespace, account=ACCOUNT)


def test_the_operator_knows_its_arguments() -> None:
    (deployment,) = (one for one in yaml.safe_load_all(INSTALL.read_text()) if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    args = parse([*container["args"], f"--lease-namespace={NAME}"], {})
    assert (args.namespace, args.leader_elect) == ([], True)
    assert args.default_image == f"finetune-trainer:{__version__}"
    assert container["image"] == f"{NAME}:{__version__}"
    assert f":{container['ports'][0]['containerPort']}" in args.listen
