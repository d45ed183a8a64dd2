"""What a policy answers: the status to be, and what to do to the children."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus

from .kube.resources import Resource
from .state.views import ChildJob


@dataclass(frozen=True)
class Event:
    """For `kubectl describe`. One object per job, reason and attempt; repetitions are counted."""

    reason: Reason
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True)
class Create:
    resource: Resource
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Carried out in this order: status, deletions, creations, events."""

    status: FineTuneJobStatus
    delete: tuple[ChildJob, ...] = ()
    create: tuple[Create, ...] = ()
    probe: Create | None = None
    """Created last, if it may be; a refusal changes nothing."""
    alone: bool = False
    """Create only if the API server itself says that no pod of an earlier attempt is left: there was one."""
    events: tuple[Event, ...] = ()
    expired: bool = False
    """The FineTuneJob itself is deleted, with all that it owns."""
    confirm: bool = False
    """Nothing is decided yet: it would end an attempt by what is not seen, so the API server itself is asked first."""
    look_again_in: float | None = None
    """Seconds; None: at the next event."""

    def but(self, **changes: Any) -> Decision:
        return replace(self, **changes)
