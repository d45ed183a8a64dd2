"""Kubernetes Events: what happened to a job, for `kubectl describe` and `kubectl get events`.

One object for each job, reason and attempt, by a name made of them; when it happens again, its count goes up. An event
is news, not state: it is sent after the status was written, and one that cannot be sent is logged and forgotten.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime
from typing import Any

from finetune_api import names
from finetune_api.text import one_line

from .decision import Event
from .kube.client import AlreadyExists, ApiError, Client
from .kube.resources import EVENTS
from .state.status import rfc3339
from .state.views import JobView

logger = logging.getLogger(__name__)

MESSAGE_LIMIT = 1024
"""Characters of an Event's message that the API server takes."""


async def send(client: Client, job: JobView, event: Event, *, attempt: int, now: datetime) -> None:
    body = event_object(job, event, attempt=attempt, now=now)
    key = (job.namespace, body["metadata"]["name"])
    try:
        try:
            await client.create(EVENTS, body)
        except AlreadyExists:
            known = await client.get(EVENTS, key)
            again = {"count": known.get("count", 1) + 1, "lastTimestamp": rfc3339(now), "message": body["message"]}
            await client.merge(EVENTS, key, again)
    except ApiError as error:
        logger.warning("%s/%s: the event %s could not be sent: %s", *job.owner, event.reason, one_line(error))


def event_object(job: JobView, event: Event, *, attempt: int, now: datetime) -> dict[str, Any]:
    told = hashlib.sha256(f"{job.uid}/{event.reason}/{attempt}".encode()).hexdigest()[:16]
    moment = rfc3339(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{job.name}.{told}", "namespace": job.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
        "type": event.type,
        "reason": event.reason.value,
        "message": event.message if len(event.message) <= MESSAGE_LIMIT else event.message[: MESSAGE_LIMIT - 1] + "…",
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
