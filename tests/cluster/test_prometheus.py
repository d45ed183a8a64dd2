"""The `prometheus` fixture starts the real thing: it scrapes, answers queries and fires alerts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig import Prometheus, Rig, RigError, apply_host_trees, host_trees
from tests.cluster.rig.host_trees import restricted_pod
from tests.cluster.rig.prometheus import check_rules
from tests.cluster.rig.state import Paths

CHECKOUT = Path(__file__).parents[2]
PYTHON = str(CHECKOUT / ".venv" / "bin" / "python")
Factory = Callable[[dict[str, Any]], Prometheus]


class Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b"answer 42\n")

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def target() -> Iterator[str]:
    """The address of something that has one metric."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def scrape(*targets: str) -> dict[str, Any]:
    return {"scrape_configs": [{"job_name": "test", "static_configs": [{"targets": list(targets)}]}]}


def rules(folder: Path, expression: str) -> Path:
    file = folder / "rules.json"  # JSON is YAML
    alert = {"alert": "Wrong", "expr": expression, "labels": {"severity": "page"}, "annotations": {"summary": "Wrong."}}
    file.write_text(json.dumps({"groups": [{"name": "test", "rules": [alert]}]}))
    return file


def test_a_scraped_metric_can_be_queried(prometheus: Factory, target: str) -> None:
    (sample,) = prometheus(scrape(target)).wait_for("answer")
    assert (sample.value, sample.labels["job"]) == (42.0, "test")


def test_an_alert_fires_by_its_rule(prometheus: Factory, target: str, tmp_path: Path) -> None:
    server = prometheus({**scrape(target), "rule_files": [str(rules(tmp_path, "answer != 43"))]})
    server.wait_for('ALERTS{alertname="Wrong", alertstate="firing"}')
    deadline = time.monotonic() + 60
    while server.alerts() != {"Wrong": "firing"}:  # not while a scrape is late
        assert time.monotonic() < deadline, server.alerts()
        time.sleep(0.2)


def test_pods_are_found_by_the_api_and_scraped(cluster: Rig, restricted_namespace: str, prometheus: Factory) -> None:
    trees = host_trees(CHECKOUT)
    apply_host_trees(cluster, restricted_namespace, trees)
    serve = [PYTHON, "-m", "http.server", "8000", "--directory", "/code"]
    server = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "served"}, "spec": restricted_pod(trees, serve)}
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"metrics": "answer 42\n"}}
    cluster.apply([code, server], namespace=restricted_namespace)
    pods = {"role": "pod", "kubeconfig_file": str(cluster.kubeconfig), "namespaces": {"names": [restricted_namespace]}}
    address = {"source_labels": ["__meta_kubernetes_pod_ip"], "target_label": "__address__", "replacement": "$1:8000"}
    job = {
        "job_name": "pods",
        "kubernetes_sd_configs": [pods],
        "relabel_configs": [address],
        "fallback_scrape_protocol": "PrometheusText0.0.4",
    }
    (sample,) = prometheus({"scrape_configs": [job]}).wait_for("answer", seconds=180)
    assert sample.value == 42.0


@pytest.mark.usefixtures("prometheus")
def test_promtool_refuses_a_rule_that_cannot_be_read(tmp_path: Path) -> None:
    check_rules(rules(tmp_path, "answer != 43"), paths=Paths())
    with pytest.raises(RigError, match="parse error"):
        check_rules(rules(tmp_path, "answer !="), paths=Paths())
