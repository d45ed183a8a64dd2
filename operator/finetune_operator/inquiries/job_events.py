"""Why does a Job have no pods? Only its events say: a quota, an admission policy, a webhook that is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from finetune_api.text import one_line
from finetune_operator.diagnosis.startup_blockers import lacks_pods
from finetune_operator.kube.client import ApiError, Client
from finetune_operator.kube.resources import EVENTS, Key
from finetune_operator.state.cache import Cache
from finetune_operator.state.notes import PodsRefused
from finetune_operator.state.observe import Observed, observe
from finetune_operator.state.views import ChildJob

from .event_throttle import EventThrottle
from .inquiry import Answer
from .live_read import confirm

logger = logging.getLogger(__name__)

INTERVAL = 30.0
"""Seconds between two questions about one Job."""


@dataclass
class JobEvents:
    """Asks for the events of Jobs that lack pods, and notes the latest refusal."""

    client: Client
    cache: Cache
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._turns = EventThrottle(self.clock)

    async def ask(self, seen: Observed, now: datetime) -> Answer | None:
        """The pods may be there without our label. Only where they are not, events of their Job say why: an old one
        stays for an hour, whatever became of it."""
        child = seen.child
        if child is None or not lacks_pods(seen, now):
            return None
        if wait := self._turns.wait(child.uid, lane=child.namespace):
            return Answer(wait)
        await confirm(self.client, self.cache, seen)
        seen = observe(self.cache, seen.job.owner, seen.defaults) or seen
        if seen.child is not None and lacks_pods(seen, now):
            await self._read_events(seen.job.owner, seen.child)
        return Answer(INTERVAL, live=True)

    async def _read_events(self, key: Key, child: ChildJob) -> None:
        self._turns.take(child.uid, again_in=INTERVAL)
        fields = f"involvedObject.uid={child.uid},reason=FailedCreate"
        try:
            found = (await self.client.list(EVENTS, child.namespace, fields=fields)).items
        except ApiError as error:
            logger.info("events of %s/%s cannot be read: %s", child.namespace, child.name, one_line(error))
            return
        latest = max(found, key=lambda event: event.get("lastTimestamp") or "", default=None)
        if latest is not None:
            refused = PodsRefused(child.uid, _without_pod(latest.get("message", "")))
            self.cache.note(key, pods_refused=refused)

    def forget(self, key: Key) -> None:
        """Turns that are not taken are forgotten after a while."""


def _without_pod(message: str) -> str:
    """`Error creating: pods "a-1-0-x7k2p" is forbidden: exceeded quota` without the random name: news only if it is."""
    head, quote, rest = message.partition('pods "')
    _, closing, tail = rest.partition('"')
    return f"{head}pods{tail}" if quote and closing else message
