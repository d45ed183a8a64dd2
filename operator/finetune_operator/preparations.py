"""What keeps a pod from running on the node that it has? Its events alone tell: a volume, the network, an image."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from .cache import Cache, Preparation
from .client import ApiError, Client
from .observe import Observed
from .resources import EVENTS, Key, Raw
from .troubles import in_preparation
from .turns import Turns

logger = logging.getLogger(__name__)

FIRST = 15.0
"""Seconds that a node gets until its pod's events are read: most pods run by then."""

INTERVAL = 30.0
"""Seconds between two questions about one job."""


@dataclass
class Preparations:
    """Asks for the events of the first pod of a gang that is being prepared, and puts the latest into the cache."""

    client: Client
    cache: Cache
    clock: Callable[[], float] = time.monotonic
    _due: dict[Key, tuple[str, float]] = field(default_factory=dict)
    """Of which pod, and when to ask."""

    def __post_init__(self) -> None:
        self._turns = Turns(self.clock)

    async def ask(self, seen: Observed, now: datetime) -> float | None:
        """Seconds until it should be asked again; None if there is nothing to ask. No answer is no error."""
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
            return due - moment
        if wait := self._turns.wait(pod.uid):
            return wait
        self._turns.take(pod.uid, again_in=INTERVAL)
        self._due[key] = (pod.uid, moment + INTERVAL)
        try:
            found = (await self.client.list(EVENTS, pod.namespace, fields=f"involvedObject.uid={pod.uid}")).items
        except ApiError as error:
            logger.info("events of %s/%s cannot be read: %s", pod.namespace, pod.name, error)
            return INTERVAL
        if latest := max(found, key=_when, default=None):
            message = " ".join(str(latest.get("message", "")).split())
            self.cache.preparations[key] = Preparation(pod.uid, str(latest.get("reason", "")), message)
        return INTERVAL

    def forget(self, key: Key) -> None:
        self._due.pop(key, None)
        self.cache.preparations.pop(key, None)


def _when(event: Raw) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))
