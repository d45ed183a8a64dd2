"""/metrics. Each job's gauges are computed from the cache when Prometheus asks, so they vanish with the job.

What there is to see is in `finetune_api.series`; here is how it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_api import durations, series
from finetune_api.budget import recent
from finetune_api.ladder import LadderStatus
from finetune_api.measurements import GuardResult
from finetune_api.methods import TRAITS, type_of
from finetune_api.series import Scope, Series
from finetune_api.spec import Checkpoint, Deadlines, Retry
from finetune_api.status import Phase, Restarts
from finetune_api.text import redact

from . import __version__
from .kube.kopf_watch import Watcher
from .kube.resources import EVENTS, FINETUNEJOBS, JOBS, LEASES, PODS, SERVICES, Key
from .kube.workqueue import WorkQueue
from .state.cache import Cache
from .state.view_store import Store
from .state.views import JobView, parse_time

_WORST_FIRST = ("violated", "inconclusive", "passed")

Sample = tuple[Series, tuple[str, ...], float]
"""A series, the values of its labels, and its value."""

DEADLINES, CHECKPOINT, RETRY = Deadlines(), Checkpoint(), Retry()
KNOWN = frozenset(resource.plural for resource in (FINETUNEJOBS, JOBS, PODS, SERVICES, EVENTS, LEASES))
SHOWN = tuple(each for each in series.of(Scope.JOB) if each.shows)
"""Those that show a field of a job's progress."""
BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_seconds, _shown = lru_cache(1024)(durations.seconds), lru_cache(1024)(redact)
"""Thousands of jobs have few durations and models."""

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(eq=False)
class Counters:
    """What happens. Constructed once per operator, on its own registry."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.requests = self._counter(series.API_REQUESTS)
        self.reconciles = self._counter(series.RECONCILES)
        self.finished = self._counter(series.JOBS_FINISHED)
        self.failures = self._counter(series.JOB_FAILURES)
        self.reconcile_seconds = Histogram(
            series.RECONCILE_SECONDS.name, series.RECONCILE_SECONDS.text, buckets=BUCKETS, registry=self.registry
        )

    def _counter(self, of: Series) -> Counter:
        return Counter(of.stem, of.text, tuple(of.labels), registry=self.registry)

    def request(self, method: str, path: str, watch: bool, status: int) -> None:
        """Called from any thread."""
        parts = path.strip("/").split("/")
        below = parts[2:] if parts[0] == "api" else parts[3:]  # the group and its version
        if below[:1] == ["namespaces"] and len(below) > 2:
            below = below[2:]
        resource = below[0] if below and below[0] in KNOWN else "other"
        verb = VERBS.get(method) or ("get" if len(below) > 1 else "list")
        self.requests.labels("watch" if watch else verb, resource, str(status)).inc()


@dataclass(frozen=True, eq=False)
class State(Collector):
    """What is."""

    cache: Cache
    queue: WorkQueue[Key]
    watcher: Watcher | None = None
    acting: Callable[[], bool] = lambda: True
    """Whether this replica is the one that acts. Only that one exports jobs: each is exported once."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def collect(self) -> Iterator[Metric]:
        if self.acting():
            yield from _gauges(series.of(Scope.JOB), self._of_jobs())
        yield from _gauges(series.of(Scope.OPERATOR), self._of_operator())

    def _of_operator(self) -> Iterator[Sample]:
        yield series.QUEUE_DEPTH, (), self.queue.depth
        yield series.QUEUE_OLDEST_SECONDS, (), self.queue.oldest_seconds()
        yield series.LEADER, (), float(self.acting())
        yield series.OPERATOR_INFO, (__version__,), 1
        if self.watcher is not None:
            for (plural, namespace), age in self.watcher.age_seconds().items():
                yield series.WATCH_AGE_SECONDS, (plural, namespace or ""), age

    def _of_jobs(self) -> Iterator[Sample]:
        for job in _all(self.cache.jobs):
            if job.foreign:
                continue  # its manager exports it
            for of, labels, value in (*_of_job(job, self.now()), *self._progress(job)):
                yield of, (*job.owner, *labels), value

    def _progress(self, job: JobView) -> Iterator[Sample]:
        """The freshest there is: the last report of a running job, else what its status says."""
        report = self.cache.of(job.owner).report
        running = report is not None and report.job_uid == job.uid and job.status.phase is Phase.Running
        progress = report.progress.progress if report is not None and running else job.status.progress
        if progress is None:
            return
        for of in SHOWN:
            value = getattr(progress, of.shows)
            if isinstance(value, str):
                value = moment.timestamp() if (moment := parse_time(value)) else None
            if value is not None:
                yield of, (), value


def _gauges(of: Iterable[Series], samples: Iterable[Sample]) -> Iterator[Metric]:
    """A family for each gauge, with its samples."""
    families = {each: _family(each) for each in of if each.kind == "gauge"}
    for each, labels, value in samples:
        families[each].add_metric(labels, value)
    yield from families.values()


def _family(of: Series) -> GaugeMetricFamily:
    return GaugeMetricFamily(of.name, of.text, labels=(*of.scope.labels, *of.labels))


def _all(jobs: Store[JobView]) -> list[JobView]:
    """As they are at one moment: pages are made in another thread than the one that changes them."""
    while True:
        with suppress(RuntimeError):
            return list(jobs)


def _of_job(job: JobView, now: datetime) -> Iterator[Sample]:
    """All but its progress."""
    status, restarts = job.status, job.status.restarts or Restarts()
    ours = type_of(job.raw_spec)
    method = "command" if "command" in job.raw_spec else ours
    yield series.JOB_INFO, (method, _shown(str(job.raw_spec.get("model", {}).get("uri", "")))), 1
    yield series.JOB_PHASE, ((status.phase or Phase.Pending).value,), 1
    yield series.JOB_ATTEMPT, (), status.attempt or 0
    yield series.JOB_NODES, (), status.nodes or 0
    yield series.JOB_NODES_WANTED, (), job.wanted_nodes
    yield series.JOB_RESTARTS, ("true",), restarts.counted
    yield series.JOB_RESTARTS, ("false",), restarts.total - restarts.counted
    yield (
        series.JOB_AVOIDED_NODES,
        (),
        sum((until := parse_time(node.until)) is not None and until > now for node in status.avoided_nodes or ()),
    )
    if (last := status.last_failure) is not None and (moment := parse_time(last.time)):
        yield series.JOB_LAST_FAILURE_TIMESTAMP, (last.failure_class.value, last.reason), moment.timestamp()
    if moment := parse_time(status.start_time):
        yield series.JOB_START_TIMESTAMP, (), moment.timestamp()
    if status.usage is not None:
        yield series.JOB_GPU_HOURS, (), status.usage.gpu_hours
        yield series.JOB_WASTED_GPU_HOURS, (), status.usage.wasted_gpu_hours
    if status.artifact is not None:
        yield series.JOB_ARTIFACT_BYTES, (), status.artifact.size_bytes
    ladder = status.ladder
    yield from _of_guards(job) if ladder is None or ladder.stop_reason else _of_ladder(ladder)
    yield from _of_spec(job, restarts, now)


def _of_ladder(ladder: LadderStatus) -> Iterator[Sample]:
    """While it decides. Rungs are methods: fewShot, which is measured in the first one's run, is none."""
    rungs = [rung for rung in ladder.rungs if rung.name in TRAITS]
    for number, rung in enumerate(rungs, 1):
        if rung.state == "running":
            yield series.JOB_LADDER_RUNG, (rung.name,), number
    costs = (ladder.spent, ladder.budget), (ladder.money_spent or 0.0, ladder.money_budget)
    if shares := [spent / limit for spent, limit in costs if limit]:
        yield series.JOB_BUDGET_SPENT_RATIO, (), max(shares)


def _of_guards(job: JobView) -> Iterator[Sample]:
    guards = job.raw_spec.get("guards")
    tolerated = isinstance(guards, dict) and guards.get("onInconclusive") == "pass"
    for name, guard in _by_label(job.status.evaluation.guards if job.status.evaluation else ()).items():
        if guard.value is not None:
            yield series.JOB_GUARD_VALUE, (name,), guard.value
        yield series.JOB_GUARD_BOUND, (name,), guard.bound
        if guard.verdict != "inconclusive" or not tolerated:
            yield series.JOB_GUARD_STATE, (name, guard.verdict), 1


def _by_label(guards: tuple[GuardResult, ...]) -> dict[str, GuardResult]:
    """Of the guards on generated text the worse one, see `series.GUARDS`."""
    found: dict[str, GuardResult] = {}
    for guard in sorted(guards, key=lambda each: _WORST_FIRST.index(each.verdict)):
        found.setdefault(guard.name if guard.name in series.GUARDS else "generation", guard)
    return found


def _of_spec(job: JobView, restarts: Restarts, now: datetime) -> Iterator[Sample]:
    """What alerts compare with the numbers of its progress, the defaults too; none for what is not a duration."""
    spec = job.raw_spec
    for name in series.JOB_DEADLINE_SECONDS.labels["deadline"]:
        with suppress(ValueError, TypeError):
            if text := (spec.get("deadlines") or {}).get(name, getattr(DEADLINES, name)):
                yield series.JOB_DEADLINE_SECONDS, (name,), _seconds(text)
    with suppress(ValueError, TypeError):
        every = (spec.get("checkpoint") or {}).get("every", CHECKPOINT.every)
        yield series.JOB_CHECKPOINT_INTERVAL_SECONDS, (), _seconds(every)
    with suppress(ValueError, TypeError):
        retry = spec.get("retry") or {}
        window = retry.get("window", RETRY.window)
        spent = recent(job.status.restart_times, restarts.counted, window=window, now=now)
        left = int(retry.get("maxRestarts", RETRY.max_restarts)) - len(spent)
        yield series.JOB_RESTARTS_LEFT, (), max(0, left)
