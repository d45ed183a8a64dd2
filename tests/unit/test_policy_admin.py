"""What a job waits for that asks for more than its administrator allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune_api.admin_policy import AdminPolicy
from finetune_api.failures import HELD, Reason
from finetune_api.status import Phase
from finetune_operator.decide import decide
from finetune_operator.kube.resources import FINETUNEJOBS
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import Observed, observe
from finetune_operator.state.status import find
from tests.support.operator_objects import DEFAULTS, NOW, child, later, pod, raw_job


def policy(**fields: Any) -> AdminPolicy:
    return AdminPolicy.model_validate(fields)


def observed(given: AdminPolicy, state: dict[str, Any] | None = None, *, pods: str = "") -> Observed:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(status=state or {}))
    seen = observe(cache, ("ml", "a"), replace(DEFAULTS, policy=given))
    assert seen is not None
    gang = (pod(0, pods), pod(1, pods)) if pods else ()
    return replace(seen, children=(child(),) if pods else (), pods=gang, confirmed=True)


STRICT = policy(maxNodes=1, uriPrefixes=["s3://"])


def test_a_job_that_asks_for_too_much_waits_and_says_why() -> None:
    decision = decide(observed(STRICT), NOW)

    assert (decision.create, decision.status.phase, decision.status.attempt) == ((), Phase.Pending, None)
    failure, told = decision.status.last_failure, find(decision.status, "Running")
    assert failure is not None
    assert told is not None
    assert (told.status, told.reason) == ("False", "PolicyViolated")
    for part in ("spec.model.uri: hf://org/model is not allowed", "spec.nodes: 2 nodes", "Use at most 1 nodes."):
        assert part in told.message
    assert (failure.reason, failure.failure_class) == (Reason.PolicyViolated, "Config")
    assert [event.reason for event in decision.events] == [Reason.PolicyViolated]
    again = decide(observed(STRICT, decision.status.to_json()), later(3600))
    assert (again.create, again.events, again.status) == ((), (), decision.status)
    assert Reason.PolicyViolated in HELD


def test_it_starts_when_the_admin_allows_it() -> None:
    held = decide(observed(STRICT), NOW).status
    decision = decide(observed(policy(maxNodes=2), held.to_json()), later(86400))

    assert (len(decision.create), decision.status.attempt) == (2, 1)
    going = decide(observed(policy(), decision.status.to_json(), pods="Pending"), later(86401)).status
    assert (going.last_failure, [each.reason for each in going.conditions if each.type == "Running"]) == (
        None,
        ["GangCreated"],
    )


def test_a_stricter_policy_ends_no_attempt_and_holds_the_next_one() -> None:
    running = {"phase": "Running", "attempt": 1, "nodes": 2}
    kept = decide(observed(STRICT, running, pods="Running"), NOW)
    assert (kept.status.phase, kept.delete, kept.create) == (Phase.Running, (), ())

    next_one = {"phase": "Restarting", "attempt": 2, "nodes": 2, "restarts": {"counted": 1, "free": 0}}
    held = decide(observed(STRICT, next_one), NOW)
    assert (held.create, held.status.phase, held.status.attempt) == ((), Phase.Restarting, 2)
    assert held.status.restarts == observed(STRICT, next_one).status.restarts
    freed = decide(observed(policy(), held.status.to_json()), later(60))
    assert (len(freed.create), freed.status.attempt) == (2, 2)


def test_a_job_that_is_resumed_is_judged_too() -> None:
    suspended = {"phase": "Suspended", "attempt": 1, "nodes": 2}

    held = decide(observed(STRICT, suspended), NOW)
    assert held.create == ()
    assert held.status.last_failure is not None

    freed = decide(observed(policy(), held.status.to_json()), later(60))
    assert (len(freed.create), freed.status.attempt, freed.status.last_failure) == (2, 2, None)


def test_the_pods_have_the_defaults_of_their_namespace() -> None:
    given = policy(namespaces={"ml": {"podDefaults": {"priorityClassName": "training"}, "hubEndpoint": "https://hub"}})
    job = decide(observed(given), NOW).create[-1].body["spec"]["template"]["spec"]

    assert job["priorityClassName"] == "training"
    assert {"name": "HF_ENDPOINT", "value": "https://hub"} in job["containers"][0]["env"]
