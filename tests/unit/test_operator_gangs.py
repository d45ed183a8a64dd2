"""Which way a gang is scheduled, what its pods and its group say, and when the group is made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_api.status import Phase
from finetune_operator.client import NotFound
from finetune_operator.decide import decide
from finetune_operator.gangs import GANGS, known_to
from finetune_operator.objects import attempt_job
from finetune_operator.observe import Observed
from finetune_operator.offers import Offers, look
from finetune_operator.resources import JOBS, Raw
from finetune_operator.status import find
from tests.unit.operator_world import DEFAULTS, NOW, child, job, pod, seen, spec, status

ALL = Offers(groups={name: gang.kinds[0] for name, gang in GANGS.items()})
PENDING = status(Phase.Pending)


@pytest.mark.parametrize(
    ("scheduler", "gang"),
    [
        (None, "native"),
        ("default-scheduler", "native"),
        ("volcano", "volcano"),
        ("coscheduling", "coscheduling"),
        ("scheduler-plugins-scheduler", "coscheduling"),
        ("kai-scheduler", None),
    ],
)
def test_the_scheduler_chooses(scheduler: str | None, gang: str | None) -> None:
    found = known_to(spec(pod={"scheduler_name": scheduler}))
    assert (found.name if found else None) == gang


MARKS: list[tuple[str, list[str], Any]] = [
    ("native", ["spec", "schedulingGroup"], {"podGroupName": "a-1"}),
    ("volcano", ["metadata", "annotations", "scheduling.k8s.io/group-name"], "a-1"),
    ("coscheduling", ["metadata", "labels", "scheduling.x-k8s.io/pod-group"], "a-1"),
]


@pytest.mark.parametrize(("name", "path", "says"), MARKS)
def test_pods_name_their_group_and_the_job_its_way(name: str, path: list[str], says: Any) -> None:
    made = attempt_job(job(), spec(), attempt=1, defaults=DEFAULTS, gang=GANGS[name])
    found: Any = made["spec"]["template"]
    for step in path:
        found = found[step]
    assert found == says
    assert made["metadata"]["annotations"]["finetune.dev/gang"] == name


def test_every_way_has_a_kind_and_schedulers_of_its_own() -> None:
    kinds = [kind for gang in GANGS.values() for kind in gang.kinds]
    schedulers = [scheduler for gang in GANGS.values() for scheduler in gang.schedulers]
    assert len({(kind.group, kind.version) for kind in kinds}) == len(kinds)
    assert len(set(schedulers)) == len(schedulers)


def test_the_group_follows_the_job_and_is_made_once() -> None:
    first = decide(seen(job(), offers=ALL), NOW)
    assert first.create[-1].resource is JOBS
    assert first.look_again_in == 0.0
    told = find(first.status, "GangScheduled")
    assert told is not None
    assert (told.status, told.reason) == ("True", "Grouped")

    made = seen(job(first.status), children=(child(gang="native"),), offers=ALL)
    group = decide(made, NOW)
    assert group.status == first.status
    (create,) = group.create
    assert create.resource == GANGS["native"].kinds[0]
    assert create.body["spec"] == {"schedulingPolicy": {"gang": {"minCount": 2}}}
    assert create.body["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "a-1", "uid": "c1"}
    ]
    known = seen(job(first.status), children=(child(gang="native"),), offers=ALL, grouped=True)
    assert not decide(known, NOW).create


def test_an_elastic_gang_starts_with_the_fewest() -> None:
    given = seen(job(PENDING), children=(child(gang="volcano", nodes=4),), offers=ALL,
                 spec=spec(nodes={"min": 3, "max": 4}))  # fmt: skip
    (create,) = decide(given, NOW).create
    assert create.body["spec"] == {"minMember": 3}


UNGROUPED: list[tuple[str, Observed]] = [
    ("one by one", seen(job(PENDING), children=(child(),), offers=ALL)),
    ("held", seen(job(status(Phase.Queued)), children=(child(gang="native", suspended=True),), offers=ALL)),
    ("it runs", seen(job(status(Phase.Running)), children=(child(gang="native"),), offers=ALL,
                     pods=(pod(0, "Running"), pod(1, "Running")))),
    ("the kind is gone", seen(job(PENDING), children=(child(gang="native"),))),
    ("a way that a later version knows", seen(job(PENDING), children=(child(gang="other"),), offers=ALL)),
]  # fmt: skip


@pytest.mark.parametrize("given", [u[1] for u in UNGROUPED], ids=[u[0] for u in UNGROUPED])
def test_no_group_is_made(given: Observed) -> None:
    assert not decide(given, NOW).create


@pytest.mark.parametrize(
    ("scheduler", "offers", "says"),
    [
        (None, Offers(), "no scheduling.k8s.io PodGroup that it may create"),
        ("volcano", Offers(groups={"native": GANGS["native"].kinds[0]}), "no scheduling.volcano.sh PodGroup"),
        ("kai-scheduler", ALL, "as kai-scheduler likes"),
    ],
)
def test_that_pods_are_scheduled_one_by_one_is_told(scheduler: str | None, offers: Offers, says: str) -> None:
    given = spec(pod={"scheduler_name": scheduler})
    decision = decide(seen(job(), offers=offers, spec=given), NOW)
    told = find(decision.status, "GangScheduled")
    assert told is not None
    assert (told.status, told.reason) == ("False", "OneByOne")
    assert says in told.message
    assert "finetune.dev/gang" not in decision.create[-1].body["metadata"]["annotations"]


def test_a_single_pod_is_no_gang() -> None:
    decision = decide(seen(job(), offers=ALL, spec=spec(nodes=1)), NOW)
    assert find(decision.status, "GangScheduled") is None
    assert "finetune.dev/gang" not in decision.create[-1].body["metadata"]["annotations"]


class Server:
    """Serves PodGroups of some groups, and allows some verbs in some namespaces."""

    def __init__(self, served: set[str], allowed: set[tuple[str, str]]) -> None:
        self.served, self.allowed = served, allowed

    async def discover(self, path: str) -> Raw:
        if path.removeprefix("/apis/") not in self.served:
            raise NotFound("no such group")
        return {"resources": [{"name": "podgroups"}]}

    async def ask(self, path: str, body: Raw) -> Raw:
        assert path.endswith("/selfsubjectaccessreviews")
        wanted = body["spec"]["resourceAttributes"]
        return {"status": {"allowed": (wanted.get("namespace", ""), wanted["verb"]) in self.allowed}}


EVERYWHERE = {("", "create"), ("", "get")}


@pytest.mark.parametrize(
    ("served", "allowed", "namespaces", "offered"),
    [
        ({"scheduling.k8s.io/v1alpha2"}, EVERYWHERE, (), {"native": "v1alpha2"}),
        ({"scheduling.k8s.io/v1alpha2", "scheduling.k8s.io/v1beta1"}, EVERYWHERE, (), {"native": "v1beta1"}),
        ({"scheduling.volcano.sh/v1beta1"}, EVERYWHERE, (), {"volcano": "v1beta1"}),
        ({"scheduling.volcano.sh/v1beta1"}, {("", "get")}, (), {}),
        ({"scheduling.x-k8s.io/v1alpha1"}, {("a", "create"), ("a", "get")}, ("a",), {"coscheduling": "v1alpha1"}),
        ({"scheduling.x-k8s.io/v1alpha1"}, {("a", "create"), ("a", "get")}, ("a", "b"), {}),
        (set(), EVERYWHERE, (), {}),
    ],
)
def test_what_is_served_and_allowed_is_offered(
    served: set[str], allowed: set[tuple[str, str]], namespaces: tuple[str, ...], offered: dict[str, str]
) -> None:
    found = asyncio.run(look(Server(served, allowed), namespaces)).groups
    assert {name: kind.version for name, kind in found.items()} == offered
