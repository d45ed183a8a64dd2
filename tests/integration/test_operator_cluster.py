"""The operator among the rest of a cluster: its rights, Pod Security, outages, and the process as people start it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from finetune_api import names
from finetune_api.failures import Reason, TerminationMessage
from finetune_api.plan import ProgressReport, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FailureClass, Progress
from finetune_operator.objects import attempt_job
from finetune_operator.state.observe import Defaults
from finetune_operator.state.parsing import view_job
from tests.cluster.rig import Rig
from tests.cluster.rig.control_plane import FAKE_PODS_LABEL
from tests.cluster.rig.state import free_loopback
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Operator, Start
from tests.support.operator_rbac import ACCOUNT, ROOT, allow

BROKEN = TerminationMessage(
    failure_class=FailureClass.Internal, reason=Reason.UnexpectedError, message="boom", exit_code=70
)


def test_the_role_holds_nothing_that_is_not_used(start: Start, kube: Kube, control_plane: Rig) -> None:
    """Every verb but one is used within a job's life; what is missing would have failed every other test."""
    mark = control_plane.audit.mark()
    start()
    kube.create(manifest("a", nodes=1))
    (pod,) = kube.run("a", 1)
    kube.end(pod, code=70, words=BROKEN)
    kube.run("a", 2)
    kube.set_spec("a", suspend=True)
    wait_for(lambda: kube.phase("a") == "Suspended" and not kube.jobs(), what="suspended")

    used = {
        (request.resource, request.verb)
        for request in control_plane.audit.requests(since=mark, user=ACCOUNT)
        if request.code < 400 or (request.verb, request.code) == ("create", 409)
    }
    role = yaml.safe_load((ROOT / "operator" / "rbac.yaml").read_text())
    allowed = {(r, verb) for rule in role["rules"] for r in rule["resources"] for verb in rule["verbs"]}
    assert used <= allowed | {("selfsubjectaccessreviews", "create")}  # everybody may ask what they may do
    rare = {
        ("finetunejobs/finalizers", "update"),  # asked by an admission plugin that this cluster does not run
        ("finetunejobs", "get"),  # after a conflict
        ("finetunejobs", "delete"),  # spec.ttlAfterFinished
        ("events", "list"),  # of a Job whose pods are refused
        ("jobs", "get"),  # whose is a name that is taken?
        ("events", "get"), ("events", "patch"),  # the same thing again
    }  # fmt: skip
    assert allowed - used <= rare


RESTRICTED = [
    ("short", {}),
    ("script", {"model": None, "data": None, "command": ["python", "train.py"]}),
    ("claims", {"model": {"uri": "pvc://models/m"}, "output": {"uri": "pvc://results/out"}}),
    ("secrets", {"output": {"uri": "s3://corp/out", "credentials": {"secretName": "s"}}}),
    (
        "everything",
        {
            "pod": {
                "serviceAccountName": "default",
                "nodeSelector": {"kind": "gpu"},
                "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "affinity": {"podAntiAffinity": {}},
                "schedulerName": "other",
                "imagePullSecrets": [{"name": "pull"}],
                "env": [{"name": "A", "value": "b"}, {"name": "K", "secretKeyRef": {"name": "s", "key": "k"}}],
                "volumes": [
                    {"name": "c", "mountPath": "/c", "configMap": {"name": "c"}},
                    {"name": "e", "mountPath": "/var/cache/finetune", "emptyDir": {"sizeLimit": "1Gi"}},
                ],
                "labels": {"team": "a"},
                "annotations": {"why": "b"},
                "shmSize": "1Gi",
            },
            "resources": {"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": "500m"}},
        },
    ),
]


@pytest.mark.parametrize(("fields"), [r[1] for r in RESTRICTED], ids=[r[0] for r in RESTRICTED])
def test_a_restricted_namespace_takes_the_pods(control_plane: Rig, fields: dict[str, object]) -> None:
    namespace = control_plane.create_namespace("strict", labels={"pod-security.kubernetes.io/enforce": "restricted"})
    raw = manifest("a", **fields)
    raw["metadata"] |= {"namespace": namespace, "uid": "u", "resourceVersion": "1"}
    raw["spec"] = {name: value for name, value in raw["spec"].items() if value is not None}
    spec = FineTuneJobSpec.model_validate_json(json.dumps(raw["spec"]))
    made = attempt_job(view_job(raw), spec, attempt=1, nodes=spec.max_nodes, defaults=Defaults(image="trainer:test"))
    template = made["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", **template["metadata"]},
        "spec": template["spec"],
    }
    try:
        control_plane.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(pod))
    finally:
        control_plane.delete_namespace(namespace)


@dataclass
class Agent:
    """A pod's agent at an address of its own, which answers with `report`."""

    address: str
    report: ProgressReport | None = None


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent(free_loopback(names.AGENT_PORT))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def answer(_: web.Request) -> web.Response:
        assert agent.report is not None
        return web.json_response(agent.report.to_json())

    async def listen() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/progress", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, agent.address, names.AGENT_PORT).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(listen(), loop).result(60)
    yield agent
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


def test_progress_reaches_status_and_metrics(start: Start, kube: Kube, agent: Agent) -> None:
    port = free_port()
    start(listen=f"127.0.0.1:{port}")
    kube.create(manifest("a", nodes=1))
    (pod,) = kube.run("a", 1)
    plan = RunPlan.model_validate_json(pod["metadata"]["annotations"][names.ANNOTATION_PLAN])
    progress = Progress(step=3, total_steps=12, percent=25, loss=2.5)
    agent.report = ProgressReport(attempt=1, phase="training", progress=progress, uid=plan.job.uid, nonce=plan.nonce)
    kube.set_pod(pod, {"podIP": agent.address, "podIPs": [{"ip": agent.address}]})
    seen = wait_for(lambda: kube.status("a").get("progress"), what="progress in status")
    assert (seen["step"], seen["percent"], seen["loss"]) == (3, 25, 2.5)
    line = f'finetune_job_progress_ratio{{name="a",namespace="{kube.namespace}"}} 0.25'
    wait_for(lambda: line in fetch(f"http://127.0.0.1:{port}/metrics").splitlines(), what="progress in the metrics")
    assert "25" in kube.rig.kubectl("get", "ftj", "-n", kube.namespace)


def test_an_outage_of_the_api_server_passes(start: Start, kube: Kube, control_plane: Rig) -> None:
    operator = start()
    kube.create(manifest("a", nodes=1))
    (pod,) = kube.run("a", 1)
    with control_plane.outage("apiserver", kill=True):
        time.sleep(2)
    wait_for(lambda: _answers(kube), what="the API server is back")
    kube.end(pod, code=70, words=BROKEN)
    wait_for(lambda: kube.status("a").get("attempt") == 2, what="the failure is seen after all", seconds=240)
    kube.await_gang("a", 2)
    assert not operator.stopped


def test_what_was_deleted_during_an_outage_of_the_watches_is_noticed(
    start: Start, kube: Kube, control_plane: Rig
) -> None:
    """etcd's history is gone for the watch: kopf lists anew, and only the comparison finds what is missing."""
    operator = start()
    kube.create(manifest("a", nodes=1, suspend=True))
    wait_for(lambda: kube.phase("a") == "Suspended", what="suspended")
    operator.service.cache.jobs.put(_raw_ghost(kube.namespace))
    assert operator.service.cache.jobs.of((kube.namespace, "ghost"))
    with control_plane.outage("apiserver"):
        time.sleep(1)
    wait_for(lambda: _answers(kube), what="the API server is back")
    wait_for(
        lambda: not operator.service.cache.jobs.of((kube.namespace, "ghost")),
        what="the cache lets go of what is not there",
        seconds=240,
    )
    assert operator.service.cache.jobs.of((kube.namespace, "a"))


def test_the_process_as_people_start_it(kube: Kube, operator_kubeconfig: Path, tmp_path: Path) -> None:
    """200 jobs in 140 MiB; SIGTERM ends it well; it says what it does."""
    port = free_port()
    argv = [sys.executable, "-m", "finetune_operator", "--namespace", kube.namespace, "--listen", f"127.0.0.1:{port}"]
    environ = os.environ | {"KUBECONFIG": str(operator_kubeconfig)}
    log = tmp_path / "log"
    with log.open("wb") as stderr, subprocess.Popen(argv, env=environ, stderr=stderr) as process:
        try:
            wait_for(lambda: fetch(f"http://127.0.0.1:{port}/readyz") == "ok", what="ready")
            idle = resident_mebibytes(process.pid)
            for number in range(200):
                kube.create(manifest(f"j{number}", nodes=1))
            wait_for(lambda: len(kube.jobs()) == 200, what="200 Jobs", seconds=400)
            time.sleep(3)
            busy = resident_mebibytes(process.pid)
            assert fetch(f"http://127.0.0.1:{port}/healthz") == "ok"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
    said = log.read_text()
    assert process.returncode == 0, said
    assert f"is watching {kube.namespace}" in said
    assert "Traceback" not in said, said
    assert idle <= 110, idle
    assert busy <= 140, busy


def resident_mebibytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str) -> str:
    """Empty while nobody answers well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def _answers(kube: Kube) -> bool:
    try:
        return bool(kube.get("a"))
    except Exception:
        return False


def _raw_ghost(namespace: str) -> dict[str, object]:
    raw = manifest("ghost")
    raw["metadata"] |= {"namespace": namespace, "uid": "ghost", "resourceVersion": "1"}
    return raw


def test_a_list_of_namespaces_needs_no_cluster_role(kube: Kube, control_plane: Rig) -> None:
    """Two namespaces with a Role and a RoleBinding each; of a third one the operator neither knows nor asks."""
    second = control_plane.create_namespace("second", labels={FAKE_PODS_LABEL: "fake"})
    other = control_plane.create_namespace("other", labels={})
    account = "finetune-namespaced"  # of which nobody ever made a ClusterRoleBinding
    kubeconfig = control_plane.service_account_kubeconfig("finetune-system", account)
    for namespace in (kube.namespace, second):
        allow(control_plane, namespace, account=account)
    operator = Operator(kubeconfig, kube.namespace, second)
    try:
        for namespace in (second, other):
            control_plane.apply(manifest("b"), namespace=namespace)
        kube.create(manifest("a"))
        kube.await_gang("a", 1)
        wait_for(lambda: control_plane.get("jobs", "-n", second)["items"], what="the other namespace's Job")
        assert control_plane.get("jobs", "-n", other)["items"] == []
    finally:
        operator.stop()
        for namespace in (second, other):
            control_plane.delete_namespace(namespace)
