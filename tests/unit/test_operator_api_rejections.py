"""A refusal ends a job only if validation of our own object says no, before the first attempt. All others may pass."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from finetune_api import names
from finetune_api.status import Phase
from finetune_operator.apply import Applier
from finetune_operator.decision import Create
from finetune_operator.diagnosis.api_rejections import NotYet, Occupied, Refused, Taken, in_the_way, judged, waits
from finetune_operator.kube.client import ApiError, Conflict, TooManyRequests, Unavailable, _error
from finetune_operator.kube.resources import JOBS, SERVICES
from finetune_operator.policies.start import started
from finetune_operator.state.cache import Cache
from finetune_operator.state.status import find, rfc3339
from finetune_operator.transitions.restart import take_next_number
from tests.support.operator_objects import NOW, job, later, seen, status


def create(resource: Any = JOBS, name: str = "a-1") -> Create:
    decision = started(seen(job(status(Phase.Pending))), NOW)
    assert decision is not None
    made = next(each for each in decision.create if each.resource is resource)
    return Create(resource, made.body | {"metadata": made.body["metadata"] | {"name": name}})


def answer(code: int, message: str, *fields: str, causes: bool = True) -> ApiError:
    told: dict[str, Any] = {"kind": "Status", "message": message, "details": {}}
    if causes:
        told["details"]["causes"] = [{"field": field} if field else {"message": "m"} for field in fields]
    return _error(code, json.dumps(told).encode(), "")


POLICY = (
    'jobs.batch "a-1" is forbidden: ValidatingAdmissionPolicy "hours" with binding "hours" denied request: not at night'
)
WEBHOOK = 'admission webhook "policy.example.com" denied the request: not at night'
AWAY = (
    'Internal error occurred: failed calling webhook "policy.example.com": failed to call webhook: connection refused'
)
DUPLICATE = 'Job.batch "a-1" is invalid: spec.template.spec.volumes[3].name: Duplicate value: "finetune-tmp"'
SIDECAR = 'Job.batch "a-1" is invalid: spec.template.spec.containers[1].image: Required value'
UNREADABLE = 'Job in version "v1" cannot be handled as a Job: json: cannot unmarshal string into Go value'

ANSWERS: list[tuple[str, ApiError, type[Exception]]] = [
    ("validation of our object", answer(422, DUPLICATE, "spec.template.spec.volumes[3].name"), Refused),
    ("an affinity that is not one", answer(400, UNREADABLE), Refused),
    ("too large", answer(413, "Request entity too large: limit is 3145728"), Refused),
    ("a policy, with the code that it has by default", answer(422, POLICY, ""), NotYet),
    ("a policy that says why it is invalid", answer(422, POLICY, "spec.template"), NotYet),
    ("a webhook without a code", answer(400, WEBHOOK), NotYet),
    ("a webhook that says 422", answer(422, WEBHOOK, "spec.parallelism"), NotYet),
    ("a webhook that quotes the decoder", answer(400, f"{WEBHOOK}: {UNREADABLE}"), NotYet),
    ("a webhook that says 413", answer(413, WEBHOOK), NotYet),
    ("a webhook that is away", answer(500, AWAY), NotYet),
    ("a webhook that is slow", answer(504, "Timeout: request did not complete within requested timeout"), NotYet),
    ("a webhook that makes our object another", answer(422, SIDECAR, "spec.template.spec.containers[1].image"), NotYet),
    ("an invalid answer without causes", answer(422, "is invalid", causes=False), NotYet),
    ("a quota", answer(403, "exceeded quota"), NotYet),
    ("no such namespace", answer(404, 'namespaces "ml" not found'), NotYet),
    ("too many requests", answer(429, "slow down"), TooManyRequests),
    ("an API server that is starting", answer(503, "apiserver not ready"), Unavailable),
    ("no answer", Unavailable("connection refused"), Unavailable),
    ("a conflict", answer(409, "the object has been modified"), Conflict),
]


@pytest.mark.parametrize(("error", "then"), [a[1:] for a in ANSWERS], ids=[a[0] for a in ANSWERS])
def test_what_a_refused_creation_means(error: ApiError, then: type[Exception]) -> None:
    found = judged(error, create(), first=True)
    assert type(found) is then
    if isinstance(found, NotYet):
        assert found.message == f"Job a-1 cannot be created yet: {error.message}"


@pytest.mark.parametrize("error", [a[1] for a in ANSWERS], ids=[a[0] for a in ANSWERS])
def test_after_the_first_attempt_no_answer_is_final(error: ApiError) -> None:
    assert not isinstance(judged(error, create(), first=False), Refused)


def test_a_deletion_that_is_denied_is_told_too() -> None:
    found = waits(answer(422, WEBHOOK), "Job a-1 cannot be deleted yet")
    assert isinstance(found, NotYet)
    assert "policy.example.com" in found.message


def existing(create: Create, *, ours: bool = False, left: bool = False, **fields: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": create.body["metadata"]["name"], "labels": {}}
    if ours or left:
        meta["labels"] = create.body["metadata"]["labels"] | ({names.LABEL_UID: "earlier"} if left else {})
    if ours:
        meta["ownerReferences"] = create.body["metadata"]["ownerReferences"]
    return {"metadata": meta | fields.pop("metadata", {}), **fields}


DONE = {"conditions": [{"type": "Complete", "status": "True"}]}
DELETED = {"deletionTimestamp": rfc3339(NOW), "finalizers": ["foregroundDeletion"]}

FOUND: list[tuple[str, Any, dict[str, Any], bool, float, type[Exception] | None, str]] = [
    ("our own, of a repeated request", JOBS, {"ours": True}, True, 0, None, ""),
    ("our own, that lost its labels", JOBS, {"ours": True, "metadata": {"labels": {}}}, False, 0, None, ""),
    ("one that is being deleted", JOBS, {"ours": True, "metadata": DELETED}, False, 5, Occupied, "still being deleted"),
    ("one that is not allowed to go", JOBS, {"left": True, "metadata": DELETED}, False, 60, NotYet,
     "held by foregroundDeletion"),
    ("of an earlier job, orphaned while it trained", JOBS, {"left": True}, True, 0, NotYet,
     "Job a-1 belongs to an earlier FineTuneJob of this name, and blocks this one: delete it with `kubectl delete job"),
    ("of an earlier job, ended long ago", JOBS, {"left": True, "status": DONE}, True, 0, Taken, "Job a-1"),
    ("somebody else's Job", JOBS, {}, True, 0, Taken, "Job a-1"),
    ("somebody else's Job, later", JOBS, {}, False, 0, Taken, "Job a-1"),
    ("somebody else's Service", SERVICES, {}, True, 0, Refused, "choose another metadata.name"),
    ("somebody else's Service, later", SERVICES, {}, False, 0, NotYet, "is not this job's, and blocks this one"),
    ("a Service that an earlier job left", SERVICES, {"left": True}, True, 0, NotYet, "kubectl delete services a-1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("resource", "found", "first", "at", "then", "words"), [f[1:] for f in FOUND], ids=[f[0] for f in FOUND]
)
def test_what_an_object_in_the_way_means(
    resource: Any, found: dict[str, Any], first: bool, at: float, then: type[Exception] | None, words: str
) -> None:
    made = create(resource)
    problem = in_the_way(job(), made, existing(made, **found), first=first, now=later(at))
    assert type(problem) is (then or type(None))
    assert words in str(problem or "")


def test_a_number_that_is_taken_is_skipped_and_costs_nothing() -> None:
    given = seen(job(status(Phase.Restarting, 2, counted=1)))
    decision = take_next_number(given, "there is a Job a-2 that is not this job's", NOW)
    running = find(decision.status, "Running")
    assert (decision.status.attempt, decision.status.restarts) == (3, given.status.restarts)
    assert decision.status.phase is Phase.Restarting
    assert running is not None
    assert (running.reason, "Job a-2" in running.message) == ("NameTaken", True)
    assert [event.reason.value for event in decision.events] == ["NameTaken"]


class StatusDenied:
    """A client whose status writes are refused."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    async def replace_status(self, _: dict[str, Any]) -> dict[str, Any]:
        raise answer(422, WEBHOOK)

    async def create(self, _: Any, body: dict[str, Any]) -> dict[str, Any]:
        self.events.append(body)
        return body


def test_a_status_that_nobody_may_write_is_told_by_an_event() -> None:
    client = StatusDenied()
    applier = Applier(client, Cache(), lambda: NOW, lambda *_: None)  # type: ignore[arg-type]
    with pytest.raises(ApiError, match=r"policy\.example\.com"):
        asyncio.run(applier.write_status(job(), status(Phase.Pending)))
    assert [(event["reason"], WEBHOOK in event["message"]) for event in client.events] == [("PodsRefused", True)]
