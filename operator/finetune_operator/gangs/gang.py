"""What a gang scheduler is: all pods of an attempt get their nodes together, or none does.

Required is how pods are marked. A group object is a capability that only some schedulers have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from finetune_operator.kube.resources import Raw, Resource

DEFAULT_SCHEDULER = "default-scheduler"


@dataclass(frozen=True, kw_only=True)
class Members:
    """The pods that are scheduled together: what marks and group objects are made of."""

    namespace: str
    name: str
    """Of the attempt's Job, and of its group object."""
    pods: int
    """The least that start together: `nodes.min` of an elastic job."""
    seconds: int
    """In which they should run: `deadlines.startup`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The pods' labels as the user wrote them: some schedulers read a queue there."""


@dataclass(frozen=True, kw_only=True)
class GroupObject:
    """An object for which the pods of an attempt wait. It belongs to the attempt's Job and is deleted with it."""

    kinds: tuple[Resource, ...]
    """Its versions, newest first."""
    spec: Callable[[Members], Raw]


@dataclass(frozen=True, kw_only=True)
class Gang:
    name: str
    """As conditions and annotations say it."""
    schedulers: frozenset[str]
    """Values of `pod.schedulerName` that choose it."""
    mark: Callable[[Raw, Members], None]
    """Writes into the attempt's Job and its pod template what the scheduler reads there."""
    group: GroupObject | None = None
    """None: the marks say everything, so nothing has to be served by the cluster or allowed to the operator."""
