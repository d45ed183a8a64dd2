"""What goes wrong in a cluster, as its API server and controllers tell it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_operator.diagnosis import unreachable_pods
from finetune_operator.kube.resources import EVENTS, PODS, Raw
from tests.support.kube_client import DISCOVERY, Kube, manifest, wait_for
from tests.support.operator_harness import Start


def test_pods_that_a_quota_refuses_are_told_within_a_minute(start: Start, kube: Kube) -> None:
    start()
    kube.quota(pods="1")
    kube.create(manifest("a"))

    def told() -> Raw | None:
        """Of none at first, where the refusal is seen before the pod that was made."""
        failure: Raw = kube.status("a").get("lastFailure", {})
        return failure if "1 of 2 pods could be created" in failure.get("message", "") else None

    failure = wait_for(told, what="told")
    assert (failure["reason"], failure["class"]) == ("PodsRefused", "Infrastructure")
    assert "exceeded quota" in failure["message"]
    assert "ResourceQuota" in kube.condition("a", "Running")["message"]
    story = wait_for(
        lambda: [e for e in kube.list(EVENTS) if e["involvedObject"]["kind"] == "FineTuneJob"], what="event"
    )
    assert [(event["type"], event["reason"]) for event in story] == [("Warning", "PodsRefused")]

    kube.rig.kubectl("delete", "resourcequota", "q", "-n", kube.namespace)
    wait_for(lambda: len(kube.gang("a", 1)) == 2, what="the Job controller tries again", seconds=240)
    kube.run("a", 1)
    assert "lastFailure" not in kube.status("a")
    assert kube.condition("a", "Running")["reason"] == "GangRunning"


def test_a_missing_secret_is_told_at_once_and_the_job_goes_on_when_it_is_there(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", nodes=1))
    (pod,) = kube.await_gang("a", 1)
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "corp-s3" not found'}
    kube.set_pod(pod, {"phase": "Pending", "containerStatuses": [container({"waiting": waiting}, ready=False)]})
    told = wait_for(lambda: kube.status("a").get("lastFailure"), what="told")
    assert (told["reason"], 'secret "corp-s3" not found' in told["message"]) == ("ReferenceMissing", True)
    assert "Create the Secret" in told["hint"]
    assert kube.phase("a") == "Pending"

    kube.set_pod(pod, {"phase": "Running", "containerStatuses": [container({"running": {}}, ready=True)]})
    wait_for(lambda: kube.phase("a") == "Running", what="running")
    assert "lastFailure" not in kube.status("a")


def test_a_gang_that_does_not_start_in_time_starts_anew(start: Start, kube: Kube) -> None:
    """The wake-up comes by itself: nothing happens in the cluster."""
    start()
    kube.create(manifest("a", deadlines={"startup": "3s"}, retry={"maxRestarts": 1}))
    wait_for(lambda: kube.status("a").get("attempt") == 2, what="the second attempt")
    assert kube.status("a")["lastFailure"]["reason"] == "StartupDeadline"
    wait_for(lambda: kube.phase("a") == "Failed", what="and the end")
    assert kube.condition("a", "Failed")["reason"] == "RestartsExhausted"
    wait_for(lambda: not (kube.jobs() or kube.list(PODS)), what="its nodes are given back", seconds=DISCOVERY)


def test_a_job_that_takes_too_long_fails_and_is_gone_when_its_time_is_over(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", nodes=1))
    kube.run("a", 1)
    kube.set_spec("a", deadlines={"active": "1s"})
    wait_for(lambda: kube.phase("a") == "Failed", what="the deadline")
    assert kube.condition("a", "Failed")["reason"] == "DeadlineExceeded"
    kube.set_spec("a", ttlAfterFinished="1s")
    wait_for(lambda: kube.get("a") is None, what="it is gone", seconds=DISCOVERY)
    wait_for(lambda: not (kube.jobs() or kube.list(PODS)), what="with its children", seconds=DISCOVERY)


def test_a_pod_on_a_dead_node_does_not_hold_the_next_attempt_for_ever(
    start: Start, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its peer has ended, so it can do nothing. Here that is believed a second after it should have ended."""
    monkeypatch.setattr(unreachable_pods, "PATIENCE", timedelta(seconds=1))
    start()
    kube.create(manifest("a", pod={"terminationGracePeriod": "2s"}))
    first, second = kube.await_gang("a", 1)
    kube.bind(second, "dead")
    kube.run("a", 1)
    lost = [{"type": "Ready", "status": "False"}]
    kube.set_pod(second, {"conditions": lost, "containerStatuses": [container({"running": {}}, ready=True)]})
    kube.end(first, code=83)
    wait_for(lambda: kube.gang("a", 2), what="the next attempt")
    stuck = kube.get(second["metadata"]["name"], PODS)
    assert stuck is not None
    assert stuck["metadata"]["deletionTimestamp"]
    told = wait_for(lambda: [e for e in kube.list(EVENTS) if e["reason"] == "NodeLost"], what="it is told")
    assert "on node dead" in told[0]["message"]
    assert kube.status("a")["lastFailure"]["reason"] == "NodeLost"
    kube.delete(second["metadata"]["name"], PODS, grace=0)
    wait_for(lambda: kube.jobs() == ["a-2"], what="the old Job is gone")


def container(state: dict[str, object], *, ready: bool) -> dict[str, object]:
    return {
        "name": "trainer", "image": "trainer:test", "imageID": "", "ready": ready, "restartCount": 0, "state": state,
    }  # fmt: skip


def test_the_schedulers_words_reach_the_status(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", nodes=1))
    (pod,) = kube.await_gang("a", 1)
    words = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: no GPU"}
    kube.set_pod(pod, {"conditions": [words]})
    told = wait_for(lambda: kube.status("a").get("lastFailure"), what="told")
    assert (told["reason"], "0/1 nodes: no GPU" in told["message"]) == ("Unschedulable", True)
    assert len(kube.list(PODS)) == 1
