"""The operator as a whole: its parts, composed once there is a connection.

watches → cache_sync → dispatch → queue → workers → reconciler → API server
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial

import aiohttp

from .apply import Applier
from .cache_sync import CacheSync
from .dispatch import Dispatcher
from .health import Guard
from .health_checks import HealthChecks
from .inquiries.job_events import JobEvents
from .inquiries.kueue_admission import KueueAdmission
from .inquiries.pod_events import PodEvents
from .inquiries.progress_poller import Poller
from .kube.client import Client, HttpClient
from .kube.connection import Connection
from .kube.kopf_watch import Watcher
from .kube.leader import Election, Fenced, Leader
from .kube.reflector import Reflector
from .kube.resources import CHILDREN, Key
from .kube.workqueue import WorkQueue
from .metrics import Counters, State
from .reconciler import Reconciler, record_transition
from .state.cache import Cache
from .state.namespace_sync import WatchedNamespaces
from .state.observe import Defaults
from .workers import Workers


@dataclass(frozen=True, kw_only=True)
class Options:
    namespaces: tuple[str, ...] = ()
    """Empty: all."""
    defaults: Defaults = field(default_factory=Defaults)
    listen: str = ""
    """`host:port` of /metrics and the probes; empty: none."""
    guard: Guard = field(default_factory=Guard)
    workers: int = 32
    election: Election | None = None
    """None: this is the only replica."""


class Service:
    """One operator. `wrap` may put something around its client: tests count and break writes there."""

    def __init__(
        self, connection: Connection, options: Options, *, wrap: Callable[[Client], Client] = lambda client: client
    ) -> None:
        self.options = options
        self.cache = Cache()
        self.counters = Counters()
        self.synced = asyncio.Event()
        self._queue: WorkQueue[Key] = WorkQueue()
        self._scope = WatchedNamespaces(options.namespaces)
        self._dispatch = Dispatcher(cache=self.cache, queue=self._queue, scope=self._scope)
        self._connection = connection
        self._wrap = wrap

    @property
    def acting(self) -> bool:
        """This replica is the one that decides about jobs."""
        return self._dispatch.acting

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. A look that is under way is finished; the rest is decided again after the next start."""
        async with self._connection.session(self.counters.request) as session:
            server = HttpClient(session, self._connection.server)
            sync = CacheSync(
                server=server, cache=self.cache, scope=self._scope, dispatch=self._dispatch, synced=self.synced
            )
            watcher = Watcher(
                self._connection, self.options.namespaces, fed=sync.fed, listed=sync.listed, seen=self.counters.request
            )
            self.counters.registry.register(State(self.cache, self._queue, watcher, lambda: self.acting))
            async with self._vitals(watcher).shown():
                stopped = asyncio.create_task(stop.wait())
                try:
                    if await sync.crd_installed(stopped):
                        await sync.discover()
                        await self._run(stopped, session, server, sync, watcher)
                finally:
                    stopped.cancel()

    async def _run(
        self,
        stopped: asyncio.Task[bool],
        session: aiohttp.ClientSession,
        server: HttpClient,
        sync: CacheSync,
        watcher: Watcher,
    ) -> None:
        poller = Poller(self.cache, news=self._dispatch.news, now=self._connection.clock.now)
        reflector = Reflector(stream=server, listed=sync.resync, fed=sync.fed, heard=watcher.heard)
        children = [(resource, namespace) for resource in CHILDREN for namespace in self._scope.namespaces]
        acting = self._acting(session, server, sync, poller)
        watcher.start()
        tasks = [asyncio.create_task(each) for each in (acting, reflector.run(children), poller.run(), sync.run())]
        try:
            done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()
        finally:
            await watcher.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _acting(
        self, session: aiohttp.ClientSession, server: HttpClient, sync: CacheSync, poller: Poller
    ) -> Coroutine[None, None, None]:
        """The workers, and around them the election, where there is one."""
        client, election = self._wrap(server), self.options.election
        if election is None:
            return self._workers(client, sync, poller).run()
        leader = Leader(HttpClient(session, self._connection.server, patient=False), election)
        return leader.run(self._workers(Fenced(client, leader), sync, poller).run)

    def _workers(self, client: Client, sync: CacheSync, poller: Poller) -> Workers:
        now = self._connection.clock.now
        reconciler = Reconciler(
            client=client,
            applier=Applier(client, self.cache, now, partial(record_transition, self.counters)),
            dispatch=self._dispatch,
            inquiries=(
                KueueAdmission(client, self.cache),
                JobEvents(client, self.cache),
                PodEvents(client, self.cache),
            ),
            poller=poller,
            defaults=self.options.defaults,
            now=now,
        )
        return Workers(
            reconciler=reconciler,
            dispatch=self._dispatch,
            sync=sync,
            poller=poller,
            counters=self.counters,
            count=self.options.workers,
            elected=self.options.election is not None,
        )

    def _vitals(self, watcher: Watcher) -> HealthChecks:
        return HealthChecks(
            listen=self.options.listen,
            guard=self.options.guard,
            registry=self.counters.registry,
            watcher=watcher,
            scope=self._scope,
            queue=self._queue,
            synced=self.synced,
        )
