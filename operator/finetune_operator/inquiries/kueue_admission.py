"""Why does a queue not admit a Job? Kueue says so in the Workload that it creates for the Job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from finetune_api import names
from finetune_api.text import one_line
from finetune_operator.kube.client import ApiError, Client
from finetune_operator.kube.resources import Key, Raw
from finetune_operator.state.cache import Cache
from finetune_operator.state.notes import QueueMessage
from finetune_operator.state.observe import Observed

from .inquiry import Answer

logger = logging.getLogger(__name__)

FIRST = 5.0
"""Seconds that Kueue gets until it is asked: most Jobs are admitted by then."""

INTERVAL = 60.0
"""Seconds between two questions about one Job, after some that follow each other faster: each twice as long."""


@dataclass
class KueueAdmission:
    """Asks for the Workloads of suspended Jobs that wait in a queue, and notes what they say."""

    client: Client
    cache: Cache
    clock: Callable[[], float] = time.monotonic
    _due: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By uid of the Job, when to ask, and the pause before that."""

    async def ask(self, seen: Observed, now: datetime) -> Answer | None:
        child, workloads = seen.child, self.cache.features.workloads
        if child is None or not child.held or not child.queue or workloads is None:
            if child is not None and child.uid in self._due:
                del self._due[child.uid]
                self.cache.note(seen.job.owner, queue_message=None)  # it was about a turn that is over
            return None
        moment = self.clock()
        due, pause = self._due.setdefault(child.uid, (moment + FIRST, FIRST))
        if due > moment:
            return Answer(due - moment)
        pause = min(pause * 2, INTERVAL)
        alive = {uid: each for uid, each in self._due.items() if each[0] > moment - 2 * INTERVAL}
        self._due = alive | {child.uid: (moment + pause, pause)}
        try:
            selector = f"{names.LABEL_QUEUED_JOB_UID}={child.uid}"
            found = (await self.client.list(workloads, child.namespace, selector=selector)).items
        except ApiError as error:
            logger.info("the Workload of %s/%s cannot be read: %s", child.namespace, child.name, one_line(error))
            return Answer(pause)
        told = next((why for raw in found if (why := explanation(raw))), "")
        message = QueueMessage(child.uid, told or "is Kueue installed, and does it manage this Job?", now)
        before = self.cache.of(seen.job.owner).queue_message
        if before is None or replace(before, since=now) != message:
            self.cache.note(seen.job.owner, queue_message=message)
        return Answer(pause)

    def forget(self, key: Key) -> None:
        """Jobs that are not asked about are forgotten after a while."""


def explanation(workload: Raw) -> str:
    """In Kueue's words; empty if it has not said anything yet."""
    conditions = {each["type"]: each for each in workload.get("status", {}).get("conditions", ())}
    if (evicted := conditions.get("Evicted", {})).get("status") == "True":
        return str(evicted.get("message", ""))
    for type in ("QuotaReserved", "Admitted"):
        if (found := conditions.get(type, {})).get("status") == "False":
            return str(found.get("message", ""))
    return ""
