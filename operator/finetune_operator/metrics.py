"""/metrics. Each job's gauges are computed from the cache when Prometheus asks, so they vanish with the job.

At most sixteen series a job, labelled namespace and name; what the operator does is counted by bounded labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_api import durations, names
from finetune_api.spec import Deadlines
from finetune_api.status import Phase

from . import __version__
from .cache import Cache
from .queue import WorkQueue
from .resources import EVENTS, FINETUNEJOBS, JOBS, LEASES, PODS, SERVICES, Key
from .views import JobView, parse_time
from .watch import Watcher

OF_JOB = ("namespace", "name")
DEADLINES = Deadlines()
KNOWN = frozenset(resource.plural for resource in (FINETUNEJOBS, JOBS, PODS, SERVICES, EVENTS, LEASES))
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(eq=False)
class Counters:
    """What happens. Constructed once per operator, on its own registry."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.requests = Counter(
            names.API_REQUESTS.removesuffix("_total"),
            "Requests to the API server, watches too. Code 0: no answer.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self.reconciles = Counter(
            names.RECONCILES.removesuffix("_total"), "Looks at a job.", ("result",), registry=self.registry
        )
        self.reconcile_seconds = Histogram(
            names.RECONCILE_SECONDS,
            "Seconds of a look at a job, writes included.",
            buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
            registry=self.registry,
        )
        self.finished = Counter(
            names.JOBS_FINISHED.removesuffix("_total"), "Jobs that ended.", ("result", "reason"), registry=self.registry
        )
        self.failures = Counter(
            names.JOB_FAILURES.removesuffix("_total"),
            "Failed attempts.",
            ("class", "reason"),
            registry=self.registry,
        )

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
    """Whether this replica is the one that acts. Only that one exports jobs: each is told once."""

    def collect(self) -> Iterator[Metric]:
        if self.acting():
            yield from self._jobs()
        yield _gauge(names.QUEUE_DEPTH, "Jobs that wait for a look.", self.queue.depth)
        yield _gauge(names.QUEUE_OLDEST_SECONDS, "How long the first of them waits.", self.queue.oldest_seconds())
        yield _gauge(names.LEADER, "1 for the replica that acts, 0 for one that stands by.", float(self.acting()))
        info = GaugeMetricFamily(names.OPERATOR_INFO, "Always 1.", labels=("version",))
        info.add_metric((__version__,), 1)
        yield info
        if self.watcher is not None:
            ages = GaugeMetricFamily(
                names.WATCH_AGE_SECONDS,
                "Since a watch was answered or brought an event.",
                labels=("resource", "namespace"),
            )
            for (plural, namespace), age in self.watcher.age_seconds().items():
                ages.add_metric((plural, namespace or ""), age)
            yield ages

    def _jobs(self) -> Iterator[Metric]:
        def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, text, labels=(*OF_JOB, *labels))

        info = family(names.JOB_INFO, "Always 1.", "method", "model")
        phase = family(names.JOB_PHASE, "1 for the phase that the job is in.", "phase")
        attempt = family(names.JOB_ATTEMPT, "Number of the present attempt.")
        nodes = family(names.JOB_NODES, "Pods of the present attempt.")
        wanted = family(names.JOB_NODES_WANTED, "Pods that the job wants: spec.nodes, or the most of its range.")
        restarts = family(names.JOB_RESTARTS, "Restarts by whether they count against retry.maxRestarts.", "counted")
        deadlines = family(names.JOB_DEADLINE_SECONDS, "spec.deadlines, for alerts that fit each job.", "deadline")
        numbers = {
            "ratio": family(names.JOB_PROGRESS_RATIO, "Steps done of the steps planned."),
            "loss": family(names.JOB_LOSS, "Training loss, nats per trained token."),
            "eval_loss": family(names.JOB_EVAL_LOSS, "Validation loss, nats per trained token."),
            "tokens_per_second": family(names.JOB_TOKENS_PER_SECOND, "Tokens processed, all nodes."),
            "eta_seconds": family(names.JOB_ETA_SECONDS, "Seconds to the last step."),
            "updated": family(names.JOB_LAST_PROGRESS_TIMESTAMP, "When progress last changed, Unix seconds."),
        }
        for job in self.cache.jobs:
            key, status = job.owner, job.status
            ours = job.raw_spec.get("method", {}).get("type", "lora")
            method = "command" if "command" in job.raw_spec else ours
            info.add_metric((*key, method, job.raw_spec.get("model", {}).get("uri", "")), 1)
            phase.add_metric((*key, (status.phase or Phase.Pending).value), 1)
            attempt.add_metric(key, status.attempt or 0)
            nodes.add_metric(key, status.nodes or 0)
            wanted.add_metric(key, job.wanted_nodes)
            if status.restarts:
                restarts.add_metric((*key, "true"), status.restarts.counted)
                restarts.add_metric((*key, "false"), status.restarts.total - status.restarts.counted)
            for name, seconds in _deadlines(job):
                deadlines.add_metric((*key, name), seconds)
            for name, value in self._progress(job):
                numbers[name].add_metric(key, value)
        yield from (info, phase, attempt, nodes, wanted, restarts, deadlines, *numbers.values())

    def _progress(self, job: JobView) -> Iterator[tuple[str, float]]:
        """The freshest there is: the last report of a running job, else what its status says."""
        report = self.cache.reports.get(job.owner)
        running = report is not None and report.job_uid == job.uid and job.status.phase is Phase.Running
        progress = report.progress.progress if report is not None and running else job.status.progress
        if progress is None:
            return
        if progress.total_steps:
            yield "ratio", progress.step / progress.total_steps
        for name in ("loss", "eval_loss", "tokens_per_second", "eta_seconds"):
            value = getattr(progress, name)
            if value is not None:
                yield name, value
        if moment := parse_time(progress.last_update_time):
            yield "updated", moment.timestamp()


def _deadlines(job: JobView) -> Iterator[tuple[str, float]]:
    """Each with its seconds, the defaults too; none for what is no duration."""
    told = job.raw_spec.get("deadlines") or {}
    for name, default in (("startup", DEADLINES.startup), ("active", DEADLINES.active), ("stall", DEADLINES.stall)):
        with suppress(ValueError, TypeError):
            if text := told.get(name, default):
                yield name, durations.seconds(text)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
