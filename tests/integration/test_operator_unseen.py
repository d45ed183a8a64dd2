"""What an operator does not see, or hears no more, ends no attempt: on the real API server, one trouble at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finetune_api import names
from finetune_api.failures import CLASSES, Reason, TerminationMessage, class_of
from finetune_api.plan import RunPlan
from finetune_operator import decide, reconciler
from finetune_operator.diagnosis import root_cause
from finetune_operator.inquiries import progress_poller
from finetune_operator.kube.resources import JOBS, PODS, Raw
from finetune_operator.policies import deadline
from finetune_operator.state.status import rfc3339
from tests.cluster.rig import Rig
from tests.integration.chaos import Replica, debug
from tests.integration.puppets import Agents, Trainer
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Start, lease_given_back
from tests.support.operator_rbac import allow
from tests.support.operator_scenarios import BROKEN, DONE

PATIENCE = 2.0
"""Seconds of silence that could end an attempt, here."""


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agents]:
    agents = Agents()
    monkeypatch.setattr(names, "AGENT_PORT", agents.start())
    for name, seconds in (("FIRST_LOOK", 0.2), ("INTERVAL", 0.4), ("LONGEST_INTERVAL", 0.8)):
        monkeypatch.setattr(progress_poller, name, seconds)
    monkeypatch.setattr(deadline, "MARGIN", timedelta(seconds=PATIENCE - 1))
    yield agents
    agents.stop()


@pytest.fixture
def replicas(control_plane: Rig, operator_kubeconfig: Path, kube: Kube) -> Iterator[tuple[Replica, Replica]]:
    """The first leads."""
    allow(control_plane, kube.namespace, file="rbac-leader.yaml")
    lease_given_back(kube)
    with ExitStack() as stack:
        made = []
        for name in "ab":
            made.append(stack.enter_context(closing(Replica(control_plane, kube, name, stack))))
            wait_for(lambda: made[0].operator.acting, what="the first leads")
        yield made[0], made[1]


@pytest.fixture
def lone(
    control_plane: Rig, operator_kubeconfig: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replica]:
    """The only one; it believes after three seconds that a pod of a failed Job will say nothing any more."""
    monkeypatch.setattr(root_cause, "ENDING", timedelta(seconds=3))
    with ExitStack() as stack:
        yield stack.enter_context(closing(Replica(control_plane, kube, "", stack)))


RUNNING = {
    "name": names.CONTAINER, "image": "x", "imageID": "x", "ready": True, "restartCount": 0,
    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
}  # fmt: skip
"""A trainer's container, as the last that its kubelet told."""


def training(kube: Kube, agents: Agents, job: str) -> list[Raw]:
    """A gang that runs, whose agent answers. The API server does not call its pods ready."""
    kube.create(manifest(job, deadlines={"stall": "1s"}))
    pods = kube.run(job, 1)
    plan = RunPlan.model_validate_json(pods[0]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert plan.token
    agents.trainers[plan.token] = Trainer(job, 1, "", 0, plan, time.monotonic())
    kube.set_pod(pods[0], {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]})
    wait_for(lambda: agents.asked[job], what=f"{job} is asked")
    return pods


def untouched(kube: Kube, *jobs: str) -> None:
    for job in jobs:
        status = kube.status(job)
        assert (status["phase"], status["attempt"]) == ("Running", 1), status
        assert "lastFailure" not in status, status
    assert kube.jobs() == sorted(f"{job}-1" for job in jobs)


def more_asks(agents: Agents, job: str, count: int) -> None:
    before = agents.asked[job]
    wait_for(lambda: agents.asked[job] >= before + count, what=f"{job} is asked {count} times more")


def test_a_replica_that_stood_by_and_leads_again_restarts_nothing(
    replicas: tuple[Replica, Replica], kube: Kube, agents: Agents
) -> None:
    """It heard of nobody for longer than any silence that it would have believed."""
    first, second = replicas
    for job in "xy":
        training(kube, agents, job)
    more_asks(agents, "x", 2)
    first.network.cut()
    wait_for(lambda: second.operator.acting, what="the other leads")
    time.sleep(2 * PATIENCE)
    second.network.cut()
    first.network.mend()
    wait_for(lambda: first.operator.acting, what="the first leads again")
    for job in "xy":
        more_asks(agents, job, 3)
    first.operator.settle()
    untouched(kube, "x", "y")


def test_an_operator_that_hears_nobody_any_more_ends_nothing(start: Start, kube: Kube, agents: Agents) -> None:
    operator = start()
    for job in "xy":
        training(kube, agents, job)
    agents.deaf.update(f"{kube.namespace}/{job}" for job in "xy")
    for job in "xy":
        more_asks(agents, job, 8)
    operator.settle()
    untouched(kube, "x", "y")


def test_a_job_that_alone_is_silent_and_not_ready_is_restarted(start: Start, kube: Kube, agents: Agents) -> None:
    """The same, another one answers, and the node controller says that its node is silent: a node that hangs."""
    start()
    pods = {job: training(kube, agents, job) for job in "xy"}
    more_asks(agents, "x", 2)
    silent = {"conditions": [{"type": "Ready", "status": "False"}]}
    kube.set_pod(pods["x"][0], silent | {"containerStatuses": [RUNNING]})
    agents.deaf.add(f"{kube.namespace}/x")
    wait_for(lambda: kube.status("x")["attempt"] == 2, what="it is restarted")
    assert kube.status("x")["lastFailure"]["reason"] == "NoProgress"
    assert kube.status("y")["attempt"] == 1


@pytest.mark.parametrize("what", ["Job", "pods", "both"])
def test_labels_that_are_taken_off_end_no_attempt(
    start: Start, kube: Kube, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "UNWATCHED", 1.0)
    operator = start()
    kube.create(manifest("a"))
    pods = kube.run("a", 1)
    bare = {"metadata": {"labels": {names.LABEL_JOB: None}}}
    if what != "pods":
        kube.patch("a-1", bare, JOBS)
    for pod in pods if what != "Job" else ():
        kube.patch(pod["metadata"]["name"], bare, PODS)
    wait_for(lambda: len(kube.list(PODS)) == (2 if what == "Job" else 0), what="labels")
    operator.settle()
    status = kube.status("a")
    assert (status["phase"], status["attempt"]) == ("Running", 1)
    kube.end(pods[1])
    kube.end(pods[0], words=DONE)
    wait_for(lambda: kube.phase("a") == "Succeeded", what=f"success: {kube.status('a')}")
    assert kube.status("a")["restarts"] == {"counted": 0, "free": 0}
    assert kube.status("a")["artifact"]


def test_a_copy_of_a_pod_for_debugging_that_fails_is_no_failure(start: Start, kube: Kube) -> None:
    operator = start()
    kube.create(manifest("a"))
    pods = kube.run("a", 1)
    debug(kube, pods[1], "copy")
    operator.settle()
    untouched(kube, "a")
    kube.end(pods[1])
    kube.end(pods[0], words=DONE)
    wait_for(lambda: kube.phase("a") == "Succeeded", what="success")


def test_what_was_complete_and_cleaned_up_before_anybody_looked_has_succeeded(start: Start, kube: Kube) -> None:
    operator = start()
    kube.create(manifest("a"))
    first, second = kube.run("a", 1)
    operator.settle()
    with operator.frozen():
        end_and_clean_up(kube, first, second)
    wait_for(lambda: kube.phase("a") == "Succeeded", what="success")
    status = kube.status("a")
    assert (status["attempt"], status["restarts"]) == (1, {"counted": 0, "free": 0})
    assert status["artifact"]["uri"] == "s3://corp/out"


def test_what_was_cleaned_up_while_no_operator_was_there_costs_nothing(start: Start, kube: Kube) -> None:
    """The next attempt finds the artifact, and ends at once: see test_train_main."""
    operator = start()
    kube.create(manifest("a", retry={"maxRestarts": 0}))
    first, second = kube.run("a", 1)
    operator.stop()
    end_and_clean_up(kube, first, second)
    start()
    first, second = kube.await_gang("a", 2)
    assert kube.status("a")["restarts"] == {"counted": 0, "free": 1}
    kube.end(second)
    kube.end(first, words=DONE)
    wait_for(lambda: kube.phase("a") == "Succeeded", what="success")


def end_and_clean_up(kube: Kube, first: Raw, second: Raw) -> None:
    kube.end(second)
    kube.end(first, words=DONE)

    def complete() -> bool:
        conditions = (kube.get("a-1", JOBS) or {})["status"].get("conditions", ())
        return any(c["type"] == "Complete" and c["status"] == "True" for c in conditions)

    wait_for(complete, what="the Job is complete")
    kube.delete("a-1", JOBS)
    wait_for(lambda: not (kube.jobs() or kube.list(PODS)), what="it is cleaned up")


def test_a_sidecar_that_outlives_the_trainer_holds_nothing(
    start: Start, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide, "LINGER", timedelta(seconds=1))
    start()
    kube.create(manifest("a"))
    first, second = kube.run("a", 1)
    for pod, words in ((second, None), (first, DONE)):
        now = rfc3339(datetime.now(UTC))
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
        state = {"terminated": {**ended, "message": words.encode() if words else ""}}
        container = {"image": "t", "imageID": "t", "restartCount": 0}
        trainer = {**container, "name": names.CONTAINER, "ready": False, "state": state}
        sidecar = {**container, "name": "proxy", "ready": True, "state": {"running": {}}}
        kube.set_pod(pod, {"phase": "Running", "containerStatuses": [trainer, sidecar]})
    wait_for(lambda: kube.phase("a") == "Succeeded", what="success")
    assert kube.status("a")["artifact"]["uri"] == "s3://corp/out"
    wait_for(lambda: not (kube.jobs() or kube.list(PODS)), what="the nodes are given back")


@pytest.mark.parametrize("late", ["pods", "jobs"])
@pytest.mark.parametrize("how", ["doomed", "done"])
def test_of_two_watches_one_lags(lone: Replica, kube: Kube, late: str, how: str) -> None:
    """A Job's end is seen long before its pods' or long after: what the pods said counts."""
    kube.create(manifest("a"))
    one, two = kube.run("a", 1)
    lone.wires.late[late] = 600.0
    if how == "done":
        kube.end(two)
        kube.end(one, words=DONE)
        wait_for(lambda: kube.phase("a") == "Succeeded", what=f"success: {kube.status('a')}")
        assert kube.status("a")["artifact"]["uri"] == "s3://corp/out"
    else:
        kube.end(two, code=65, words=failing(Reason.DataEmpty))
        wait_for(lambda: kube.phase("a") == "Failed", what=f"the end: {kube.status('a')}")
        assert kube.condition("a", "Failed")["reason"] == "DataEmpty"
    assert kube.status("a")["restarts"] == {"counted": 0, "free": 0}


def test_a_node_whose_clock_is_an_hour_ahead_delays_nothing(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a"))
    _, second = kube.run("a", 1)
    ahead = rfc3339(datetime.now(UTC) + timedelta(hours=1))
    kube.end(second, code=70, words=BROKEN.model_copy(update={"time": ahead}))
    kube.await_gang("a", 2)
    assert kube.status("a")["restarts"] == {"counted": 1, "free": 0}


def failing(reason: Reason) -> TerminationMessage:
    failure_class = class_of(reason)
    code = CLASSES[failure_class].exit_code
    return TerminationMessage(failure_class=failure_class, reason=reason, message="it broke", exit_code=code)
