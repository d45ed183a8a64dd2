"""All that a decision may use: one FineTuneJob, its attempts, the latest progress. Read from the cache alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

import orjson
from pydantic import ValidationError

from finetune_api import manifest, names
from finetune_api.plan import ProgressReport
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

from .cache import Cache, Preparation
from .offers import Offers
from .resources import Key
from .views import ChildJob, JobView, Pod

SPECS = 500
"""Specs kept, of any number of jobs: each takes some ten KiB."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the operator's arguments say about every job."""

    grow_after: float = 300.0
    """Seconds that an attempt with fewer nodes than wanted runs at least; each change of size doubles it."""

    image: str = ""
    trainer_command: tuple[str, ...] = ("finetune", "agent")


@dataclass(frozen=True, kw_only=True)
class Observed:
    job: JobView
    spec: FineTuneJobSpec | None
    """None if it cannot be read: `problem` says why."""
    problem: str = ""
    children: tuple[ChildJob, ...] = ()
    """Jobs of all attempts, also of those that are being deleted."""
    pods: tuple[Pod, ...] = ()
    remains: tuple[Pod, ...] = ()
    """Pods that ended badly and are no more, of one attempt."""
    probes: tuple[ChildJob, ...] = ()
    """Jobs that look for more nodes: no attempts."""
    probe_pods: tuple[Pod, ...] = ()
    probe_refused: datetime | None = None
    """When the last one could not be made."""
    report: ProgressReport | None = None
    """Of the present attempt."""
    heard: datetime | None = None
    """When node 0 of the present attempt last answered; None: never yet, as far as this operator knows."""
    deaf: bool = False
    """Nobody else has answered since, either: it may be us."""
    refusal: str = ""
    """Why the present attempt's Job cannot make all its pods."""
    hold: str = ""
    """Why the queue does not let the present attempt's Job go, in its words."""
    preparation: Preparation | None = None
    """What was last told of a pod of the gang that has a node and does not run yet."""
    grouped: bool = False
    """The group of the present attempt's pods is there."""
    offers: Offers = field(default_factory=Offers)
    defaults: Defaults = field(default_factory=Defaults)

    @property
    def status(self) -> FineTuneJobStatus:
        return self.job.status

    @property
    def attempt(self) -> int:
        """Number of the present attempt; 0 before the first. Jobs count if the status was lost."""
        if self.status.attempt is not None:
            return self.status.attempt
        return max((child.attempt for child in self.children), default=0)

    @property
    def child(self) -> ChildJob | None:
        """The present attempt's Job."""
        return next((c for c in self.children if c.attempt == self.attempt), None)

    @property
    def gang(self) -> tuple[Pod, ...]:
        """The present attempt's pods, in order of their index, less those that end since the Job was suspended."""
        return tuple(sorted(self._own(self.pods), key=lambda p: p.index))

    @property
    def gone(self) -> tuple[Pod, ...]:
        """Pods of the present attempt that ended badly and are no more, less those from before it was resumed."""
        return self._own(self.remains)

    def _own(self, pods: tuple[Pod, ...]) -> tuple[Pod, ...]:
        return tuple(p for p in pods if p.attempt == self.attempt and not _leftover(p, self.child))


def _leftover(pod: Pod, child: ChildJob | None) -> bool:
    resumed = child.resumed if child else None
    return pod.deleting and resumed is not None and pod.created is not None and pod.created < resumed


def observe(cache: Cache, key: Key, defaults: Defaults) -> Observed | None:
    """None if there is no such job. Children of an earlier job of the same name are not its own."""
    job = next(iter(cache.jobs.of(key)), None)
    if job is None:
        return None
    report, refusal = cache.reports.get(key), cache.refusals.get(key)
    seen = Observed(
        job=job,
        spec=None,
        children=tuple(c for c in cache.children.of(key) if c.job_uid == job.uid),
        pods=tuple(p for p in cache.pods.of(key) if p.job_uid == job.uid),
        remains=tuple(p for p in cache.remains.get(key, ()) if p.job_uid == job.uid),
        offers=cache.offers,
        probes=tuple(c for c in cache.children.of(key) if c.probe.startswith(f"{job.uid}.")),
        probe_pods=tuple(p for p in cache.pods.of(key) if p.probe.startswith(f"{job.uid}.")),
        probe_refused=cache.probe_refused.get(key),
        defaults=defaults,
    )
    current = report and report.job_uid == job.uid and report.progress.attempt == seen.attempt
    spec, problem = _spec_of(cache, job, thoroughly=seen.attempt == 0)
    heard = cache.heard.get(key)
    ours = heard is not None and (heard.job_uid, heard.attempt) == (job.uid, seen.attempt)
    if heard is not None and seen.child and seen.child.resumed and heard.at < seen.child.resumed:
        ours = False  # that was before the Job lost its pods to its queue
    refused = refusal.message if refusal and seen.child and refusal.child_uid == seen.child.uid else ""
    known = report.progress if report and current else None
    hold = cache.holds.get(key)
    return replace(
        seen,
        spec=spec,
        problem=problem,
        report=known,
        heard=heard.at if heard and ours else None,
        deaf=len(cache.heard) > 1 and heard is not None and heard.at == cache.heard_anybody,
        refusal=refused,
        preparation=cache.preparations.get(key),
        grouped=seen.child is not None and cache.grouped.get(key) == seen.child.uid,
        hold=hold.message if hold and seen.child and hold.child_uid == seen.child.uid else "",
    )


def lacks_gang(cache: Cache, key: Key) -> bool:
    """Its next attempt is to be made: there is no Job of it, or a pod failed."""
    job = next(iter(cache.jobs.of(key)), None)
    if job is None or (job.status.phase is not None and job.status.phase.terminal):
        return False
    attempt = job.status.attempt or 0
    made = any(child.attempt == attempt for child in cache.children.of(key))
    return not made or any(pod.attempt == attempt and pod.phase == "Failed" for pod in cache.pods.of(key))


def _spec_of(cache: Cache, job: JobView, *, thoroughly: bool) -> tuple[FineTuneJobSpec | None, str]:
    """A job is looked at some times in a row, and then not for long: the latest specs are kept."""
    which = (job.uid, job.generation, thoroughly)
    if which not in cache.specs:
        cache.specs[which] = read_spec(job, thoroughly=thoroughly)
        if len(cache.specs) > SPECS:
            del cache.specs[next(iter(cache.specs))]
    return cache.specs[which]


def read_spec(job: JobView, *, thoroughly: bool) -> tuple[FineTuneJobSpec | None, str]:
    """The spec, or why it cannot be used. The API server has checked it; this is for what slipped through.

    `thoroughly`: the rules too, before the first pods are made of it. Fields that we do not know are ignored."""
    head = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": job.name}}
    try:
        spec = FineTuneJobSpec.model_validate_json(orjson.dumps(job.raw_spec))
        _ = spec.processes
    except ValidationError:
        problems = manifest.validate(head | {"spec": job.raw_spec})
        return None, "; ".join(map(str, problems)) or "the spec cannot be read"
    except ValueError as error:
        return None, f"spec.processesPerNode: {error}"
    if thoroughly:
        known = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if problems := manifest.validate(head | {"spec": known}):
            return None, "; ".join(map(str, problems))
    return spec, ""
