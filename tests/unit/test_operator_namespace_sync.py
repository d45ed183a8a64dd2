"""A namespace that cannot be listed keeps no other waiting: at the start, when the leader changes, in the probes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_operator.cache_sync import CacheSync
from finetune_operator.dispatch import Dispatcher
from finetune_operator.health import OLDEST_WATCH
from finetune_operator.inquiries.progress_poller import Poller
from finetune_operator.kube.client import Forbidden, Listing
from finetune_operator.kube.resources import WATCHED, Key, Resource
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import Counters
from finetune_operator.state.cache import Cache
from finetune_operator.state.namespace_sync import WatchedNamespaces
from finetune_operator.unexpected_errors import UnexpectedErrors
from finetune_operator.workers import Workers
from tests.support.operator_objects import raw_job, vitals_of

GOOD, BAD = ("ml", "a"), ("closed", "b")


class Server:
    """Lists jobs, except where we have no rights."""

    def __init__(self, *closed: str) -> None:
        self.closed = set(closed)

    async def pages(self, resource: Resource, namespace: str, **_: Any) -> AsyncIterator[Listing]:
        if namespace in self.closed:
            raise Forbidden(f'{resource.plural} is forbidden in "{namespace}"', status=403)
        raw = raw_job(uid=namespace)
        raw["metadata"] |= {"namespace": namespace, "name": dict([GOOD, BAD])[namespace]}
        yield Listing([raw] if resource is WATCHED[0] else [], "1")


class Replica:
    """An operator's parts without a connection; its workers only note which jobs they look at."""

    def __init__(self, server: Server, *, elected: bool = False) -> None:
        self.looked: list[Any] = []
        cache, queue, scope = Cache(), WorkQueue[Key](), WatchedNamespaces(("closed", "ml"))
        dispatch = Dispatcher(cache=cache, queue=queue, scope=scope)
        synced = asyncio.Event()
        self.sync = CacheSync(server=server, cache=cache, scope=scope, dispatch=dispatch, synced=synced)  # type: ignore[arg-type]
        self.vitals = replace(vitals_of(Counters()), scope=scope, queue=queue, synced=synced)
        self.heard = self.vitals.watcher.heard
        self.workers = Workers(
            reconciler=SimpleNamespace(reconcile=self._reconcile, unexpected=UnexpectedErrors()),  # type: ignore[arg-type]
            dispatch=dispatch,
            sync=self.sync,
            poller=Poller(cache, news=dispatch.news),
            counters=Counters(),
            count=2,
            elected=elected,
        )

    async def _reconcile(self, key: Any) -> None:
        self.looked.append(key)


async def seen_by_workers(made: Replica, server: Server) -> tuple[list[Any], list[Any]]:
    """The jobs that are looked at while one namespace is closed, and after it was opened."""
    looked = made.looked
    lists = [asyncio.create_task(made.sync.list_all(namespace)) for namespace in ("closed", "ml")]
    acting = asyncio.create_task(made.workers.run())
    async with asyncio.timeout(60):
        while not looked:
            await asyncio.sleep(0.01)
        before = list(looked)
        assert made.vitals.unready() == ""
        server.closed.clear()
        while len(looked) == len(before):
            await asyncio.sleep(0.01)
    for task in (acting, *lists):
        task.cancel()
    await asyncio.gather(acting, *lists, return_exceptions=True)
    return before, looked[len(before) :]


@pytest.mark.parametrize("elected", [False, True], ids=["alone", "a new leader"])
def test_the_jobs_of_the_other_namespaces_are_looked_after(elected: bool) -> None:
    server = Server("closed")
    before, after = asyncio.run(seen_by_workers(Replica(server, elected=elected), server))
    assert set(before) == {GOOD}
    assert BAD in after


def test_an_operator_that_may_list_nothing_says_so() -> None:
    server = Server("closed", "ml")
    made = Replica(server)
    for namespace in ("closed", "ml"):
        with pytest.raises(Forbidden):
            asyncio.run(made.sync.resync(WATCHED[0], namespace))
    assert made.vitals.unready() == (
        'finetunejobs in closed: finetunejobs is forbidden in "closed"; '
        'finetunejobs in ml: finetunejobs is forbidden in "ml"'
    )


def test_a_restart_helps_a_silent_watch_and_no_refused_one() -> None:
    made = Replica(Server("closed"))
    old = time.monotonic() - OLDEST_WATCH - 1
    made.heard["pods", "closed"] = old
    assert "pods in closed is silent" in made.vitals.unhealthy()
    with pytest.raises(Forbidden):
        asyncio.run(made.sync.resync(WATCHED[2], "closed"))
    assert made.vitals.unhealthy() == ""


def test_a_list_from_before_the_term_does_not_count_in_it() -> None:
    scope = WatchedNamespaces(("ml",))
    begun = scope.term
    scope.forget()
    assert [scope.listed(each, "ml", term=begun) for each in WATCHED] == [False] * 3
    assert not scope.covers(GOOD)
    assert [scope.listed(each, "ml", term=scope.term) for each in WATCHED] == [False, False, True]
    assert scope.covers(GOOD)
    assert not scope.covers(BAD)


def test_all_namespaces_are_in_sync_together() -> None:
    scope = WatchedNamespaces(())
    assert not scope.covers(GOOD)
    for each in WATCHED:
        scope.listed(each, None, term=scope.term)
    assert scope.covers(GOOD)
    assert scope.covers(BAD)


class Reviews(Server):
    """The kinds of gangs are served; rights there are in one namespace alone."""

    async def discover(self, _: str) -> dict[str, Any]:
        return {"resources": [{"name": "podgroups"}, {"name": "workloads"}]}

    async def ask(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"status": {"allowed": body["spec"]["resourceAttributes"].get("namespace") == "ml"}}


def test_a_namespace_without_rights_switches_nothing_off_for_the_others() -> None:
    made = Replica(Reviews("closed"))

    async def begin() -> bool:
        never = asyncio.create_task(asyncio.sleep(60, True))
        try:
            return await made.sync.crd_installed(never)
        finally:
            never.cancel()

    assert asyncio.run(begin())
    asyncio.run(made.sync.discover())
    assert made.sync.cache.features.workloads is not None
    assert made.sync.cache.features.groups
