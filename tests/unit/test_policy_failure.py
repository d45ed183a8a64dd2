"""What follows a failed attempt, by the class of its failure."""

from __future__ import annotations

import pytest
import yaml

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.ladder import LadderStatus, Price, RungStatus
from finetune_api.plan import RunPlan
from finetune_api.status import (
    FineTuneJobStatus,
    Phase,
    ResolvedPlan,
    Restarts,
)
from finetune_operator.decide import decide
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import Defaults, observe, read_spec
from finetune_operator.state.prices import Prices
from finetune_operator.state.status import find
from tests.support.documents import ROOT
from tests.support.operator_objects import (
    NOW,
    SPEC,
    child,
    ended,
    failed_pod,
    job,
    later,
    pod,
    raw_job,
    seen,
    spec,
    status,
    words,
)


def test_memory_that_ran_out_halves_the_micro_batch_of_what_follows() -> None:
    """From the termination message of whichever pod knows it; the next Job's plan has it, and so do those after it."""
    told = words(Reason.OutOfMemory, rank=1).model_copy(
        update={"plan": ResolvedPlan(micro_batch_tokens=1000, longest_row=100)}
    )
    pods = (pod(0, "Running"), pod(1, "Failed", ended=ended(80, words=told)))
    after = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods), NOW).status
    assert (after.attempt, after.micro_batch_tokens, after.restarts) == (2, 500, Restarts(out_of_memory=1))
    restarting = find(after, "Running")
    assert restarting is not None
    assert "micro-batches of 500 tokens instead of 1000" in restarting.message
    for later_on in (after, after.model_copy(update={"attempt": 3})):
        made_job = next(c.body for c in decide(seen(job(later_on)), later(100)).create if c.resource is JOBS)
        plan = made_job["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN]
        assert RunPlan.model_validate_json(plan).micro_batch_tokens == 500


def test_a_loss_that_is_not_finite_is_tried_once_more() -> None:
    def end(before: FineTuneJobStatus) -> FineTuneJobStatus:
        attempt = before.attempt or 1
        pods = (failed_pod(0, Reason.LossNonFinite, attempt=attempt),)
        return decide(seen(job(before), children=(child(attempt),), pods=pods), NOW).status

    again = end(status(Phase.Running))
    assert (again.phase, again.restarts) == (Phase.Restarting, Restarts(non_finite=1))
    over = end(again.model_copy(update={"phase": Phase.Running}))
    failed = find(over, "Failed")
    assert failed is not None
    assert (over.phase, failed.reason) == (Phase.Failed, "LossNonFinite")


@pytest.mark.parametrize(("asked", "skipped"), [(False, None), (True, 41)])
def test_the_batch_of_a_loss_that_is_not_finite_is_left_out_if_asked(asked: bool, skipped: int | None) -> None:
    told = words(Reason.LossNonFinite, rank=1).model_copy(update={"step": 41})
    pods = (pod(0, "Running"), pod(1, "Failed", ended=ended(81, words=told)))
    wanted = spec(training={"skip_bad_batch": asked})
    after = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods, spec=wanted), NOW).status
    assert after.skipped_step == skipped
    next_one = decide(seen(job(after), spec=wanted), later(100))
    plan = next(c.body for c in next_one.create if c.resource is JOBS)["spec"]["template"]["metadata"]["annotations"]
    assert RunPlan.model_validate_json(plan[names.ANNOTATION_PLAN]).skipped_step == skipped


def test_exhausted_restarts_tell_the_last_failure() -> None:
    given = seen(job(status(Phase.Running, 2)), children=(child(2),), spec=spec(retry={"max_restarts": 0}),
                 pods=(failed_pod(1, Reason.UnexpectedError, attempt=2),))  # fmt: skip
    failed = find(decide(given, NOW).status, "Failed")
    assert failed is not None
    assert failed.reason == "RestartsExhausted"
    assert "it broke" in failed.message
    assert "report it" in failed.message


def test_an_invalid_spec_says_what_to_correct() -> None:
    after = decide(seen(job(), spec=None, problem="spec.nodes: must be at least 1, not 0"), NOW).status
    failed = find(after, "Failed")
    assert failed is not None
    assert failed.reason == "InvalidSpec"
    assert "spec.nodes" in failed.message
    assert "finetune validate" in failed.message


def test_a_ladder_that_skips_batches_is_rejected_before_any_pod_with_what_to_do() -> None:
    spec_of_ladder = {**SPEC, "method": {"type": "auto"}, "training": {"skipBadBatch": True}}
    for thoroughly in (True, False):
        found, problem = read_spec(job(raw_spec=spec_of_ladder), thoroughly=thoroughly)
        assert found is None
        assert "finetune run" in problem
        assert "remove spec.training.skipBadBatch" in problem
    after = decide(seen(job(), spec=None, problem=problem), NOW)
    assert after.create == ()
    failed = find(after.status, "Failed")
    assert failed is not None
    assert (failed.reason, failed.status) == ("InvalidSpec", "True")


@pytest.mark.parametrize("nodes", [1, 2, {"min": 2, "max": 4}])
def test_a_ladder_gets_a_job_whose_plan_has_it(nodes: object) -> None:
    asked = {**SPEC, "method": {"type": "auto"}, "nodes": nodes, "ladder": {"rungs": ["probe", "lora"]}}
    found, problem = read_spec(job(raw_spec=asked), thoroughly=True)
    assert (problem, found is None) == ("", False)
    (made,) = (c.body for c in decide(seen(job(raw_spec=asked), spec=found), NOW).create if c.resource is JOBS)
    plan = RunPlan.model_validate_json(made["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert plan.spec.ladder.rungs == ("probe", "lora")
    assert plan.spec.method.is_auto


OF_MONEY = {
    **SPEC,
    "method": {"type": "auto"},
    "nodes": 1,
    "processesPerNode": 1,
    "ladder": {"budget": {"money": 100}},
    "resources": {"limits": {"nvidia.com/gpu": 2}},
}
PRICED = Defaults(prices=Prices.parse('{"currency": "EUR", "perGpuHour": [{"price": 2.5}]}'))


def test_a_budget_of_money_is_refused_before_any_pod_unless_the_administrator_has_set_prices() -> None:
    cache, key = Cache(), ("ml", "a")
    cache.feed(FINETUNEJOBS, None, raw_job() | {"spec": OF_MONEY})
    found = observe(cache, key, Defaults())
    assert found is not None
    after = decide(found, NOW)
    failed = find(after.status, "Failed")
    assert after.create == ()
    assert failed is not None
    assert failed.reason == "InvalidSpec"
    assert "spec.ladder.budget.money: 100, but no price is known" in failed.message
    priced = observe(cache, key, PRICED)
    assert priced is not None
    (made,) = (c.body for c in decide(priced, NOW).create if c.resource is JOBS)
    plan = RunPlan.model_validate_json(made["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert plan.price == Price(per_hour=5.0, currency="EUR"), "one process has two GPUs"


def test_prices_that_are_gone_do_not_end_a_ladder_that_runs() -> None:
    cache, key = Cache(), ("ml", "a")
    cache.feed(FINETUNEJOBS, None, raw_job(status={"attempt": 1}) | {"spec": OF_MONEY})
    found = observe(cache, key, Defaults())
    assert found is not None
    assert (found.problem, found.spec is None) == ("", False)


def test_a_ladder_without_a_gain_fails_with_what_was_tried() -> None:
    tried = LadderStatus(rule="x", rungs=(RungStatus(name="probe", state="done"),), best="base", stop_reason="noGain")
    told = words(Reason.NoGain).model_copy(update={"ladder": tried})
    pods = (pod(0, "Failed", ended=ended(84, words=told)), pod(1, "Running"))
    after = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods), NOW).status
    assert (after.phase, after.ladder) == (Phase.Failed, tried)


@pytest.mark.parametrize("name", ["ladder", "ladder-pods"])
def test_the_examples_of_a_ladder_are_ones_that_the_operator_runs(name: str) -> None:
    example = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    found, problem = read_spec(job(raw_spec=example["spec"]), thoroughly=True)
    assert (problem, found is not None and found.method.is_auto) == ("", True)
