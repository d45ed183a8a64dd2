"""Integration tests: a real API server with its controllers; nothing runs pods."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("tests.support.cluster_fixtures")
    config.pluginmanager.import_plugin("tests.support.operator_rbac")
    config.pluginmanager.import_plugin("tests.support.operator_harness")
