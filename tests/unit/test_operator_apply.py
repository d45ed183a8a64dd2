"""What is there already when an attempt is made: our own Job, somebody else's, or copies of pods. In virtual time."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from finetune_api import names
from finetune_operator.kube.client import Unavailable
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, SERVICES, Raw, Resource
from tests.support.simulated_api import NAMESPACE, Api, ChaosClient
from tests.support.simulated_cluster import STEP, Cluster
from tests.support.simulated_replica import Replica


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    async def silence(*_: Any) -> None:
        return None

    monkeypatch.setattr("finetune_operator.inquiries.progress_poller.fetch", silence)
    api = Api()
    made = Replica(api, Cluster(api, length=900.0))
    made.lead(True)
    return made


def play(replica: Replica, seconds: float = 120.0) -> None:
    until = replica.api.now + seconds
    while replica.api.now < until:
        replica.api.now += STEP
        replica.cluster.step()
        replica.step()


def status(replica: Replica) -> Raw:
    job = replica.api.get(FINETUNEJOBS, "j0")
    assert job is not None
    told: Raw = job["status"]
    return told


def jobs(replica: Replica) -> list[str]:
    return sorted(raw["metadata"]["name"] for raw in replica.api.all(JOBS))


@pytest.mark.parametrize("lost", [JOBS, SERVICES], ids=["Job", "Service"])
def test_an_object_whose_answer_was_lost_is_found_and_not_made_twice(
    replica: Replica, lost: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, answers = ChaosClient.create, [0]

    async def lose_the_first(client: ChaosClient, resource: Resource, body: Raw) -> Raw:
        made = await create(client, resource, body)
        if resource is lost and not answers[0]:
            answers[0] += 1
            raise Unavailable("no answer")
        return made

    monkeypatch.setattr(ChaosClient, "create", lose_the_first)
    replica.watches[1].delay = 600.0  # no watch tells of the Job before the next try
    replica.cluster.submit("j0")
    play(replica)
    assert answers == [1]
    assert (status(replica)["phase"], status(replica)["attempt"], jobs(replica)) == ("Running", 1, ["j0-1"])
    assert status(replica)["restarts"] == {"counted": 0, "free": 0}


def foreign(name: str, **meta: Any) -> Raw:
    spec = {"completions": 0, "template": {"metadata": {"labels": {}}}}
    return {"metadata": {"namespace": NAMESPACE, "name": name, "labels": {}, **meta}, "spec": spec}


def test_somebody_elses_job_costs_a_number_and_no_restart(replica: Replica) -> None:
    replica.api.put(JOBS, foreign("j0-1"))
    replica.cluster.submit("j0")
    play(replica)
    assert (status(replica)["phase"], status(replica)["attempt"]) == ("Running", 2)
    assert status(replica)["restarts"] == {"counted": 0, "free": 0}
    assert jobs(replica) == ["j0-1", "j0-2"]


def test_a_job_that_is_about_to_go_is_waited_for(replica: Replica) -> None:
    going = foreign("j0-1", deletionTimestamp="2026-01-02T03:04:05Z", finalizers=["foregroundDeletion"])
    replica.api.put(JOBS, going | {"status": {"conditions": [{"type": "Held", "status": "True"}]}})
    step = replica.cluster._job
    replica.cluster._job = lambda raw: None if "finalizers" in raw["metadata"] else step(raw)  # type: ignore[method-assign]
    replica.cluster.submit("j0")
    play(replica)
    running = next(each for each in status(replica)["conditions"] if each["type"] == "Running")
    assert status(replica)["attempt"] == 1
    assert "still being deleted, held by foregroundDeletion" in running["message"]
    replica.api.drop(JOBS, "j0-1")
    play(replica)
    assert (status(replica)["phase"], status(replica)["attempt"]) == ("Running", 1)


@pytest.mark.parametrize("phase", ["Running", "Failed"])
def test_a_copy_of_a_pod_that_the_job_controller_adopted_holds_up_and_ends_nothing(
    replica: Replica, phase: str
) -> None:
    replica.cluster.submit("j0")
    play(replica)
    adopted = copy.deepcopy(replica.api.all(PODS)[0])
    kept = ("namespace", "labels", "creationTimestamp", "ownerReferences")
    adopted["metadata"] = {key: adopted["metadata"][key] for key in kept} | {"name": "copy"}
    if phase == "Failed":
        state = {"terminated": {"exitCode": 1}}
        adopted["status"] |= {"phase": phase, "containerStatuses": [{"name": names.CONTAINER, "state": state}]}
    replica.api.put(PODS, adopted)
    play(replica)
    assert (status(replica)["phase"], status(replica)["attempt"]) == ("Running", 1)
    replica.cluster.crash("j0")
    play(replica)
    assert (status(replica)["phase"], status(replica)["attempt"]) == ("Running", 2), "nobody waits for the copy"
    assert replica.cluster.alive("j0") == {2}
