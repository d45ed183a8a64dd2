"""All that a decision may use: one FineTuneJob, its attempts, the latest progress. Read from the cache alone."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial

import orjson
from pydantic import ValidationError

from finetune_api import manifest, names
from finetune_api.admin_policy import AdminPolicy, Violation, violations, with_defaults
from finetune_api.ladder import refused_on_cluster
from finetune_api.plan import ProgressReport
from finetune_api.rung_pods import UnavailableRung, first_rung, for_rung, without_rung
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.kube.resources import Key, Raw

from .cache import Cache
from .cluster_features import ClusterFeatures
from .notes import PodEvent
from .prices import Prices, price_problem
from .version_skew import not_understood
from .views import SPEC_BYTES, TOO_DEEP, ChildJob, JobView, Pod

SPECS = 500
"""Specs kept, of any number of jobs: each takes some ten KiB."""

SPECS_BYTES = 2 * 2**20
"""Bytes of all specs that are kept, as JSON: they take up to twenty times as much."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the operator's arguments say about every job."""

    grow_after: float = 300.0
    """Seconds that an attempt with fewer nodes than wanted runs at least; each change of size doubles it."""

    image: str = ""
    prices: Prices = field(default_factory=Prices)
    trainer_command: tuple[str, ...] = ("finetune", "agent")
    policy: AdminPolicy = field(default_factory=AdminPolicy)
    peers: tuple[Raw, ...] | None = None
    """Who may reach the agents' port in the NetworkPolicy of each job; None: none is made. See network_policy."""
    key: bytes = field(default_factory=partial(secrets.token_bytes, 32), compare=False, repr=False)
    """What tokens and nonces of attempts are made of. Each process has its own: a Job keeps those it was made with."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    job: JobView
    spec: FineTuneJobSpec | None
    """With the defaults of its admin's policy, and the nodes and resources of `rung`. None if it cannot be read:
    `problem` says why."""
    whole: FineTuneJobSpec | None = None
    """The same with the nodes and resources of the job."""
    rung: str | None = None
    """Of a ladder with overrides: whose pods the present attempt has."""
    problem: str = ""
    unknown: str = ""
    """What of the spec was made for another version of the operator: see version_skew."""
    violations: tuple[Violation, ...] = ()
    """What the spec asks for and its admin's policy does not allow."""
    children: tuple[ChildJob, ...] = ()
    """Jobs of all attempts, also of those that are being deleted."""
    pods: tuple[Pod, ...] = ()
    ended_pods: tuple[Pod, ...] = ()
    """Pods that ended and were deleted, of one attempt."""
    ended_job: ChildJob | None = None
    """The present attempt's Job as it last was, where it was complete or failing and was deleted."""
    confirmed: bool = False
    """The API server was just asked for the present attempt's Job and pods: what is not seen is not there."""
    probes: tuple[ChildJob, ...] = ()
    """Jobs that look for more nodes: no attempts."""
    probe_pods: tuple[Pod, ...] = ()
    probe_refused: datetime | None = None
    """When the last one could not be made."""
    report: ProgressReport | None = None
    """Of the present attempt."""
    followed: int = 0
    """Jobs whose progress is known: about as many as run."""
    unreadable: str = ""
    """Why the latest answer of the present attempt's node 0 is not a progress report."""
    heard: datetime | None = None
    """When node 0 of the present attempt last answered; None: never yet, as far as this operator knows."""
    silence: float = 0.0
    """Seconds for which it has not answered since, though it was asked and others answered: see agent_contact."""
    pods_refused: str = ""
    """Why the present attempt's Job cannot make all its pods."""
    queue_message: str = ""
    """Why the queue does not let the present attempt's Job go, in its words."""
    queue_since: datetime | None = None
    """When it was first heard to say so; None: it says nothing."""
    pod_event: PodEvent | None = None
    """The last event of a pod of the gang that has a node and does not run yet."""
    grouped: bool = False
    """The group of the present attempt's pods is there."""
    features: ClusterFeatures = field(default_factory=ClusterFeatures)
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

    @cached_property
    def gang(self) -> tuple[Pod, ...]:
        """The present attempt's pods, in order of their index, less those that end since the Job was suspended."""
        return tuple(sorted(self._own(self.pods), key=lambda p: p.index))

    @cached_property
    def gone(self) -> tuple[Pod, ...]:
        """Pods of the present attempt that ended and were deleted, less those from before it was resumed."""
        present = {pod.uid for pod in self.pods}
        return tuple(pod for pod in self._own(self.ended_pods) if pod.uid not in present)

    @property
    def unwatched(self) -> bool:
        """No watch shows what becomes of some of its objects."""
        jobs = any(child.unwatched and not child.finished for child in self.children)
        pods = any(pod.unwatched and pod.unfinished for pod in self.pods)
        return jobs or pods or self._lacks_pods or self._lacks_job

    @property
    def _lacks_pods(self) -> bool:
        """All were there once, and it is unknown how some have ended."""
        child = self.child
        if child is None or self.status.phase is not Phase.Running or child.deleting or child.failing:
            return False
        return not child.finished and not child.suspended and len(self.gang) < child.nodes

    @property
    def _lacks_job(self) -> bool:
        """Pods of the present attempt are there, and not the Job that made them: it may only have lost its label."""
        return self.child is None and any(pod.unfinished for pod in self.gang)

    def _own(self, pods: tuple[Pod, ...]) -> tuple[Pod, ...]:
        """Those of the present attempt's Job; where it is gone, of one of its name."""
        child = self.child
        own = (p for p in pods if p.attempt == self.attempt and p.controller)
        return tuple(p for p in own if (child is None or p.controller == child.uid) and not _leftover(p, child))


def _leftover(pod: Pod, child: ChildJob | None) -> bool:
    resumed = child.resumed if child else None
    return pod.deleting and resumed is not None and pod.created is not None and pod.created < resumed


def observe(cache: Cache, key: Key, defaults: Defaults) -> Observed | None:
    """None if there is no such job. Children of an earlier job of the same name are not its own."""
    job = next(iter(cache.jobs.of(key)), None)
    if job is None:
        return None
    notes = cache.of(key)
    children = tuple(c for c in cache.children.of(key) if c.job_uid == job.uid)
    jobs = {child.uid for child in children}
    seen = Observed(
        job=job,
        spec=None,
        children=children,
        pods=tuple(p for p in cache.pods.of(key) if not p.stray and (p.job_uid == job.uid or p.controller in jobs)),
        ended_pods=tuple(p for p in notes.ended_pods if p.job_uid == job.uid),
        features=cache.features,
        probes=tuple(c for c in cache.children.of(key) if c.probe.startswith(f"{job.uid}.")),
        probe_pods=tuple(p for p in cache.pods.of(key) if p.probe.startswith(f"{job.uid}.")),
        probe_refused=notes.probe_refused,
        defaults=defaults,
    )
    spec, problem, unknown = _spec_of(cache, job, thoroughly=seen.attempt == 0)
    policy = defaults.policy.of(job.namespace)
    settled = with_defaults(policy, spec) if spec else None
    if settled is not None and settled.method.is_auto and seen.attempt == 0:
        problem = price_problem(defaults.prices, settled)
    child = seen.child
    contact = notes.contact if notes.contact and notes.contact.is_of(job.uid, seen.attempt) else None
    if contact is not None and child and child.resumed and contact.at < child.resumed:
        contact = None  # that was before the Job lost its pods to its queue
    report, unreadable, former = notes.report, notes.unreadable, notes.ended_job
    current = report is not None and report.job_uid == job.uid and report.progress.attempt == seen.attempt
    confused = unreadable is not None and (unreadable.job_uid, unreadable.attempt) == (job.uid, seen.attempt)
    refused, queue = notes.pods_refused, notes.queue_message
    if queue is not None and (child is None or queue.child_uid != child.uid):
        queue = None
    whole = None if problem else settled
    rung = (job.status.rung or first_rung(whole)) if whole else None
    return replace(
        seen,
        spec=for_rung(whole, rung) if whole else None,
        whole=whole,
        rung=rung,
        problem=problem,
        unknown=unknown,
        violations=violations(policy, _as_judged(spec, job.status.unavailable_rung)) if spec else (),
        report=report.progress if report and current else None,
        followed=len(cache.reporting),
        unreadable=unreadable.problem if unreadable and confused else "",
        heard=contact.at if contact else None,
        silence=contact.silence if contact else 0.0,
        ended_job=former if former and not child and _is_of(former, seen) else None,
        pods_refused=refused.message if refused and child and refused.child_uid == child.uid else "",
        pod_event=notes.pod_event,
        grouped=child is not None and notes.grouped == child.uid,
        queue_message=queue.message if queue else "",
        queue_since=queue.since if queue else None,
    )


def _as_judged(spec: FineTuneJobSpec, unavailable: UnavailableRung | None) -> FineTuneJobSpec:
    """A rung before which the ladder has stopped asks for nothing."""
    return without_rung(spec, unavailable.name) if unavailable else spec


def _is_of(child: ChildJob, seen: Observed) -> bool:
    return (child.job_uid, child.attempt) == (seen.job.uid, seen.attempt)


def lacks_gang(cache: Cache, key: Key) -> bool:
    """Its next attempt is to be made: there is no Job of it, or a pod failed."""
    job = next(iter(cache.jobs.of(key)), None)
    if job is None or (job.status.phase is not None and job.status.phase.terminal):
        return False
    attempt = job.status.attempt or 0
    made = any(child.attempt == attempt for child in cache.children.of(key))
    return not made or any(pod.attempt == attempt and pod.over and not pod.done for pod in cache.pods.of(key))


def _spec_of(cache: Cache, job: JobView, *, thoroughly: bool) -> tuple[FineTuneJobSpec | None, str, str]:
    """A job is looked at some times in a row, and then not for long: the latest specs are kept."""
    if job.ended:
        return None, "", ""
    if job.spec_bytes == TOO_DEEP:
        return None, "the spec is nested too deeply: a pod's affinity has no more than ten levels", ""
    if job.spec_bytes > SPEC_BYTES:
        return None, f"the spec has {job.spec_bytes // 1024} KiB: at most {SPEC_BYTES // 1024} KiB can be run", ""
    which = (job.uid, job.generation, thoroughly, job.spec_bytes)
    if which in cache.specs:
        return cache.specs[which]
    spec, problem = read_spec(job, thoroughly=thoroughly)
    read = spec, problem, not_understood(job.whole_spec, spec, thoroughly=thoroughly)
    cache.specs[which] = read
    while len(cache.specs) > SPECS or sum(size for *_, size in cache.specs) > SPECS_BYTES:
        del cache.specs[next(iter(cache.specs))]
    return read


def read_spec(job: JobView, *, thoroughly: bool) -> tuple[FineTuneJobSpec | None, str]:
    """The spec, or why it cannot be used. The API server has checked it; this is for what slipped through.

    `thoroughly`: the rules too, before the first pods are made of it. Of unknown fields, see version_skew."""
    head = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": job.name}}
    try:
        spec = FineTuneJobSpec.model_validate_json(orjson.dumps(job.whole_spec))
        _ = spec.processes
    except ValidationError:
        problems = manifest.validate(head | {"spec": job.whole_spec})
        return None, "; ".join(map(str, problems)) or "the spec cannot be read"
    except ValueError as error:
        return None, f"spec.processesPerNode: {error}"
    refused = refused_on_cluster(skips=spec.training.skip_bad_batch)
    if spec.method.is_auto and refused:
        return None, f"spec.method.type: auto: {refused}, or use `finetune run FILE`"
    if thoroughly:
        known = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if problems := manifest.validate(head | {"spec": known}):
            return None, "; ".join(map(str, problems))
    return spec, ""
