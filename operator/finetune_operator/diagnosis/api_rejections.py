"""What a refusal of the API server means: the object can never be, it cannot be for now, or its name is taken. Pure.

    Refused   validation found fault with the object that we sent: another try gives the same answer
    NotYet    anything else that may change: a quota, an admission policy, a webhook that denies or is away,
              an object in the way. The job's status says what rejects it, and it is retried
    Taken     a Job that is not this attempt's has its name: the next number is free
    Occupied  the object in the way is about to go

The code alone does not distinguish them. A ValidatingAdmissionPolicy denies with 422 by default, a webhook
that gives no code with 400, and one that does not answer with 500. Only validation names the fields of what it refuses.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

from finetune_api import names
from finetune_operator.decision import Create
from finetune_operator.kube.client import ApiError, Forbidden, Invalid, NotFound
from finetune_operator.kube.resources import JOBS, Raw
from finetune_operator.state.views import JobView, parse_time

PATIENCE = timedelta(seconds=30)
"""In which an object that is being deleted usually is gone."""

DENIED = re.compile(r'admission webhook "|ValidatingAdmissionPolicy |MutatingAdmissionPolicy ')
"""By whom admission says no."""

UNREADABLE = "cannot be handled as a"
"""How the API server says that what we sent is not an object of its kind (400)."""

TOO_LARGE = 413
ADMISSION_FAILED = (500, 504)
"""A webhook that is away or too slow. 503 and no answer at all are the API server's own trouble."""


class Refused(Exception):
    """The API server says that the objects made of this spec can never be."""


class Occupied(ApiError):
    """The place is taken by something that is about to go. Try again."""


class NotYet(ApiError):
    """The object was rejected, and may be accepted later. The message names the object and what rejects it."""


class Taken(ApiError):
    """A Job that is not this attempt's has its name. The message names it."""


def judged(error: ApiError, create: Create, *, first: bool) -> ApiError | Refused:
    """What to raise instead of an answer to a creation. `first`: no attempt of the job was ever made of this spec."""
    if first and final(error, create.body):
        return Refused(error.message)
    return waits(error, f"{create.resource.kind} {create.body['metadata']['name']} cannot be created yet")


def waits(error: ApiError, what: str) -> ApiError:
    """NotYet for an answer that a person should see, else the error itself: it is retried, and passes."""
    denial = isinstance(error, (Forbidden, Invalid)) or error.status in (TOO_LARGE, *ADMISSION_FAILED)
    if not denial and not isinstance(error, NotFound):
        return error
    return NotYet(f"{what}: {error.message}", status=error.status, retry_after=error.retry_after)


def final(error: ApiError, body: Raw) -> bool:
    """Validation of the object as it was sent has rejected it, and nothing else has."""
    if DENIED.search(error.message):
        return False
    if error.status == TOO_LARGE:
        return True
    if not isinstance(error, Invalid):
        return False
    if UNREADABLE in error.message:
        return True
    return bool(error.fields) and all(field and _sent(body, field) for field in error.fields)


def in_the_way(job: JobView, create: Create, found: Raw, *, first: bool, now: datetime) -> ApiError | Refused | None:
    """What an object that has the name already means; None: it is the one that was to be made."""
    meta = found["metadata"]
    what = f"{create.resource.kind} {meta['name']}"
    if since := parse_time(meta.get("deletionTimestamp")):
        if now - since < PATIENCE:
            return Occupied(f"the {what} of an earlier job or attempt is still being deleted")
        held = ", ".join(meta.get("finalizers", ())) or "its pods or other dependents"
        return NotYet(f"the {what} of an earlier job or attempt is still being deleted, held by {held}")
    if _owners(found) & _owners(create.body):
        return None
    labels = meta.get("labels", {})
    left = labels.get(names.LABEL_JOB) == job.name and labels.get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER
    if create.resource is JOBS and (not left or _finished(found)):
        return Taken(f"there is a {what} that is not this job's")
    if not left and first:
        return Refused(f"a {what} that is not this job's exists already: choose another metadata.name")
    whose = "belongs to an earlier FineTuneJob of this name" if left else "is not this job's"
    return NotYet(f"the {what} {whose}, and blocks this one: delete it with `kubectl delete {create.resource.plural} "
                  f"{meta['name']} -n {job.namespace}`")  # fmt: skip


def _sent(body: Any, path: str) -> bool:
    """Whether a field that validation names is of an entry that we sent: a mutating webhook may have added others."""
    here = body
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        if index:
            if isinstance(here, list) and int(index) >= len(here):
                return False
            here = here[int(index)] if isinstance(here, list) else None
        else:
            here = here.get(name) if isinstance(here, dict) else None
    return True


def _owners(raw: Raw) -> set[str]:
    return {owner["uid"] for owner in raw["metadata"].get("ownerReferences", ())}


def _finished(raw: Raw) -> bool:
    conditions = raw.get("status", {}).get("conditions", ())
    return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)
