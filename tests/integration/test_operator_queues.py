"""Jobs in the queues of a real Kueue, jobs that others hold or manage, and jobs that are suspended in passing.

Kueue's own webhooks stand before each Job, and its controller admits and preempts. Pods are moved by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from finetune_api import names
from finetune_api.failures import TerminationMessage
from finetune_api.plan import RunPlan
from finetune_operator.kube.resources import EVENTS, FINETUNEJOBS, JOBS, PODS, SERVICES, Raw
from tests.cluster.rig import Kueue, Rig
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Start
from tests.support.operator_rbac import allow
from tests.support.operator_scenarios import finish

QUEUE = "team-a"
ONE_CPU = {"limits": {"cpu": "1"}}


@pytest.fixture
def queue(kueue: Kueue, kube: Kube) -> Iterator[Kueue]:
    """A queue in the test's namespace, with room for one gang of two."""
    allow(kube.rig, kube.namespace, file="rbac-gang.yaml")
    kueue.manage(kube.namespace)
    kueue.queue(kube.namespace, QUEUE, cpu="2")
    yield kueue
    for job in kube.list(FINETUNEJOBS):
        kube.delete(job["metadata"]["name"])
    wait_for(lambda: not kube.jobs(), what="the Jobs are gone")


def queued(name: str, **spec: object) -> Raw:
    return manifest(name, queueName=QUEUE, resources=ONE_CPU, **spec)


def important(rig: Rig) -> str:
    """A PriorityClass above all others of the test."""
    rig.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "important"},
            "value": 1000,
        }
    )
    return "important"


def test_a_job_waits_for_its_turn(start: Start, kube: Kube, queue: Kueue) -> None:
    start()
    kube.create(queued("first"))
    kube.run("first", 1)
    kube.create(queued("second"))
    wait_for(lambda: "insufficient" in kube.condition("second", "Queued").get("message", ""), what="Kueue's reason")
    status = kube.status("second")
    assert (status["phase"], status["attempt"], "startTime" in status) == ("Queued", 1, False)
    assert kube.condition("second", "Running")["status"] == "False"
    assert kube.get("second-1", JOBS)["spec"]["suspend"] is True
    assert not [p for p in kube.list(PODS) if p["metadata"]["labels"][names.LABEL_JOB] == "second"]

    finish(kube, "first", 1)
    pods = kube.run("second", 1)
    assert len(pods) == 2
    assert kube.condition("second", "Queued") | {"lastTransitionTime": ""} == {
        "type": "Queued", "status": "False", "reason": "Admitted", "observedGeneration": 1,
        "message": "Attempt 1 may start", "lastTransitionTime": "",
    }  # fmt: skip
    assert kube.status("second")["startTime"]
    finish(kube, "second", 1)


def test_a_more_important_job_takes_the_nodes_and_the_other_resumes(start: Start, kube: Kube, queue: Kueue) -> None:
    start()
    kube.create(queued("humble", retry={"maxRestarts": 0}))
    kube.run("humble", 1)
    kube.create(queued("urgent", pod={"priorityClassName": important(kube.rig)}))
    wait_for(lambda: kube.phase("humble") == "Queued", what="preempted")
    status = kube.status("humble")
    assert (status["attempt"], status["restarts"]) == (1, {"counted": 0, "free": 0})
    assert (status["lastFailure"]["class"], status["lastFailure"]["reason"]) == ("Preemption", "Preempted")
    kube.run("urgent", 1)
    wait_for(lambda: "reempted" in kube.condition("humble", "Queued")["message"], what="Kueue's reason")
    assert not kube.gang("humble", 1)

    finish(kube, "urgent", 1)
    finish(kube, "humble", 1)
    assert kube.status("humble")["restarts"] == {"counted": 0, "free": 0}

    def told() -> set[str]:
        return {event["reason"] for event in kube.list(EVENTS) if event["involvedObject"]["name"] == "humble"}

    wait_for(lambda: told() >= {"Preempted", "Admitted", "Succeeded"}, what="the events")


def test_a_failed_attempt_queues_again(start: Start, kube: Kube, queue: Kueue) -> None:
    start()
    kube.create(queued("a"))
    _, second = kube.run("a", 1)
    kube.end(second, code=137)
    finish(kube, "a", 2)
    assert kube.status("a")["restarts"] == {"counted": 1, "free": 0}


def test_a_queued_job_can_be_suspended_and_resumed(start: Start, kube: Kube, queue: Kueue) -> None:
    start()
    kube.create(queued("first"))
    kube.run("first", 1)
    kube.create(queued("second"))
    wait_for(lambda: kube.phase("second") == "Queued" and kube.get("second-1", JOBS), what="queued")
    kube.set_spec("second", suspend=True)
    wait_for(lambda: kube.phase("second") == "Suspended" and not kube.get("second-1", JOBS), what="suspended")
    assert kube.condition("second", "Queued")["status"] == "False"
    kube.set_spec("first", suspend=True)
    kube.set_spec("second", suspend=False)
    kube.run("second", 2)
    assert kube.phase("first") == "Suspended"


def test_an_elastic_job_takes_what_the_queue_has(start: Start, kube: Kube, queue: Kueue) -> None:
    """There is quota for two of at most four pods: an attempt of two follows, whose pods know of each other."""
    start()
    kube.create(queued("a", nodes={"min": 1, "max": 4}))
    pods = kube.run("a", 2)
    assert len(pods) == 2
    plan = RunPlan.model_validate_json(pods[0]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert plan.nodes == 2
    status = kube.status("a")
    assert (status["nodes"], status["restarts"]) == (2, {"counted": 0, "free": 0, "resized": 1})
    finish(kube, "a", 2)


# without Kueue


def test_nobody_lets_a_held_job_go_but_its_queue(start: Start, kube: Kube) -> None:
    """Here there is none: the deadline does not run, and the job says what it waits for."""
    start()
    kube.create(manifest("a", queueName="nowhere", deadlines={"startup": "1s"}))
    wait_for(lambda: kube.get("a-1", JOBS), what="the Job")
    time.sleep(3)
    assert kube.get("a-1", JOBS)["spec"]["suspend"] is True
    assert (kube.phase("a"), kube.status("a")["attempt"]) == ("Queued", 1)
    assert "the Job a-1 waits in the queue nowhere" in kube.condition("a", "Queued")["message"]


def test_a_turn_lost_and_won_again_while_no_operator_ran(start: Start, kube: Kube) -> None:
    first = start()
    kube.create(manifest("a", queueName="by-hand"))
    kube.let_go("a-1")
    kube.run("a", 1)
    first.stop()
    kube.take_back("a-1")
    wait_for(lambda: not kube.list(PODS), what="its pods are gone")
    kube.let_go("a-1")
    kube.await_gang("a", 1)
    start()
    wait_for(lambda: kube.phase("a") == "Pending", what="it starts again")
    assert kube.status("a")["lastFailure"]["reason"] == "Preempted"
    finish(kube, "a", 1)


def test_a_job_that_somebody_suspends_says_who(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a"))
    kube.run("a", 1)
    kube.rig.kubectl("patch", "job", "a-1", "-n", kube.namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}',
                      "--field-manager=somebody")  # fmt: skip
    wait_for(lambda: kube.phase("a") == "Queued", what="held")
    assert "suspended by somebody" in kube.condition("a", "Queued")["message"]
    kube.let_go("a-1")
    finish(kube, "a", 1)


def test_a_job_of_another_manager_is_left_alone(start: Start, kube: Kube) -> None:
    operator = start()
    kube.create(manifest("theirs", managedBy="kueue.x-k8s.io/multikueue"))
    kube.create(manifest("ours", managedBy=names.MANAGER, nodes=1))
    kube.run("ours", 1)
    time.sleep(0.5)
    assert "status" not in kube.get("theirs")
    assert (kube.jobs(), kube.services()) == (["ours-1"], ["ours"])
    assert not [event for event in kube.list(EVENTS) if event["involvedObject"]["name"] == "theirs"]
    assert operator.writes["update finetunejobs/status"] <= 3


# suspended in passing


def test_a_change_in_passing_is_not_missed(start: Start, kube: Kube) -> None:
    """Suspended, changed and resumed faster than anybody looks, or while no operator runs."""
    start().stop()
    first = start()
    kube.create(manifest("a"))
    kube.run("a", 1)
    first.stop()
    kube.set_spec("a", suspend=True)
    kube.set_spec("a", nodes=1, image="trainer:2")
    kube.set_spec("a", suspend=False)
    start()
    (pod,) = kube.run("a", 2)
    assert pod["spec"]["containers"][0]["image"] == "trainer:2"
    assert kube.condition("a", "Suspended")["status"] == "False"
    assert kube.condition("a", "Suspended")["reason"] == "Resumed"
    assert kube.status("a")["restarts"] == {"counted": 0, "free": 1}


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.2])
def test_however_fast_the_last_word_counts(start: Start, kube: Kube, pause: float) -> None:
    start()
    kube.create(manifest("a"))
    kube.run("a", 1)
    for suspend in (True, False, True, False, True):
        kube.set_spec("a", suspend=suspend)
        time.sleep(pause)
    wait_for(lambda: kube.phase("a") == "Suspended" and not kube.jobs() and not kube.list(PODS), what="suspended")
    assert kube.condition("a", "Suspended")["status"] == "True"
    kube.set_spec("a", suspend=False, nodes=1, image="trainer:2")
    attempt = wait_for(lambda: kube.jobs() and int(kube.jobs()[-1].split("-")[1]), what="the next attempt")
    (pod,) = kube.run("a", attempt)
    assert pod["spec"]["containers"][0]["image"] == "trainer:2"
    assert kube.condition("a", "Suspended")["status"] == "False"
    kube.end(pod, words=TerminationMessage())
    wait_for(lambda: kube.phase("a") == "Succeeded", what="success")
    assert kube.get("a", SERVICES)
