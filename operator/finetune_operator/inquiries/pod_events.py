"""Why does a pod not run on the node that it has? Only its events say: a volume, the network, an image."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.text import one_line
from finetune_operator.diagnosis.startup_blockers import in_preparation
from finetune_operator.kube.client import ApiError, Client
from finetune_operator.kube.resources import EVENTS, Key, Raw
from finetune_operator.state.cache import Cache
from finetune_operator.state.notes import PodEvent
from finetune_operator.state.observe import Observed

from .event_throttle import EventThrottle
from .inquiry import Answer

logger = logging.getLogger(__name__)

FIRST = 15.0
"""Seconds that a node gets until its pod's events are read: most pods run by then."""

INTERVAL = 30.0
"""Seconds between two questions about one job."""


@dataclass
class PodEvents:
    """Asks for the events of the first pod of a gang that is being prepared, and notes the latest."""

    client: Client
    cache: Cache
    clock: Callable[[], float] = time.monotonic
    _due: dict[Key, tuple[str, float]] = field(default_factory=dict)
    """Of which pod, and when to ask."""

    def __post_init__(self) -> None:
        self._turns = EventThrottle(self.clock)

    async def ask(self, seen: Observed, now: datetime) -> Answer | None:
        key, pod = seen.job.owner, in_preparation(seen)
        if pod is None or pod.scheduled is None:
            self.forget(key)
            return None
        moment = self.clock()
        uid, due = self._due.get(key, ("", 0.0))
        if uid != pod.uid:
            due = moment + max(0.0, FIRST - (now - pod.scheduled).total_seconds())
            self._due[key] = (pod.uid, due)
        if due > moment:
            return Answer(due - moment)
        if wait := self._turns.wait(pod.uid, lane=pod.namespace):
            return Answer(wait)
        self._turns.take(pod.uid, again_in=INTERVAL)
        self._due[key] = (pod.uid, moment + INTERVAL)
        try:
            found = (await self.client.list(EVENTS, pod.namespace, fields=f"involvedObject.uid={pod.uid}")).items
        except ApiError as error:
            logger.info("events of %s/%s cannot be read: %s", pod.namespace, pod.name, one_line(error))
            return Answer(INTERVAL)
        if latest := max(found, key=_when, default=None):
            message = " ".join(str(latest.get("message", "")).split())
            event = PodEvent(pod.uid, str(latest.get("reason", "")), message)
            self.cache.note(key, pod_event=event)
        return Answer(INTERVAL)

    def forget(self, key: Key) -> None:
        self._due.pop(key, None)
        self.cache.note(key, pod_event=None)


def _when(event: Raw) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))
