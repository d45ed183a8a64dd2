"""The operator as a whole: watches feed the cache and the queue, workers observe, decide and apply."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus, LastFailure, Phase

from . import offers, refusals
from .apply import Applier, Refused
from .cache import Cache
from .client import ApiError, Client, Forbidden, HttpClient, NotFound
from .connection import Connection, NotConfigured
from .decide import decide
from .health import OLDEST_KEY, OLDEST_WATCH, serve
from .holds import Holds
from .leader import Election, Fenced, Leader
from .metrics import Counters, State
from .observe import Defaults, Observed, lacks_gang, observe
from .policies.failure import refuse
from .policies.waiting import told
from .preparations import Preparations
from .progress import Poller
from .queue import WorkQueue
from .reflect import Reflector
from .resources import CHILDREN, FINETUNEJOBS, WATCHED, Key, Raw, Resource
from .status import failure_of, terminal
from .troubles import lacks_pods
from .views import JobView
from .watch import Backoff, Watcher

logger = logging.getLogger(__name__)

RESYNC_SECONDS = 600.0
"""Between two comparisons of the whole cache with lists, for whatever a watch may have lost."""

CRD_SECONDS = 5.0
"""Between two looks for the CRD, while it is not installed."""


@dataclass(frozen=True, kw_only=True)
class Options:
    namespaces: tuple[str, ...] = ()
    """Empty: all."""
    defaults: Defaults = field(default_factory=Defaults)
    listen: str = ""
    """`host:port` of /metrics and the probes; empty: none."""
    workers: int = 32
    election: Election | None = None
    """None: this is the only replica."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Service:
    """One operator. `wrap` may put something around its client: tests count and break writes there."""

    def __init__(
        self, connection: Connection, options: Options, *, wrap: Callable[[Client], Client] = lambda client: client
    ) -> None:
        self.options = options
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.counters = Counters()
        self.poller = Poller(self.cache, news=self._news)
        self.synced = asyncio.Event()
        self._resyncs: set[asyncio.Task[None]] = set()
        self.acting = False
        """This replica is the one that looks after jobs."""
        self._connection = connection
        self._wrap = wrap
        self._missing = {(r, n) for r in WATCHED for n in options.namespaces or (None,)}
        self._watcher = Watcher(
            connection, options.namespaces, fed=self._fed, listed=self._listed, seen=self.counters.request
        )
        self.counters.registry.register(State(self.cache, self.queue, self._watcher, lambda: self.acting))

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. What is under way then is finished; what is not is decided anew after the next start."""
        async with self._connection.session(self.counters.request) as session, self._health():
            self._server = HttpClient(session, self._connection.server)
            self._client = self._wrap(self._server)
            if self.options.election is not None:
                hasty = HttpClient(session, self._connection.server, patient=False)
                self._leader = Leader(hasty, self.options.election)
                self._client = Fenced(self._client, self._leader)
            self._applier = Applier(self._client, self.cache, utc_now, self._written)
            self._refusals = refusals.Refusals(self._client, self.cache)
            self._preparations = Preparations(self._client, self.cache)
            self._holds = Holds(self._client, self.cache)
            stopped = asyncio.create_task(stop.wait())
            try:
                if await self._crd_installed(stopped):
                    await self._discover()
                    await self._work(stopped)
            finally:
                stopped.cancel()

    async def _work(self, stopped: asyncio.Task[bool]) -> None:
        self._watcher.start()
        reflector = Reflector(stream=self._server, listed=self.resync, fed=self._fed, heard=self._watcher.heard)
        children = [(resource, n) for resource in CHILDREN for n in self.options.namespaces or (None,)]
        acting = self._act() if self.options.election is None else self._leader.run(self._act)
        endless = (acting, reflector.run(children), self.poller.run(), self._resync_for_ever())
        tasks = [asyncio.create_task(each) for each in endless]
        try:
            done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()
        finally:
            await self._watcher.stop()
            ending = [*tasks, *self._resyncs]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _crd_installed(self, stopped: asyncio.Task[bool]) -> bool:
        """Wait for it; False if told to stop before."""
        while not stopped.done():
            for namespace in self.options.namespaces or (None,):
                try:
                    await anext(self._server.pages(FINETUNEJOBS, namespace, size=1))
                except NotFound:
                    logger.warning("the CRD finetunejobs.finetune.dev is not installed; waiting for it")
                except ApiError as error:
                    logger.warning("the FineTuneJobs cannot be listed yet: %s", error)
                else:
                    return True
            await asyncio.wait([stopped], timeout=CRD_SECONDS * random.uniform(0.8, 1.2))
        return False

    # what the watches bring

    def _fed(self, resource: Resource, kind: str | None, raw: Raw) -> None:
        if key := self.cache.feed(resource, kind, raw):
            self._news(key)

    def _news(self, key: Key) -> None:
        """A replica that stands by keeps its cache, and no queue."""
        if self.acting:
            self.queue.add(key, urgent=lacks_gang(self.cache, key))

    def _listed(self, resource: Resource, namespace: str | None) -> None:
        task = asyncio.get_running_loop().create_task(self._resync_patiently(resource, namespace))
        self._resyncs.add(task)
        task.add_done_callback(self._resyncs.discard)

    async def _resync_patiently(self, resource: Resource, namespace: str | None) -> None:
        for pause in Backoff():
            try:
                await self.resync(resource, namespace)
                return
            except ApiError as error:
                logger.warning("%s could not be listed: %s; again in %.0f s", resource.plural, error, pause)
                await asyncio.sleep(pause)

    async def resync(self, resource: Resource, namespace: str | None) -> int:
        """Compare the cache with a list of our own: what is not in it has gone while nobody watched. Its version.

        A watch from before the list is open by now, or one from its version on is opened after it, so nothing between
        the two is missed. The first round of lists is also what the workers wait for."""
        store, listed, version = self.cache.store(resource), set[str](), 0
        async for page in self._server.pages(resource, namespace):
            listed.update(raw["metadata"]["uid"] for raw in page.items)
            self._all_news(store.put(raw) for raw in page.items)
            version = int(page.version)
        self._all_news(store.sweep(listed, namespace=namespace, version=version))
        self._missing.discard((resource, namespace))
        if not self._missing and not self.synced.is_set():
            logger.info("in sync: %d jobs, %d attempts, %d pods", *(len(store) for store in self.cache.stores))
            self.synced.set()
        return version

    def _all_news(self, keys: Iterable[Key | None]) -> None:
        for key in keys:
            if key is not None:
                self._news(key)

    async def _resync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS * random.uniform(0.9, 1.1))
            await self._discover()
            for namespace in self.options.namespaces or (None,):
                for resource in WATCHED:
                    await self._resync_patiently(resource, namespace)

    async def _discover(self) -> None:
        try:
            self.cache.offers = await offers.look(self._server, self.options.namespaces)
        except ApiError as error:
            logger.warning("what the cluster offers is not known yet: %s", error)

    # what is done about it

    async def _act(self) -> None:
        """Until cancelled. A new leader decides on nothing older than its term: it lists everything first."""
        await self.synced.wait()
        self.acting = True
        try:
            if self.options.election is not None:
                for namespace in self.options.namespaces or (None,):
                    for resource in WATCHED:
                        await self._resync_patiently(resource, namespace)
            for job in self.cache.jobs:
                self.queue.add(job.owner)
            await asyncio.gather(*(self._worker() for _ in range(self.options.workers)))
        finally:
            self.acting = False
            self.queue.clear()
            self.poller.follow_nobody()

    async def _worker(self) -> None:
        while True:
            key = await self.queue.get()
            start = time.perf_counter()
            result = "error"
            try:
                await self.reconcile(key)
                self.queue.forget(key)
                result = "done"
            except ApiError as error:
                pause = self.queue.retry(key, at_least=error.retry_after)
                logger.info("%s/%s: %s; again in %.1f s", *key, error, pause)
            except Exception:
                pause = self.queue.retry(key)
                logger.exception("%s/%s: unexpected; again in %.1f s", *key, pause)
            finally:
                self.queue.done(key)
                self.counters.reconciles.labels(result).inc()
                self.counters.reconcile_seconds.observe(time.perf_counter() - start)

    async def reconcile(self, key: Key) -> None:
        """One look at one job."""
        seen = observe(self.cache, key, self.options.defaults)
        if seen is None:
            self._forget(key)
            return
        if (wait := await self._holds.ask(seen)) is not None:
            self.queue.add_after(key, wait)
            seen = observe(self.cache, key, self.options.defaults) or seen
        if seen.child is not None and lacks_pods(seen, utc_now()):
            self.queue.add_after(key, self._refusals.wait(seen.child) or refusals.INTERVAL)
            if await self._refusals.ask(seen):
                seen = observe(self.cache, key, self.options.defaults) or seen
        if (wait := await self._preparations.ask(seen, utc_now())) is not None:
            self.queue.add_after(key, wait)
            seen = observe(self.cache, key, self.options.defaults) or seen
        decision = decide(seen, utc_now())
        try:
            await self._applier.carry_out(seen, decision)
        except Refused as refused:
            await self._end(key, str(refused))
            return
        except Forbidden as forbidden:
            await self._tell(key, forbidden.message)
            raise
        if decision.look_again_in == 0:
            self._news(key)
        elif decision.look_again_in is not None:
            self.queue.add_after(key, decision.look_again_in)
        self.poller.follow(key, observe(self.cache, key, self.options.defaults))

    def _forget(self, key: Key) -> None:
        self.poller.follow(key, None)
        self.cache.refusals.pop(key, None)
        self.cache.remains.pop(key, None)
        self._preparations.forget(key)
        self.cache.holds.pop(key, None)
        self.cache.grouped.pop(key, None)
        self.cache.probe_refused.pop(key, None)

    async def _end(self, key: Key, problem: str) -> None:
        if seen := observe(self.cache, key, self.options.defaults):
            await self._applier.carry_out(seen, refuse(seen, problem, utc_now()))

    async def _tell(self, key: Key, problem: str) -> None:
        """A quota or a policy says no for now: people should see that where they look first."""
        seen = observe(self.cache, key, self.options.defaults)
        if seen is not None and not terminal(seen.status) and seen.attempt:
            await self._applier.carry_out(seen, told(seen, _refused(seen, problem), utc_now()))

    def _written(self, job: JobView, status: FineTuneJobStatus) -> None:
        if status.phase is not job.status.phase:
            was = job.status.phase.value if job.status.phase else "new"
            logger.info("%s/%s: %s → %s", *job.owner, was, status.phase.value if status.phase else "-")
        failure = status.last_failure
        failed = terminal(status) or status.attempt != job.status.attempt
        if failure is not None and failed and failure != job.status.last_failure:
            self.counters.failures.labels(failure.failure_class.value, failure.reason).inc()
        if terminal(status) and not terminal(job.status):
            ended = "Failed" if status.phase is Phase.Failed else "Complete"
            reason = next((c.reason for c in status.conditions if c.type == ended), "")
            self.counters.finished.labels(status.phase.value if status.phase else "", reason).inc()

    # how it is

    @contextlib.asynccontextmanager
    async def _health(self) -> AsyncIterator[None]:
        if not self.options.listen:
            yield
            return
        try:
            runner = await serve(
                self.options.listen, registry=self.counters.registry, healthy=self.unhealthy, ready=self.unready
            )
        except OSError as error:
            raise NotConfigured(f"nobody can listen at {self.options.listen}: {error.strerror or error}") from error
        try:
            yield
        finally:
            await runner.cleanup()

    def unhealthy(self) -> str:
        """What is wrong; empty if nothing is."""
        for (plural, namespace), age in self._watcher.age_seconds().items():
            if age > OLDEST_WATCH:
                return f"the watch of {plural} in {namespace or 'all namespaces'} is silent for {age:.0f} s"
        if (age := self.queue.oldest_seconds()) > OLDEST_KEY and self.synced.is_set():
            return f"a job waits for {age:.0f} s"
        return ""

    def unready(self) -> str:
        return "" if self.synced.is_set() else "not in sync with the API server yet"


def _refused(seen: Observed, problem: str) -> LastFailure:
    message = f"the API server does not let it be made yet: {problem}"
    return failure_of(Reason.PodsRefused, message, attempt=seen.attempt, at=utc_now())
