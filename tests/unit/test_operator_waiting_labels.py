"""A job that waits for nodes says so within a minute, whatever labels its Job and its pods lose. In virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api import names
from finetune_operator.kube.resources import EVENTS, FINETUNEJOBS, JOBS, PODS, Raw
from tests.support.simulated_api import Api, ChaosClient
from tests.support.simulated_cluster import NO_NODE, STEP, Cluster
from tests.support.simulated_replica import Replica

MINUTE = 60.0


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Replica:
    """Looks after the job `j0`, whose pods find no node."""

    async def silence(*_: Any) -> None:
        return None

    monkeypatch.setattr("finetune_operator.inquiries.progress_poller.fetch", silence)
    api = Api()
    cluster = Cluster(api, length=900.0, homeless={"j0"})
    replica = Replica(api, cluster)
    replica.lead(True)
    cluster.submit("j0")
    return replica


def play(replica: Replica, seconds: float) -> None:
    until = replica.api.now + seconds
    while replica.api.now < until:
        replica.api.now += STEP
        replica.cluster.step()
        replica.step()


def strip(api: Api, *kinds: Any) -> None:
    """Takes our label off all objects of these kinds."""
    for resource in kinds:
        for raw in api.all(resource):
            labels = {name: value for name, value in raw["metadata"]["labels"].items() if name != names.LABEL_JOB}
            api.change(resource, raw["metadata"]["name"], metadata={"labels": labels})


def running(api: Api) -> Raw:
    job = api.get(FINETUNEJOBS, "j0")
    assert job is not None
    return next(each for each in job["status"]["conditions"] if each["type"] == "Running")


def says_why(api: Api) -> bool:
    return running(api)["reason"] == "Unschedulable" and NO_NODE in running(api)["message"]


@pytest.mark.parametrize("kinds", [(JOBS,), (PODS,), (JOBS, PODS)], ids=["the Job", "the pods", "both"])
@pytest.mark.parametrize("after", [STEP, 2 * MINUTE], ids=["at once", "later"])
def test_a_job_that_waits_says_why_without_labels(waiting: Replica, kinds: tuple[Any, ...], after: float) -> None:
    play(waiting, after)
    strip(waiting.api, *kinds)
    play(waiting, MINUTE)
    for _ in range(20):
        assert says_why(waiting.api), running(waiting.api)
        play(waiting, MINUTE / 2)


@pytest.mark.parametrize("kinds", [(JOBS,), (PODS,), (JOBS, PODS)], ids=["the Job", "the pods", "both"])
def test_a_job_that_lost_its_labels_runs_when_there_are_nodes(waiting: Replica, kinds: tuple[Any, ...]) -> None:
    play(waiting, 2 * MINUTE)
    strip(waiting.api, *kinds)
    play(waiting, MINUTE)
    waiting.cluster.homeless.clear()
    play(waiting, MINUTE)
    assert running(waiting.api)["status"] == "True", running(waiting.api)
    assert [raw["metadata"]["name"] for raw in waiting.api.all(JOBS)] == ["j0-1"]


def test_pods_that_were_refused_once_are_found_without_labels(
    waiting: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Job's event of that time stays for an hour, and says nothing of pods that were made since."""
    list_ = ChaosClient.list

    async def with_an_old_event(client: ChaosClient, resource: Any, namespace: Any, **given: Any) -> Any:
        found = await list_(client, resource, namespace, **given)
        if resource is EVENTS and "FailedCreate" in given.get("fields", ""):
            found.items.append({"message": "exceeded quota", "lastTimestamp": "2026-01-02T03:04:06Z", "metadata": {}})
        return found

    monkeypatch.setattr(ChaosClient, "list", with_an_old_event)
    play(waiting, 2 * MINUTE)
    strip(waiting.api, PODS)
    play(waiting, MINUTE)
    assert says_why(waiting.api), running(waiting.api)
