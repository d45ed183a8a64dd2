"""What goes wrong in a cluster, as its API server and controllers tell it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_operator import silence
from finetune_operator.resources import EVENTS, PODS, Raw
from tests.hands import DISCOVERY, Hands, manifest, wait_for
from tests.operator_harness import Start


def test_pods_that_a_quota_refuses_are_told_within_a_minute(start: Start, hands: Hands) -> None:
    start()
    hands.quota(pods="1")
    hands.create(manifest("a"))

    def told() -> Raw | None:
        """Of none at first, where the refusal is seen before the pod that was made."""
        failure: Raw = hands.status("a").get("lastFailure", {})
        return failure if "1 of 2 pods could be made" in failure.get("message", "") else None

    failure = wait_for(told, what="told")
    assert (failure["reason"], failure["class"]) == ("PodsRefused", "Infrastructure")
    assert "exceeded quota" in failure["message"]
    assert "ResourceQuota" in hands.condition("a", "Running")["message"]
    story = wait_for(
        lambda: [e for e in hands.list(EVENTS) if e["involvedObject"]["kind"] == "FineTuneJob"], what="event"
    )
    assert [(event["type"], event["reason"]) for event in story] == [("Warning", "PodsRefused")]

    hands.rig.kubectl("delete", "resourcequota", "q", "-n", hands.namespace)
    wait_for(lambda: len(hands.gang("a", 1)) == 2, what="the Job controller tries again", seconds=240)
    hands.run("a", 1)
    assert "lastFailure" not in hands.status("a")
    assert hands.condition("a", "Running")["reason"] == "GangRunning"


def test_a_missing_secret_is_told_at_once_and_the_job_goes_on_when_it_is_there(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", nodes=1))
    (pod,) = hands.await_gang("a", 1)
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "corp-s3" not found'}
    hands.set_pod(pod, {"phase": "Pending", "containerStatuses": [container({"waiting": waiting}, ready=False)]})
    told = wait_for(lambda: hands.status("a").get("lastFailure"), what="told")
    assert (told["reason"], 'secret "corp-s3" not found' in told["message"]) == ("ReferenceMissing", True)
    assert "Create the Secret" in told["hint"]
    assert hands.phase("a") == "Pending"

    hands.set_pod(pod, {"phase": "Running", "containerStatuses": [container({"running": {}}, ready=True)]})
    wait_for(lambda: hands.phase("a") == "Running", what="running")
    assert "lastFailure" not in hands.status("a")


def test_a_gang_that_does_not_start_in_time_starts_anew(start: Start, hands: Hands) -> None:
    """The wake-up comes by itself: nothing happens in the cluster."""
    start()
    hands.create(manifest("a", deadlines={"startup": "3s"}, retry={"maxRestarts": 1}))
    wait_for(lambda: hands.status("a").get("attempt") == 2, what="the second attempt")
    assert hands.status("a")["lastFailure"]["reason"] == "StartupDeadline"
    wait_for(lambda: hands.phase("a") == "Failed", what="and the end")
    assert hands.condition("a", "Failed")["reason"] == "RestartsExhausted"
    wait_for(lambda: not (hands.jobs() or hands.list(PODS)), what="its nodes are given back", seconds=DISCOVERY)


def test_a_job_that_takes_too_long_fails_and_is_gone_when_its_time_is_over(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", nodes=1))
    hands.run("a", 1)
    hands.set_spec("a", deadlines={"active": "1s"})
    wait_for(lambda: hands.phase("a") == "Failed", what="the deadline")
    assert hands.condition("a", "Failed")["reason"] == "DeadlineExceeded"
    hands.set_spec("a", ttlAfterFinished="1s")
    wait_for(lambda: hands.get("a") is None, what="it is gone", seconds=DISCOVERY)
    wait_for(lambda: not (hands.jobs() or hands.list(PODS)), what="with its children", seconds=DISCOVERY)


def test_a_pod_on_a_dead_node_does_not_hold_the_next_attempt_for_ever(
    start: Start, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its peer has ended, so it can do nothing. Here that is believed a second after it should have ended."""
    monkeypatch.setattr(silence, "PATIENCE", timedelta(seconds=1))
    start()
    hands.create(manifest("a", pod={"terminationGracePeriod": "2s"}))
    first, second = hands.await_gang("a", 1)
    hands.bind(second, "dead")
    hands.run("a", 1)
    lost = [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    hands.set_pod(second, {"conditions": lost, "containerStatuses": [container({"running": {}}, ready=True)]})
    hands.end(first, code=83)
    wait_for(lambda: hands.gang("a", 2), what="the next attempt")
    stuck = hands.get(second["metadata"]["name"], PODS)
    assert stuck is not None
    assert stuck["metadata"]["deletionTimestamp"]
    told = wait_for(lambda: [e for e in hands.list(EVENTS) if e["reason"] == "NodeLost"], what="it is told")
    assert "on node dead" in told[0]["message"]
    assert hands.status("a")["lastFailure"]["reason"] == "NodeLost"
    hands.delete(second["metadata"]["name"], PODS, grace=0)
    wait_for(lambda: hands.jobs() == ["a-2"], what="the old Job is gone")


def container(state: dict[str, object], *, ready: bool) -> dict[str, object]:
    return {
        "name": "trainer", "image": "trainer:test", "imageID": "", "ready": ready, "restartCount": 0, "state": state,
    }  # fmt: skip


def test_the_schedulers_words_reach_the_status(start: Start, hands: Hands) -> None:
    start()
    hands.create(manifest("a", nodes=1))
    (pod,) = hands.await_gang("a", 1)
    words = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: no GPU"}
    hands.set_pod(pod, {"conditions": [words]})
    told = wait_for(lambda: hands.status("a").get("lastFailure"), what="told")
    assert (told["reason"], "0/1 nodes: no GPU" in told["message"]) == ("Unschedulable", True)
    assert len(hands.list(PODS)) == 1
