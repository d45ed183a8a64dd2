"""How many pods an attempt has, as tables: what was seen, and what follows."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.plan import ProgressReport, RunPlan
from finetune_api.status import Condition, FailureClass, FineTuneJobStatus, LastFailure, Phase, Progress, Restarts
from finetune_operator.decide import decide
from finetune_operator.decision import Decision
from finetune_operator.kube.resources import JOBS
from finetune_operator.objects import probe_job
from finetune_operator.policies.elastic import SETTLE, SHORT
from finetune_operator.state.observe import Defaults, Observed
from finetune_operator.state.status import find, rfc3339
from finetune_operator.state.views import ChildJob, Pod
from finetune_operator.transitions.size import KEPT, size
from tests.support.operator_objects import DEFAULTS, NOW, SPEC, child, failed_pod, job, later, pod, seen, spec, status

GROW = 300.0
ELASTIC: dict[str, Any] = {"nodes": {"min": 1, "max": 4}, "deadlines": {"startup": "10m"}}
NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"


def elastic(state: FineTuneJobStatus, **fields: Any) -> Observed:
    defaults = Defaults(image="trainer:test", grow_after=GROW)
    return seen(job(state, raw_spec=SPEC | ELASTIC), spec=spec(**ELASTIC), **{"defaults": defaults} | fields)


def gang(placed: int, homeless: int = 0, *, attempt: int = 1, phase: str = "Running") -> tuple[Pod, ...]:
    there = [pod(index, phase, attempt, node=f"n{index}", scheduled=NOW) for index in range(placed)]
    return (*there, *(pod(placed + n, attempt=attempt, unschedulable=NO_NODE) for n in range(homeless)))


def starting(attempt: int, placed: int, homeless: int, *, nodes: int = 4, quiet: int = 0) -> Observed:
    """`quiet` pods are there of which the scheduler has said nothing yet."""
    pods = gang(placed, homeless, attempt=attempt, phase="Pending")
    pods += tuple(pod(placed + homeless + n, attempt=attempt) for n in range(quiet))
    state = status(Phase.Pending if attempt == 1 else Phase.Restarting, attempt, free=attempt - 1)
    state = state.model_copy(update={"nodes": nodes})
    return elastic(state, children=(child(attempt, nodes=nodes),), pods=pods)


def running(nodes: int = 2, *, resized: int | None = 1, **fields: Any) -> Observed:
    """Attempt 2, with fewer nodes than wanted, since NOW."""
    up = Condition(
        type="Running", status="True", reason="GangRunning", message="-", last_transition_time=rfc3339(NOW)
    )  # fmt: skip
    state = FineTuneJobStatus(
        phase=Phase.Running, attempt=2, nodes=nodes, conditions=(up,), restarts=Restarts(resized=resized)
    )  # fmt: skip
    return elastic(state, children=(child(2, nodes=nodes),), pods=gang(nodes, attempt=2), **fields)


def probe(attempt: int = 2, **fields: Any) -> ChildJob:
    known = {"name": f"a-{attempt}-probe", "job_uid": "", "nodes": 2, "created": later(GROW)}
    return child(0, probe=names.probe_of("u", attempt), **known | fields)


def probe_pods(placed: int, waiting: int = 0, *, attempt: int = 2, at: float = GROW) -> tuple[Pod, ...]:
    of = {"probe": names.probe_of("u", attempt), "job_uid": ""}
    there = [pod(n, "Running", 0, node=f"m{n}", scheduled=later(at), **of) for n in range(placed)]
    return (*there, *(pod(placed + n, attempt=0, unschedulable=NO_NODE, **of) for n in range(waiting)))


def next_nodes(decision: Decision, before: Observed) -> int | None:
    """Of the attempt that was decided on; None if the present one goes on."""
    return decision.status.nodes if decision.status.attempt == before.attempt + 1 else None


# fewer

FEWER = [
    ("all have a node", starting(1, 4, 0), 601, 4, "StartupDeadline"),
    ("some lack one, in time", starting(1, 2, 2), 599, None, ""),
    ("some lack one when the time is over", starting(1, 2, 2), 601, 2, "ScaledDown"),
    ("the first attempt does not hurry", starting(1, 3, 1), SHORT + 1, None, ""),
    ("one that follows another does", starting(2, 3, 1), SHORT + 1, 3, "ScaledDown"),
    ("not before a minute is over", starting(2, 3, 1), SHORT - 1, None, ""),
    ("not while the scheduler has said nothing", starting(2, 3, 0, quiet=1), SHORT + 1, None, ""),
    ("but then it is late, too", starting(2, 3, 0, quiet=1), 601, 3, "ScaledDown"),
    ("pods that a quota refuses", starting(2, 3, 0), SHORT + 1, 3, "ScaledDown"),
    ("none has a node", starting(1, 0, 4), 601, 4, "StartupDeadline"),
    ("at the least there is no less", starting(2, 0, 1, nodes=1), 601, 1, "StartupDeadline"),
]


@pytest.mark.parametrize(("before", "after", "nodes", "reason"), [c[1:] for c in FEWER], ids=[c[0] for c in FEWER])
def test_short_of_nodes(before: Observed, after: float, nodes: int | None, reason: str) -> None:
    decision = decide(before, later(after))
    assert next_nodes(decision, before) == nodes
    if nodes is not None:
        assert decision.status.phase is Phase.Restarting
        told = find(decision.status, "Running")
        assert told is not None
        assert reason in (told.reason, decision.status.last_failure and decision.status.last_failure.reason)


def test_it_wakes_up_when_the_others_had_their_time() -> None:
    assert decide(starting(2, 3, 1), later(SHORT - 20)).look_again_in == pytest.approx(20)
    assert decide(starting(1, 3, 1), later(590)).look_again_in == pytest.approx(10)


def test_fewer_nodes_cost_no_restart_and_the_story_is_told() -> None:
    told = LastFailure(failure_class=FailureClass.Infrastructure, reason="Unschedulable", attempt=1)
    before = starting(1, 2, 2)
    state = before.status.model_copy(update={"last_failure": told})
    decision = decide(elastic(state, children=before.children, pods=before.pods), later(601))
    assert decision.status.restarts == Restarts(resized=1)
    assert decision.status.last_failure is None, "it waited, and did not fail"
    assert [each.name for each in decision.delete] == ["a-1"]
    (event,) = decision.events
    assert (event.reason, event.type) == (Reason.ScaledDown, "Warning")
    assert event.message == (
        f"Attempt 1 found nodes for 2 of 4 pods; attempt 2 restarts with 2 (the scheduler: {NO_NODE})"
    )


def test_the_next_attempt_is_made_at_once_with_so_many_pods() -> None:
    old = LastFailure(failure_class=FailureClass.Infrastructure, reason="NodeLost", attempt=1, time=rfc3339(NOW))
    state = FineTuneJobStatus(
        phase=Phase.Restarting, attempt=3, nodes=2, restarts=Restarts(counted=9, resized=1), last_failure=old
    )  # fmt: skip
    _, made = decide(elastic(state), later(1)).create
    assert (made.body["spec"]["completions"], made.body["spec"]["parallelism"]) == (2, 2)
    plan = made.body["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN]
    read = RunPlan.model_validate_json(plan)
    assert (read.nodes, read.world_size, read.spec_of_attempt.nodes) == (2, 2, 2)
    assert read.spec.max_nodes == 4


def test_at_first_it_has_all() -> None:
    decision = decide(elastic(FineTuneJobStatus()), NOW)
    assert decision.status.nodes == 4
    assert decision.create[1].body["spec"]["completions"] == 4


def test_a_failure_changes_no_size() -> None:
    before = running(2, resized=1)
    broken = elastic(
        before.status, children=before.children, pods=(gang(1, attempt=2)[0], failed_pod(1, Reason.PeerLost, attempt=2))
    )
    decision = decide(broken, later(20))
    assert (next_nodes(decision, before), decision.status.restarts) == (2, Restarts(counted=1, resized=1))


@pytest.mark.parametrize(("known", "expected"), [(None, 4), (2, 2), (9, 4), (0, 4)])
def test_the_size_is_within_the_range(known: int | None, expected: int) -> None:
    assert size(spec(**ELASTIC), FineTuneJobStatus(nodes=known)) == expected


# more


def test_a_probe_is_made_when_the_attempt_has_run_for_a_while() -> None:
    early = decide(running(), later(GROW - 30))
    assert (early.probe, early.look_again_in) == (None, pytest.approx(30))
    due = decide(running(), later(GROW))
    assert due.probe is not None
    assert (due.probe.resource, due.probe.body["metadata"]["name"]) == (JOBS, "a-2-probe")
    assert due.probe.body["spec"]["parallelism"] == 2
    assert (due.status.attempt, due.status.phase, due.delete) == (2, Phase.Running, ())


PAUSES = [(None, GROW), (1, GROW), (2, GROW), (3, 2 * GROW), (5, 4 * GROW), (9, 3600.0), (500, 3600.0)]


@pytest.mark.parametrize(("resized", "pause"), PAUSES)
def test_each_change_makes_the_next_one_later(resized: int | None, pause: float) -> None:
    before = running(resized=resized)
    assert decide(before, later(pause - 1)).probe is None
    assert decide(before, later(pause)).probe is not None


ENDING = ProgressReport(attempt=2, phase="training", progress=Progress(eta_seconds=60))

NO_PROBE: list[tuple[str, Observed, float]] = [
    ("all nodes are there", running(4), GROW),
    ("it ends soon", running(report=ENDING), GROW),
    ("one is there already", running(probes=(probe(),), probe_pods=probe_pods(0, 2)), 99 * GROW),
    ("the last one is being deleted", running(probes=(probe(1, deleting=True),)), GROW),
    ("the API server has just refused one", running(probe_refused=later(GROW)), 2 * GROW - 1),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [c[1:] for c in NO_PROBE], ids=[c[0] for c in NO_PROBE])
def test_no_probe_is_made(before: Observed, after: float) -> None:
    decision = decide(before, later(after))
    assert decision.probe is None
    assert decision.delete == ()


GROWTH = [
    ("no place yet", 0, 2, GROW + 60, None),
    ("place for all", 2, 0, GROW + 1, 4),
    ("place for one, and perhaps more", 1, 1, GROW + 1, None),
    ("place for one", 1, 1, GROW + SETTLE.total_seconds(), 3),
    ("a place that is not kept any more", 2, 0, GROW + KEPT.total_seconds(), None),
]


@pytest.mark.parametrize(
    ("placed", "waiting", "after", "nodes"), [c[1:] for c in GROWTH], ids=[c[0] for c in GROWTH]
)  # fmt: skip
def test_it_grows(placed: int, waiting: int, after: float, nodes: int | None) -> None:
    before = running(probes=(probe(),), probe_pods=probe_pods(placed, waiting))
    decision = decide(before, later(after))
    assert next_nodes(decision, before) == nodes
    if nodes is not None:
        assert decision.status.restarts == Restarts(resized=2)
        (event,) = decision.events
        assert (event.reason, event.type) == (Reason.ScaledUp, "Normal")
        assert [each.name for each in decision.delete] == ["a-2"], "the probe keeps the place meanwhile"


def test_it_waits_for_more_places_by_a_wake_up() -> None:
    before = running(probes=(probe(),), probe_pods=probe_pods(1, 1))
    assert decide(before, later(GROW + 4)).look_again_in == pytest.approx(SETTLE.total_seconds() - 4)


def test_a_failure_takes_the_place_that_was_found() -> None:
    before = running(probes=(probe(),), probe_pods=probe_pods(1, 1))
    broken = elastic(
        before.status, children=before.children, probes=before.probes, probe_pods=before.probe_pods,
        pods=(gang(1, attempt=2)[0], failed_pod(1, Reason.UnexpectedError, attempt=2)),
    )  # fmt: skip
    assert next_nodes(decide(broken, later(GROW + 1)), before) == 3


def grows(children: tuple[ChildJob, ...], pods: tuple[Pod, ...] = ()) -> Observed:
    state = FineTuneJobStatus(phase=Phase.Restarting, attempt=3, nodes=4, restarts=Restarts(resized=2))
    return elastic(state, children=children, pods=pods, probes=(probe(),), probe_pods=probe_pods(2))


def test_the_probe_gives_its_place_to_the_new_gang() -> None:
    ending = decide(grows((child(2, nodes=2, deleting=True),), gang(2, attempt=2)), later(GROW + 5))
    assert ending.delete == ()
    assert ending.create == ()
    ended = decide(grows(()), later(GROW + 9))
    assert [each.name for each in ended.delete] == ["a-2-probe"]
    assert ended.create[1].body["spec"]["completions"] == 4
    assert ended.alone


OF_NO_USE = [
    ("the gang has been made", grows((child(3, nodes=4),)), ["a-2-probe"]),
    ("the job is suspended", elastic(status(Phase.Suspended, 2), probes=(probe(),)), ["a-2-probe"]),
    ("the job has ended", elastic(status(Phase.Succeeded, 2), probes=(probe(),)), ["a-2-probe"]),
    ("it was made for another attempt", running(probes=(probe(1), probe())), ["a-1-probe"]),
    ("the attempt has all", running(4, probes=(probe(),)), ["a-2-probe"]),
    ("it has ended long ago", running(probes=(probe(finished=True, created=NOW),)), ["a-2-probe"]),
]


@pytest.mark.parametrize(("before", "gone"), [c[1:] for c in OF_NO_USE], ids=[c[0] for c in OF_NO_USE])
def test_a_probe_of_no_use_goes(before: Observed, gone: list[str]) -> None:
    assert [each.name for each in decide(before, later(2 * GROW)).delete if each.probe] == gone


def test_a_probe_that_cannot_run_is_not_made_again_at_once() -> None:
    failed = running(probes=(probe(finished=True, failing=True),))
    decision = decide(failed, later(GROW + 5))
    assert (decision.delete, decision.probe) == ((), None)
    assert decision.look_again_in == pytest.approx(GROW - 5)


def test_a_probe_asks_for_what_a_pod_of_the_gang_needs_and_does_nothing() -> None:
    made = spec(
        nodes={"min": 1, "max": 4},
        resources={"limits": {"nvidia.com/gpu": 8}},
        pod={"node_selector": {"pool": "gpu"}, "priority_class_name": "low", "labels": {"team": "a"}},
    )
    body = probe_job(job(), made, attempt=2, pods=2, defaults=DEFAULTS, seconds=180)
    template = body["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert (template["spec"]["nodeSelector"], template["spec"]["priorityClassName"]) == ({"pool": "gpu"}, "low")
    assert (container["name"], container["command"]) == ("probe", ["sleep", "180"])
    assert not container.keys() & {"env", "envFrom", "volumeMounts", "ports"}
    labels = template["metadata"]["labels"]
    assert labels["team"] == "a"
    assert names.LABEL_UID not in labels, "what counts pods of a gang must not see it"
    assert names.LABEL_ATTEMPT not in labels


def test_a_number_is_no_range() -> None:
    fixed = seen(job(status(Phase.Pending)), children=(child(),), pods=gang(1, 1, phase="Pending"))
    decision = decide(fixed, later(3600))
    assert decision.status.last_failure is not None
    assert (decision.status.last_failure.reason, decision.status.nodes) == ("StartupDeadline", 2)


def test_a_range_upside_down_is_told() -> None:
    from finetune_operator.state.observe import read_spec

    wrong = job(raw_spec=SPEC | {"nodes": {"min": 4, "max": 2}})
    _, problem = read_spec(wrong, thoroughly=True)
    assert "raise max, or lower min" in problem
