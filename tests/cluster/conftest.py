"""Cluster tests: pods really run. Where the machine cannot (no root, no cgroups, no Go), they are skipped with the
reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.operator_process import Operator
from tests.cluster.rig import Rig


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("tests.support.cluster_fixtures")


@pytest.fixture
def operator(cluster: Rig, tmp_path: Path) -> Iterator[Operator]:
    """A running operator with the rights of operator/rbac.yaml, for all namespaces."""
    program = Operator.of(cluster, tmp_path)
    try:
        program.start()
        yield program
    finally:
        program.stop()
