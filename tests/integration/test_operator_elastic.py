"""nodes: {min, max} on a real API server: fewer pods, more pods, and what a user reads about it."""

from __future__ import annotations

from finetune_api import names
from finetune_api.plan import RunPlan
from finetune_operator.resources import EVENTS, JOBS
from tests.hands import Hands, manifest, wait_for
from tests.operator_harness import Start
from tests.operator_stories import DONE, lose_and_regain_a_node, short_of_a_node

ELASTIC = {"min": 1, "max": 2}


def test_a_gang_goes_on_with_fewer_nodes_and_grows_back(start: Start, hands: Hands) -> None:
    operator = start()
    lose_and_regain_a_node(hands, "a")
    status = hands.status("a")
    assert (status["attempt"], status["nodes"]) == (3, 2)
    assert status["restarts"] == {"counted": 0, "free": 0, "resized": 2}
    assert "lastFailure" not in status
    wait_for(lambda: hands.jobs() == ["a-3"], what="neither probe nor old attempts are left")
    events = {event["reason"]: event for event in hands.list(EVENTS) if event["source"].get("component")}
    assert (
        "found nodes for 1 of 2 pods; attempt 2 follows with 1 (the scheduler: 0/1 nodes"
        in events["ScaledDown"]["message"]
    )
    assert events["ScaledUp"]["message"] == "There is place for 1 more pods; attempt 3 follows with 2 from a checkpoint"
    assert (events["ScaledDown"]["type"], events["ScaledUp"]["type"]) == ("Warning", "Normal")
    assert sum(operator.writes.values()) <= 22, operator.writes


def test_what_runs_with_fewer_nodes_says_so(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", nodes=ELASTIC))
    first, _ = hands.await_gang("a", 1)
    plan = RunPlan.model_validate_json(first["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.nodes, plan.spec.min_nodes) == (2, 1)
    short_of_a_node(hands, "a")
    (pod,) = hands.run("a", 2)
    plan = RunPlan.model_validate_json(pod["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.nodes, plan.master_address) == (1, "a-2-0.a")
    assert hands.condition("a", "Running")["message"] == "Attempt 2: the pod runs (2 are wanted)"
    # It ends as it is: the probe that still waits goes.
    wait_for(lambda: hands.probe("a", 2), what="a probe")
    hands.end(pod, words=DONE)
    wait_for(lambda: hands.phase("a") == "Succeeded" and hands.jobs() == ["a-2"], what="the end without a probe")


def test_a_probe_goes_with_suspension_and_a_resumed_job_wants_all(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", nodes=ELASTIC))
    short_of_a_node(hands, "a")
    hands.run("a", 2)
    wait_for(lambda: hands.probe("a", 2), what="a probe")
    hands.set_spec("a", suspend=True)
    wait_for(lambda: hands.phase("a") == "Suspended" and not hands.jobs(), what="neither gang nor probe")
    hands.set_spec("a", suspend=False)
    assert len(hands.await_gang("a", 3)) == 2


def test_what_a_quota_keeps_from_growing_is_left_in_peace(start: Start, hands: Hands) -> None:
    operator = start()
    hands.create(manifest("a", nodes=ELASTIC))
    short_of_a_node(hands, "a")
    wait_for(lambda: hands.status("a").get("attempt") == 2 and hands.jobs() == ["a-2"], what="the second attempt alone")
    hands.quota(**{"count/jobs.batch": "1"})
    hands.run("a", 2)
    before = operator.writes["create jobs"]
    wait_for(lambda: operator.writes["create jobs"] > before, what="a probe is tried")
    assert hands.get("a-2-probe", JOBS) is None
    assert (hands.phase("a"), hands.condition("a", "Running")["status"]) == ("Running", "True")
    assert "lastFailure" not in hands.status("a")


def test_a_range_upside_down_is_told_by_the_operator(start: Start, hands: Hands) -> None:
    """CEL cannot see it: see the table UNSEEN of tests/bad_manifests.py."""
    start()
    hands.create(manifest("a", nodes={"min": 2, "max": 1}))
    wait_for(lambda: hands.phase("a") == "Failed", what="told")
    failed = hands.condition("a", "Failed")
    assert (failed["reason"], "raise max, or lower min" in failed["message"]) == ("InvalidSpec", True)
    assert hands.jobs() == []
