"""Operator and CRD of different versions, in both orders: nothing healthy is restarted, nothing else is trained."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import orjson
import pytest

from finetune_api.rules import MUTABLE_WHILE_SUSPENDED
from finetune_api.status import FineTuneJobStatus, Phase, Restarts
from finetune_operator.apply import Applier
from finetune_operator.decide import decide
from finetune_operator.kube.client import Invalid
from finetune_operator.kube.resources import FINETUNEJOBS
from finetune_operator.policies.start import started
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import Observed, observe
from finetune_operator.state.status import find
from tests.support.operator_objects import DEFAULTS, NOW, SPEC, child, job, pod, raw_job, seen, status

RUNNING = (pod(0, "Running"), pod(1, "Running"))
ENV = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]


@pytest.mark.parametrize("made", ["by this version", "by one that knows only the old digest"])
@pytest.mark.parametrize(
    ("env", "phase"),
    [
        (ENV, Phase.Running),
        ([ENV[0], ENV[1] | {"value": "3"}], Phase.Suspended),
        (ENV[::-1], None),
    ],
    ids=["the same", "another value", "another order"],
)
def test_what_counts_as_a_change_of_the_pods(made: str, env: list[Any], phase: Phase | None) -> None:
    """`pod.env` is a map: the API server takes another order at any time. A version that kept the order restarts by it,
    and none restarts a job that nobody touched, after an upgrade as after a rollback."""
    view = replace(job(status(Phase.Running)), raw_spec=job().raw_spec | {"pod": {"env": ENV}})
    old = child(pods_digest_ordered=view.pods_digest_ordered)
    running = replace(old, pods_digest=view.pods_digest) if made == "by this version" else old
    edited = replace(view, raw_spec=view.raw_spec | {"pod": {"env": env}})
    phase = phase or (Phase.Running if made == "by this version" else Phase.Suspended)
    assert decide(seen(edited, children=(running,), pods=RUNNING), NOW).status.phase is phase


def test_a_job_of_this_version_is_known_again_by_earlier_ones() -> None:
    """Rollback: they read one annotation, and compare it with their own digest of the spec as it is."""
    view = job()
    made = started(seen(view), NOW)
    assert made is not None
    notes = made.create[-1].body["metadata"]["annotations"]
    told = {field: view.raw_spec[field] for field in MUTABLE_WHILE_SUSPENDED if field in view.raw_spec}
    earlier = hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    assert notes["finetune.dev/pods"] == earlier


# a CRD that is newer than the operator

NEWER_FIELD = SPEC | {"training": {"epochs": 1, "teleport": True}}
NEWER_WORD = SPEC | {"method": {"type": "telepathy"}}
NEWER_FORM = SPEC | {"model": {"uri": "oci://registry/model"}}
WRONG = SPEC | {"nodes": {"min": 3, "max": 2}}


def observed(raw_spec: dict[str, Any], state: dict[str, Any] | None = None, *, pods: str = "") -> Observed:
    """What a real cache shows of a raw object; `pods` is the phase of a gang of two."""
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(spec=raw_spec, status=state or {}))
    seen = observe(cache, ("ml", "a"), DEFAULTS)
    assert seen is not None
    gang = (pod(0, pods), pod(1, pods)) if pods else ()
    return replace(seen, children=(child(),) if pods else (), pods=gang)


@pytest.mark.parametrize(
    ("raw", "names"),
    [(NEWER_FIELD, "spec.training.teleport"), (NEWER_WORD, "spec.method.type"), (NEWER_FORM, "spec.model.uri")],
    ids=["a field", "a word", "a form"],
)
def test_what_only_a_newer_version_understands_holds_the_job(raw: dict[str, Any], names: str) -> None:
    decision = decide(observed(raw), NOW)
    assert (decision.create, decision.status.phase, decision.status.attempt) == ((), Phase.Pending, None)
    for type, word in (("Held", "True"), ("Running", "False")):
        told = find(decision.status, type)
        assert told is not None
        assert (told.status, told.reason, names in told.message) == (word, "NotUnderstood", True)
    assert [event.reason.value for event in decision.events] == ["NotUnderstood"]
    again = decide(replace(observed(raw), job=replace(observed(raw).job, status=decision.status)), NOW)
    assert (again.events, again.status) == ((), decision.status)


@pytest.mark.parametrize("raw", [NEWER_FIELD, NEWER_WORD], ids=["a field", "a word"])
def test_an_attempt_that_a_newer_version_made_runs_on_under_an_older(raw: dict[str, Any]) -> None:
    state = {"phase": "Running", "attempt": 1, "restarts": {"counted": 0, "free": 0}}
    decision = decide(observed(raw, state, pods="Running"), NOW)
    assert (decision.status.phase, decision.delete, decision.create) == (Phase.Running, (), ())
    done = decide(observed(raw, state, pods="Succeeded"), NOW)
    assert done.status.phase is Phase.Succeeded


def test_no_attempt_follows_one_that_a_newer_version_made() -> None:
    state = {"phase": "Restarting", "attempt": 2, "restarts": {"counted": 1, "free": 0}}
    decision = decide(observed(NEWER_FIELD, state), NOW)
    assert (decision.create, decision.status.phase, decision.status.attempt) == ((), Phase.Restarting, 2)
    failed = observed(NEWER_WORD, {"phase": "Running", "attempt": 1}, pods="Failed")
    assert decide(failed, NOW).status.phase is Phase.Running, "nobody can say what follows"
    assert find(decide(failed, NOW).status, "Held") is not None


def test_it_goes_on_when_the_operator_was_upgraded_too() -> None:
    held = decide(observed(NEWER_FIELD), NOW).status
    upgraded = observed(SPEC, held.to_json())
    decision = decide(upgraded, NOW)
    assert (len(decision.create), decision.status.attempt, find(decision.status, "Held")) == (2, 1, None)


def test_a_mistake_that_only_the_operator_can_see_is_still_a_mistake() -> None:
    decision = decide(observed(WRONG), NOW)
    assert decision.status.phase is Phase.Failed


def test_a_job_that_is_held_can_be_suspended() -> None:
    state = {"phase": "Running", "attempt": 1}
    decision = decide(observed(NEWER_FIELD | {"suspend": True}, state, pods="Running"), NOW)
    assert (decision.status.phase, [each.name for each in decision.delete]) == (Phase.Suspended, ["a-1"])


# a status that a newer operator wrote

NEWER_STATUS = {
    "phase": "Running", "attempt": 1, "restarts": {"counted": 1, "free": 0, "teleported": 4},
    "hologram": {"a": 1}, "lastFailure": {"class": "Telepathy", "reason": "Misread", "attempt": 1},
    "progress": {"step": 3, "mood": "good"},
}  # fmt: skip


def test_a_job_with_words_of_a_newer_version_does_not_vanish() -> None:
    for state in (NEWER_STATUS, NEWER_STATUS | {"phase": "Dreaming"}):
        cache = Cache()
        cache.feed(FINETUNEJOBS, None, raw_job(uid=str(state["phase"]), status=state))
        seen = observe(cache, ("ml", "a"), DEFAULTS)
        assert seen is not None
        assert (seen.status.attempt, seen.job.uid) == (1, state["phase"])


def test_a_phase_that_is_not_known_is_left_alone_and_told() -> None:
    decision = decide(observed(SPEC, NEWER_STATUS | {"phase": "Dreaming"}, pods="Failed"), NOW)
    assert (decision.delete, decision.create, decision.expired) == ((), (), False)
    told = find(decision.status, "Held")
    assert told is not None
    assert 'status.phase: "Dreaming"' in told.message


def test_of_a_phase_that_is_not_known_no_other_attempt_is_ended() -> None:
    """A version that knows the phase may have two of them for a reason, or a probe."""
    status = {"phase": "Handover", "attempt": 2, "nodes": 2}
    seen = observed(SPEC, status, pods="Running")
    probe = replace(seen.children[0], uid="probe", attempt=0, probe="u.2")
    seen = replace(seen, children=tuple(replace(c, attempt=1) for c in seen.children), probes=(probe,))
    decision = decide(seen, NOW)
    assert (decision.delete, decision.create, decision.probe) == ((), (), None)


class Written:
    """Keeps the status that it is sent; refuses fields that it does not know."""

    def __init__(self, *refused: str) -> None:
        self.refused, self.statuses = refused, list[dict[str, Any]]()

    async def replace_status(self, body: dict[str, Any]) -> dict[str, Any]:
        self.statuses.append(body["status"])
        if strange := [field for field in self.refused if field in body["status"]]:
            raise Invalid(f"{strange} not supported", status=422, fields=tuple(strange))
        return raw_job(2, status=body["status"])


def write(client: Written, seen: Observed, status: FineTuneJobStatus) -> dict[str, Any]:
    applier = Applier(client, Cache(), lambda: NOW, lambda *_: None)  # type: ignore[arg-type]
    asyncio.run(applier.write_status(seen.job, status))
    return client.statuses[-1]


def test_what_a_newer_version_wrote_is_there_when_it_comes_back() -> None:
    seen = observed(SPEC, NEWER_STATUS, pods="Running")
    restarts = Restarts(counted=2)
    progress = seen.status.progress
    assert progress is not None
    same = write(Written(), seen, seen.status.model_copy(update={"restarts": restarts}))
    assert (same["hologram"], same["lastFailure"]["class"]) == ({"a": 1}, "Telepathy")
    assert same["restarts"] == {"counted": 2, "free": 0, "teleported": 4}
    assert same["progress"] == {"step": 3, "mood": "good"}
    moved = write(Written(), seen, seen.status.model_copy(update={"progress": progress.model_copy(update={"step": 4})}))
    assert moved["progress"] == {"step": 4}, "what was said of step 3 is not true of step 4"


def test_a_crd_that_was_rolled_back_too_gets_what_it_knows() -> None:
    seen = observed(SPEC, NEWER_STATUS, pods="Running")
    client = Written("hologram")
    written = write(client, seen, seen.status.model_copy(update={"nodes": 2}))
    assert len(client.statuses) == 2
    assert "hologram" not in written


ODD = (None, 7, "x", [], {}, {"a": None}, [{}], True, 2**63 - 1, "\x00")


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_no_status_makes_a_job_vanish(value: Any) -> None:
    fields = [info.alias or name for name, info in FineTuneJobStatus.model_fields.items()]
    for field in fields:
        seen = observed(SPEC, {"phase": "Running", "attempt": 1} | {field: value}, pods="Running")
        decision = decide(seen, NOW)
        assert decision.create == (), field
        assert decision.delete == () or field == "attempt", "another number is another attempt"
