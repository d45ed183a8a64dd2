"""What the documents say to apply to a cluster: the API server takes it, pods are made, and they may what they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune_operator import __version__
from finetune_operator.main import parse
from tests.cluster.rig import Kueue, Rig
from tests.support.documents import DOCUMENTS, manifests, other_manifests

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "operator" / "install.yaml"
NAME = "finetune-operator"
ACCOUNT = f"{NAME}:{NAME}"


@pytest.fixture(scope="module")
def installed(control_plane: Rig) -> Iterator[Rig]:
    control_plane.install_crd(ROOT / "crds" / "finetunejobs.finetune.dev.yaml")
    control_plane.apply(INSTALL)
    yield control_plane
    control_plane.kubectl("delete", "--wait=false", "-f", INSTALL)


@pytest.fixture(scope="module")
def team(installed: Rig) -> Iterator[str]:
    """The namespace of the documents' manifests."""
    installed.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-a"}})
    yield "team-a"
    installed.delete_namespace("team-a")


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


def documented(*, kueue: bool) -> list[str]:
    """Manifests in the documents, except those of servers, which tests/unit/test_cli_serving.py checks."""
    texts = [text for document in DOCUMENTS for text in other_manifests(document)]
    texts = [text for text in texts if "kserve.io" not in text and "kind: DynamoModel" not in text]
    return [text for text in texts if ("kueue.x-k8s.io" in text) is kueue]


def test_those_who_may_edit_may_run_jobs(installed: Rig, team: str) -> None:
    roles = [role for text in documented(kueue=False) for role in yaml.safe_load_all(text)]
    roles = [role for role in roles if role["kind"] == "ClusterRole"]
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "people", "namespace": team},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": team}],
    }
    installed.apply([*roles, binding])
    try:
        for verb in ("create", "delete", "get", "watch"):
            installed.wait_allowed(verb, "finetunejobs.finetune.dev", namespace=team, account=f"{team}:default")
    finally:
        for role in roles:
            installed.kubectl("delete", "clusterrole", role["metadata"]["name"])


@pytest.mark.parametrize("text", documented(kueue=False))
def test_what_the_documents_show_is_taken(installed: Rig, team: str, text: str) -> None:
    installed.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)


def test_every_job_that_the_documents_show_is_taken(installed: Rig, team: str) -> None:
    """All in one request: their fields, types, rules and names are those of the CRD."""
    jobs = [text for document in DOCUMENTS for text in manifests(document)]
    assert len(jobs) > 25
    command = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-n", team, "-f", "-")
    told = installed.kubectl(*command, stdin="\n---\n".join(jobs))
    assert told.count("serverside-applied (server dry run)") == len(jobs)


@pytest.mark.parametrize("text", documented(kueue=True))
def test_so_are_queues(installed: Rig, kueue: Kueue, team: str, text: str) -> None:
    kueue.manage(team)
    installed.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)


def test_all_of_it_can_be_taken_away(installed: Rig) -> None:
    """`installed` ends with what the documents say; the CRD stays for other tests."""
    for file in ("operator/install.yaml", "crds/finetunejobs.finetune.dev.yaml"):
        told = installed.kubectl("delete", "--dry-run=server", "-f", ROOT / file)
        assert "(server dry run)" in told
