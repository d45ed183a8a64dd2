"""An error of ours: told in the status, bounded in the log, and no reason to leave the rest undone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator import unexpected_errors
from finetune_operator.decide import decide
from finetune_operator.decision import Decision
from finetune_operator.dispatch import Dispatcher
from finetune_operator.inquiries.progress_poller import Poller
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, Key
from finetune_operator.kube.server_clock import ServerClock
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import Counters
from finetune_operator.reconciler import Reconciler
from finetune_operator.state.cache import Cache
from finetune_operator.state.namespace_sync import WatchedNamespaces
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import find
from finetune_operator.state.views import JobView
from finetune_operator.unexpected_errors import TRIES, UnexpectedErrors, mute
from finetune_operator.workers import Workers
from tests.support.operator_objects import (
    DEFAULTS,
    NOW,
    SPEC,
    child,
    ended,
    failed_pod,
    job,
    pod,
    raw_job,
    raw_pod,
    seen,
    status,
    words,
)

KEY = ("ml", "a")


def broken(given: Observed, now: Any) -> Decision:
    """Breaks on what a pod said, and only on that."""
    if given.report is not None or any(each.ended and each.ended.words for each in given.pods):
        raise OverflowError("date value out of range")
    return decide(given, now)


def failing() -> Observed:
    pods = (failed_pod(0, Reason.OutOfMemory), failed_pod(1, Reason.PeerLost))
    return seen(job(status(Phase.Running)), children=(child(failing=True, finished=True),), pods=pods)


def test_an_error_that_stays_is_decided_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unexpected_errors, "decide", broken)
    kept = UnexpectedErrors()
    for number in range(TRIES - 1):
        with pytest.raises(OverflowError):
            kept.decided(KEY, failing(), NOW)
        assert kept.met(KEY, OverflowError(), pause=1.0) is False, number
    decision, error = kept.decided(KEY, failing(), NOW)
    assert isinstance(error, OverflowError)
    assert decision.status.phase is Phase.Restarting, "by the exit codes"
    assert kept.met(KEY, error, pause=1.0), "people should know"
    kept.passed(KEY)
    with pytest.raises(OverflowError):
        kept.decided(KEY, failing(), NOW)


STILL: list[tuple[str, Observed, Callable[[Decision], bool]]] = [
    (
        "suspending",
        seen(
            job(status(Phase.Running), raw_spec=SPEC | {"suspend": True}), children=(child(),),
            pods=(pod(0, "Running", ended=ended(words=words(Reason.DataEmpty))),),
        ),
        lambda decision: decision.status.phase is Phase.Suspended and len(decision.delete) == 1,
    ),
    (
        "the end",
        seen(
            job(status(Phase.Running)), children=(child(complete=True, finished=True),),
            pods=tuple(pod(n, "Succeeded", ended=ended(words=words(Reason.DataEmpty))) for n in range(2)),
        ),
        lambda decision: decision.status.phase is Phase.Succeeded,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "given", "holds"), STILL, ids=[what for what, *_ in STILL])
def test_the_rest_is_still_decided(
    monkeypatch: pytest.MonkeyPatch, what: str, given: Observed, holds: Callable[[Decision], bool]
) -> None:
    monkeypatch.setattr(unexpected_errors, "decide", broken)
    kept = UnexpectedErrors(_failures={KEY: TRIES})
    decision, error = kept.decided(KEY, given, NOW)
    assert error is not None
    assert holds(decision), what


def test_a_muted_pod_keeps_kubernetes_word() -> None:
    given = seen(job(), pods=(failed_pod(0, Reason.OutOfMemory),))
    (only,) = mute(given).pods
    assert only.ended is not None
    assert (only.phase, only.ended.exit_code, only.ended.words, only.ended.text) == ("Failed", 80, None, "")


def test_the_log_gets_one_traceback_for_a_place_and_one_line_for_a_try(caplog: pytest.LogCaptureFixture) -> None:
    kept = UnexpectedErrors()

    def fails() -> None:
        raise ValueError("pod\n2026 INFO forged: line\x1b[2J" + "x" * 10_000)

    with caplog.at_level(logging.ERROR):
        for number in range(50):
            try:
                fails()
            except ValueError as error:
                kept.met(("ml", str(number % 5)), error, pause=1.0)
    assert sum(record.exc_info is not None for record in caplog.records) == 1
    assert all(len(record.getMessage()) < 400 and record.getMessage().isprintable() for record in caplog.records)


# the worker that meets it


class Desk:
    """A worker without a cluster: what it would write is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runner: asyncio.Runner, **raw: Any) -> None:
        self.runner = runner
        self.cache, self.queue, scope = Cache(), WorkQueue[Key](), WatchedNamespaces(())
        dispatch = Dispatcher(cache=self.cache, queue=self.queue, scope=scope)
        poller = Poller(self.cache, news=dispatch.news)
        reconciler = Reconciler(
            client=None,  # type: ignore[arg-type]
            applier=self,
            dispatch=dispatch,
            inquiries=(),
            poller=poller,
            defaults=DEFAULTS,
            now=ServerClock().now,
        )
        self.workers = Workers(
            reconciler=reconciler,
            dispatch=dispatch,
            sync=None,  # type: ignore[arg-type]
            poller=poller,
            counters=Counters(),
            count=1,
            elected=False,
        )
        self.written: list[FineTuneJobStatus] = []
        self.cache.feed(FINETUNEJOBS, None, raw_job(status=raw or None))
        monkeypatch.setattr(unexpected_errors, "decide", lambda given, _: Decision(status=given.status))

    async def carry_out(self, given: Observed, decision: Decision) -> None:
        await self.write_status(given.job, decision.status)

    async def write_status(self, view: JobView, new: FineTuneJobStatus) -> None:
        if new is not view.status:
            self.written.append(new)
            raw = raw_job(view.version + 1, status=new.to_json())
            self.cache.feed(FINETUNEJOBS, None, raw)

    def looks(self, times: int) -> None:
        async def play() -> None:
            worker = asyncio.create_task(self.workers.work())
            for _ in range(times):
                self.queue.add(KEY)
                for _ in range(20):
                    await asyncio.sleep(0)
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
            self.queue.clear()

        self.runner.run(play())

    def word(self) -> str:
        view = self.cache.job(KEY)
        assert view is not None
        found = find(view.status, "UnexpectedError")
        return f"{found.status}: {found.message}" if found else "none"


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def raises(*_: Any) -> Decision:
    raise OverflowError("int too big to convert")


def test_people_are_told_after_a_few_tries_and_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, runner: asyncio.Runner
) -> None:
    desk = Desk(monkeypatch, runner, phase="Running", attempt=1)
    well = unexpected_errors.decide
    desk.looks(1)
    monkeypatch.setattr(unexpected_errors, "decide", raises)
    desk.looks(TRIES - 1)
    assert desk.word() == "none"
    desk.looks(5)
    assert desk.word().startswith("True: ")
    assert "OverflowError: int too big to convert" in desk.word()
    assert len(desk.written) == 1, "once, however often it is tried"
    monkeypatch.setattr(unexpected_errors, "decide", well)
    desk.looks(3)
    assert desk.word().startswith("False: ")
    assert len(desk.written) == 2


def test_an_error_while_it_is_carried_out_is_told_too(monkeypatch: pytest.MonkeyPatch, runner: asyncio.Runner) -> None:
    desk = Desk(monkeypatch, runner, phase="Running", attempt=1)

    async def fails(*_: Any) -> None:
        raise TypeError("Integer exceeds 64-bit range")

    monkeypatch.setattr(desk, "carry_out", fails)
    desk.looks(TRIES)
    assert "Integer exceeds 64-bit range" in desk.word()


def test_a_status_that_cannot_be_written_does_not_end_the_worker(
    monkeypatch: pytest.MonkeyPatch, runner: asyncio.Runner
) -> None:
    desk = Desk(monkeypatch, runner, phase="Running", attempt=1)
    monkeypatch.setattr(unexpected_errors, "decide", raises)

    async def fails(*_: Any) -> None:
        raise TypeError("no")

    monkeypatch.setattr(desk, "write_status", fails)
    desk.looks(TRIES + 2)
    assert desk.queue.depth == 0


def test_what_no_view_can_be_made_of_ends_no_list(caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache()
    strange: list[tuple[Any, dict[str, Any]]] = [
        (PODS, raw_pod(status="x\n" * 5000)), (JOBS, {"metadata": {"uid": "j", "name": "\x1b[2J"}, "spec": []}),
        (FINETUNEJOBS, raw_job(status="levitating")), (PODS, {"metadata": {"uid": "p", "labels": 3}}),
    ]  # fmt: skip
    for resource, raw in strange:
        assert cache.feed(resource, "ADDED", raw) is None
        assert cache.feed(resource, "DELETED", raw) is None
    assert all(len(line) < 400 and line.isprintable() for line in caplog.messages)
