"""nodes: {min, max} on a real API server: fewer pods, more pods, and what a user reads about it."""

from __future__ import annotations

from finetune_api import names
from finetune_api.plan import RunPlan
from finetune_operator.kube.resources import EVENTS, JOBS
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Start
from tests.support.operator_scenarios import DONE, lose_and_regain_a_node, short_of_a_node

ELASTIC = {"min": 1, "max": 2}


def test_a_gang_goes_on_with_fewer_nodes_and_grows_back(start: Start, kube: Kube) -> None:
    operator = start()
    lose_and_regain_a_node(kube, "a")
    status = kube.status("a")
    assert (status["attempt"], status["nodes"]) == (3, 2)
    assert status["restarts"] == {"counted": 0, "free": 0, "resized": 2}
    assert "lastFailure" not in status
    wait_for(lambda: kube.jobs() == ["a-3"], what="neither probe nor old attempts are left")
    events = {event["reason"]: event for event in kube.list(EVENTS) if event["source"].get("component")}
    assert (
        "found nodes for 1 of 2 pods; attempt 2 restarts with 1 (the scheduler: 0/1 nodes"
        in events["ScaledDown"]["message"]
    )
    grown = "Capacity for 1 more pods found; attempt 3 restarts with 2 from the last checkpoint"
    assert events["ScaledUp"]["message"] == grown
    assert (events["ScaledDown"]["type"], events["ScaledUp"]["type"]) == ("Warning", "Normal")
    assert sum(operator.writes.values()) <= 22, operator.writes


def test_what_runs_with_fewer_nodes_says_so(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", nodes=ELASTIC))
    first, _ = kube.await_gang("a", 1)
    plan = RunPlan.model_validate_json(first["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.nodes, plan.spec.min_nodes) == (2, 1)
    short_of_a_node(kube, "a")
    (pod,) = kube.run("a", 2)
    plan = RunPlan.model_validate_json(pod["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.nodes, plan.master_address) == (1, f"a-2-0.a.{kube.namespace}.svc")
    assert kube.condition("a", "Running")["message"] == "Attempt 2: the pod runs (2 are wanted)"
    # It ends as it is: the probe that still waits goes.
    wait_for(lambda: kube.probe("a", 2), what="a probe")
    kube.end(pod, words=DONE)
    wait_for(lambda: kube.phase("a") == "Succeeded" and kube.jobs() == ["a-2"], what="the end without a probe")


def test_a_probe_goes_with_suspension_and_a_resumed_job_wants_all(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", nodes=ELASTIC))
    short_of_a_node(kube, "a")
    kube.run("a", 2)
    wait_for(lambda: kube.probe("a", 2), what="a probe")
    kube.set_spec("a", suspend=True)
    wait_for(lambda: kube.phase("a") == "Suspended" and not kube.jobs(), what="neither gang nor probe")
    kube.set_spec("a", suspend=False)
    assert len(kube.await_gang("a", 3)) == 2


def test_what_a_quota_keeps_from_growing_is_left_in_peace(start: Start, kube: Kube) -> None:
    operator = start()
    kube.create(manifest("a", nodes=ELASTIC))
    short_of_a_node(kube, "a")
    wait_for(lambda: kube.status("a").get("attempt") == 2 and kube.jobs() == ["a-2"], what="the second attempt alone")
    kube.quota(**{"count/jobs.batch": "1"})
    kube.run("a", 2)
    before = operator.writes["create jobs"]
    wait_for(lambda: operator.writes["create jobs"] > before, what="a probe is tried")
    assert kube.get("a-2-probe", JOBS) is None
    assert (kube.phase("a"), kube.condition("a", "Running")["status"]) == ("Running", "True")
    assert "lastFailure" not in kube.status("a")


def test_a_range_upside_down_is_told_by_the_operator(start: Start, kube: Kube) -> None:
    """CEL cannot see it: see the table UNSEEN of tests/support/invalid_manifests.py."""
    start()
    kube.create(manifest("a", nodes={"min": 2, "max": 1}))
    wait_for(lambda: kube.phase("a") == "Failed", what="told")
    failed = kube.condition("a", "Failed")
    assert (failed["reason"], "raise max, or lower min" in failed["message"]) == ("InvalidSpec", True)
    assert kube.jobs() == []
