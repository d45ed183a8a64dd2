"""docs/tasks/shared-cluster.md: two jobs of the page's manifest in a queue of a real Kueue that has room for one.

The control plane is the rig's (tests/cluster/rig), the queue that of docs/operations.md with a smaller quota, and the
operator runs as a process. There are no nodes: what is shown is who waits, and for what.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.operator_process import ACCOUNT, SYSTEM, Operator
from tests.cluster.rig import Kueue, Rig, lifecycle
from tests.cluster.rig.control_plane import FAKE_PODS_LABEL
from tests.cluster.rig.state import Paths
from tests.support import task_pages
from tests.support.documents import ROOT, manifests, other_manifests

PAGE = task_pages.PAGES / "shared-cluster.md"
NAMESPACE = "team-a"
GPUS = 2


def queue(rig: Rig) -> None:
    """As docs/operations.md has it, with quota for one of the two jobs."""
    (text,) = (each for each in other_manifests(ROOT / "docs" / "operations.md") if "kind: ClusterQueue" in each)
    objects = list(yaml.safe_load_all(text))
    (quota,) = (each["spec"]["resourceGroups"][0] for each in objects if each["kind"] == "ClusterQueue")
    (gpus,) = (each for each in quota["flavors"][0]["resources"] if each["name"] == "nvidia.com/gpu")
    gpus["nominalQuota"] = GPUS
    rig.apply(objects)


def jobs() -> list[dict[str, Any]]:
    """The page's, and the same by another name."""
    (text,) = manifests(PAGE)
    first, second = yaml.safe_load(text), yaml.safe_load(text)
    second["metadata"]["name"] = "oncology"
    return [first, second]


def typed(rig: Rig, *command: str) -> str:
    """What a user sees: kubectl's, or `finetune`'s in the place of the plugin."""
    if command[0] == "get":
        return rig.kubectl(*command, "-n", NAMESPACE).rstrip("\n")
    program = Path(sys.executable).with_name("finetune")
    with tempfile.TemporaryDirectory() as folder:
        kubectl = Path(folder) / "kubectl"
        kubectl.write_text(f'#!/bin/sh\nexec {rig.paths.bin / "kube"} kubectl "$@"\n')
        kubectl.chmod(0o755)
        environ = {"PATH": f"{folder}:/usr/bin:/bin", "KUBECONFIG": str(rig.kubeconfig), "HOME": folder}
        command = (str(program), *command, "-n", NAMESPACE)
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


def seen(rig: Rig, folder: Path) -> list[tuple[str, str]]:
    """Commands and what they print."""
    kueue = Kueue.ensure(rig)
    program = Operator.of(rig, folder)
    try:
        named = {"name": NAMESPACE, "labels": {FAKE_PODS_LABEL: "fake"}}
        rig.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": named})
        may_read_workloads(rig)
        kueue.manage(NAMESPACE)
        queue(rig)
        important = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
        rig.apply({**important, "metadata": {"name": "important"}})
        program.start()
        for job in jobs():
            rig.apply(job, namespace=NAMESPACE)
            until(rig, job["metadata"]["name"])
        return [
            ("kubectl get finetunejobs", typed(rig, "get", "finetunejobs")),
            ("kubectl finetune status oncology", typed(rig, "status", "oncology")),
        ]
    finally:
        program.stop()
        kueue.stop()


def may_read_workloads(rig: Rig) -> None:
    """So that the condition Queued has Kueue's message."""
    rig.apply(ROOT / "operator" / "rbac-gang.yaml")
    api = "rbac.authorization.k8s.io"
    role = yaml.safe_load((ROOT / "operator" / "rbac-gang.yaml").read_text())["metadata"]["name"]
    binding = {
        "apiVersion": f"{api}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": role},
        "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": SYSTEM}],
    }  # fmt: skip
    rig.apply(binding)


def until(rig: Rig, name: str) -> None:
    """Until it is admitted, or says what it waits for."""
    end = time.monotonic() + 180
    while True:
        found = yaml.safe_load(rig.kubectl("get", "finetunejob", name, "-n", NAMESPACE, "-o", "yaml"))
        status = found.get("status", {})
        queued = {each["type"]: each for each in status.get("conditions", ())}.get("Queued", {})
        if queued.get("status") == "False" or "insufficient" in queued.get("message", ""):
            return
        assert time.monotonic() < end, found
        time.sleep(0.5)


def show() -> None:
    """Starts all of it, and writes the page."""
    paths = Paths()
    rig = lifecycle.join(paths)
    try:
        with tempfile.TemporaryDirectory(prefix="finetune-queue-") as folder:
            shown = seen(rig, Path(folder))
    finally:
        lifecycle.leave(paths)
    blocks = "\n\n".join(f"```sh\n{command}\n```\n\n```text\n{text}\n```" for command, text in shown)
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    said = (
        f"Printed on {today}, on an API server with Kueue and without nodes, after this manifest and the same with the "
        f"name oncology were applied. The quota is {GPUS} GPUs."
    )
    task_pages.write(PAGE, f"{blocks}\n\n{textwrap.fill(said, 120)}")
