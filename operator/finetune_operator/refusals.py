"""Why does a Job have no pods? Only its events tell: a quota, an admission policy, a webhook that is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from .cache import Cache, Refusal
from .client import ApiError, Client
from .observe import Observed
from .resources import EVENTS
from .turns import Turns
from .views import ChildJob

logger = logging.getLogger(__name__)

INTERVAL = 30.0
"""Seconds between two questions about one Job."""


@dataclass
class Refusals:
    """Asks the API server for the events of Jobs that lack pods, and puts the latest answer into the cache."""

    client: Client
    cache: Cache
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._turns = Turns(self.clock)

    def wait(self, child: ChildJob) -> float:
        """Seconds until its events may be read."""
        return self._turns.wait(child.uid)

    async def ask(self, seen: Observed) -> bool:
        """Whether something new was learnt. No right to list events is no error: then nothing is known."""
        child = seen.child
        assert child is not None
        if self.wait(child):
            return False
        self._turns.take(child.uid, again_in=INTERVAL)
        fields = f"involvedObject.uid={child.uid},reason=FailedCreate"
        try:
            found = (await self.client.list(EVENTS, child.namespace, fields=fields)).items
        except ApiError as error:
            logger.info("events of %s/%s cannot be read: %s", child.namespace, child.name, error)
            return False
        latest = max(found, key=lambda event: event.get("lastTimestamp") or "", default=None)
        if latest is None:
            return False
        new = Refusal(child.uid, _without_pod(latest.get("message", "")))
        learnt = self.cache.refusals.get(seen.job.owner) != new
        self.cache.refusals[seen.job.owner] = new
        return learnt


def _without_pod(message: str) -> str:
    """`Error creating: pods "a-1-0-x7k2p" is forbidden: exceeded quota` without the random name: news only if it is."""
    head, quote, rest = message.partition('pods "')
    _, closing, tail = rest.partition('"')
    return f"{head}pods{tail}" if quote and closing else message
