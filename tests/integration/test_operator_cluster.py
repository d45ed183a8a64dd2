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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from finetune_api import names
from finetune_api.failures import LastWords, Reason
from finetune_api.plan import ProgressReport
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FailureClass, Progress
from finetune_operator.objects import attempt_job
from finetune_operator.observe import Defaults
from finetune_operator.views import view_job
from tests.cluster.rig import Rig
from tests.cluster.rig.control_plane import FAKE_PODS_LABEL
from tests.hands import Hands, manifest, wait_for
from tests.operator_harness import Operator, Start
from tests.operator_rights import ACCOUNT, ROOT, allow

BROKEN = LastWords(failure_class=FailureClass.Internal, reason=Reason.UnexpectedError, message="boom", exit_code=70)


def test_the_role_holds_nothing_that_is_not_used(start: Start, hands: Hands, control_plane: Rig) -> None:
    """Every verb but one is used within a job's life; what is missing would have failed every other test."""
    mark = control_plane.audit.mark()
    start()
    hands.create(manifest("a", nodes=1))
    (pod,) = hands.run("a", 1)
    hands.end(pod, code=70, words=BROKEN)
    hands.run("a", 2)
    hands.set_spec("a", suspend=True)
    wait_for(lambda: hands.phase("a") == "Suspended" and not hands.jobs(), what="suspended")

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


@pytest.fixture
def agent() -> Iterator[Callable[[ProgressReport], None]]:
    """An agent at 127.0.0.2, which answers with the report last given to it."""
    told: list[ProgressReport] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(told[-1].to_json())

    async def listen() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/progress", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.2", names.AGENT_PORT).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(listen(), loop).result(60)
    yield told.append
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


def test_progress_reaches_status_and_metrics(
    start: Start, hands: Hands, agent: Callable[[ProgressReport], None]
) -> None:
    agent(ProgressReport(attempt=1, phase="training", progress=Progress(step=3, total_steps=12, percent=25, loss=2.5)))
    port = free_port()
    start(listen=f"127.0.0.1:{port}")
    hands.create(manifest("a", nodes=1))
    (pod,) = hands.run("a", 1)
    hands.set_pod(pod, {"podIP": "127.0.0.2", "podIPs": [{"ip": "127.0.0.2"}]})
    progress = wait_for(lambda: hands.status("a").get("progress"), what="progress in status")
    assert (progress["step"], progress["percent"], progress["loss"]) == (3, 25, 2.5)
    line = f'finetune_job_progress_ratio{{name="a",namespace="{hands.namespace}"}} 0.25'
    assert line in fetch(f"http://127.0.0.1:{port}/metrics").splitlines()
    assert "25" in hands.rig.kubectl("get", "ftj", "-n", hands.namespace)


def test_an_outage_of_the_api_server_passes(start: Start, hands: Hands, control_plane: Rig) -> None:
    operator = start()
    hands.create(manifest("a", nodes=1))
    (pod,) = hands.run("a", 1)
    with control_plane.outage("apiserver", kill=True):
        time.sleep(2)
    wait_for(lambda: _answers(hands), what="the API server is back")
    hands.end(pod, code=70, words=BROKEN)
    wait_for(lambda: hands.status("a").get("attempt") == 2, what="the failure is seen after all", seconds=240)
    hands.await_gang("a", 2)
    assert not operator.stopped


def test_what_was_deleted_during_an_outage_of_the_watches_is_noticed(
    start: Start, hands: Hands, control_plane: Rig
) -> None:
    """etcd's history is gone for the watch: kopf lists anew, and only the comparison finds what is missing."""
    operator = start()
    hands.create(manifest("a", nodes=1, suspend=True))
    wait_for(lambda: hands.phase("a") == "Suspended", what="suspended")
    operator.service.cache.jobs.put(_raw_ghost(hands.namespace))
    assert operator.service.cache.jobs.of((hands.namespace, "ghost"))
    with control_plane.outage("apiserver"):
        time.sleep(1)
    wait_for(lambda: _answers(hands), what="the API server is back")
    wait_for(
        lambda: not operator.service.cache.jobs.of((hands.namespace, "ghost")),
        what="the cache lets go of what is not there",
        seconds=240,
    )
    assert operator.service.cache.jobs.of((hands.namespace, "a"))


def test_the_process_as_people_start_it(hands: Hands, operator_kubeconfig: Path, tmp_path: Path) -> None:
    """200 jobs in 140 MiB; SIGTERM ends it well; it says what it does."""
    port = free_port()
    argv = [sys.executable, "-m", "finetune_operator", "--namespace", hands.namespace, "--listen", f"127.0.0.1:{port}"]
    environ = os.environ | {"KUBECONFIG": str(operator_kubeconfig)}
    log = tmp_path / "log"
    with log.open("wb") as stderr, subprocess.Popen(argv, env=environ, stderr=stderr) as process:
        try:
            wait_for(lambda: fetch(f"http://127.0.0.1:{port}/readyz") == "ok", what="ready")
            idle = resident_mebibytes(process.pid)
            for number in range(200):
                hands.create(manifest(f"j{number}", nodes=1))
            wait_for(lambda: len(hands.jobs()) == 200, what="200 Jobs", seconds=400)
            time.sleep(3)
            busy = resident_mebibytes(process.pid)
            assert fetch(f"http://127.0.0.1:{port}/healthz") == "ok"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
    said = log.read_text()
    assert process.returncode == 0, said
    assert f"looks after {hands.namespace}" in said
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


def _answers(hands: Hands) -> bool:
    try:
        return bool(hands.get("a"))
    except Exception:
        return False


def _raw_ghost(namespace: str) -> dict[str, object]:
    raw = manifest("ghost")
    raw["metadata"] |= {"namespace": namespace, "uid": "ghost", "resourceVersion": "1"}
    return raw


def test_a_list_of_namespaces_needs_no_cluster_role(hands: Hands, control_plane: Rig) -> None:
    """Two namespaces with a Role and a RoleBinding each; of a third one the operator neither knows nor asks."""
    second = control_plane.create_namespace("second", labels={FAKE_PODS_LABEL: "fake"})
    other = control_plane.create_namespace("other", labels={})
    account = "finetune-namespaced"  # of which nobody ever made a ClusterRoleBinding
    kubeconfig = control_plane.service_account_kubeconfig("finetune-system", account)
    for namespace in (hands.namespace, second):
        allow(control_plane, namespace, account=account)
    operator = Operator(kubeconfig, hands.namespace, second)
    try:
        for namespace in (second, other):
            control_plane.apply(manifest("b"), namespace=namespace)
        hands.create(manifest("a"))
        hands.await_gang("a", 1)
        wait_for(lambda: control_plane.get("jobs", "-n", second)["items"], what="the other namespace's Job")
        assert control_plane.get("jobs", "-n", other)["items"] == []
    finally:
        operator.stop()
        for namespace in (second, other):
            control_plane.delete_namespace(namespace)
