"""A node on which attempts fail again is avoided for a while, and never so that nothing is left."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.failures import Reason, class_of
from finetune_api.status import LastFailure, Phase
from finetune_operator.decide import decide
from finetune_operator.diagnosis.node_avoidance import Avoided, affinity, after
from finetune_operator.kube.resources import JOBS
from finetune_operator.state.status import rfc3339
from tests.support.operator_objects import child, ended, job, later, pod, seen, spec, status, words

HOUR = 3600
USERS = {"key": "gpu", "operator": "Exists"}


def failure(node: str | None, reason: Reason = Reason.PodFailed) -> LastFailure:
    return LastFailure(failure_class=class_of(reason), reason=reason.value, node=node)


def history(*failures: tuple[float, str | None, Reason], elsewhere: bool = True) -> Avoided:
    known: Avoided = ()
    for at, node, reason in failures:
        known = after(known, failure(node, reason), elsewhere=elsewhere, now=later(at)) or ()
    return known


HISTORIES: list[tuple[str, list[tuple[float, str | None, Reason]], list[tuple[str, int, bool]]]] = [
    ("nobody is to blame", [(0, None, Reason.PodLost)], []),
    ("once", [(0, "n1", Reason.PodFailed)], [("n1", 1, False)]),
    ("twice", [(0, "n1", Reason.PodFailed), (60, "n1", Reason.NoProgress)], [("n1", 2, True)]),
    ("twice, but hours apart", [(0, "n1", Reason.PodFailed), (HOUR + 1, "n1", Reason.PodFailed)], [("n1", 1, False)]),
    ("two nodes", [(0, "n1", Reason.PodFailed), (60, "n2", Reason.UnexpectedError)],
     [("n1", 1, False), ("n2", 1, False)]),
    ("a store that is away is no node's fault", [(0, "n1", Reason.StorageUnavailable)] * 2, []),
    ("nor is memory", [(0, "n1", Reason.OutOfMemory)] * 2, []),
    ("nor an eviction", [(0, "n1", Reason.Evicted)] * 2, []),
    ("nor a victim's", [(0, "n1", Reason.PeerLost)] * 2, []),
]  # fmt: skip


@pytest.mark.parametrize(("failures", "then"), [h[1:] for h in HISTORIES], ids=[h[0] for h in HISTORIES])
def test_who_is_avoided(failures: list[tuple[float, str | None, Reason]], then: list[tuple[str, int, bool]]) -> None:
    assert [(n.name, n.failures, n.until is not None) for n in history(*failures)] == then


def test_avoidance_ends() -> None:
    (node,) = history((0, "n1", Reason.PodFailed), (60, "n1", Reason.PodFailed))
    assert node.until == rfc3339(later(60 + HOUR))
    assert affinity(None, (node,), later(60 + HOUR - 1)) is not None
    assert affinity(None, (node,), later(60 + HOUR)) is None
    assert after((node,), failure(None), elsewhere=True, now=later(60 + HOUR)) is None


def test_with_other_nodes_it_is_forbidden_and_alone_it_is_only_unwelcome() -> None:
    twice: list[tuple[float, str | None, Reason]] = [(0, "n1", Reason.PodFailed), (60, "n1", Reason.PodFailed)]
    forbidden = affinity(None, history(*twice), later(61))
    assert forbidden is not None
    assert forbidden["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}]
    }
    alone = affinity(None, history(*twice, elsewhere=False), later(61))
    assert alone is not None
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in alone["nodeAffinity"]
    assert alone["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"] == 100


def test_the_users_own_affinity_still_holds() -> None:
    given: dict[str, Any] = {
        "podAffinity": {"a": 1},
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [USERS]}, {"matchFields": [USERS]}]
            }
        },
    }
    both = affinity(given, history((0, "n1", Reason.PodFailed), (1, "n1", Reason.PodFailed)), later(2))
    assert both is not None
    assert both["podAffinity"] == {"a": 1}
    first, second = both["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert (first["matchExpressions"], len(first["matchFields"])) == ([USERS], 1)
    assert (second["matchFields"][0], len(second["matchFields"])) == (USERS, 2)


def test_the_third_attempt_keeps_away() -> None:
    before = status(Phase.Running)
    for attempt in (1, 2):
        told = words(Reason.UnexpectedError, rank=1)
        pods = (
            pod(0, "Running", attempt, node="n0"),
            pod(1, "Failed", attempt, node="n1", ended=ended(70, words=told)),
        )
        view = job(before.model_copy(update={"phase": Phase.Running}))
        before = decide(seen(view, children=(child(attempt),), pods=pods), later(attempt)).status
    assert before.avoided_nodes is not None
    assert [(n.name, n.failures, n.required) for n in before.avoided_nodes] == [("n1", 2, True)]
    made = next(c.body for c in decide(seen(job(before), spec=spec()), later(60)).create if c.resource is JOBS)
    assert "n1" in str(made["spec"]["template"]["spec"]["affinity"])
