"""A FineTuneJob's life on a real API server, as the operator writes it. Pods are moved by hand."""

from __future__ import annotations

import time
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import CLASSES, LastWords, Reason, class_of
from finetune_api.plan import RunPlan
from finetune_api.status import Artifact, Evaluation, ResolvedPlan, Scores, Splits
from finetune_operator.resources import EVENTS, JOBS, PODS, SERVICES
from tests.hands import DISCOVERY, Hands, manifest, wait_for
from tests.operator_harness import Start

ARTIFACT = Artifact(uri="s3://corp/out", digest="sha256:0", size_bytes=5, kind="adapter")
DONE = LastWords(
    time="2026-01-01T00:00:00Z",
    step=12,
    artifact=ARTIFACT,
    plan=ResolvedPlan(method="lora", strategy="ddp", world_size=2, total_steps=12),
    evaluation=Evaluation(
        base=Splits(test=Scores(loss=2.0, rows=3, tokens=9)), tuned=Splits(test=Scores(loss=1.0, rows=3, tokens=9))
    ),
)


def failing(reason: Reason, message: str = "it broke", **more: Any) -> LastWords:
    failure_class = class_of(reason)
    code = CLASSES[failure_class].exit_code
    return LastWords(failure_class=failure_class, reason=reason, message=message, exit_code=code, **more)


def test_a_manifest_becomes_a_service_and_the_job_of_attempt_one(start: Start, hands: Hands) -> None:
    start()
    uid = hands.create(manifest("a"))["metadata"]["uid"]
    pods = hands.await_gang("a", 1)

    child, service = hands.get("a-1", JOBS), hands.get("a", SERVICES)
    assert child
    assert service
    for made in (child, service):
        (owner,) = made["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (uid, True, True)
    assert (child["spec"]["completions"], child["spec"]["parallelism"], child["spec"]["backoffLimit"]) == (2, 2, 0)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= pods[0]["metadata"]["labels"].items()

    plan = RunPlan.model_validate_json(pods[1]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.job.uid, plan.attempt, plan.nodes, plan.master_address) == (uid, 1, 2, "a-1-0.a")
    assert pods[0]["spec"]["hostname"] + "." + pods[0]["spec"]["subdomain"] == plan.master_address


def test_who_wrote_the_manifest_still_owns_it_when_the_status_is_written(start: Start, hands: Hands) -> None:
    """A status is replaced by an object that has nothing else in it: labels, spec and their owners stay."""
    given = manifest("a", nodes=1)
    given["metadata"]["labels"] = {"team": "cardiology"}
    before = hands.create(given)
    start()
    hands.await_gang("a", 1)

    after = hands.get("a")
    assert after
    assert (after["spec"], after["metadata"]["labels"]) == (before["spec"], {"team": "cardiology"})
    users, ours = before["metadata"]["managedFields"][0], after["metadata"]["managedFields"][-1]
    assert users in after["metadata"]["managedFields"]
    assert (ours["manager"], ours["subresource"], list(ours["fieldsV1"])) == (
        "finetune-operator",
        "status",
        ["f:status"],
    )


def test_success_carries_node_zeros_last_words_into_the_status(start: Start, hands: Hands) -> None:
    operator = start()
    hands.create(manifest("a"))
    first, second = hands.run("a", 1)
    assert hands.condition("a", "Running")["status"] == "True"

    hands.end(second)
    hands.end(first, words=DONE)
    hands.rig.kubectl("wait", "--for=condition=Complete", "ftj/a", "-n", hands.namespace, "--timeout=110s")

    status = hands.status("a")
    assert status["phase"] == "Succeeded"
    assert status["artifact"] == ARTIFACT.to_json()
    assert status["evaluation"]["tuned"]["test"]["loss"] == 1.0
    assert status["plan"]["worldSize"] == 2
    assert (status["progress"]["step"], status["progress"]["percent"]) == (12, 100)
    assert status["completionTime"]
    assert hands.condition("a", "Running")["status"] == "False"
    wait_for(lambda: len(hands.list(EVENTS)) > 0 and "create events" in operator.writes, what="the event")
    assert sum(operator.writes.values()) <= 6, operator.writes


def test_a_failed_pod_restarts_the_whole_gang(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a"))
    first, second = hands.run("a", 1)
    hands.end(second, code=70, words=failing(Reason.UnexpectedError, "boom", rank=1))

    pods = hands.await_gang("a", 2)
    status = hands.status("a")
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Restarting", 2, {"counted": 1, "free": 0})
    failure = status["lastFailure"]
    assert (failure["class"], failure["reason"], failure["rank"], failure["attempt"]) == (
        "Internal",
        "UnexpectedError",
        1,
        1,
    )
    plan = RunPlan.model_validate_json(pods[0]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.attempt, plan.master_address) == (2, "a-2-0.a")
    wait_for(lambda: hands.jobs() == ["a-2"], what="the failed attempt's Job is gone")

    first, second = hands.run("a", 2)
    hands.end(first, words=DONE)
    hands.end(second)
    wait_for(lambda: hands.phase("a") == "Succeeded", what="success")
    assert hands.status("a")["restarts"] == {"counted": 1, "free": 0}


def test_preemption_restarts_for_free(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", retry={"maxRestarts": 0}, nodes=1))
    (pod,) = hands.run("a", 1)
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    hands.set_pod(pod, {"phase": "Failed", "conditions": [condition]})
    hands.await_gang("a", 2)
    status = hands.status("a")
    assert (status["restarts"], status["lastFailure"]["class"]) == ({"counted": 0, "free": 1}, "Preemption")


def test_restarts_end_when_the_budget_is_spent(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", nodes=1, retry={"maxRestarts": 1}))
    for attempt in (1, 2):
        (pod,) = hands.run("a", attempt)
        hands.end(pod, code=137, reason="OOMKilled")
    hands.rig.kubectl("wait", "--for=condition=Failed", "ftj/a", "-n", hands.namespace, "--timeout=110s")
    failed = hands.condition("a", "Failed")
    assert failed["reason"] == "RestartsExhausted"
    assert "retry.maxRestarts" in failed["message"]
    assert hands.status("a")["lastFailure"]["class"] == "OutOfMemory"
    assert hands.jobs() == ["a-2"]


def test_what_no_restart_can_help_is_not_restarted(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", nodes=1))
    (pod,) = hands.await_gang("a", 1)
    hands.end(pod, code=65, words=failing(Reason.DataEmpty, "s3://corp/train.jsonl holds no rows"))
    wait_for(lambda: hands.phase("a") == "Failed", what="failure")
    failed = hands.condition("a", "Failed")
    assert failed["reason"] == "DataEmpty"
    assert "holds no rows" in failed["message"]
    assert hands.status("a")["attempt"] == 1


def test_suspend_gives_the_nodes_back_and_resume_is_a_new_attempt(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a"))
    hands.run("a", 1)
    hands.set_spec("a", suspend=True)
    wait_for(lambda: hands.phase("a") == "Suspended" and not hands.jobs(), what="no Job while suspended")
    assert not hands.list(PODS)
    assert hands.condition("a", "Suspended")["status"] == "True"
    assert "startTime" not in hands.status("a")

    hands.set_spec("a", suspend=False, nodes=1)  # changed and resumed by one request
    (pod,) = hands.run("a", 2)
    status = hands.status("a")
    assert (status["attempt"], status["nodes"], status["restarts"]) == (2, 1, {"counted": 0, "free": 1})
    assert hands.condition("a", "Suspended") | {"lastTransitionTime": ""} == {
        "type": "Suspended", "status": "False", "reason": "Resumed", "observedGeneration": 3,
        "message": "Attempt 2 with 1 pod starts", "lastTransitionTime": "",
    }  # fmt: skip
    assert status["startTime"]
    hands.end(pod, words=DONE)
    wait_for(lambda: hands.phase("a") == "Succeeded", what="success after resuming")


def test_a_job_suspended_from_birth_makes_nothing(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", suspend=True))
    wait_for(lambda: hands.phase("a") == "Suspended", what="suspended")
    assert (hands.jobs(), hands.services()) == ([], [])
    hands.set_spec("a", suspend=False)
    hands.await_gang("a", 1)
    assert hands.status("a")["restarts"] == {"counted": 0, "free": 0}


def test_deletion_leaves_nothing_behind(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a"))
    hands.run("a", 1)
    hands.delete("a")
    wait_for(
        lambda: not (hands.list(PODS) or hands.jobs() or hands.services()), what="nothing is left", seconds=DISCOVERY
    )
    assert hands.get("a") is None


def test_a_name_used_again_at_once_is_another_job(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a"))
    hands.run("a", 1)
    hands.delete("a")
    uid = hands.create(manifest("a", nodes=1))["metadata"]["uid"]
    wait_for(lambda: len(hands.gang("a", 1)) == 1, what="the other job's pod", seconds=DISCOVERY)
    (pod,) = hands.run("a", 1)
    assert pod["metadata"]["labels"][names.LABEL_UID] == uid


@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
def test_terminal_states_are_sticky(start: Start, hands: Hands, end: str) -> None:
    operator = start()
    hands.create(manifest("a", nodes=1, retry={"maxRestarts": 0}))
    (pod,) = hands.run("a", 1)
    hands.end(pod, code=0 if end == "Succeeded" else 70, words=DONE if end == "Succeeded" else None)
    wait_for(lambda: hands.phase("a") == end, what=end)
    wait_for(lambda: "create events" in operator.writes, what="the event")
    operator.settle()
    before = operator.writes
    hands.delete("a-1", JOBS)
    hands.delete("a", SERVICES)
    wait_for(lambda: not hands.list(PODS), what="the children are gone")
    time.sleep(1)
    assert (hands.jobs(), hands.services(), hands.phase("a")) == ([], [], end)
    assert operator.writes == before


def test_a_job_that_somebody_deletes_is_a_lost_attempt(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a"))
    hands.run("a", 1)
    hands.delete("a-1", JOBS)
    hands.await_gang("a", 2)
    assert hands.status("a")["lastFailure"]["reason"] in ("PodLost", "Interrupted")


def test_a_taken_name_is_told_and_not_taken_over(start: Start, hands: Hands) -> None:
    start()
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}}
    hands.create(service, SERVICES)
    hands.create(manifest("a"))
    wait_for(lambda: hands.phase("a") == "Failed", what="told")
    failed = hands.condition("a", "Failed")
    assert failed["reason"] == "InvalidSpec"
    assert "choose another metadata.name" in failed["message"]


def test_a_spec_that_makes_an_impossible_pod_is_told(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", pod={"volumes": [{"name": "finetune-tmp", "mountPath": "/x", "emptyDir": {}}]}))
    wait_for(lambda: hands.phase("a") == "Failed", what="told")
    assert "Duplicate" in hands.condition("a", "Failed")["message"]
    assert hands.status("a")["lastFailure"]["class"] == "Config"


def test_a_quota_is_told_and_waited_for(start: Start, hands: Hands) -> None:
    start()
    hands.quota(**{"count/jobs.batch": "0"})
    hands.create(manifest("a"))
    wait_for(lambda: "exceeded quota" in hands.condition("a", "Running").get("message", ""), what="told")
    hands.rig.kubectl("delete", "resourcequota", "q", "-n", hands.namespace)
    hands.await_gang("a", 1)
    wait_for(lambda: hands.condition("a", "Running")["reason"] == "GangCreated", what="taken back")


def test_what_happened_while_no_operator_ran_is_found_at_its_start(start: Start, hands: Hands) -> None:
    start().stop()
    hands.create(manifest("a", nodes=1))
    time.sleep(0.5)
    assert hands.phase("a") == ""
    second = start()
    (pod,) = hands.run("a", 1)
    second.stop()
    hands.end(pod, code=70, words=failing(Reason.UnexpectedError))
    start()
    hands.await_gang("a", 2)
