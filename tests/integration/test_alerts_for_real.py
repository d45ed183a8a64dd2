"""Alerts of a real Prometheus that scrapes a real operator: each trouble raises its own alert only, which resolves.
A real Alertmanager with the configuration of docs/operations.md hears of them and tells whom it should. Meanwhile every
query of the dashboards is executed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from finetune_api.failures import CLASSES, Reason, TerminationMessage, class_of
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.status import Progress
from finetune_operator.kube.leader import GIVEN_BACK
from finetune_operator.kube.resources import LEASES, Raw
from finetune_trainer.agent.serve import serving
from finetune_trainer.rundir import RunDir, TrainerReport
from tests.cluster.rig import Alertmanager, Inbox, Prometheus, Rig
from tests.cluster.rig.state import free_ports
from tests.support.documents import alert_routing
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_objects import spec
from tests.support.operator_rbac import allow
from tools import alerts
from tools.dashboard_panels import DASHBOARDS

SOON = {"for": "3s"}
QUICK = {
    "FineTuneJobStalled": SOON,
    "FineTuneJobPendingTooLong": SOON,
    "FineTuneJobCrashLooping": {"parameters": {"restarts": 1}},
    "FineTuneMetricsMissing": SOON,
    "FineTuneOperatorDown": SOON,
    "FineTuneOperatorNoLeader": SOON,
}
"""What overrides are for. The others fire at once, or after as long as they do on a cluster."""


@dataclass
class Process:
    """`python -m finetune_operator`, one replica."""

    kubeconfig: Path
    namespace: str
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "finetune_operator", "--leader-elect", "--lease-namespace", self.namespace]
        command += ["--namespace", self.namespace, "--listen", f"127.0.0.1:{self.port}", "--lease-seconds", "5"]
        self.process = subprocess.Popen(command, env=os.environ | {"KUBECONFIG": str(self.kubeconfig)})

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)


def stamp(*, ago: float = 0.0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def agent_metrics(run_dir: RunDir, namespace: str, port: int) -> Any:
    """What the agent of the job's pod serves while it trains."""
    run_dir.beat(0, "training", 5)
    progress = Progress(step=5, total_steps=10, loss=2.5, eval_loss=2.0, tokens_per_second=9.0)
    known = {"epoch": 0.5, "learning_rate": 1e-4, "gradient_norm": 1.0, "trained_tokens": 9}
    times = {"last_step_time": time.time(), "last_checkpoint_time": time.time()}
    run_dir.write_report(TrainerReport(attempt=1, phase="training", progress=progress, **known, **times))
    job = JobIdentity(namespace=namespace, name="a", uid="u")
    return serving("127.0.0.1", port, plan=RunPlan(job=job, attempt=1, spec=spec(nodes=1)), run_dir=run_dir, phase=str)


def fail(kube: Kube, pod: Raw, reason: Reason) -> None:
    """The pod's trainer ends, and says why."""
    failure_class = class_of(reason)
    code = CLASSES[failure_class].exit_code
    words = TerminationMessage(
        failure_class=failure_class, reason=reason, message="at step 6", exit_code=code, time=stamp()
    )  # fmt: skip
    kube.end(pod, code=code, words=words)


def described(server: Prometheus) -> str:
    """What the alerts that are pending or firing say, in one text."""
    with urllib.request.urlopen(f"{server.url}/api/v1/alerts", timeout=30) as reply:
        found = json.load(reply)["data"]["alerts"]
    return " ".join(alert["annotations"]["description"] for alert in found)


def routing(inbox: Inbox) -> Any:
    """The documented configuration, but for its addresses, which are test doubles here, and its patience."""
    block = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", alert_routing())
    config = yaml.safe_load(block)
    for receiver in config["receivers"]:
        for webhook in receiver.get("webhook_configs", ()):
            webhook["url"] = inbox.url(receiver["name"])
    return config


TOLD = {
    "FineTuneOperatorDown": "platform",
    "FineTuneOperatorNoLeader": "platform",
    "FineTuneMetricsMissing": "platform",
    "FineTuneJobPendingTooLong": "ml-team",
    "FineTuneJobStalled": "on-call",
    "FineTuneJobLossNonFinite": "on-call",
    "FineTuneJobStorageFailing": "on-call",
    "FineTuneJobCrashLooping": "on-call",
}
"""Who hears of each alert of the test."""

WITHOUT_DATA = {
    "Firing alerts", "Jobs finished in this time range", "Failed attempts by reason", "Time since the last failure",
    "Jobs whose pods do not all run", "Guards that are not passed", "Guards: value and bound", "Guards: verdict",
    "Jobs that succeeded and have no artifact", "Artifact", "GPU hours", "GPU hours without result",
    "GPU hours of the jobs that exist", "GPU utilisation (dcgm-exporter)",
    "Ladder: present rung", "Ladder: budget spent",
    "Shared cache of models", "Pods by what the shared cache of models did",
}  # fmt: skip
"""Panels that show nothing while a job trains and has had no failure."""


def empty_panels(server: Prometheus, namespace: str) -> set[str]:
    """Titles of panels with no data, after every query of all dashboards was executed. Raises if one is refused."""
    values = {"$namespace": namespace, "$name": "a", "$__rate_interval": "1m", "$__range": "6h"}
    empty = set()
    for panel in (panel for each in DASHBOARDS for row in each.rows for panel in row.panels):
        answers = []
        for query in panel.queries:
            expr = query.expr
            for name in sorted(values, key=len, reverse=True):
                expr = expr.replace(name, values[name])
            answers.append(server.query(expr))
        if not any(answers):
            empty.add(panel.title)
    return empty


def test_each_trouble_raises_its_alert_which_resolves(
    control_plane: Rig,
    kube: Kube,
    operator_kubeconfig: Path,
    prometheus: Callable[[dict[str, Any]], Prometheus],
    alertmanager: Callable[[dict[str, Any]], Alertmanager],
    tmp_path: Path,
) -> None:
    allow(control_plane, kube.namespace, file="rbac-leader.yaml")
    operator = Process(operator_kubeconfig, kube.namespace)
    (agent,) = free_ports(1)
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(alerts.group(alerts.render(r, QUICK.get(n)) for n, r in alerts.load().items())))
    targets = [{"targets": [f"127.0.0.1:{operator.port}", f"127.0.0.1:{agent}"]}]
    scrape = {"job_name": "finetune", "honor_labels": True, "static_configs": targets}
    often = {"scrape_interval": "2s", "scrape_timeout": "2s"}
    inbox = Inbox.open()
    manager = alertmanager(routing(inbox))
    alerting = {"alertmanagers": [{"static_configs": [{"targets": [manager.address]}]}]}
    config = {"global": often, "scrape_configs": [scrape], "rule_files": [str(rules)], "alerting": alerting}
    server = prometheus(config)

    def firing() -> set[str]:
        return {name for name, state in server.alerts().items() if state == "firing"}

    def told() -> set[tuple[str, str]]:
        return {(notice.labels["alertname"], notice.status) for notice in inbox.notices}

    def raised(*expected: str) -> None:
        try:
            wait_for(lambda: firing() == set(expected), what="alerts")
        except AssertionError:
            raise AssertionError(f"{server.alerts()}, and not {expected}; targets: {server.targets()}") from None
        missing = {(alert, "firing") for alert in expected}
        wait_for(lambda: told() >= missing, what="the receivers hear of it", state=lambda: str(missing - told()))

    try:
        raised("FineTuneOperatorDown")

        held = {"holderIdentity": "somebody", "leaseDurationSeconds": 3600, "renewTime": f"{stamp()[:-1]}.000000Z"}
        meta = {"name": "finetune-operator", "namespace": kube.namespace}
        lease = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta, "spec": held}
        kube.create(lease, LEASES)
        operator.start()
        raised("FineTuneOperatorNoLeader")
        given_back = {"holderIdentity": "", "leaseDurationSeconds": GIVEN_BACK}
        kube.patch("finetune-operator", {"spec": given_back}, LEASES)
        raised()

        kube.create(manifest("a", nodes=1))
        (pod,) = kube.await_gang("a", 1)
        kube.find_no_node(pod)
        raised("FineTuneJobPendingTooLong")
        wait_for(lambda: "Last reason recorded: Unschedulable." in described(server), what="the alert says why")

        kube.run("a", 1)
        raised("FineTuneMetricsMissing")

        with agent_metrics(RunDir(tmp_path), kube.namespace, agent):
            raised()

            progress = {
                "step": 5,
                "totalSteps": 10,
                "etaSeconds": 9,
                "loss": 2.5,
                "evalLoss": 2.0,
                "tokensPerSecond": 9.0,
            }
            progress |= {"lastUpdateTime": stamp(ago=3600)}
            kube.patch("a", {"status": {"progress": progress}}, subresource="status")
            raised("FineTuneJobStalled")
            kube.patch("a", {"status": {"progress": progress | {"lastUpdateTime": stamp()}}}, subresource="status")
            raised()
            wait_for(lambda: empty_panels(server, kube.namespace) <= WITHOUT_DATA, what="data in the panels",
                     state=lambda: str(empty_panels(server, kube.namespace)))  # fmt: skip

            (pod,) = kube.gang("a", 1)
            fail(kube, pod, Reason.LossNonFinite)
            (pod,) = kube.run("a", 2)
            raised("FineTuneJobLossNonFinite")

            fail(kube, pod, Reason.StorageUnavailable)
            kube.run("a", 3)
            raised("FineTuneJobStorageFailing", "FineTuneJobCrashLooping")

            operator.kill()
            raised("FineTuneOperatorDown")
            operator.start()
            raised("FineTuneJobStorageFailing", "FineTuneJobCrashLooping")
            kube.delete("a")
            raised()

        everything = {(alert, status) for alert in TOLD for status in ("firing", "resolved")}
        wait_for(lambda: told() >= everything, what="notifications", state=lambda: str(everything - told()))
        for alert, receiver in TOLD.items():
            job = {} if "Operator" in alert else {"namespace": kube.namespace, "name": "a"}
            for notice in inbox.of(alert):
                assert (notice.receiver, notice.labels.items() >= job.items()) == (receiver, True), notice
    finally:
        operator.kill()
        inbox.close()
