"""Integration tests: a real API server with its controllers; nothing runs pods.

Tests mostly wait, so `make test` runs them in two processes. Each has a rig of its own, with ports of its own: a test
that stops the API server, or counts what is asked of it, meets nobody else's.
"""

from __future__ import annotations

import os

import pytest

from tests.cluster.rig.state import port_range, shares, state_dir


def pytest_configure(config: pytest.Config) -> None:
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        _rig_of_its_own(worker, int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    config.pluginmanager.import_plugin("tests.support.cluster_fixtures")
    config.pluginmanager.import_plugin("tests.support.operator_rbac")
    config.pluginmanager.import_plugin("tests.support.operator_harness")
    config.pluginmanager.import_plugin("tests.support.chart_release")


def _rig_of_its_own(worker: str, workers: int) -> None:
    ports = shares(port_range(), workers)[int(worker.removeprefix("gw"))]
    os.environ |= {
        "FINETUNE_RIG_DIR": f"{state_dir()}-{worker}",
        "FINETUNE_RIG_PORTS": f"{ports.start}-{ports.stop - 1}",
    }
