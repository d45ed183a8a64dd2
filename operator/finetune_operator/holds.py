"""Why does a queue not let a Job go? Kueue says so in the Workload that it makes of the Job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api import names

from .cache import Cache, Hold
from .client import ApiError, Client
from .observe import Observed
from .resources import Raw

logger = logging.getLogger(__name__)

FIRST = 5.0
"""Seconds that Kueue gets until it is asked: most Jobs are admitted by then."""

INTERVAL = 60.0
"""Seconds between two questions about one Job, after some that follow each other faster: each twice as long."""


@dataclass
class Holds:
    """Asks for the Workloads of Jobs that are held, and puts the answers into the cache."""

    client: Client
    cache: Cache
    clock: Callable[[], float] = time.monotonic
    _due: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By uid of the Job, when to ask, and the pause before that."""

    async def ask(self, seen: Observed) -> float | None:
        """Seconds until it should be asked again; None if there is nothing to ask. No answer is no error."""
        child, workloads = seen.child, self.cache.offers.workloads
        if child is None or not child.held or not child.queue or workloads is None:
            if child is not None:
                self._due.pop(child.uid, None)
            return None
        now = self.clock()
        due, pause = self._due.setdefault(child.uid, (now + FIRST, FIRST))
        if due > now:
            return due - now
        pause = min(pause * 2, INTERVAL)
        alive = {uid: each for uid, each in self._due.items() if each[0] > now - 2 * INTERVAL}
        self._due = alive | {child.uid: (now + pause, pause)}
        try:
            selector = f"{names.LABEL_QUEUED_JOB_UID}={child.uid}"
            found = (await self.client.list(workloads, child.namespace, selector=selector)).items
        except ApiError as error:
            logger.info("the Workload of %s/%s cannot be read: %s", child.namespace, child.name, error)
            return pause
        told = next((why for raw in found if (why := explanation(raw))), "")
        self.cache.holds[seen.job.owner] = Hold(child.uid, told or "is Kueue there, and does it look after this Job?")
        return pause


def explanation(workload: Raw) -> str:
    """In Kueue's words; empty if it has not said anything yet."""
    conditions = {each["type"]: each for each in workload.get("status", {}).get("conditions", ())}
    if (evicted := conditions.get("Evicted", {})).get("status") == "True":
        return str(evicted.get("message", ""))
    for type in ("QuotaReserved", "Admitted"):
        if (found := conditions.get(type, {})).get("status") == "False":
            return str(found.get("message", ""))
    return ""
