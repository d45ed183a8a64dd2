"""What a way to schedule gangs is: all pods of an attempt get their nodes together, or none does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_operator.resources import Raw, Resource

DEFAULT_SCHEDULER = "default-scheduler"


@dataclass(frozen=True, kw_only=True)
class Gang:
    name: str
    """As it is told."""
    schedulers: frozenset[str]
    """Values of `pod.schedulerName` that know it."""
    kinds: tuple[Resource, ...]
    """Versions of its group object, newest first."""
    mark: Callable[[Raw, str], None]
    """Writes the group's name into a pod template."""
    spec: Callable[[int, int], Raw]
    """Of the group, by the number of pods and the seconds in which they should run."""
