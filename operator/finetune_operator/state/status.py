"""Pure steps from one status to the next. Times change only when what they belong to changes."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeVar

from finetune_api.base import ApiModel
from finetune_api.failures import Reason, class_of, hint_of
from finetune_api.status import Condition, FineTuneJobStatus, LastFailure, Progress
from finetune_api.text import clean

P = TypeVar("P", bound=ApiModel)

MESSAGE = 4000
"""Characters of a message; the CRD allows 4096 in most places."""


ConditionType = Literal[
    "Complete", "Failed", "Queued", "Suspended", "Running", "GangScheduled", "Held", "ProgressUnreadable",
    "UnexpectedError", "Warned", "GuardsPassed",
]  # fmt: skip


class Stamp(NamedTuple):
    """When something was decided, and which generation of the spec it was decided on."""

    generation: int
    now: datetime


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clip(text: str) -> str:
    """As a status may contain it: it comes from anywhere, and is shown on terminals."""
    return clean(text, MESSAGE)


def failure_of(reason: Reason, message: str, *, attempt: int, at: datetime | None) -> LastFailure:
    """In the class and with the hint of its reason. `at`: None if the time is unknown."""
    return LastFailure(
        failure_class=class_of(reason),
        reason=reason.value,
        message=clip(message),
        hint=hint_of(reason),
        attempt=attempt,
        time=rfc3339(at) if at is not None else None,
    )


def change(status: FineTuneJobStatus, **fields: Any) -> FineTuneJobStatus:
    """A copy with some fields replaced; None removes one. Itself, if they are so already: most looks change nothing."""
    if all(getattr(status, name) == value for name, value in fields.items()):
        return status
    return status.model_copy(update=fields)


def condition(
    status: FineTuneJobStatus,
    type: ConditionType,
    *,
    true: bool | None,
    reason: Reason,
    message: str,
    stamp: Stamp,
) -> FineTuneJobStatus:
    """With one condition set; None: Unknown. An equal one stays as it is; the transition time moves only when True and
    False swap."""
    word: Literal["True", "False", "Unknown"] = "Unknown" if true is None else "True" if true else "False"
    message = clip(message)
    old = find(status, type)
    if old and (old.status, old.reason, old.message) == (word, reason.value, message):
        return status
    new = Condition(
        type=type,
        status=word,
        reason=reason.value,
        message=message,
        last_transition_time=old.last_transition_time if old and old.status == word else rfc3339(stamp.now),
        observed_generation=stamp.generation,
    )
    others = tuple(c for c in status.conditions if c.type != type)
    return change(status, conditions=(*others, new) if old is None else _in_place(status.conditions, new))


def settled(status: FineTuneJobStatus, stamp: Stamp) -> FineTuneJobStatus:
    """Of a job that has ended: it waits for nothing any more."""
    types: tuple[ConditionType, ...] = ("Queued", "Suspended", "ProgressUnreadable", "UnexpectedError")
    for type in types:
        if is_true(status, type):
            message = "The job has ended"
            status = condition(status, type, true=False, reason=Reason.Finished, message=message, stamp=stamp)
    return status


def _in_place(conditions: tuple[Condition, ...], new: Condition) -> tuple[Condition, ...]:
    return tuple(new if c.type == new.type else c for c in conditions)


def sound(part: P | None) -> P | None:
    """None for a part with NaN or infinity in it: JSON has no such numbers, and the API server takes no nulls."""
    if part is None:
        return None
    try:
        json.dumps(part.to_json(), allow_nan=False)
    except ValueError:
        return None
    return part


def finite(progress: Progress) -> Progress:
    """Without numbers that are none."""
    broken = {name: None for name, value in progress if isinstance(value, float) and not math.isfinite(value)}
    return progress.model_copy(update=broken) if broken else progress


def find(status: FineTuneJobStatus, type: str) -> Condition | None:
    return next((c for c in status.conditions if c.type == type), None)


def is_true(status: FineTuneJobStatus, type: str) -> bool:
    found = find(status, type)
    return found is not None and found.status == "True"


def terminal(status: FineTuneJobStatus) -> bool:
    """Nothing happens to the job any more."""
    return status.phase is not None and status.phase.terminal
