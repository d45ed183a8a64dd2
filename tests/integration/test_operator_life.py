"""A FineTuneJob's life on a real API server, as the operator writes it. Pods are moved by hand."""

from __future__ import annotations

import time
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import CLASSES, Reason, TerminationMessage, class_of
from finetune_api.measurements import Evaluation, Measurement
from finetune_api.plan import RunPlan
from finetune_api.status import Artifact, ResolvedPlan
from finetune_operator.kube.resources import EVENTS, JOBS, PODS, SERVICES
from tests.support.kube_client import DISCOVERY, Kube, manifest, wait_for
from tests.support.operator_harness import Start

ARTIFACT = Artifact(uri="s3://corp/out", digest="sha256:0", size_bytes=5, kind="adapter")
DONE = TerminationMessage(
    time="2026-01-01T00:00:00Z",
    step=12,
    artifact=ARTIFACT,
    plan=ResolvedPlan(method="lora", strategy="ddp", world_size=2, total_steps=12),
    evaluation=Evaluation(
        data=(Measurement(name="test", kind="test", metric="loss", base=2.0, tuned=1.0, verdict="better", rows=30),)
    ),
)


def failing(reason: Reason, message: str = "it broke", **more: Any) -> TerminationMessage:
    failure_class = class_of(reason)
    code = CLASSES[failure_class].exit_code
    return TerminationMessage(failure_class=failure_class, reason=reason, message=message, exit_code=code, **more)


def test_a_manifest_becomes_a_service_and_the_job_of_attempt_one(start: Start, kube: Kube) -> None:
    start()
    uid = kube.create(manifest("a"))["metadata"]["uid"]
    pods = kube.await_gang("a", 1)

    child, service = kube.get("a-1", JOBS), kube.get("a", SERVICES)
    assert child
    assert service
    for made in (child, service):
        (owner,) = made["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (uid, True, True)
    assert (child["spec"]["completions"], child["spec"]["parallelism"], child["spec"]["backoffLimit"]) == (2, 2, 0)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= pods[0]["metadata"]["labels"].items()

    plan = RunPlan.model_validate_json(pods[1]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.job.uid, plan.attempt, plan.nodes, plan.master_address) == (
        uid,
        1,
        2,
        f"a-1-0.a.{kube.namespace}.svc",
    )
    host, subdomain = (pods[0]["spec"][name] for name in ("hostname", "subdomain"))
    assert plan.master_address == f"{host}.{subdomain}.{kube.namespace}.svc"


def test_who_wrote_the_manifest_still_owns_it_when_the_status_is_written(start: Start, kube: Kube) -> None:
    """A status is replaced by an object that has nothing else in it: labels, spec and their owners stay."""
    given = manifest("a", nodes=1)
    given["metadata"]["labels"] = {"team": "cardiology"}
    before = kube.create(given)
    start()
    kube.await_gang("a", 1)

    after = kube.get("a")
    assert after
    assert (after["spec"], after["metadata"]["labels"]) == (before["spec"], {"team": "cardiology"})
    users, ours = before["metadata"]["managedFields"][0], after["metadata"]["managedFields"][-1]
    assert users in after["metadata"]["managedFields"]
    assert (ours["manager"], ours["subresource"], list(ours["fieldsV1"])) == (
        "finetune-operator",
        "status",
        ["f:status"],
    )


def test_success_carries_node_zeros_termination_message_into_the_status(start: Start, kube: Kube) -> None:
    operator = start()
    kube.create(manifest("a"))
    first, second = kube.run("a", 1)
    assert kube.condition("a", "Running")["status"] == "True"

    kube.end(second)
    kube.end(first, words=DONE)
    kube.rig.kubectl("wait", "--for=condition=Complete", "ftj/a", "-n", kube.namespace, "--timeout=110s")

    status = kube.status("a")
    assert status["phase"] == "Succeeded"
    assert status["artifact"] == ARTIFACT.to_json()
    assert status["evaluation"]["data"][0]["tuned"] == 1.0
    assert status["plan"]["worldSize"] == 2
    assert (status["progress"]["step"], status["progress"]["percent"]) == (12, 100)
    assert status["completionTime"]
    assert kube.condition("a", "Running")["status"] == "False"
    wait_for(lambda: len(kube.list(EVENTS)) > 0 and "create events" in operator.writes, what="the event")
    assert sum(operator.writes.values()) <= 6, operator.writes


def test_a_failed_pod_restarts_the_whole_gang(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a"))
    first, second = kube.run("a", 1)
    kube.end(second, code=70, words=failing(Reason.UnexpectedError, "boom", rank=1))

    pods = kube.await_gang("a", 2)
    status = kube.status("a")
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Restarting", 2, {"counted": 1, "free": 0})
    failure = status["lastFailure"]
    assert (failure["class"], failure["reason"], failure["rank"], failure["attempt"]) == (
        "Internal",
        "UnexpectedError",
        1,
        1,
    )
    plan = RunPlan.model_validate_json(pods[0]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.attempt, plan.master_address) == (2, f"a-2-0.a.{kube.namespace}.svc")
    wait_for(lambda: kube.jobs() == ["a-2"], what="the failed attempt's Job is gone")

    first, second = kube.run("a", 2)
    kube.end(first, words=DONE)
    kube.end(second)
    wait_for(lambda: kube.phase("a") == "Succeeded", what="success")
    assert kube.status("a")["restarts"] == {"counted": 1, "free": 0}


def test_preemption_restarts_for_free(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", retry={"maxRestarts": 0}, nodes=1))
    (pod,) = kube.run("a", 1)
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    kube.set_pod(pod, {"phase": "Failed", "conditions": [condition]})
    kube.await_gang("a", 2)
    status = kube.status("a")
    assert (status["restarts"], status["lastFailure"]["class"]) == ({"counted": 0, "free": 1}, "Preemption")


def test_restarts_end_when_the_budget_is_spent(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", nodes=1, retry={"maxRestarts": 1}))
    for attempt in (1, 2):
        (pod,) = kube.run("a", attempt)
        kube.end(pod, code=137, reason="OOMKilled")
    kube.rig.kubectl("wait", "--for=condition=Failed", "ftj/a", "-n", kube.namespace, "--timeout=110s")
    failed = kube.condition("a", "Failed")
    assert failed["reason"] == "RestartsExhausted"
    assert "retry.maxRestarts" in failed["message"]
    assert kube.status("a")["lastFailure"]["class"] == "OutOfMemory"
    assert kube.jobs() == ["a-2"]


def test_what_no_restart_can_help_is_not_restarted(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", nodes=1))
    (pod,) = kube.await_gang("a", 1)
    kube.end(pod, code=65, words=failing(Reason.DataEmpty, "s3://corp/train.jsonl holds no rows"))
    wait_for(lambda: kube.phase("a") == "Failed", what="failure")
    failed = kube.condition("a", "Failed")
    assert failed["reason"] == "DataEmpty"
    assert "holds no rows" in failed["message"]
    assert kube.status("a")["attempt"] == 1


def test_suspend_gives_the_nodes_back_and_resume_is_a_new_attempt(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a"))
    kube.run("a", 1)
    kube.set_spec("a", suspend=True)
    wait_for(lambda: kube.phase("a") == "Suspended" and not kube.jobs(), what="no Job while suspended")
    assert not kube.list(PODS)
    assert kube.condition("a", "Suspended")["status"] == "True"
    assert "startTime" not in kube.status("a")

    kube.set_spec("a", suspend=False, nodes=1)  # changed and resumed by one request
    (pod,) = kube.run("a", 2)
    status = kube.status("a")
    assert (status["attempt"], status["nodes"], status["restarts"]) == (2, 1, {"counted": 0, "free": 1})
    assert kube.condition("a", "Suspended") | {"lastTransitionTime": ""} == {
        "type": "Suspended", "status": "False", "reason": "Resumed", "observedGeneration": 3,
        "message": "Attempt 2 with 1 pod starts", "lastTransitionTime": "",
    }  # fmt: skip
    assert status["startTime"]
    kube.end(pod, words=DONE)
    wait_for(lambda: kube.phase("a") == "Succeeded", what="success after resuming")


def test_a_job_suspended_from_birth_makes_nothing(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", suspend=True))
    wait_for(lambda: kube.phase("a") == "Suspended", what="suspended")
    assert (kube.jobs(), kube.services()) == ([], [])
    kube.set_spec("a", suspend=False)
    kube.await_gang("a", 1)
    assert kube.status("a")["restarts"] == {"counted": 0, "free": 0}


def test_deletion_leaves_nothing_behind(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a"))
    kube.run("a", 1)
    kube.delete("a")
    wait_for(lambda: not (kube.list(PODS) or kube.jobs() or kube.services()), what="nothing is left", seconds=DISCOVERY)
    assert kube.get("a") is None


def test_a_name_used_again_at_once_is_another_job(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a"))
    kube.run("a", 1)
    kube.delete("a")
    uid = kube.create(manifest("a", nodes=1))["metadata"]["uid"]

    def whose() -> list[str]:
        return [pod["metadata"]["labels"][names.LABEL_UID] for pod in kube.list(PODS)]

    wait_for(lambda: whose() == [uid], what="only the other job's pod is left", seconds=DISCOVERY)
    kube.run("a", 1)


@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
def test_terminal_states_are_sticky(start: Start, kube: Kube, end: str) -> None:
    operator = start()
    kube.create(manifest("a", nodes=1, retry={"maxRestarts": 0}))
    (pod,) = kube.run("a", 1)
    kube.end(pod, code=0 if end == "Succeeded" else 70, words=DONE if end == "Succeeded" else None)
    wait_for(lambda: kube.phase("a") == end, what=end)
    wait_for(lambda: "create events" in operator.writes, what="the event")
    operator.settle()
    before = operator.writes
    kube.delete("a-1", JOBS)
    kube.delete("a", SERVICES)
    wait_for(lambda: not kube.list(PODS), what="the children are gone")
    time.sleep(1)
    assert (kube.jobs(), kube.services(), kube.phase("a")) == ([], [], end)
    assert operator.writes == before


def test_a_job_that_somebody_deletes_is_a_lost_attempt(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a"))
    kube.run("a", 1)
    kube.delete("a-1", JOBS)
    kube.await_gang("a", 2)
    assert kube.status("a")["lastFailure"]["reason"] in ("PodLost", "Interrupted")


def test_a_taken_name_is_told_and_not_taken_over(start: Start, kube: Kube) -> None:
    start()
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}}
    kube.create(service, SERVICES)
    kube.create(manifest("a"))
    wait_for(lambda: kube.phase("a") == "Failed", what="told")
    failed = kube.condition("a", "Failed")
    assert failed["reason"] == "InvalidSpec"
    assert "choose another metadata.name" in failed["message"]


def test_a_spec_that_makes_an_impossible_pod_is_told(start: Start, kube: Kube) -> None:
    start()
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": []}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    kube.create(manifest("a", pod={"affinity": affinity}))
    wait_for(lambda: kube.phase("a") == "Failed", what="told")
    assert "must be specified when `operator` is 'In'" in kube.condition("a", "Failed")["message"]
    assert kube.status("a")["lastFailure"]["class"] == "Config"


def test_a_quota_is_told_and_waited_for(start: Start, kube: Kube) -> None:
    start()
    kube.quota(**{"count/jobs.batch": "0"})
    kube.create(manifest("a"))
    wait_for(lambda: "exceeded quota" in kube.condition("a", "Running").get("message", ""), what="told")
    kube.rig.kubectl("delete", "resourcequota", "q", "-n", kube.namespace)
    kube.await_gang("a", 1)
    wait_for(lambda: kube.condition("a", "Running")["reason"] == "GangCreated", what="taken back")


def test_what_happened_while_no_operator_ran_is_found_at_its_start(start: Start, kube: Kube) -> None:
    start().stop()
    kube.create(manifest("a", nodes=1))
    time.sleep(0.5)
    assert kube.phase("a") == ""
    second = start()
    (pod,) = kube.run("a", 1)
    second.stop()
    kube.end(pod, code=70, words=failing(Reason.UnexpectedError))
    start()
    kube.await_gang("a", 2)
