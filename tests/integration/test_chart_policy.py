"""The admin's policy of a release that changes: `helm upgrade` puts it in force, and no running job notices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.kube.resources import FINETUNEJOBS
from tests.cluster.rig import Helm, Rig, RigError
from tests.support.chart_release import CHART, CRD_FILE, acting
from tests.support.kube_client import Kube, manifest, wait_for


def values(file: Path, namespaces: list[str], **policy: Any) -> Path:
    made = {
        "crds": {"enabled": False},
        "namespaces": namespaces,
        "operator": {"leaderElection": {"leaseSeconds": 4}},
        "policy": {**policy, "admission": {"enabled": True}},
    }
    file.write_text(json.dumps(made))
    return file


def refusal(rig: Rig, namespace: str, body: dict[str, Any]) -> str:
    """What the API server says against a creation; empty if it takes it."""
    try:
        rig.kubectl("create", "-n", namespace, "--dry-run=server", "-f", "-", stdin=json.dumps(body))
    except RigError as error:
        return str(error)
    return ""


def admission(rig: Rig, namespace: str) -> dict[str, Any]:
    return rig.get("validatingadmissionpolicy", f"finetune-operator.{namespace}.finetune.dev")


def test_an_upgrade_changes_the_policy_in_place_and_running_jobs_stay(
    admin: Helm, control_plane: Rig, home: str, teams: tuple[str, str], tmp_path: Path
) -> None:
    control_plane.install_crd(CRD_FILE)
    rig, where, file = control_plane, ("finetune-operator", CHART, "-n", home), tmp_path / "values.json"
    kube = Kube(rig, teams[0])
    account = f"{home}:finetune-operator"
    admin("install", *where, "-f", values(file, [kube.namespace], maxNodes=2))
    try:
        rig.wait_allowed("create", "jobs.batch", namespace=kube.namespace, account=account)
        rig.wait_allowed("create", "leases.coordination.k8s.io", namespace=home, account=account)
        wait_for(lambda: refusal(rig, kube.namespace, manifest("x", nodes=3)), what="the first policy is in force")
        with acting(rig, home):
            kube.create(manifest("running"), FINETUNEJOBS)
            kube.run("running", 1)
            wait_for(lambda: kube.phase("running") == "Running", what="a gang that runs")
        before, gang = admission(rig, home), [pod["metadata"]["uid"] for pod in kube.gang("running", 1)]
        stamped = rig.get("deployment", "finetune-operator", "-n", home)["spec"]["template"]["metadata"]["annotations"]

        admin("upgrade", *where, "-f", values(file, [kube.namespace], maxNodes=1))
        wait_for(lambda: refusal(rig, kube.namespace, manifest("x")), what="the second policy is in force")
        after = admission(rig, home)
        assert after["metadata"]["uid"] == before["metadata"]["uid"], "changed in place: no moment without a policy"
        assert "more than the 1 that" in refusal(rig, kube.namespace, manifest("x"))
        assert not refusal(rig, kube.namespace, manifest("x", nodes=1))
        template = rig.get("deployment", "finetune-operator", "-n", home)["spec"]["template"]
        assert template["metadata"]["annotations"] != stamped, "so that its pods are replaced, which read it at a start"

        with acting(rig, home):
            kube.create(manifest("small", nodes=1), FINETUNEJOBS)
            kube.await_gang("small", 1)
            assert (kube.phase("running"), kube.status("running")["attempt"]) == ("Running", 1)
            assert [pod["metadata"]["uid"] for pod in kube.gang("running", 1)] == gang
            kube.set_spec("running", suspend=True)
            wait_for(lambda: kube.phase("running") == "Suspended", what="a job that it forbids can be suspended")
            kube.set_spec("running", suspend=False)
            wait_for(lambda: kube.condition("running", "Running").get("reason") == "PolicyViolated", what="held")

        admin("upgrade", *where, "-f", values(file, [kube.namespace]))
        wait_for(lambda: not refusal(rig, kube.namespace, manifest("x", nodes=3)), what="no policy is in force")
        with pytest.raises(RigError, match="not found"):
            admission(rig, home)
        with acting(rig, home):
            kube.await_gang("running", 2)
            wait_for(lambda: "lastFailure" not in kube.status("running"), what="it continues by itself")
    finally:
        kube.close()
        admin("uninstall", "finetune-operator", "-n", home)
