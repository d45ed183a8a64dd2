"""An attempt whose ladder continues in other pods: what the next one has, and what it does not count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api import names
from finetune_api.admin_policy import AdminPolicy
from finetune_api.failures import TerminationMessage
from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.plan import ProgressReport, RunPlan
from finetune_api.rung_pods import UnavailableRung, for_rung
from finetune_api.status import Artifact, FineTuneJobStatus, Phase
from finetune_operator.decide import decide
from finetune_operator.decision import Decision
from finetune_operator.policies.next_rung import MOVES
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import Defaults, Observed, observe
from finetune_operator.state.prices import Prices
from tests.support.operator_objects import NOW, SPEC, child, ended, job, later, pod, raw_job, seen, spec, status

GPUS = {"limits": {"nvidia.com/gpu": 8}}
LADDER: dict[str, Any] = {
    "method": {"type": "auto"},
    "nodes": 1,
    "ladder": {"rungs": ["probe", "lora", "full"], "overrides": [{"rung": "full", "resources": GPUS}]},
}
WHOLE = spec(**LADDER)
ARTIFACT = Artifact(uri="s3://corp/out", digest="sha256:1", size_bytes=1, kind="adapter")
CLIMBED = LadderStatus(rule="x", rungs=(RungStatus(name="full", state="running"),))


def ending(words: TerminationMessage | None, *, rung: str | None = None, **fields: Any) -> Observed:
    """One pod, which has succeeded."""
    known = status(Phase.Running, micro_batch_tokens=64).model_copy(update={"nodes": 1, "rung": rung})
    own = {"spec": for_rung(WHOLE, rung), "whole": WHOLE, "rung": rung, "children": (child(nodes=1, complete=True),)}
    pods = (pod(0, "Succeeded", ended=ended(words=words)),)
    return seen(job(known, raw_spec=SPEC | LADDER), **{**own, "pods": pods, **fields})


def read(fields: dict[str, Any], known: FineTuneJobStatus | None = None, **defaults: Any) -> Observed:
    """A job without children, as the operator reads it."""
    cache = Cache()
    cache.jobs.put(raw_job(spec=SPEC | fields, status=known.to_json() if known else {}))
    observed = observe(cache, ("ml", "a"), Defaults(image="i", **defaults))
    assert observed is not None
    return replace(observed, confirmed=True)


def decided(observed: Observed) -> Decision:
    return decide(observed, NOW)


def test_the_next_attempt_has_the_pods_of_the_rung_and_is_no_restart() -> None:
    after = decided(ending(TerminationMessage(next_rung="full", ladder=CLIMBED)))
    assert (after.status.phase, after.status.attempt, after.status.rung) == (Phase.Pending, 2, "full")
    assert after.status.restarts is not None
    assert after.status.restarts.total == 0
    assert (after.status.ladder, after.status.last_failure) == (CLIMBED, None)
    assert after.status.micro_batch_tokens is None, "the size that fitted the earlier pods"
    assert [each.attempt for each in after.delete] == [1]
    assert [(each.reason, each.type) for each in after.events] == [("NextRung", "Normal")]
    assert "attempt 2 has 1 pod of 8 processes with nvidia.com/gpu: 8" in after.events[0].message
    assert not after.create, "its number is in the status first"


def test_its_job_is_created_at_once_with_the_plan_of_the_whole_ladder() -> None:
    first = decided(ending(TerminationMessage(next_rung="full")))
    observed = read(LADDER, first.status)
    assert observed.spec == for_rung(WHOLE, "full")
    made = decide(observed, later(0.1))
    (body,) = [each.body for each in made.create if each.body["kind"] == "Job"]
    template = body["spec"]["template"]
    assert template["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    plan = RunPlan.model_validate_json(template["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.pods_of, plan.nodes, plan.processes_per_node, plan.attempt) == ("full", 1, 8, 2)
    assert plan.spec.resources == WHOLE.resources, "by which it knows the pods of the other rungs"


def test_a_rung_may_have_several_nodes() -> None:
    overrides = [{"rung": "full", "nodes": 3, "processesPerNode": 2}]
    ladder = LADDER | {"ladder": {"rungs": ["probe", "full"], "overrides": overrides}}
    known = status(Phase.Pending, attempt=2).model_copy(update={"rung": "full", "nodes": 3})
    made = decide(read(ladder, known), NOW)
    (body,) = [each.body for each in made.create if each.body["kind"] == "Job"]
    assert (body["spec"]["completions"], body["spec"]["parallelism"]) == (3, 3)
    plan = RunPlan.model_validate_json(body["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.nodes, plan.world_size) == (3, 6)


@pytest.mark.parametrize(
    ("overridden", "expected"), [("probe", 8), ("lora", 1)], ids=["of the first rung", "of another rung"]
)
def test_the_first_attempt_has_the_pods_of_the_first_rung(overridden: str, expected: int) -> None:
    ladder = {"rungs": ["probe", "lora"], "overrides": [{"rung": overridden, "resources": GPUS}]}
    observed = read(LADDER | {"ladder": ladder})
    assert observed.spec is not None
    assert observed.spec.processes == expected


def test_a_ladder_that_is_over_has_succeeded() -> None:
    after = decided(ending(TerminationMessage(artifact=ARTIFACT)))
    assert (after.status.phase, after.status.artifact, after.status.attempt) == (Phase.Succeeded, ARTIFACT, 1)


def test_without_a_termination_message_the_next_attempt_asks_the_store() -> None:
    after = decided(ending(None, rung="full"))
    assert (after.status.phase, after.status.attempt, after.status.rung) == (Phase.Restarting, 2, "full")
    assert after.status.restarts is not None
    assert (after.status.restarts.counted, after.status.restarts.free) == (0, 1)


def test_an_artifact_that_was_reported_is_an_end_without_a_termination_message() -> None:
    told = ProgressReport(attempt=1, phase="done", artifact=ARTIFACT)
    assert decided(ending(None, report=told)).status.phase is Phase.Succeeded


def test_a_ladder_without_overrides_ends_as_any_job() -> None:
    plain = spec(method={"type": "auto"}, nodes=1)
    after = decided(ending(None, spec=plain, whole=plain))
    assert after.status.phase is Phase.Succeeded


@pytest.mark.parametrize(("rung", "wanted"), [("full", "full"), (None, "lora"), (None, "a rung of a later version")])
def test_pods_that_ask_for_what_they_have_are_a_counted_failure(rung: str | None, wanted: str) -> None:
    """Otherwise a trainer with a mistake would start pods without end."""
    after = decided(ending(TerminationMessage(next_rung=wanted), rung=rung))
    assert after.status.restarts is not None
    assert (after.status.phase, after.status.restarts.counted) == (Phase.Restarting, 1)
    assert after.status.last_failure is not None
    assert after.status.last_failure.reason == "UnexpectedError"


@pytest.mark.parametrize("phase", [Phase.Running, Phase.Starting], ids=["seen", "while no operator looked"])
def test_gpu_hours_of_each_rung_are_those_of_its_own_pods(phase: Phase) -> None:
    """An hour in a pod without GPUs is none; an hour in one with 8 is 8, of which nothing is wasted."""
    hour = later(3600)
    words = TerminationMessage(next_rung="full")
    of_probe = pod(0, "Succeeded", scheduled=NOW, node="n", ended=ended(words=words, at=3600))
    known = ending(words, pods=(of_probe,))
    after = decide(known, hour).status
    assert after.usage is None
    words = TerminationMessage(next_rung="lora")
    of_full = pod(0, "Succeeded", scheduled=NOW, node="n", ended=ended(words=words, at=3600))
    known = ending(words, rung="full", pods=(of_full,))
    known = replace(known, job=replace(known.job, status=known.status.model_copy(update={"phase": phase})))
    after = decide(known, hour).status
    assert after.usage is not None
    assert (after.usage.gpu_hours, after.usage.wasted_gpu_hours) == (8.0, 0.0)


def test_the_policy_of_the_admin_holds_for_the_largest_rung_before_anything_starts() -> None:
    observed = read(LADDER, policy=AdminPolicy(max_gpus=4))
    assert [each.path for each in observed.violations] == ["spec.ladder.overrides[0].resources.limits"]
    assert not decide(observed, NOW).create


@pytest.mark.parametrize(("limits", "fits"), [({"nvidia.com/gpu": 8}, True), ({"memory": "8Gi"}, False)])
def test_a_budget_of_money_needs_one_price_for_the_processes_of_all_rungs(limits: dict[str, Any], fits: bool) -> None:
    ladder = {"budget": {"money": 9}, "overrides": [{"rung": "full", "resources": {"limits": limits}}]}
    one = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    prices = Prices.parse('{"currency": "EUR", "perGpuHour": [{"price": 2}]}')
    observed = read(LADDER | one | {"ladder": ladder}, prices=prices)
    assert (observed.spec is not None) is fits
    assert ("does not have the same price in the pods of all rungs" in observed.problem) is not fits


BEST = {"probe": "done", "lora": "done", "full": "running"}


def climbing(best: str | None, states: dict[str, str], *, stop: str | None = None) -> LadderStatus:
    rungs = tuple(RungStatus.model_validate({"name": name, "state": state}) for name, state in states.items())
    return LadderStatus.model_validate({"rule": "x", "rungs": rungs, "best": best, "stop_reason": stop})


def waiting(ladder: LadderStatus | None, *, rung: str = "full", restarts: int = 3, **changes: Any) -> Observed:
    """Its pod has waited for a node for longer than deadlines.startup, in the last attempt that it may have."""
    times = tuple("2025-12-31T23:59:00Z" for _ in range(restarts))
    known = status(Phase.Pending, attempt=4, micro_batch_tokens=64, counted=restarts).model_copy(
        update={"nodes": 1, "rung": rung, "ladder": ladder, "restart_times": times, "start_time": None, **changes}
    )
    own = {"spec": for_rung(WHOLE, rung), "whole": WHOLE, "rung": rung, "children": (child(4, nodes=1),)}
    return seen(job(known, raw_spec=SPEC | LADDER), pods=(), **own)


MUCH_LATER = later(10 * 3600)


def test_a_rung_that_finds_no_node_stops_the_ladder_and_the_best_one_is_published() -> None:
    before = waiting(climbing("lora", BEST))
    after = decide(before, MUCH_LATER)
    assert (after.status.phase, after.status.attempt, after.status.rung) == (Phase.Pending, 5, "lora")
    assert after.status.unavailable_rung is not None
    assert (after.status.unavailable_rung.name, after.status.unavailable_rung.reason) == ("full", "StartupDeadline")
    assert after.status.last_failure is not None
    assert "not all pods ran within" in after.status.unavailable_rung.message == after.status.last_failure.message
    assert (after.status.restart_times, after.status.micro_batch_tokens) == ((), None)
    assert [each.attempt for each in after.delete] == [4]
    (event,) = after.events
    assert (event.reason, event.type) == ("NextRung", "Warning")
    assert "stops before the rung full, whose pods cannot be had: StartupDeadline" in event.message
    assert "Attempt 5 publishes the rung lora" in event.message

    made = decide(publishing := read(LADDER, after.status), later(11 * 3600))
    assert publishing.status.restart_times == (), "it may fail as often as any job"
    (body,) = [each.body for each in made.create if each.body["kind"] == "Job"]
    plan = RunPlan.model_validate_json(body["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.pods_of, plan.processes_per_node) == ("lora", 1)
    assert plan.unavailable_rung == after.status.unavailable_rung


@pytest.mark.parametrize(
    ("observed", "phase"),
    [
        pytest.param(waiting(climbing("lora", BEST), restarts=0), Phase.Restarting, id="it may be tried again"),
        pytest.param(waiting(climbing("base", BEST)), Phase.Failed, id="no rung is better than the base model"),
        pytest.param(waiting(climbing(None, BEST)), Phase.Failed, id="the best is unknown"),
        pytest.param(waiting(None), Phase.Failed, id="nothing is known of the ladder"),
        pytest.param(
            waiting(climbing("lora", {"probe": "done", "lora": "done"}, stop="noGain"), rung="lora"),
            Phase.Failed,
            id="these pods would publish the best one",
        ),
        pytest.param(
            waiting(climbing("full", {"full": "done", "lora": "running"}), rung="full"),
            Phase.Failed,
            id="the pods of the best one are those that are missing",
        ),
        pytest.param(
            waiting(climbing("lora", BEST), unavailable_rung=UnavailableRung(name="full", reason="StartupDeadline")),
            Phase.Failed,
            id="it has been given up before",
        ),
    ],
)
def test_what_else_follows_pods_that_never_ran(observed: Observed, phase: Phase) -> None:
    after = decide(observed, MUCH_LATER)
    assert (after.status.phase, after.status.unavailable_rung) == (phase, observed.status.unavailable_rung)


def test_a_rung_that_a_new_policy_forbids_stops_the_ladder_and_what_publishes_is_allowed() -> None:
    policy = AdminPolicy(max_gpus=4)
    moved = decided(ending(TerminationMessage(next_rung="full", ladder=climbing("lora", BEST)))).status
    after = decided(read(LADDER, moved, policy=policy))
    assert (after.status.attempt, after.status.rung, after.create) == (3, "lora", ())
    assert after.status.unavailable_rung is not None
    assert (after.status.unavailable_rung.name, after.status.unavailable_rung.reason) == ("full", "PolicyViolated")
    made = decide(read(LADDER, after.status, policy=policy), later(1))
    assert [each.body["kind"] for each in made.create][-1] == "Job"


TOO_MUCH = (
    "couldn't assign flavors: insufficient quota for nvidia.com/gpu in flavor a, request > maximum capacity (8 > 4)"
)
BUSY = "insufficient unused quota for nvidia.com/gpu in flavor b, 4 more needed"


@pytest.mark.parametrize(
    ("said", "hours", "moves"),
    [
        pytest.param(TOO_MUCH, 0.6, True, id="more than all of the quota"),
        pytest.param(TOO_MUCH, 0.01, False, id="after a long turn in the queue, the quota may still be raised"),
        pytest.param(BUSY, 10, False, id="others use the quota"),
        pytest.param(f"{TOO_MUCH}, {BUSY}", 10, False, id="others use the quota of another flavor"),
        pytest.param("", 10, False, id="nothing is known"),
    ],
)
def test_a_rung_that_exceeds_the_quota_of_its_queue_stops_the_ladder(said: str, hours: float, moves: bool) -> None:
    known = status(Phase.Queued, attempt=2).model_copy(
        update={"nodes": 1, "rung": "full", "ladder": climbing("lora", BEST), "start_time": None}
    )
    queued = child(2, nodes=1, suspended=True, queue="team-a")
    own = {"spec": for_rung(WHOLE, "full"), "whole": WHOLE, "rung": "full", "children": (queued,)}
    said_since = {"queue_message": said, "queue_since": later(36_000)}
    observed = seen(job(known, raw_spec=SPEC | LADDER), pods=(), **said_since, **own)
    after = decide(observed, later(36_000 + hours * 3600))
    assert (after.status.attempt, after.status.rung) == ((3, "lora") if moves else (2, "full"))
    if moves:
        assert after.status.unavailable_rung is not None
        assert "request > maximum capacity (8 > 4)" in after.status.unavailable_rung.message
        assert [each.attempt for each in after.delete] == [2]
    elif said == TOO_MUCH:
        assert after.look_again_in is not None
        assert after.look_again_in > 0


def test_a_job_that_is_resumed_tries_the_rung_again() -> None:
    given = UnavailableRung(name="full", reason="StartupDeadline")
    known = status(Phase.Suspended, attempt=5).model_copy(update={"rung": "lora", "unavailable_rung": given})
    after = decided(read(LADDER, known)).status
    assert (after.attempt, after.rung, after.unavailable_rung) == (6, "lora", None)


def test_a_policy_that_forbids_more_than_the_rung_or_of_which_nothing_is_known_holds_the_job() -> None:
    moved = decided(ending(TerminationMessage(next_rung="full", ladder=climbing("lora", BEST)))).status
    for ladder, policy in ((moved.ladder, AdminPolicy(max_gpus=4, images=["x"])), (None, AdminPolicy(max_gpus=4))):
        known = moved.model_copy(update={"ladder": ladder})
        after = decided(read(LADDER | {"image": "i"}, known, policy=policy))
        assert (after.create, after.status.attempt, after.status.unavailable_rung) == ((), 2, None)


def test_pods_that_change_without_end_are_counted_failures() -> None:
    """What a pod asks for is bounded by nothing else."""
    asked, known = TerminationMessage(next_rung="full"), None
    for number in range(MOVES + 1):
        rung = "lora" if asked.next_rung == "full" else "full"
        before = ending(asked, rung=rung)
        moves = {"moves": known.moves if known else None, "restarts": known.restarts if known else None}
        before = replace(before, job=replace(before.job, status=before.status.model_copy(update=moves)))
        known = decided(before).status
        assert (known.moves, known.restarts.counted if known.restarts else 0) == (
            (number + 1, 0) if number < MOVES else (MOVES, 1)
        )
        asked = TerminationMessage(next_rung=rung)
