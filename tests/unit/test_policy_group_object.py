"""When the group object of a gang is created."""

from __future__ import annotations

import pytest

from finetune_api.status import Phase
from finetune_operator.decide import decide
from finetune_operator.gangs import GANGS
from finetune_operator.kube.resources import JOBS
from finetune_operator.state.cluster_features import ClusterFeatures
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import find
from tests.support.operator_objects import NOW, child, job, pod, seen, spec, status

ALL = ClusterFeatures(groups={name: gang.group.kinds[0] for name, gang in GANGS.items() if gang.group})


PENDING = status(Phase.Pending)


def test_the_group_follows_the_job_and_is_made_once() -> None:
    first = decide(seen(job(), features=ALL), NOW)
    assert first.create[-1].resource is JOBS
    assert first.look_again_in == 0.0
    told = find(first.status, "GangScheduled")
    assert told is not None
    assert (told.status, told.reason) == ("True", "Grouped")

    made = seen(job(first.status), children=(child(gang="native"),), features=ALL)
    group = decide(made, NOW)
    assert group.status == first.status
    (create,) = group.create
    assert create.resource == ALL.groups["native"]
    assert create.body["spec"] == {"schedulingPolicy": {"gang": {"minCount": 2}}}
    assert create.body["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "a-1", "uid": "c1"}
    ]
    known = seen(job(first.status), children=(child(gang="native"),), features=ALL, grouped=True)
    assert not decide(known, NOW).create


def test_an_elastic_gang_starts_with_the_fewest() -> None:
    given = seen(job(PENDING), children=(child(gang="volcano", nodes=4),), features=ALL,
                 spec=spec(nodes={"min": 3, "max": 4}))  # fmt: skip
    (create,) = decide(given, NOW).create
    assert create.body["spec"] == {"minMember": 3}


UNGROUPED: list[tuple[str, Observed]] = [
    ("one by one", seen(job(PENDING), children=(child(),), features=ALL)),
    ("held", seen(job(status(Phase.Queued)), children=(child(gang="native", suspended=True),), features=ALL)),
    ("it runs", seen(job(status(Phase.Running)), children=(child(gang="native"),), features=ALL,
                     pods=(pod(0, "Running"), pod(1, "Running")))),
    ("the kind is gone", seen(job(PENDING), children=(child(gang="native"),))),
    ("a way that a later version knows", seen(job(PENDING), children=(child(gang="other"),), features=ALL)),
]  # fmt: skip


@pytest.mark.parametrize("given", [u[1] for u in UNGROUPED], ids=[u[0] for u in UNGROUPED])
def test_no_group_is_made(given: Observed) -> None:
    assert not decide(given, NOW).create
