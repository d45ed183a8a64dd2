"""Property tests: no time limit for examples, since machines are shared; the same examples in CI each time."""

import pytest
from hypothesis import HealthCheck, settings

from tests.support.fake_cluster import FakeCluster

SLOW = (HealthCheck.too_slow,)  # by the clock
settings.register_profile("unit", deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
settings.load_profile("unit")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """A cluster as kubectl shows it."""
    return FakeCluster().install(monkeypatch)
