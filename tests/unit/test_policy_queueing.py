"""A Job that its queue admission: what is told, what does not run meanwhile, and what happens when it is let go."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.decide import decide
from finetune_operator.diagnosis.startup_blockers import lacks_pods
from finetune_operator.inquiries.kueue_admission import FIRST, INTERVAL, KueueAdmission, explanation
from finetune_operator.kube.client import ApiError, Listing, NotFound
from finetune_operator.kube.resources import JOBS, Raw, Resource
from finetune_operator.objects import attempt_job
from finetune_operator.state.agent_contact import AgentContact
from finetune_operator.state.cache import Cache
from finetune_operator.state.cluster_features import WORKLOADS, ClusterFeatures, discover_features
from finetune_operator.state.observe import Observed, observe
from finetune_operator.state.parsing import view_child_job
from finetune_operator.state.status import find, is_true, rfc3339
from finetune_operator.state.views import ChildJob
from tests.support.operator_objects import (
    DEFAULTS,
    NOW,
    child,
    failed_pod,
    job,
    later,
    pod,
    raw_job,
    seen,
    spec,
    status,
    suspended,
)

HOUR = 3600
RUNNING = (pod(0, "Running"), pod(1, "Running"))
QUEUED = status(Phase.Queued)
ENDING = tuple(replace(failed_pod(i, Reason.Interrupted), deleting=True) for i in range(2))


def held(**fields: Any) -> ChildJob:
    return child(suspended=True, queue="team-a", **fields)


def let_go(at: float = 0.0, **fields: Any) -> ChildJob:
    return child(queue="team-a", resumed=later(at), **fields)


def phase(given: Observed, at: float = 0.0) -> str:
    decided = decide(given, later(at)).status.phase
    return decided.value if decided else ""


STORY: list[tuple[str, Observed, str]] = [
    ("a new job with a queue", seen(job(), spec=spec(queue_name="team-a")), "Queued"),
    ("its Job is there, and held", seen(job(QUEUED), children=(held(),)), "Queued"),
    ("it was let go", seen(job(QUEUED), children=(let_go(),)), "Pending"),
    ("it was let go before anybody saw it held", seen(job(QUEUED), children=(child(queue="team-a"),)), "Pending"),
    ("its pods run", seen(job(status(Phase.Pending)), children=(let_go(),), pods=RUNNING), "Running"),
    ("held again while it ran", seen(job(status(Phase.Running)), children=(held(),), pods=RUNNING), "Queued"),
    ("held again while it started", seen(job(status(Phase.Starting)), children=(held(),)), "Queued"),
    ("its pods end because of that", seen(job(QUEUED), children=(held(),), pods=ENDING), "Queued"),
    ("let go while old pods still end", seen(job(QUEUED), children=(let_go(60),), pods=ENDING), "Pending"),
    ("old pods still end, new ones run",
     seen(job(status(Phase.Pending)), children=(let_go(60),),
          pods=(*ENDING, *(replace(p, uid=f"new-{p.index}", created=later(61)) for p in RUNNING))), "Running"),
    ("the Job of a restart is held too", seen(job(status(Phase.Restarting)), children=(held(),)), "Queued"),
    ("it failed before it was held",
     seen(job(status(Phase.Running)), children=(held(failing=True),), pods=(failed_pod(0, Reason.DataEmpty),)),
     "Failed"),
    ("all its pods had succeeded when it was held",
     seen(job(status(Phase.Running)), children=(held(),), pods=(pod(0, "Succeeded"), pod(1, "Succeeded"))),
     "Succeeded"),
    ("somebody without a queue suspended it",
     seen(job(status(Phase.Running)), children=(child(suspended=True, holder="kubectl-patch"),), pods=RUNNING),
     "Queued"),
    ("suspended by its own manifest while it waits", seen(suspended(job(QUEUED)), children=(held(),)), "Suspended"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), [s[1:] for s in STORY], ids=[s[0] for s in STORY])
def test_story(given: Observed, expected: str) -> None:
    assert phase(given) == expected


def test_a_queued_attempt_is_born_suspended_and_named_for_kueue() -> None:
    made = attempt_job(job(), spec(queue_name="team-a"), attempt=1, defaults=DEFAULTS)
    assert made["spec"]["suspend"] is True
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    plain = attempt_job(job(), spec(), attempt=1, defaults=DEFAULTS)
    assert "suspend" not in plain["spec"]
    assert names.LABEL_QUEUE not in plain["metadata"]["labels"]


def test_a_queued_job_is_looked_at_once_more_when_its_job_is_made() -> None:
    """Nothing else happens to it until it is admitted, and its queue has to be asked."""
    decision = decide(seen(job(), spec=spec(queue_name="team-a")), NOW)
    assert [create.resource is JOBS for create in decision.create] == [False, True]
    assert decision.look_again_in == 0.0


def test_the_queue_and_its_reason_are_told() -> None:
    said = decide(seen(job(QUEUED), children=(held(),), queue_message="insufficient quota for cpu"), NOW).status
    condition = find(said, "Queued")
    assert condition is not None
    assert condition.message == "the Job a-1 waits in the queue team-a: insufficient quota for cpu"
    assert is_true(said, "Queued")
    assert not is_true(said, "Running")


def test_who_suspended_it_is_told_where_no_queue_did() -> None:
    given = seen(job(status(Phase.Running)), children=(child(suspended=True, holder="kubectl-patch"),))
    told = find(decide(given, NOW).status, "Queued")
    assert told is not None
    assert told.message == "the Job a-1 was suspended by kubectl-patch"


def test_preemption_by_the_queue_costs_no_restart_and_no_attempt() -> None:
    given = seen(job(status(Phase.Running, 2, counted=1)), children=(held(attempt=2),), pods=RUNNING)
    decision = decide(given, NOW)
    told = decision.status
    assert (told.attempt, told.restarts and told.restarts.counted, told.restarts and told.restarts.free) == (2, 1, 0)
    assert told.last_failure is not None
    assert (told.last_failure.failure_class, told.last_failure.reason) == ("Preemption", "Preempted")
    assert (decision.create, decision.delete) == ((), ())
    assert [event.reason for event in decision.events] == ["Preempted"]


def test_being_held_is_written_once() -> None:
    once = decide(seen(job(status(Phase.Running)), children=(held(),), pods=RUNNING), NOW).status
    assert decide(seen(job(once), children=(held(),), pods=ENDING), later(500)).status == once


def test_no_deadline_runs_while_it_is_held() -> None:
    limits = spec(queue_name="team-a", deadlines={"startup": "1m", "active": "2m"})
    waiting = decide(seen(job(), spec=limits), NOW).status
    given = seen(job(waiting), children=(held(),), spec=limits)
    assert decide(given, later(HOUR)).status.phase is Phase.Queued
    assert decide(given, later(HOUR)).look_again_in is None
    assert not lacks_pods(given, later(HOUR))


def test_deadlines_begin_with_the_admission() -> None:
    limits = spec(queue_name="team-a", deadlines={"startup": "1m", "active": "2m"})
    admitted = decide(seen(job(QUEUED), children=(let_go(HOUR),), spec=limits), later(HOUR)).status
    assert admitted.start_time == rfc3339(later(HOUR))
    given = seen(job(admitted), children=(let_go(HOUR),), pods=(pod(0), pod(1)), spec=limits)
    assert decide(given, later(HOUR + 1)).status.phase is Phase.Pending
    assert decide(given, later(HOUR + 61)).status.phase is Phase.Restarting


def test_an_ended_job_waits_for_nothing() -> None:
    waiting = decide(seen(job(status(Phase.Running)), children=(held(),), pods=RUNNING), NOW).status
    done = seen(job(waiting), children=(held(complete=True, finished=True),))
    assert not is_true(decide(done, NOW).status, "Queued")
    stopped = decide(seen(suspended(job(status(Phase.Running))), children=(child(),), pods=RUNNING), NOW).status
    done = seen(suspended(job(stopped)), children=(child(complete=True, finished=True),))
    assert not is_true(decide(done, NOW).status, "Suspended")


def raw_child(*, suspend: bool, conditions: list[dict[str, str]], manager: str = "kueue") -> dict[str, Any]:
    owned = {"manager": manager, "fieldsV1": {"f:spec": {"f:suspend": {}}}}
    other = {"manager": "finetune-operator", "fieldsV1": {"f:spec": {"f:completions": {}}}}
    meta = {"namespace": "ml", "name": "a-1", "uid": "c", "resourceVersion": "1", "managedFields": [other, owned],
            "labels": {names.LABEL_JOB: "a", names.LABEL_UID: "u", names.LABEL_ATTEMPT: "1", names.LABEL_QUEUE: "q"},
            "creationTimestamp": rfc3339(NOW)}  # fmt: skip
    return {"metadata": meta, "spec": {"suspend": suspend, "completions": 2}, "status": {"conditions": conditions}}


SINCE: list[tuple[str, dict[str, Any], bool, float | None]] = [
    ("new and suspended", raw_child(suspend=True, conditions=[]), True, None),
    ("let go, and the Job controller has not seen it",
     raw_child(suspend=False, conditions=[{"type": "Suspended", "status": "True"}]), True, None),
    ("let go", raw_child(suspend=False, conditions=[
        {"type": "Suspended", "status": "False", "lastTransitionTime": rfc3339(later(9))}]), False, 9),
    ("let go at once", raw_child(suspend=False, conditions=[]), False, 0),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "is_held", "since"), [s[1:] for s in SINCE], ids=[s[0] for s in SINCE])
def test_since_when_pods_are_wanted(raw: dict[str, Any], is_held: bool, since: float | None) -> None:
    view = view_child_job(raw)
    assert view.held == is_held
    assert view.wanted_since == (None if since is None else later(since))
    assert view.holder == ("kueue" if is_held else "")


# what Kueue says


class FakeServer:
    """Serves some kinds, allows some verbs, and lists one Workload."""

    def __init__(self, served: dict[str, str], allowed: bool = True, workload: Raw | None = None) -> None:
        self.served, self.allowed, self.workload, self.listed = served, allowed, workload, 0

    async def discover(self, path: str) -> Raw:
        if path not in self.served:
            raise NotFound("no such group")
        return {"resources": [{"name": self.served[path]}]}

    async def ask(self, path: str, body: Raw) -> Raw:  # noqa: ARG002
        return {"status": {"allowed": self.allowed}}

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = "") -> Listing:  # noqa: ARG002
        assert resource is WORKLOADS[0]
        self.listed += 1
        if self.workload is None:
            raise ApiError("away")
        return Listing([self.workload] if selector == f"{names.LABEL_QUEUED_JOB_UID}=c1" else [], "1")


@pytest.mark.parametrize(
    ("served", "allowed", "offered"),
    [
        ({"/apis/kueue.x-k8s.io/v1beta2": "workloads"}, True, WORKLOADS[0]),
        ({"/apis/kueue.x-k8s.io/v1beta1": "workloads"}, True, WORKLOADS[1]),
        ({"/apis/kueue.x-k8s.io/v1beta2": "workloads"}, False, None),
        ({"/apis/kueue.x-k8s.io/v1beta2": "cohorts"}, True, None),
        ({}, True, None),
    ],
)
def test_kueue_is_asked_where_it_is_served_and_allowed(
    served: dict[str, str], allowed: bool, offered: Resource | None
) -> None:
    assert asyncio.run(discover_features(FakeServer(served, allowed), ())).workloads == offered


PENDING = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota"}
EVICTED = {"type": "Evicted", "status": "True", "message": "Preempted to accommodate a workload"}


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        ([], ""),
        ([PENDING], "insufficient unused quota"),
        ([PENDING, EVICTED], "Preempted to accommodate a workload"),
        ([{"type": "QuotaReserved", "status": "True"}, {"type": "Admitted", "status": "False", "message": "checks"}],
         "checks"),
    ],
)  # fmt: skip
def test_kueues_words(conditions: list[dict[str, str]], says: str) -> None:
    assert explanation({"status": {"conditions": conditions}}) == says


def test_kueue_is_asked_after_a_while_and_then_rarely() -> None:
    clock = [0.0]
    server = FakeServer({}, workload={"status": {"conditions": [PENDING]}})
    cache = Cache(features=ClusterFeatures(workloads=WORKLOADS[0]))
    admission = KueueAdmission(server, cache, clock=lambda: clock[0])  # type: ignore[arg-type]
    given = seen(job(QUEUED), children=(held(),))

    def ask(now: datetime = NOW) -> float | None:
        answer = asyncio.run(admission.ask(given, now))
        return answer.again_in if answer else None

    assert (ask(), server.listed) == (FIRST, 0)
    clock[0] = FIRST
    assert (ask(), server.listed) == (2 * FIRST, 1)
    assert (noted := cache.of(("ml", "a")).queue_message) is not None
    assert (noted.message, noted.since) == ("insufficient unused quota", NOW)
    clock[0] += 1
    assert (ask(), server.listed) == (2 * FIRST - 1, 1)
    for _ in range(9):
        clock[0] += INTERVAL
        wait = ask(later(clock[0]))
    assert (wait, server.listed) == (INTERVAL, 10)
    assert cache.of(("ml", "a")).queue_message == noted, "it says so since then"
    assert asyncio.run(admission.ask(seen(job(QUEUED), children=(let_go(),)), NOW)) is None
    assert cache.of(("ml", "a")).queue_message is None


def test_a_job_of_another_manager_is_left_alone() -> None:
    foreign = replace(job(), raw_spec=job().raw_spec | {"managedBy": "kueue.x-k8s.io/multikueue"})
    assert decide(seen(foreign), NOW).status == FineTuneJobStatus()
    assert not decide(seen(foreign), NOW).create
    ours = replace(job(), raw_spec=job().raw_spec | {"managedBy": names.MANAGER})
    assert [c.resource is JOBS for c in decide(seen(ours), NOW).create] == [False, True]


def test_a_change_that_was_suspended_and_resumed_unseen_is_another_attempt() -> None:
    """As people do it: suspend, change, resume, while no operator looks."""
    changed = replace(job(status(Phase.Running)), raw_spec=job().raw_spec | {"nodes": 4})
    before = child(pods_digest=job().pods_digest)
    over = decide(seen(changed, children=(before,), pods=RUNNING), NOW)
    assert (over.status.phase, [c.name for c in over.delete], over.look_again_in) == (Phase.Suspended, ["a-1"], 0.0)
    assert is_true(over.status, "Suspended")
    resumed = decide(seen(replace(changed, status=over.status), spec=spec(nodes=4)), later(1)).status
    assert (resumed.attempt, resumed.nodes, resumed.restarts and resumed.restarts.free) == (2, 4, 1)
    assert not is_true(resumed, "Suspended")


@pytest.mark.parametrize("digest", ["", "same"])
def test_the_same_pods_run_on(digest: str) -> None:
    view = job(status(Phase.Running))
    given = seen(view, children=(child(pods_digest=digest and view.pods_digest),), pods=RUNNING)
    assert decide(given, NOW).status.phase is Phase.Running


ELASTIC = {"nodes": {"min": 2, "max": 4}, "queue_name": "team-a"}


def test_an_elastic_attempt_may_be_admitted_in_part() -> None:
    made = attempt_job(job(), spec(**ELASTIC), attempt=1, defaults=DEFAULTS)
    notes = made["metadata"]["annotations"]
    assert notes["kueue.x-k8s.io/job-min-parallelism"] == "2"
    assert notes["kueue.x-k8s.io/job-completions-equal-parallelism"] == "true"
    least = attempt_job(job(), spec(**ELASTIC), attempt=2, nodes=2, defaults=DEFAULTS)
    assert "kueue.x-k8s.io/job-min-parallelism" not in least["metadata"]["annotations"]


def test_what_was_admitted_in_part_starts_anew_with_so_many() -> None:
    four = QUEUED.model_copy(update={"nodes": 4})
    given = seen(job(four), children=(let_go(nodes=3),), spec=spec(**ELASTIC))
    over = decide(given, NOW)
    assert (over.status.phase, over.status.attempt, over.status.nodes) == (Phase.Restarting, 2, 3)
    assert over.status.restarts is not None
    assert (over.status.restarts.counted, over.status.restarts.free, over.status.restarts.resized) == (0, 0, 1)
    made = decide(seen(job(over.status), spec=spec(**ELASTIC)), NOW).create[-1].body
    assert (made["spec"]["completions"], made["metadata"]["name"]) == (3, "a-2")
    settled = seen(job(over.status), children=(held(attempt=2, nodes=3),), spec=spec(**ELASTIC))
    assert decide(settled, NOW).status.phase is Phase.Queued


@pytest.mark.parametrize(("at", "heard"), [(5, None), (61, later(61))])
def test_silence_before_it_was_let_go_does_not_count(at: float, heard: object) -> None:
    cache = Cache()
    cache.note(("ml", "a"), contact=AgentContact(job_uid="u", attempt=1, at=later(at)))
    raw = raw_child(suspend=False, conditions=[
        {"type": "Suspended", "status": "False", "lastTransitionTime": rfc3339(later(60))}])  # fmt: skip
    cache.jobs.put(raw_job() | {"status": {"phase": "Running", "attempt": 1}})
    cache.children.put(raw)
    found = observe(cache, ("ml", "a"), DEFAULTS)
    assert found is not None
    assert found.heard == heard


MET: list[tuple[str, Reason, bool, float, tuple[int, int]]] = [
    ("lost a peer of the turn before", Reason.PeerLost, True, 100, (0, 1)),
    ("lost a peer long after", Reason.PeerLost, True, 900, (1, 0)),
    ("lost a peer, and was never preempted", Reason.PeerLost, False, 100, (1, 0)),
    ("failed by itself", Reason.UnexpectedError, True, 100, (1, 0)),
]


@pytest.mark.parametrize(("reason", "preempted", "at", "counts"), [m[1:] for m in MET], ids=[m[0] for m in MET])
def test_meeting_the_pods_of_the_turn_before_is_free(
    reason: Reason, preempted: bool, at: float, counts: tuple[int, int]
) -> None:
    before = decide(seen(job(status(Phase.Running)), children=(held(),), pods=RUNNING), NOW).status
    told = before.last_failure if preempted else None
    running = status(Phase.Running, last_failure=told)
    pods = tuple(failed_pod(i, reason, at=at) for i in range(2))
    over = decide(seen(job(running), children=(let_go(60, failing=True),), pods=pods), later(at + 10)).status
    assert over.attempt == 2
    assert over.restarts is not None
    assert (over.restarts.counted, over.restarts.free) == counts


def test_a_turn_that_was_lost_and_won_again_unseen_is_told() -> None:
    """Else the startup deadline of the new pods would not run: the job would still say that it runs."""
    given = seen(job(status(Phase.Running)), children=(let_go(60),), pods=(pod(0, "Running"), pod(1)))
    over = decide(given, later(70))
    assert (over.status.phase, over.look_again_in) == (Phase.Queued, 0.0)
    assert over.status.last_failure is not None
    assert over.status.last_failure.reason == "Preempted"
    again = decide(seen(job(over.status), children=(let_go(60),), pods=(pod(0, "Running"), pod(1))), later(70)).status
    assert again.phase is Phase.Pending
    whole = seen(job(status(Phase.Running)), children=(let_go(60),), pods=RUNNING)
    assert decide(whole, later(70)).status.phase is Phase.Running
