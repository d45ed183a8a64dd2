"""GPU hours: what is counted, what of it is wasted, and that nothing is counted twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.failures import Reason, TerminationMessage
from finetune_api.plan import ProgressReport
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Condition, FineTuneJobStatus, Phase, Progress, Usage
from finetune_operator.decide import decide
from finetune_operator.state.observe import Defaults
from finetune_operator.state.prices import Prices, devices_of, price_of
from finetune_operator.state.status import change, failure_of, rfc3339
from finetune_operator.state.usage import metered
from finetune_operator.state.views import Pod
from tests.support.operator_objects import NOW, child, ended, job, later, pod, seen, spec, status
from tests.support.stepwise_cluster import RANGE, World
from tests.unit.test_operator_histories import ELASTIC_STEPS

GPUS = {"resources": {"limits": {"nvidia.com/gpu": 4}}}
HOUR = 3600


def bound(index: int, at: float = 0, *, attempt: int = 1, end: float | None = None, **fields: Any) -> Pod:
    """A pod that got its node at `at` and, if so, ended at `end`."""
    over = None if end is None else ended(1, at=end)
    return pod(index, "Failed" if over else "Running", attempt, scheduled=later(at), node="n", ended=over, **fields)


def runs(since: float, **fields: Any) -> FineTuneJobStatus:
    """The status of a job whose gang has been complete since then, counted until then."""
    running = Condition(
        type="Running", status="True", reason="GangRunning", message="", last_transition_time=rfc3339(later(since))
    )
    known: dict[str, Any] = {"conditions": (running,), "usage": Usage(last_update_time=rfc3339(later(since)))}
    return status(**{"phase": Phase.Running} | known | fields)


def at(hours: float) -> str:
    return rfc3339(later(hours * HOUR))


def failing(before: FineTuneJobStatus, reason: Reason = Reason.UnexpectedError) -> FineTuneJobStatus:
    return change(before, phase=Phase.Restarting, attempt=2, last_failure=failure_of(reason, "m", attempt=1, at=NOW))


def count(
    before: FineTuneJobStatus, after: FineTuneJobStatus, *pods: Pod, hours: float, **fields: Any
) -> tuple[float, float]:
    """GPU hours and wasted ones, once `after` is written at `hours`."""
    known: dict[str, Any] = {"spec": spec(**GPUS), "children": (child(),)} | fields
    usage = metered(seen(job(before), pods=pods, **known), after, later(hours * HOUR)).usage
    assert usage is not None
    return usage.gpu_hours, usage.wasted_gpu_hours


def stepped(before: FineTuneJobStatus) -> FineTuneJobStatus:
    return change(before, progress=Progress(step=1))


TWO = (bound(0), bound(1))
HALF = Progress(step=5, last_checkpoint_time=at(1.5))


@pytest.mark.parametrize(
    ("before", "after", "pods", "hours", "expected"),
    [
        pytest.param(runs(0), stepped, TWO, 1, (8.0, 0.0), id="two pods with four GPUs each train for an hour"),
        pytest.param(runs(HOUR), stepped, TWO, 2, (8.0, 0.0), id="an hour that was counted is not counted again"),
        pytest.param(
            runs(0), stepped, (TWO[0], bound(1, end=HOUR / 2)), 1, (6.0, 0.0), id="a pod that ended costs no more"
        ),
        pytest.param(runs(HOUR), stepped, TWO, 0.5, (0.0, 0.0), id="a clock that went back counts nothing"),
        pytest.param(
            status(Phase.Pending), lambda s: change(s, phase=Phase.Starting), (bound(0), pod(1)), 1, (4.0, 4.0),
            id="a pod that waits for the other one",
        ),
        pytest.param(
            status(Phase.Starting), lambda s: change(s, phase=Phase.Running), TWO, 1, (8.0, 8.0),
            id="two pods that pull their image",
        ),
        pytest.param(runs(0), failing, TWO, 1, (8.0, 8.0), id="a failure before the first checkpoint"),
        pytest.param(
            runs(0, progress=HALF), failing, TWO, 2, (16.0, 4.0), id="a failure half an hour after the checkpoint"
        ),
        pytest.param(
            runs(0, progress=HALF), lambda s: failing(s, Reason.GuardViolated), TWO, 2, (16.0, 0.0),
            id="a guard keeps the artifact back, which is complete",
        ),
        pytest.param(
            runs(0, progress=HALF, attempt=1), lambda s: change(failing(s), phase=Phase.Failed, attempt=1), TWO, 2,
            (16.0, 4.0), id="the last failure",
        ),
        pytest.param(
            runs(0), lambda s: change(s, phase=Phase.Suspended), TWO, 1, (8.0, 0.0), id="suspended after a checkpoint"
        ),
        pytest.param(
            runs(0), lambda s: change(s, phase=Phase.Queued), TWO, 1, (8.0, 0.0), id="preempted by its queue"
        ),
        pytest.param(
            runs(0, phase=Phase.Suspended), lambda s: change(s, phase=Phase.Pending, attempt=2), (), 9, (0.0, 0.0),
            id="nine hours of suspension cost nothing",
        ),
        pytest.param(
            runs(0, phase=Phase.Queued), lambda s: change(s, phase=Phase.Pending), (pod(0), pod(1)), 9, (0.0, 0.0),
            id="nine hours in a queue cost nothing",
        ),
        pytest.param(
            runs(0, phase=Phase.Restarting, attempt=2), lambda s: change(s, phase=Phase.Running),
            (bound(0, HOUR, attempt=2), bound(1, HOUR, attempt=2), bound(0, end=HOUR), bound(1, end=HOUR / 2)), 2,
            (14.0, 14.0), id="old pods end, and new ones wait for each other",
        ),
        pytest.param(
            status(Phase.Starting), lambda s: change(s, phase=Phase.Succeeded),
            (bound(0, 0, end=HOUR), bound(1, HOUR / 2, end=HOUR)), 9, (6.0, 2.0),
            id="it ran and ended while no operator watched",
        ),
    ],
)  # fmt: skip
def test_what_is_counted_and_what_is_wasted(
    before: FineTuneJobStatus,
    after: Callable[[FineTuneJobStatus], FineTuneJobStatus],
    pods: tuple[Pod, ...],
    hours: float,
    expected: tuple[float, float],
) -> None:
    children = (child(before.attempt or 1),)
    assert count(before, after(before), *pods, hours=hours, children=children) == expected


def test_the_checkpoint_of_the_termination_message_counts() -> None:
    words = TerminationMessage(exit_code=1, reason=Reason.Interrupted, checkpoint_time=at(0.75))
    first = bound(0, end=HOUR)
    assert first.ended is not None
    told = replace(first, ended=replace(first.ended, words=words))

    assert count(runs(0), failing(runs(0)), told, bound(1), hours=1) == (8.0, 2.0)


def test_the_checkpoint_of_the_last_report_counts() -> None:
    report = ProgressReport(attempt=1, phase="training", progress=Progress(step=9, last_checkpoint_time=at(0.5)))

    assert count(runs(0), failing(runs(0)), *TWO, hours=1, report=report) == (8.0, 4.0)


def test_idle_pods_of_a_capacity_check_are_wasted() -> None:
    idle = pod(0, "Running", 0, scheduled=later(0), node="n", probe="u.1")

    assert count(runs(0), stepped(runs(0)), *TWO, hours=1, probe_pods=(idle,)) == (12.0, 4.0)


def test_pods_that_are_gone_are_counted_by_what_is_remembered_of_them() -> None:
    gone = tuple(bound(index, end=HOUR) for index in (0, 1))

    assert count(runs(0), failing(runs(0)), hours=2, ended_pods=gone, children=()) == (8.0, 8.0)


def test_nothing_is_counted_where_nothing_else_is_written() -> None:
    before = runs(0)
    observed = seen(job(before), pods=TWO, children=(child(),), spec=spec(**GPUS))

    assert metered(observed, before, later(HOUR)) is before
    assert metered(observed, change(before, nodes=2), later(HOUR)) is before
    decision = decide(replace(observed, job=job(change(before, observed_generation=1))), later(HOUR))
    again = decide(replace(observed, job=job(decision.status)), later(2 * HOUR))
    assert again.status.usage == decision.status.usage


def test_a_job_without_gpus_has_no_usage() -> None:
    before = status(Phase.Running)
    observed = seen(job(before), pods=TWO, children=(child(),), spec=spec())

    assert metered(observed, stepped(before), later(HOUR)).usage is None


SLICES = {"resources": {"limits": {"nvidia.com/mig-1g.10gb": "3"}}, "processes_per_node": 3}
CLAIM = {"pod": {"resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "t"}]}, "processes_per_node": 4}


@pytest.mark.parametrize(
    ("fields", "devices"),
    [
        ({"resources": {"limits": {"nvidia.com/gpu": 8, "cpu": "4"}}}, {"nvidia.com/gpu": 8}),
        ({"resources": {"limits": {"amd.com/gpu": "2"}}}, {"amd.com/gpu": 2}),
        (SLICES, {"nvidia.com/mig-1g.10gb": 3}),
        (CLAIM, {"": 4}),
        ({}, {}),
    ],
)  # fmt: skip
def test_devices_of_a_pod(fields: dict[str, Any], devices: dict[str, int]) -> None:
    assert devices_of(spec(**fields)) == devices


# money

TABLE = '{"currency": "EUR", "perGpuHour": [{"price": 3, "nodeSelector": {"gpu": "h100"}}, {"price": 1.5}]}'


@pytest.mark.parametrize(
    ("fields", "per_hour"),
    [
        (GPUS, 1.5),
        ({**GPUS, "processes_per_node": 2}, 3.0),
        ({**GPUS, "pod": {"nodeSelector": {"gpu": "h100"}}}, 3.0),
        ({}, None),
    ],
)
def test_the_price_of_an_hour_of_one_process(fields: dict[str, Any], per_hour: float | None) -> None:
    found = price_of(Prices.parse(TABLE), spec(**fields))
    assert (found.per_hour if found else None) == per_hour
    assert price_of(Prices(), spec(**fields)) is None


def cost(known: FineTuneJobSpec, prices: str, before: FineTuneJobStatus) -> tuple[float | None, str | None]:
    defaults = Defaults(prices=Prices.parse(prices))
    observed = seen(job(before), pods=TWO, children=(child(),), spec=known, defaults=defaults)
    usage = metered(observed, stepped(before), later(HOUR)).usage
    assert usage is not None
    return usage.money, usage.currency


@pytest.mark.parametrize(
    ("labels", "prices", "expected"),
    [
        ({"gpu": "h100", "zone": "a"}, TABLE, (24.0, "EUR")),
        ({"gpu": "l40s"}, TABLE, (12.0, "EUR")),
        ({}, TABLE, (12.0, "EUR")),
        ({}, "", (None, None)),
        ({}, '{"currency": "EUR", "perGpuHour": [{"price": 1, "resource": "amd.com/gpu"}]}', (None, None)),
    ],
)
def test_the_first_price_that_fits_applies(
    labels: dict[str, str], prices: str, expected: tuple[float | None, str | None]
) -> None:
    assert cost(spec(**GPUS, pod={"nodeSelector": labels}), prices, runs(0)) == expected


def test_a_sum_in_another_currency_is_kept() -> None:
    spent = runs(0)
    spent = change(spent, usage=Usage(money=7.0, currency="USD", last_update_time=rfc3339(NOW)))

    assert cost(spec(**GPUS), TABLE, spent) == (7.0, "USD")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "JSON"),
        ('{"currency": "EUR"}', "perGpuHour"),
        ('{"currency": "€", "perGpuHour": []}', "currency"),
        ('{"currency": "EUR", "perGpuHour": [{"price": -1}]}', "perGpuHour.0.price"),
        ('{"currency": "EUR", "perGpuHour": [{"price": 1, "nodeselector": {}}]}', "perGpuHour.0.nodeselector"),
    ],
)
def test_a_price_list_that_cannot_be_read_is_refused(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Prices.parse(text)


# whatever happens


@settings(max_examples=150)
@given(st.lists(ELASTIC_STEPS, max_size=60), st.integers(0, 4))
def test_usage_only_grows_and_never_counts_twice(history: list[tuple[str, object]], places: int) -> None:
    """Operators die between any two writes (`look` with a number), pods fail, jobs are suspended, queued, resized."""
    world = World(places=places, fields={"resources": {"limits": {"nvidia.com/gpu": 1}}})
    for name, *args in history:
        getattr(world, name)(*args)
    counted = [status.usage or Usage() for status in world.written]
    for before, after in pairwise(counted):
        assert after.gpu_hours >= before.gpu_hours
        assert after.wasted_gpu_hours >= before.wasted_gpu_hours
    for usage in counted:
        assert usage.wasted_gpu_hours <= usage.gpu_hours
        assert round(usage.gpu_hours * HOUR) <= world.held


@given(st.lists(st.one_of(st.integers(1, 500), st.none()), max_size=20))
def test_a_gang_that_runs_is_counted_to_the_second(steps: list[int | None]) -> None:
    """However often it is looked at, and however long no operator is there."""
    world = World(places=RANGE["max"], fields={"resources": {"limits": {"nvidia.com/gpu": 1}}})
    world.goes_up()
    for step in steps:
        world.look() if step is None else world.time(step)
    world.suspend(True)
    world.look()

    usage = world.view.status.usage or Usage()
    assert round(usage.gpu_hours * HOUR) == world.held == RANGE["max"] * sum(step or 0 for step in steps)
    assert usage.wasted_gpu_hours == 0
