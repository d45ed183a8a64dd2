"""/metrics as text: the same lines as prometheus_client writes, in less time."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetune_operator import exposition
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import Counters, State
from finetune_operator.state.cache import Cache
from tests.support.operator_objects import raw_job


def same(registry: CollectorRegistry) -> None:
    """Prometheus reads the families in any order, the lines of one family together."""
    found = exposition.text(registry).decode()
    assert sorted(found.splitlines()) == sorted(generate_latest(registry).decode().splitlines())
    families = [each.name for each in text_string_to_metric_families(found)]
    assert len(families) == len(set(families))


def test_the_operators_own_page() -> None:
    cache, counters = Cache(), Counters()
    for number in range(3):
        cache.jobs.put(raw_job(uid=f"u{number}") | {"status": {"phase": "Running", "attempt": number}})
    counters.request("GET", "/api/v1/pods", True, 200)
    counters.reconcile_seconds.observe(0.1)
    counters.registry.register(State(cache, WorkQueue()))

    same(counters.registry)
    assert b"finetune_job_phase" in exposition.text(counters.registry)


@pytest.mark.parametrize("label", ["plain", "", 'a "quoted" one', "back\\slash", "two\nlines", "Köln, 東京", "%s {}"])
@pytest.mark.parametrize("value", [0, 1, -1.5, 1e-9, 1e21, 123456789.25, float("inf"), float("-inf"), float("nan")])
def test_labels_and_numbers_of_all_kinds(label: str, value: float) -> None:
    registry = CollectorRegistry()
    Gauge("b", "two\nlines of \\ help", ("y", "x"), registry=registry).labels(label, "1").set(value)
    Gauge("a", "no label", registry=registry).set(value)
    Gauge("none", "no sample", ("x",), registry=registry)

    same(registry)


def test_other_kinds_are_the_librarys() -> None:
    registry = CollectorRegistry()
    Counter("c", "counted", ("x",), registry=registry).labels("1").inc()
    Histogram("h", "spread", registry=registry).observe(1)
    Gauge("g", "measured", registry=registry).set(1)

    same(registry)
