"""The latest objects of the API server (see view_store), and the notes of each job (see notes).

Pods and Jobs that ended and were deleted are noted for their job's latest attempt: a cluster may clean up before the
operator has looked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, Key, Raw, Resource

from .cluster_features import ClusterFeatures
from .notes import EMPTY, JobNotes
from .parsing import view_child_job, view_job, view_pod
from .view_store import Listing, Store
from .views import ChildJob, JobView, Pod

REMEMBERED = 5000
"""Jobs that are noted at most while it is not known which jobs there are."""


MOST_REMAINS = 1024
"""Pods of one attempt that are remembered: no gang has more."""


@dataclass
class Cache:
    jobs: Store[JobView] = field(init=False)
    children: Store[ChildJob] = field(init=False)
    pods: Store[Pod] = field(init=False)
    specs: dict[tuple[str, int, bool, int], tuple[FineTuneJobSpec | None, str, str]] = field(default_factory=dict)
    """What observe read, by the job's uid and generation, and how thoroughly."""
    features: ClusterFeatures = field(default_factory=ClusterFeatures)
    notes: dict[Key, JobNotes] = field(default_factory=dict)
    """What else is known of each job; a job without notes has no entry."""
    reporting: set[Key] = field(default_factory=set)
    """Jobs of which a progress report is noted: those that run."""

    def __post_init__(self) -> None:
        self.jobs = Store(view_job, dropped=self._job_is_gone, restored=self.specs.clear)
        self.children = Store(view_child_job, dropped=self._remember_child)
        self.pods = Store(view_pod, dropped=self._remember_pod)

    def job(self, key: Key) -> JobView | None:
        return next(iter(self.jobs.of(key)), None)

    def store(self, resource: Resource) -> Store[JobView] | Store[ChildJob] | Store[Pod]:
        match resource.plural:
            case FINETUNEJOBS.plural:
                return self.jobs
            case JOBS.plural:
                return self.children
            case PODS.plural:
                return self.pods
        raise KeyError(resource.plural)

    @property
    def stores(self) -> tuple[Store[JobView], Store[ChildJob], Store[Pod]]:
        return self.jobs, self.children, self.pods

    def feed(self, resource: Resource, kind: str | None, raw: Raw) -> Key | None:
        """One event of a watch. The key to look at, if it brought something new."""
        store = self.store(resource)
        key = store.remove(raw) if kind == "DELETED" else store.put(raw)
        if key is not None and resource.plural == FINETUNEJOBS.plural and self._ended(key):
            self.forget(key)
        return key

    def listing(self, resource: Resource, namespace: str | None) -> Listing[Any]:
        """A list that is about to be made."""
        return Listing(self.store(resource), namespace)

    def of(self, key: Key) -> JobNotes:
        """The job's notes. May be called in any thread."""
        return self.notes.get(key, EMPTY)

    def note(self, key: Key, **changes: Any) -> None:
        """Changes some of a job's notes, by their names in JobNotes."""
        if (changed := replace(self.of(key), **changes)) == EMPTY:
            self.forget(key)
            return
        self.notes[key] = changed
        if changed.report is None:
            self.reporting.discard(key)
        else:
            self.reporting.add(key)

    def note_all(self, **changes: Any) -> None:
        """Changes the same notes of all jobs."""
        for key in list(self.notes):
            self.note(key, **changes)

    def forget(self, key: Key) -> None:
        """What is noted of a job that is gone or has ended: thousands of those may stay for months."""
        self.notes.pop(key, None)
        self.reporting.discard(key)

    def _ended(self, key: Key) -> bool:
        job = self.job(key)
        return job is not None and job.status.phase is not None and job.status.phase.terminal

    def _job_is_gone(self, job: JobView) -> None:
        if self.job(job.owner) is None:  # else another has its name by now
            self.forget(job.owner)

    def _needs_nothing(self, key: Key) -> bool:
        """It has ended, or there is no such job any more."""
        return self._ended(key) or (self.jobs.newest > 0 and not self.jobs.of(key))

    def _remember_child(self, child: ChildJob) -> None:
        if not (child.complete or child.failing) or child.probe or self._needs_nothing(child.owner):
            return
        known = self.of(child.owner).ended_job
        if known is not None and known.job_uid == child.job_uid and known.attempt > child.attempt:
            return
        self._remember(child.owner, ended_job=child)

    def _remember_pod(self, pod: Pod) -> None:
        if pod.stray or not pod.over or not pod.controller or pod.probe or self._needs_nothing(pod.owner):
            return
        known = self.of(pod.owner).ended_pods
        if any(p.job_uid == pod.job_uid and p.attempt > pod.attempt for p in known):
            return
        same = (p for p in known if (p.job_uid, p.attempt) == (pod.job_uid, pod.attempt) and p.uid != pod.uid)
        self._remember(pod.owner, ended_pods=(*same, pod)[-MOST_REMAINS:])

    def _remember(self, key: Key, **changes: Any) -> None:
        """Before jobs are listed it is unknown which of these belong to a job, so only the latest are kept."""
        self.note(key, **changes)
        if not self.jobs.newest and len(self.notes) > REMEMBERED:
            self.forget(next(iter(self.notes)))
