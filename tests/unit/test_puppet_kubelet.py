"""The puppet kubelet of the chaos tests sees two attempts that train at once, and nothing that is not so."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from finetune_api import names
from finetune_api.plan import JobIdentity, RunPlan
from finetune_operator.kube.resources import Raw
from tests.integration.puppets import Agents, Kubelet
from tests.support.kube_client import Kube
from tests.support.operator_objects import spec


class Desk:
    """The API server as a kubelet uses it: what it lists is what a test says."""

    namespace = "ml"

    def __init__(self) -> None:
        self.pods: list[Raw] = []

    def list(self, _: Any) -> list[Raw]:
        return self.pods

    def bind(self, pod: Raw, node: str) -> None:
        pod["spec"]["nodeName"] = node

    def set_pod(self, pod: Raw, told: Raw) -> None:
        pod["status"] = {**pod["status"], **told}

    def delete(self, name: str, *_: Any, **__: Any) -> None:
        self.pods = [pod for pod in self.pods if pod["metadata"]["name"] != name]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def kubelet(desk: Desk) -> Kubelet:
    return Kubelet(cast(Kube, desk), Agents(), random.Random(0), lengths={"a": 3600.0})


def pod(attempt: int, *, job: str = "j") -> Raw:
    """`job`: the uid of its Job."""
    plan = RunPlan(
        job=JobIdentity(namespace="ml", name="a", uid="u"), attempt=attempt, nodes=1, processes_per_node=1,
        master_address="x", grace_seconds=30, spec=spec(nodes=1),
    )  # fmt: skip
    notes = {names.ANNOTATION_PLAN: plan.model_dump_json(by_alias=True), names.LABEL_COMPLETION_INDEX: "0"}
    meta = {
        "name": f"a-{attempt}-0-x", "uid": f"p{attempt}-{job}", "annotations": notes,
        "ownerReferences": [{"kind": "Job", "name": f"a-{attempt}", "uid": job, "controller": True}],
    }  # fmt: skip
    return {"metadata": meta, "spec": {}, "status": {"phase": "Pending"}}


def test_an_attempt_whose_pods_are_gone_does_not_train_beside_the_next(desk: Desk, kubelet: Kubelet) -> None:
    """The cluster may delete a pod without its kubelet, and the next attempt may be there at the next look."""
    desk.pods = [pod(1)]
    kubelet._tick()
    desk.pods = [pod(2)]
    kubelet._tick()
    assert kubelet.wrong == []
    assert kubelet.alive("a") == {2}
    assert kubelet.taken == {("a", 1)}


def test_a_job_that_is_made_again_for_an_attempt_trains_to_its_end(desk: Desk, kubelet: Kubelet) -> None:
    """A policy deleted the first before the operator noted that it was there."""
    kubelet.lengths["a"] = 0.0
    for job in ("first", "second"):
        desk.pods = [pod(1, job=job)]
        kubelet._tick()
        kubelet.trainers[f"p1-{job}"].since -= 1
        kubelet._tick()
        assert kubelet.trainers[f"p1-{job}"].code == 0


def test_an_attempt_that_begins_while_another_trains_is_wrong(desk: Desk, kubelet: Kubelet) -> None:
    desk.pods = [pod(1)]
    kubelet._tick()
    desk.pods = [*desk.pods, pod(2)]
    kubelet._tick()
    assert kubelet.wrong == ["attempt 2 of a began while {1} trained"]


def test_ending_what_trains_is_wrong(desk: Desk, kubelet: Kubelet) -> None:
    desk.pods = [pod(1)]
    kubelet._tick()
    desk.pods[0]["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    kubelet._tick()
    assert kubelet.wrong == ["attempt 1 of a was healthy, and was ended"]
