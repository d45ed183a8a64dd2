"""What is known of one job besides its objects: one record, so that forgetting a job is one step.

Each note says whose it is (the job's uid, an attempt, a Job or a pod), because another job may take the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.plan import ProgressReport

from .agent_contact import AgentContact
from .views import ChildJob, Pod


@dataclass(frozen=True)
class Report:
    """The latest progress report of node 0, and whose it was."""

    job_uid: str
    progress: ProgressReport


@dataclass(frozen=True)
class UnreadableReport:
    """Node 0 of an attempt answers, and not with a progress report."""

    job_uid: str
    attempt: int
    problem: str


@dataclass(frozen=True)
class PodsRefused:
    """Why the Job controller could not create pods, in the API server's words."""

    child_uid: str
    message: str


@dataclass(frozen=True)
class QueueMessage:
    """Why a queue does not admit a Job, in its words."""

    child_uid: str
    message: str
    since: datetime
    """When it was first heard to say so."""


@dataclass(frozen=True)
class PodEvent:
    """The latest event of a pod that does not run yet."""

    pod_uid: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class JobNotes:
    """Empty until something is noted."""

    report: Report | None = None
    unreadable: UnreadableReport | None = None
    contact: AgentContact | None = None
    """When node 0 last answered; None: it has not answered in this term of the operator."""
    pods_refused: PodsRefused | None = None
    queue_message: QueueMessage | None = None
    pod_event: PodEvent | None = None
    grouped: str = ""
    """uid of the latest Job whose pods' group object was created."""
    probe_refused: datetime | None = None
    """When a capacity probe could not be created."""
    ended_pods: tuple[Pod, ...] = ()
    """Pods that ended and were deleted, of the latest attempt to lose any: the only ones to say how it went, where all
    of them were deleted."""
    ended_job: ChildJob | None = None
    """The Job of an attempt that was complete or failing and was deleted."""


EMPTY = JobNotes()
