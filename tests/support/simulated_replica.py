"""A replica of the real operator in virtual time, less HTTP and kopf, on the API server in memory."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from finetune_api.plan import ProgressReport
from finetune_operator.apply import Applier
from finetune_operator.dispatch import Dispatcher
from finetune_operator.inquiries.job_events import JobEvents
from finetune_operator.inquiries.kueue_admission import KueueAdmission
from finetune_operator.inquiries.pod_events import PodEvents
from finetune_operator.inquiries.progress_poller import Poller
from finetune_operator.kube.client import ApiError
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, Key
from finetune_operator.metrics import Counters
from finetune_operator.reconciler import Reconciler, record_transition
from finetune_operator.state.cache import Cache
from finetune_operator.state.namespace_sync import WatchedNamespaces
from finetune_operator.state.observe import Defaults
from finetune_operator.state.pod_reports import MalformedReport
from tests.support.simulated_api import Api, ChaosClient, Watch, drive
from tests.support.simulated_cluster import STEP, Cluster, at


class VirtualQueue:
    """Keys and when to look at them."""

    def __init__(self, api: Api) -> None:
        self.api, self.due, self.tries = api, dict[Key, float](), dict[Key, int]()

    def add(self, key: Key, *, urgent: bool = False) -> None:  # noqa: ARG002
        self.due[key] = self.api.now

    def add_after(self, key: Key, seconds: float) -> None:
        self.due[key] = min(self.due.get(key, float("inf")), self.api.now + seconds)

    def take(self) -> list[Key]:
        ready = [key for key, when in self.due.items() if when <= self.api.now]
        for key in ready:
            del self.due[key]
        return ready


@dataclass
class Replica:
    api: Api
    cluster: Cluster
    leads: bool = False
    frozen: bool = False
    hears: bool = True
    looks: int = 0

    def __post_init__(self) -> None:
        self.client = ChaosClient(self.api)
        self.cache, self.queue, scope = Cache(), VirtualQueue(self.api), WatchedNamespaces(())
        self.dispatch = Dispatcher(cache=self.cache, queue=self.queue, scope=scope)  # type: ignore[arg-type]
        self.poller = Poller(self.cache, news=self.dispatch.news, clock=self._now, now=self._time)
        inquiries = (KueueAdmission, JobEvents, PodEvents)
        self.reconciler = Reconciler(
            client=self.client,
            applier=Applier(self.client, self.cache, self._time, partial(record_transition, Counters())),
            dispatch=self.dispatch,
            inquiries=tuple(make(self.client, self.cache, clock=self._now) for make in inquiries),
            poller=self.poller,
            defaults=Defaults(),
            now=self._time,
        )
        for resource in (FINETUNEJOBS, JOBS, PODS):
            scope.listed(resource, None, term=scope.term)
        self.watches = [Watch(self.api, self.cache, resource) for resource in (FINETUNEJOBS, JOBS, PODS)]

    def _now(self) -> float:
        return self.api.now

    def _time(self) -> datetime:
        return at(self.api.now)

    @property
    def well(self) -> bool:
        """It leads, and hears all from the API server."""
        hears = not self.client.cut and not any(watch.delay or watch.broken for watch in self.watches)
        return self.leads and not self.frozen and hears

    def lead(self, leads: bool) -> None:
        """A new leader lists everything first; one whose term is over forgets what it heard."""
        if leads == self.leads:
            return
        self.leads = self.dispatch.acting = self.client.leads = leads
        if leads:
            for watch in self.watches:
                watch.broken = True
            for job in self.cache.jobs:
                self.queue.add(job.owner)
        else:
            self.queue.due.clear()
            self.poller.follow_nobody()

    def step(self) -> None:
        if self.frozen:
            return
        if not self.client.cut:
            for watch in self.watches:
                for key in watch.tell():
                    self.dispatch.news(key)
        if not self.leads:
            return
        for job in list(self.cache.jobs):
            if job.owner not in self.queue.due and self.api.now % 600 < STEP:
                self.queue.add(job.owner)  # the resync
        for key in self.queue.take():
            self.looks += 1
            try:
                drive(self.reconciler.reconcile(key))
            except ApiError:
                self.queue.add_after(key, 10)
        self._ask()

    def _ask(self) -> None:
        for key, target in self.poller.due():
            drive(self.poller._ask(None, _Open(), key, target))  # type: ignore[arg-type]

    async def fetch(self, _: Any, url: str, asked: Any, *__: Any) -> ProgressReport | None:
        job = f"j{url.split('.')[1]}"
        if not self.hears or job in self.cluster.deaf or asked.attempt not in self.cluster.alive(job):
            return None
        if job in self.cluster.lying:
            raise MalformedReport(self.cluster.lying[job])
        return ProgressReport(attempt=asked.attempt, phase="training")


class _Open:
    """A gate that lets everybody through."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...
