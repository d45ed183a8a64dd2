"""The chart on a real API server: installed, upgraded, uninstalled, by an administrator and by a team without rights on
the cluster. Pods are made and do not run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api import names
from finetune_operator.kube.resources import FINETUNEJOBS
from tests.cluster.rig import Helm, Rig, RigError
from tests.support.chart_release import CHART, CRD, CRD_FILE, acting
from tests.support.documents import DOCUMENTS, commands
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_rbac import ROOT
from tests.support.operator_scenarios import finish

RELEASED = Path(__file__).parent / "charts" / "finetune-operator-0.1.0.tgz"
"""The chart of 0.1.0 as `helm package` made it: never made again."""
JOB = {
    "apiVersion": f"{names.GROUP}/{names.VERSION}",
    "kind": names.KIND,
    "metadata": {"name": "kept"},
    "spec": {
        "model": {"uri": "hf://org/model"},
        "data": {"train": [{"uri": "s3://corp/train.jsonl"}]},
        "output": {"uri": "s3://corp/models/kept"},
    },
}


def there(rig: Rig, *words: str) -> bool:
    return bool(rig.kubectl("get", *words, "--ignore-not-found", "-o", "name"))


def pods(rig: Rig, namespace: str) -> list[dict[str, Any]]:
    return list(rig.get("pods", "-n", namespace, "-l", "app.kubernetes.io/name=finetune-operator")["items"])


def test_it_is_installed_upgraded_and_uninstalled(admin: Helm, without_crd: Rig, home: str) -> None:
    rig = without_crd
    where = ("finetune-operator", CHART, "-n", home)
    account = f"{home}:finetune-operator"
    told = admin("install", *where)
    try:
        assert f"kubectl -n {home} rollout status deployment/finetune-operator" in told
        assert re.findall("WARNING: (.*)", told) == [
            f"the image {name} has no registry in its name. Set operator.image.repository and"
            for name in ("finetune-operator", "finetune-trainer")
        ]
        rig.wait_established("crd", CRD)
        rig.wait_until(lambda: len(pods(rig, home)) == 2, what="two pods of the operator")
        for verb, resource in (("create", "jobs.batch"), ("watch", f"{names.PLURAL}.{names.GROUP}")):
            rig.wait_allowed(verb, resource, namespace="default", account=account)
        rig.wait_allowed("create", "leases.coordination.k8s.io", namespace=home, account=account)
        rig.apply(JOB, namespace="default")

        admin("upgrade", *where, "--set", "operator.replicas=3", "--set", "operator.logLevel=debug", "--wait=false")
        deployment = rig.get("deployment", "finetune-operator", "-n", home)
        assert deployment["spec"]["replicas"] == 3
        assert "--log-level=debug" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]

        admin("rollback", "finetune-operator", "1", "-n", home)
        assert rig.get("deployment", "finetune-operator", "-n", home)["spec"]["replicas"] == 2
    finally:
        told = admin("uninstall", "finetune-operator", "-n", home)

    assert not there(rig, "deployment,service,pdb,role,rolebinding", "-n", home)
    assert not there(rig, "clusterrole", "finetune-operator", "finetunejobs-edit")
    assert there(rig, names.PLURAL, "kept", "-n", "default"), "crds.keep is the default"
    assert admin("install", *where), "and a later release adopts what was kept"
    admin("uninstall", "finetune-operator", "-n", home)


def test_an_upgrade_changes_the_crd_and_keeps_its_jobs(
    admin: Helm, without_crd: Rig, home: str, tmp_path: Path
) -> None:
    """What Helm does not do for a chart's crds/ folder."""
    newer = tmp_path / "newer"
    shutil.copytree(CHART, newer)
    definition = newer / "files" / "crd.yaml"
    definition.write_text(definition.read_text().replace("    - ftj\n", "    - ftj\n    - tuning\n", 1))
    admin("install", "finetune-operator", CHART, "-n", home)
    try:
        without_crd.wait_established("crd", CRD)
        without_crd.apply(JOB, namespace="default")
        admin("upgrade", "finetune-operator", newer, "-n", home)

        assert without_crd.get("crd", CRD)["spec"]["names"]["shortNames"] == ["ftj", "tuning"]
        assert there(without_crd, names.PLURAL, "kept", "-n", "default")
    finally:
        admin("uninstall", "finetune-operator", "-n", home)


def test_the_documents_commands(admin: Helm, without_crd: Rig) -> None:
    """In the order install, upgrade, uninstall; what several documents say is typed once."""
    said = {command for document in DOCUMENTS for command in commands(document) if command.startswith("helm ")}
    ordered = sorted(said, key=lambda command: (["install", "upgrade", "uninstall"].index(command.split()[1]), command))
    assert [command.split()[1] for command in ordered] == ["install", "upgrade", "upgrade", "uninstall"]
    try:
        for command in ordered:
            admin(*shlex.split(command.replace(" charts/", f" {ROOT}/charts/"))[1:])
    finally:
        without_crd.kubectl("delete", "namespace", "finetune-operator", "--ignore-not-found")
    assert there(without_crd, "crd", CRD)


def test_without_keep_everything_goes(admin: Helm, without_crd: Rig, home: str) -> None:
    told = admin("install", "finetune-operator", CHART, "-n", home, "--set", "crds.keep=false")
    assert "Uninstalling this release deletes all FineTuneJobs" in told
    without_crd.wait_established("crd", CRD)
    without_crd.apply(JOB, namespace="default")

    admin("uninstall", "finetune-operator", "-n", home)
    without_crd.wait_until(lambda: not there(without_crd, "crd", CRD), what="the CRD is gone")


@pytest.fixture
def team_lead(control_plane: Rig, home: str, teams: tuple[str, str], tmp_path: Path) -> Helm:
    """Somebody who administrates three namespaces, holds the operator's rights there, and none on the cluster."""
    control_plane.install_crd(CRD_FILE)
    user = {"kind": "ServiceAccount", "name": "lead", "namespace": home}
    kubeconfig = control_plane.service_account_kubeconfig(home, "lead")
    roles = dict.fromkeys(teams, "rbac.yaml") | {home: "rbac-leader.yaml"}
    for namespace, file in roles.items():
        own = yaml.safe_load((ROOT / "operator" / file).read_text()) | {"kind": "Role", "metadata": {"name": "lead"}}
        bound = [{"kind": "ClusterRole", "name": "admin"}, {"kind": "Role", "name": "lead"}]
        bindings = [
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": f"lead-{role['kind'].lower()}"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", **role},
                "subjects": [user],
            }
            for role in bound
        ]
        control_plane.apply([own, *bindings], namespace=namespace)
        control_plane.wait_allowed(
            "create", "roles.rbac.authorization.k8s.io", namespace=namespace, account=f"{home}:lead"
        )
    for namespace in teams:
        control_plane.wait_allowed("watch", CRD, namespace=namespace, account=f"{home}:lead")
    return Helm.at(tmp_path / "helm-of-the-team", kubeconfig=kubeconfig)


def test_a_team_installs_it_without_rights_on_the_cluster(
    team_lead: Helm, admin: Helm, control_plane: Rig, home: str, teams: tuple[str, str]
) -> None:
    first, second = teams
    alone = ("--set", "crds.enabled=false")
    with pytest.raises(RigError, match="forbidden"):
        team_lead("install", "whole-cluster", CHART, "-n", home, *alone)

    told = team_lead("install", "a", CHART, "-n", home, *alone, "--set", f"namespaces={{{first}}}")
    assert f"watches the namespaces {first}" in told
    assert "crds.enabled is false" in told
    control_plane.wait_allowed("create", "jobs.batch", namespace=first, account=f"{home}:a-finetune-operator")
    question = ("auth", "can-i", "create", "jobs.batch", "-n", second)
    told = control_plane.kubectl(*question, f"--as=system:serviceaccount:{home}:a-finetune-operator", check=False)
    assert told.strip() == "no"

    with pytest.raises(RigError, match="invalid ownership metadata"):
        team_lead("install", "b", CHART, "-n", home, *alone, "--set", f"namespaces={{{second},{first}}}")
    with pytest.raises(RigError, match=f"the release a in the namespace {home} watches the namespace {first} already"):
        admin("install", "everywhere", CHART, "-n", home, *alone)
    team_lead("install", "c", CHART, "-n", home, *alone, "--set", f"namespaces={{{second}}}")
    control_plane.wait_until(lambda: len(pods(control_plane, home)) == 4, what="two releases with two pods each")

    for release in ("a", "c"):
        team_lead("uninstall", release, "-n", home)
    assert not there(control_plane, "roles", "finetune-operator", "-n", first)
    assert there(control_plane, "crd", CRD)


def test_an_upgrade_and_a_rollback_leave_running_and_finished_jobs_alone(
    admin: Helm, without_crd: Rig, home: str, teams: tuple[str, str]
) -> None:
    where = ("-n", home, "--set", f"namespaces={{{teams[0]}}}", "--set", "operator.leaderElection.leaseSeconds=4")
    account = f"{home}:finetune-operator"
    admin("install", "finetune-operator", RELEASED, *where)
    without_crd.wait_established("crd", CRD)
    without_crd.wait_allowed("create", "jobs.batch", namespace=teams[0], account=account)
    without_crd.wait_allowed("create", "leases.coordination.k8s.io", namespace=home, account=account)
    kube = Kube(without_crd, teams[0])

    def finished() -> str:
        return str((kube.get("finished") or {})["metadata"]["resourceVersion"])

    def running() -> list[str]:
        return [pod["metadata"]["uid"] for pod in kube.gang("running", 1)]

    try:
        with acting(without_crd, home):
            kube.create(manifest("finished"), FINETUNEJOBS)
            finish(kube, "finished", 1)
            kube.create(manifest("running"), FINETUNEJOBS)
            kube.run("running", 1)
            wait_for(lambda: kube.phase("running") == "Running", what="a gang that runs")
        version, gang = finished(), running()
        assert len(gang) == 2

        changes = (
            ("upgrade", "finetune-operator", CHART, *where, "--set", "operator.logLevel=debug"),
            ("rollback", "finetune-operator", "1", "-n", home),
        )
        for number, change in enumerate(changes):
            admin(*change)
            with acting(without_crd, home):
                kube.create(manifest(f"later-{number}", nodes=1), FINETUNEJOBS)
                kube.await_gang(f"later-{number}", 1)
            assert running() == gang
            assert kube.phase("running") == "Running"
            assert kube.status("running")["attempt"] == 1
            assert finished() == version
    finally:
        kube.close()
        admin("uninstall", "finetune-operator", "-n", home)


@pytest.mark.parametrize(
    "values", sorted((CHART / "ci").glob("*.yaml")), ids=lambda path: path.name.removesuffix("-values.yaml")
)
def test_the_api_server_knows_every_field(helm: Helm, control_plane: Rig, values: Path) -> None:
    """Strict validation, which names fields that Kubernetes does not have. Its monitoring kinds are not served here."""
    rendered = helm.render(CHART, "-f", values, "--set", "crds.enabled=false").values()
    served = [each for each in rendered if not each["apiVersion"].startswith("monitoring.coreos.com/")]
    for each in served:
        if "namespace" in each["metadata"]:
            each["metadata"]["namespace"] = "default"

    text = yaml.safe_dump_all(served)
    told = control_plane.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )
    assert told.count("(server dry run)") == len(served)
