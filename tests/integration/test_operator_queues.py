"""Jobs in the queues of a real Kueue, jobs that others hold or manage, and jobs that are suspended in passing.

Kueue's own webhooks stand before each Job, and its controller admits and preempts. Pods are moved by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from finetune_api import names
from finetune_api.failures import LastWords
from finetune_api.plan import RunPlan
from finetune_operator.resources import EVENTS, FINETUNEJOBS, JOBS, PODS, SERVICES, Raw
from tests.cluster.rig import Kueue, Rig
from tests.hands import Hands, manifest, wait_for
from tests.operator_harness import Start
from tests.operator_rights import allow
from tests.operator_stories import finish

QUEUE = "team-a"
ONE_CPU = {"limits": {"cpu": "1"}}


@pytest.fixture
def queue(kueue: Kueue, hands: Hands) -> Iterator[Kueue]:
    """A queue in the test's namespace, with room for one gang of two."""
    allow(hands.rig, hands.namespace, file="rbac-gang.yaml")
    kueue.manage(hands.namespace)
    kueue.queue(hands.namespace, QUEUE, cpu="2")
    yield kueue
    for job in hands.list(FINETUNEJOBS):
        hands.delete(job["metadata"]["name"])
    wait_for(lambda: not hands.jobs(), what="the Jobs are gone")


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


def test_a_job_waits_for_its_turn(start: Start, hands: Hands, queue: Kueue) -> None:
    start()
    hands.create(queued("first"))
    hands.run("first", 1)
    hands.create(queued("second"))
    wait_for(lambda: "insufficient" in hands.condition("second", "Queued").get("message", ""), what="Kueue's reason")
    status = hands.status("second")
    assert (status["phase"], status["attempt"], "startTime" in status) == ("Queued", 1, False)
    assert hands.condition("second", "Running")["status"] == "False"
    assert hands.get("second-1", JOBS)["spec"]["suspend"] is True
    assert not [p for p in hands.list(PODS) if p["metadata"]["labels"][names.LABEL_JOB] == "second"]

    finish(hands, "first", 1)
    pods = hands.run("second", 1)
    assert len(pods) == 2
    assert hands.condition("second", "Queued") | {"lastTransitionTime": ""} == {
        "type": "Queued", "status": "False", "reason": "Admitted", "observedGeneration": 1,
        "message": "Attempt 1 may start", "lastTransitionTime": "",
    }  # fmt: skip
    assert hands.status("second")["startTime"]
    finish(hands, "second", 1)


def test_a_more_important_job_takes_the_nodes_and_the_other_resumes(start: Start, hands: Hands, queue: Kueue) -> None:
    start()
    hands.create(queued("humble", retry={"maxRestarts": 0}))
    hands.run("humble", 1)
    hands.create(queued("urgent", pod={"priorityClassName": important(hands.rig)}))
    wait_for(lambda: hands.phase("humble") == "Queued", what="preempted")
    status = hands.status("humble")
    assert (status["attempt"], status["restarts"]) == (1, {"counted": 0, "free": 0})
    assert (status["lastFailure"]["class"], status["lastFailure"]["reason"]) == ("Preemption", "Preempted")
    hands.run("urgent", 1)
    wait_for(lambda: "reempted" in hands.condition("humble", "Queued")["message"], what="Kueue's reason")
    assert not hands.gang("humble", 1)

    finish(hands, "urgent", 1)
    finish(hands, "humble", 1)
    assert hands.status("humble")["restarts"] == {"counted": 0, "free": 0}

    def told() -> set[str]:
        return {event["reason"] for event in hands.list(EVENTS) if event["involvedObject"]["name"] == "humble"}

    wait_for(lambda: told() >= {"Preempted", "Admitted", "Succeeded"}, what="the events")


def test_a_failed_attempt_queues_again(start: Start, hands: Hands, queue: Kueue) -> None:
    start()
    hands.create(queued("a"))
    _, second = hands.run("a", 1)
    hands.end(second, code=137)
    finish(hands, "a", 2)
    assert hands.status("a")["restarts"] == {"counted": 1, "free": 0}


def test_a_queued_job_can_be_suspended_and_resumed(start: Start, hands: Hands, queue: Kueue) -> None:
    start()
    hands.create(queued("first"))
    hands.run("first", 1)
    hands.create(queued("second"))
    wait_for(lambda: hands.phase("second") == "Queued" and hands.get("second-1", JOBS), what="queued")
    hands.set_spec("second", suspend=True)
    wait_for(lambda: hands.phase("second") == "Suspended" and not hands.get("second-1", JOBS), what="suspended")
    assert hands.condition("second", "Queued")["status"] == "False"
    hands.set_spec("first", suspend=True)
    hands.set_spec("second", suspend=False)
    hands.run("second", 2)
    assert hands.phase("first") == "Suspended"


def test_an_elastic_job_takes_what_the_queue_has(start: Start, hands: Hands, queue: Kueue) -> None:
    """There is quota for two of at most four pods: an attempt of two follows, whose pods know of each other."""
    start()
    hands.create(queued("a", nodes={"min": 1, "max": 4}))
    pods = hands.run("a", 2)
    assert len(pods) == 2
    plan = RunPlan.model_validate_json(pods[0]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert plan.nodes == 2
    status = hands.status("a")
    assert (status["nodes"], status["restarts"]) == (2, {"counted": 0, "free": 0, "resized": 1})
    finish(hands, "a", 2)


# without Kueue


def test_nobody_lets_a_held_job_go_but_its_queue(start: Start, hands: Hands) -> None:
    """Here there is none: the deadline does not run, and the job says what it waits for."""
    start()
    hands.create(manifest("a", queueName="nowhere", deadlines={"startup": "1s"}))
    wait_for(lambda: hands.get("a-1", JOBS), what="the Job")
    time.sleep(3)
    assert hands.get("a-1", JOBS)["spec"]["suspend"] is True
    assert (hands.phase("a"), hands.status("a")["attempt"]) == ("Queued", 1)
    assert "the Job a-1 waits in the queue nowhere" in hands.condition("a", "Queued")["message"]


def test_a_turn_lost_and_won_again_while_no_operator_ran(start: Start, hands: Hands) -> None:
    first = start()
    hands.create(manifest("a", queueName="by-hand"))
    hands.let_go("a-1")
    hands.run("a", 1)
    first.stop()
    hands.take_back("a-1")
    wait_for(lambda: not hands.list(PODS), what="its pods are gone")
    hands.let_go("a-1")
    hands.await_gang("a", 1)
    start()
    wait_for(lambda: hands.phase("a") == "Pending", what="it starts again")
    assert hands.status("a")["lastFailure"]["reason"] == "Preempted"
    finish(hands, "a", 1)


def test_a_job_that_somebody_suspends_says_who(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a"))
    hands.run("a", 1)
    hands.rig.kubectl("patch", "job", "a-1", "-n", hands.namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}',
                      "--field-manager=somebody")  # fmt: skip
    wait_for(lambda: hands.phase("a") == "Queued", what="held")
    assert "suspended by somebody" in hands.condition("a", "Queued")["message"]
    hands.let_go("a-1")
    finish(hands, "a", 1)


def test_a_job_of_another_manager_is_left_alone(start: Start, hands: Hands) -> None:
    operator = start()
    hands.create(manifest("theirs", managedBy="kueue.x-k8s.io/multikueue"))
    hands.create(manifest("ours", managedBy=names.MANAGER, nodes=1))
    hands.run("ours", 1)
    time.sleep(0.5)
    assert "status" not in hands.get("theirs")
    assert (hands.jobs(), hands.services()) == (["ours-1"], ["ours"])
    assert not [event for event in hands.list(EVENTS) if event["involvedObject"]["name"] == "theirs"]
    assert operator.writes["update finetunejobs/status"] <= 3


# suspended in passing


def test_a_change_in_passing_is_not_missed(start: Start, hands: Hands) -> None:
    """Suspended, changed and resumed faster than anybody looks, or while no operator runs."""
    start().stop()
    first = start()
    hands.create(manifest("a"))
    hands.run("a", 1)
    first.stop()
    hands.set_spec("a", suspend=True)
    hands.set_spec("a", nodes=1, image="trainer:2")
    hands.set_spec("a", suspend=False)
    start()
    (pod,) = hands.run("a", 2)
    assert pod["spec"]["containers"][0]["image"] == "trainer:2"
    assert hands.condition("a", "Suspended")["status"] == "False"
    assert hands.condition("a", "Suspended")["reason"] == "Resumed"
    assert hands.status("a")["restarts"] == {"counted": 0, "free": 1}


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.2])
def test_however_fast_the_last_word_counts(start: Start, hands: Hands, pause: float) -> None:
    start()
    hands.create(manifest("a"))
    hands.run("a", 1)
    for suspend in (True, False, True, False, True):
        hands.set_spec("a", suspend=suspend)
        time.sleep(pause)
    wait_for(lambda: hands.phase("a") == "Suspended" and not hands.jobs() and not hands.list(PODS), what="suspended")
    assert hands.condition("a", "Suspended")["status"] == "True"
    hands.set_spec("a", suspend=False, nodes=1, image="trainer:2")
    attempt = wait_for(lambda: hands.jobs() and int(hands.jobs()[-1].split("-")[1]), what="the next attempt")
    (pod,) = hands.run("a", attempt)
    assert pod["spec"]["containers"][0]["image"] == "trainer:2"
    assert hands.condition("a", "Suspended")["status"] == "False"
    hands.end(pod, words=LastWords())
    wait_for(lambda: hands.phase("a") == "Succeeded", what="success")
    assert hands.get("a", SERVICES)
