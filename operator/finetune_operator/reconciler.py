"""One look at one job: inquire, observe, decide, apply."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_api.text import one_line

from . import unexpected_errors
from .decision import Decision
from .diagnosis.api_rejections import NotYet, Refused, Taken
from .diagnosis.startup_blockers import lacks_pods
from .dispatch import Dispatcher
from .inquiries.inquiry import Inquiry, inquire
from .inquiries.live_read import confirm
from .inquiries.progress_poller import Poller
from .kube.client import Client
from .kube.resources import Key
from .metrics import Counters
from .state.observe import Defaults, Observed, observe
from .state.status import failure_of, terminal
from .state.views import JobView
from .transitions.blocked import report_blocker
from .transitions.restart import end_as_invalid, take_next_number
from .unexpected_errors import UnexpectedErrors

logger = logging.getLogger(__name__)

UNWATCHED = 30.0
"""Seconds between two looks at objects that lost their label, of which no watch brings events."""


class Clock(Protocol):
    def __call__(self) -> datetime: ...


class Applies(Protocol):
    """See apply.Applier."""

    async def carry_out(self, seen: Observed, decision: Decision) -> None: ...

    async def write_status(self, job: JobView, status: FineTuneJobStatus) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    client: Client
    applier: Applies
    dispatch: Dispatcher
    inquiries: tuple[Inquiry, ...]
    poller: Poller
    defaults: Defaults
    now: Clock
    unexpected: UnexpectedErrors = field(default_factory=UnexpectedErrors)

    async def reconcile(self, key: Key) -> None:
        """Raises ApiError and unexpected errors; then the job must be looked at again."""
        seen = self._observe(key)
        if seen is None:
            self._forget(key)
            return
        queue = self.dispatch.queue
        seen, answer = await inquire(self.inquiries, seen, self.now(), lambda: self._observe(key))
        if answer is not None:
            queue.add_after(key, answer.again_in)
        seen, decision, error = await self._decide(seen, live=answer is not None and answer.live)
        if not await self._apply(seen, decision):
            return
        if decision.look_again_in == 0:
            self.dispatch.news(key)
        elif decision.look_again_in is not None:
            queue.add_after(key, decision.look_again_in)
        after = self._observe(key)
        self.poller.follow(key, after)
        if after is not None and after.unwatched and not terminal(after.status):
            queue.add_after(key, UNWATCHED)
        if error is not None:
            raise error
        if (job := self.dispatch.cache.job(key)) and (status := unexpected_errors.healed(job, self.now())):
            await self.applier.write_status(job, status)

    async def report_unexpected(self, key: Key, error: Exception) -> None:
        """Say in the job's status that an error of the operator keeps it from being reconciled."""
        try:
            if job := self.dispatch.cache.job(key):
                await self.applier.write_status(job, unexpected_errors.told(job, error, self.now()))
        except Exception as other:
            logger.error("%s/%s: the error could not be written to the status: %s", *key, one_line(other))

    def _observe(self, key: Key) -> Observed | None:
        return observe(self.dispatch.cache, key, self.defaults)

    async def _decide(self, seen: Observed, *, live: bool) -> tuple[Observed, Decision, Exception | None]:
        """Where a decision rests on something that is not seen, the API server is asked first. `live`: it just was."""
        key = seen.job.owner
        decision, error = self.unexpected.decided(key, seen, self.now())
        unseen = not live and (seen.unwatched or (lacks_pods(seen, self.now()) and not seen.pods_refused))
        if not decision.confirm and (terminal(seen.status) or not unseen):
            return seen, decision, error
        await confirm(self.client, self.dispatch.cache, seen)
        seen = replace(self._observe(key) or seen, confirmed=True)
        return seen, *self.unexpected.decided(key, seen, self.now())

    async def _apply(self, seen: Observed, decision: Decision) -> bool:
        """False if the API server rejected an object permanently, which decides about the job."""
        key = seen.job.owner
        try:
            await self.applier.carry_out(seen, decision)
        except Refused as refused:
            if seen_now := self._observe(key):
                await self.applier.carry_out(seen_now, end_as_invalid(seen_now, str(refused), self.now()))
            return False
        except Taken as taken:
            if seen_now := self._observe(key):
                await self.applier.carry_out(seen_now, take_next_number(seen_now, str(taken), self.now()))
            self.dispatch.news(key)
            return False
        except NotYet as problem:
            await self._report_not_yet(key, problem.message)
            raise
        return True

    async def _report_not_yet(self, key: Key, problem: str) -> None:
        """An object is rejected for now: people should see that where they look first."""
        seen = self._observe(key)
        if seen is not None and not terminal(seen.status) and seen.attempt:
            failure = failure_of(Reason.PodsRefused, problem, attempt=seen.attempt, at=self.now())
            decision = report_blocker(seen, failure, self.now())
            await self.applier.carry_out(seen, decision)
            if decision.look_again_in is not None:  # sooner, perhaps, than the next of ever longer pauses
                self.dispatch.queue.add_after(key, decision.look_again_in)

    def _forget(self, key: Key) -> None:
        self.unexpected.passed(key)
        self.poller.follow(key, None)
        for inquiry in self.inquiries:
            inquiry.forget(key)
        self.dispatch.cache.forget(key)


def record_transition(counters: Counters, job: JobView, status: FineTuneJobStatus) -> None:
    """Log and count what a status that was just written says: the job as it was, and its new status."""
    if status.phase is not job.status.phase:
        was = job.status.phase.value if job.status.phase else "new"
        logger.info("%s/%s: %s → %s", *job.owner, was, status.phase.value if status.phase else "-")
    failure = status.last_failure
    failed = terminal(status) or status.attempt != job.status.attempt
    if failure is not None and failed and failure != job.status.last_failure:
        counters.failures.labels(failure.failure_class.value, failure.reason).inc()
    if terminal(status) and not terminal(job.status):
        ended = "Failed" if status.phase is Phase.Failed else "Complete"
        reason = next((c.reason for c in status.conditions if c.type == ended), "")
        counters.finished.labels(status.phase.value if status.phase else "", reason).inc()
