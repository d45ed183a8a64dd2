"""Cluster tests: pods really run. Where the machine cannot (no root, no cgroups, no Go), they are skipped with the
reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that `tests.` is found however pytest was started


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("tests.rig_fixtures")
