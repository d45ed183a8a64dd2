"""Whose an object is, and what the API server says when it is asked directly: labels go, copies are adopted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.status import Phase
from finetune_operator.decide import decide
from finetune_operator.inquiries.live_read import CONTROLLER_UID, confirm
from finetune_operator.kube.client import Listing, NotFound
from finetune_operator.kube.resources import JOBS, PODS, Key, Raw, Resource
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import Observed, observe
from finetune_operator.state.parsing import view_child_job, view_pod
from finetune_operator.state.status import rfc3339
from tests.support.operator_objects import (
    DEFAULTS,
    NOW,
    later,
    raw_child,
    raw_job,
    raw_pod,
    status,
    terminated,
    words,
)

KEY = ("ml", "a")


def changed(raw: Raw, **meta: Any) -> Raw:
    return raw | {"metadata": {**raw["metadata"], **meta}}


def test_a_jobs_owner_decides_whose_it_is() -> None:
    view = view_child_job(raw_child(labels=False))
    assert (view.owner, view.job_uid, view.attempt, view.unwatched) == (KEY, "u", 1, True)
    assert view_child_job(raw_child(owner="other")).job_uid == "other"
    copied = changed(raw_child(), ownerReferences=[{"kind": "CronJob", "name": "x", "uid": "x", "controller": True}])
    assert view_child_job(copied).job_uid == ""
    adopted = view_child_job(changed(raw_child(), ownerReferences=[]))
    assert adopted.job_uid == "u", "without its owner reference it is still the Job of that name"
    assert view_child_job(changed(raw_child(), ownerReferences=[], name="a-copy")).job_uid == ""


def test_a_pods_owner_decides_whose_it_is() -> None:
    bare = view_pod(changed(raw_pod(), labels={}) | {"spec": {"hostname": "a-1-3"}})
    assert (bare.owner, bare.attempt, bare.index, bare.controller, bare.unwatched) == (KEY, 1, 3, "c1", True)
    forged = changed(raw_pod(), labels={**raw_pod()["metadata"]["labels"], names.LABEL_ATTEMPT: "7"})
    assert view_pod(forged).attempt == 1


def test_a_copy_for_debugging_ends_no_gang() -> None:
    cache = Cache()
    cache.jobs.put(raw_job(status=status(Phase.Running).to_json()))
    cache.feed(JOBS, None, raw_child())
    cache.feed(PODS, None, raw_pod(uid="real"))
    copy = changed(raw_pod(2, uid="copy"), name="debugger", ownerReferences=[])
    cache.feed(PODS, None, terminated(copy, 1, phase="Failed"))
    found = observe(cache, KEY, DEFAULTS)
    assert found is not None
    assert [each.uid for each in found.pods] == ["real"]
    assert decide(found, NOW).status.attempt == 1


def test_a_copy_that_the_job_controller_adopts_ends_no_gang() -> None:
    """It has all the labels, so it gets an owner; without an index it counts for nothing there, and goes."""
    cache = Cache()
    cache.jobs.put(raw_job(status=status(Phase.Running).to_json()))
    cache.feed(JOBS, None, raw_child())
    cache.feed(PODS, None, raw_pod(uid="real"))
    copy = terminated(changed(raw_pod(2, uid="copy"), name="copy", annotations={}), 1, phase="Failed")
    cache.feed(PODS, None, copy)
    found = observe(cache, KEY, DEFAULTS)
    assert found is not None
    assert [each.uid for each in found.pods] == ["real"]
    cache.feed(PODS, "DELETED", changed(copy, resourceVersion="3"))
    assert not cache.notes
    assert decide(found, NOW).status.attempt == 1


def test_a_pod_that_lost_its_job_is_none_of_the_gang_and_is_waited_for() -> None:
    orphan = changed(raw_pod(), ownerReferences=[], generateName="a-1-0-")
    cache = Cache()
    cache.jobs.put(raw_job(status=status(Phase.Restarting, 2, counted=1).to_json()))
    cache.feed(PODS, None, orphan)
    found = observe(cache, KEY, DEFAULTS)
    assert found is not None
    assert found.gang == ()
    assert not decide(found, later(9999)).create


class Server:
    """What there is, by name and by the label that the Job controller writes."""

    def __init__(self, *, jobs: tuple[Raw, ...] = (), pods: tuple[Raw, ...] = ()) -> None:
        self.jobs, self.pods, self.asked = jobs, pods, list[str]()

    async def get(self, resource: Resource, key: Key) -> Raw:
        assert resource is JOBS
        for raw in self.jobs:
            if raw["metadata"]["name"] == key[1]:
                return raw
        raise NotFound(key[1])

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = "") -> Listing:
        assert (resource, namespace, fields) == (PODS, "ml", "")
        self.asked.append(selector)
        return Listing(list(self.pods), "50")


def ask(cache: Cache, server: Server) -> Observed:
    found = observe(cache, KEY, DEFAULTS)
    assert found is not None
    waiting = confirm(server, cache, found)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        waiting.send(None)  # nothing in it waits
    after = observe(cache, KEY, DEFAULTS)
    assert after is not None
    return replace(after, confirmed=True)


def running() -> Cache:
    cache = Cache()
    cache.jobs.put(raw_job(status=status(Phase.Running).to_json()))
    cache.feed(JOBS, "ADDED", raw_child(1))
    for index in range(2):
        cache.feed(PODS, "ADDED", raw_pod(2 + index, uid=f"p{index}", index=index))
    return cache


PODS_OF_A = tuple(raw_pod(2 + index, uid=f"p{index}", index=index) for index in range(2))


class Racing(Server):
    """The Job's label is taken off, and a watch says so, while its pods are listed: a GET from before tells nothing."""

    def __init__(self, cache: Cache, *, told: int, pods: tuple[Raw, ...]) -> None:
        super().__init__(jobs=(raw_child(1),), pods=pods)
        self.cache, self.told = cache, told

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = "") -> Listing:
        if not self.asked:
            bare = changed(raw_child(self.told), labels={})
            self.jobs = (bare,)
            self.cache.feed(JOBS, "DELETED", raw_child(self.told))
        return await super().list(resource, namespace, selector=selector, fields=fields)


@pytest.mark.parametrize("told", [1, 7])
def test_a_label_that_goes_while_the_api_server_is_asked_ends_no_attempt(told: int) -> None:
    """`told`: the Job's version without it, which the GET may have seen already."""
    cache = running()
    after = ask(cache, Racing(cache, told=told, pods=PODS_OF_A))
    assert (after.child is not None, len(after.gang)) == (True, 2)
    assert decide(after, NOW).status.attempt == 1


def test_a_job_that_lost_its_label_is_found_by_its_name_and_goes_on() -> None:
    cache = running()
    cache.feed(JOBS, "DELETED", raw_child(7))
    assert decide(observe(cache, KEY, DEFAULTS), NOW).confirm  # type: ignore[arg-type]
    server = Server(jobs=(raw_child(7, labels=False),), pods=PODS_OF_A)
    after = ask(cache, server)
    assert server.asked == [f"{CONTROLLER_UID}=c1"]
    assert (decide(after, NOW).status.phase, after.unwatched) == (Phase.Running, True)


def test_pods_that_lost_their_labels_are_found_by_their_job() -> None:
    cache = running()
    bare = tuple(changed(raw, labels={}, resourceVersion="8") | {"spec": {"hostname": f"a-1-{index}"}}
                 for index, raw in enumerate(PODS_OF_A))  # fmt: skip
    for raw in PODS_OF_A:
        cache.feed(PODS, "DELETED", changed(raw, resourceVersion="8"))
    after = ask(cache, Server(jobs=(raw_child(1),), pods=bare))
    assert [each.index for each in after.gang] == [0, 1]


def test_what_is_not_there_is_gone() -> None:
    after = ask(running(), Server())
    assert (after.child, after.gang) == (None, ())


def test_a_job_of_the_same_name_that_is_not_ours_is_none() -> None:
    cache = running()
    after = ask(cache, Server(jobs=(raw_child(9, uid="other", owner="somebody"),), pods=()))
    assert after.child is None


def test_culprit_and_class_come_from_the_pods_that_are_asked_for() -> None:
    """The Job's failure was seen, its pods' was not: their watch is a minute behind."""
    cache = running()
    failing = {"conditions": [{"type": "FailureTarget", "status": "True", "lastTransitionTime": rfc3339(NOW)}]}
    cache.feed(JOBS, "MODIFIED", raw_child(9) | {"status": failing})
    last = words(Reason.DataEmpty, rank=1)
    state = {"terminated": {"exitCode": last.exit_code, "message": last.encode()}}
    told = {"phase": "Failed", "containerStatuses": [{"name": names.CONTAINER, "state": state}]}
    pods = (PODS_OF_A[0], changed(PODS_OF_A[1], resourceVersion="8") | {"status": told})
    after = decide(ask(cache, Server(jobs=(raw_child(9) | {"status": failing},), pods=pods)), NOW).status
    assert after.last_failure is not None
    assert (after.phase, after.last_failure.reason, after.last_failure.rank) == (Phase.Failed, "DataEmpty", 1)
