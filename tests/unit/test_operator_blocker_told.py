"""A job that waits for its objects: what the API server says is told, in time too when it says something else."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.decision import Decision
from finetune_operator.diagnosis.api_rejections import NotYet
from finetune_operator.dispatch import Dispatcher
from finetune_operator.inquiries.progress_poller import Poller
from finetune_operator.kube.resources import FINETUNEJOBS, Key
from finetune_operator.kube.workqueue import LONGEST_RETRY, WorkQueue
from finetune_operator.reconciler import Reconciler
from finetune_operator.state.cache import Cache
from finetune_operator.state.namespace_sync import WatchedNamespaces
from finetune_operator.state.observe import Observed
from finetune_operator.state.views import JobView
from finetune_operator.transitions.blocked import OFTEN
from tests.support.operator_objects import DEFAULTS, NOW, raw_job

KEY = ("ml", "a")


class Refusing:
    """An API server that makes no object, for a reason that changes."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.problem, self.version = cache, "", 1

    async def carry_out(self, seen: Observed, decision: Decision) -> None:
        await self.write_status(seen.job, decision.status)
        if decision.create:
            raise NotYet(self.problem)

    async def write_status(self, job: JobView, status: FineTuneJobStatus) -> None:
        assert job.owner == KEY
        self.version += 1
        raw = raw_job(status=status.to_json())
        raw["metadata"]["resourceVersion"] = str(self.version)
        self.cache.feed(FINETUNEJOBS, None, raw)


def test_another_problem_is_told_within_a_minute_and_not_after_the_pause_of_many_failures() -> None:
    async def looks() -> tuple[str, float]:
        cache, queue = Cache(), WorkQueue[Key]()
        dispatch = Dispatcher(cache=cache, queue=queue, scope=WatchedNamespaces(()))
        applier = Refusing(cache)
        clock = [NOW]
        reconciler = Reconciler(
            client=None,  # type: ignore[arg-type]
            applier=applier,
            dispatch=dispatch,
            inquiries=(),
            poller=Poller(cache, news=dispatch.news),
            defaults=DEFAULTS,
            now=lambda: clock[0],
        )
        cache.feed(FINETUNEJOBS, None, raw_job())
        for _ in range(9):
            queue.retry(KEY)
        queue.add(KEY)
        await queue.get()
        for applier.problem, seconds in (("the Service blocks", 0.0), ("the Job blocks", OFTEN - 5)):
            clock[0] = NOW + timedelta(seconds=seconds)
            with contextlib.suppress(NotYet):
                await reconciler.reconcile(KEY)
        queue.retry(KEY)
        again = queue._later[KEY].when() - asyncio.get_running_loop().time()
        told = cache.job(KEY)
        assert told is not None
        assert told.status.last_failure is not None
        assert told.status.last_failure.reason == Reason.PodsRefused.value
        return told.status.last_failure.message, again

    message, again = asyncio.run(looks())
    assert message == "the Service blocks", "two writes of one reason are a minute apart"
    assert again <= 6 < LONGEST_RETRY * 0.75
