"""The operator and node 0's agent: what is asked, what is believed, and what nonsense costs."""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from finetune_api.plan import JobIdentity, ProgressReport, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Phase, Progress
from finetune_operator.decide import decide
from finetune_operator.inquiries import progress_poller as module
from finetune_operator.inquiries.progress_poller import (
    LIMIT,
    NONSENSE_INTERVAL,
    OF_NAMESPACE,
    Asked,
    Budget,
    Poller,
    fetch,
)
from finetune_operator.policies.running import running
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import Observed
from finetune_operator.state.pod_reports import MalformedReport, progress_report
from finetune_operator.state.status import find
from finetune_trainer.agent.serve import serving
from finetune_trainer.rundir import RunDir, TrainerReport
from tests.support import http_server
from tests.support.operator_objects import NOW, child, job, pod, seen, spec, status

KEY = ("ml", "a")
ASKED = Asked("u", 1)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def reads(data: bytes, asked: Asked) -> ProgressReport:
    return progress_report(data, attempt=asked.attempt, uid=asked.uid, nonce=asked.nonce)


def told(answer: Answer, asked: Asked = ASKED) -> ProgressReport | None:
    async def play() -> ProgressReport | None:
        brief = aiohttp.ClientTimeout(total=120)
        async with (
            http_server.serving(answer) as url,
            aiohttp.ClientSession(timeout=brief, auto_decompress=False) as session,
        ):
            return await fetch(session, f"{url}/progress", asked, reads)

    return asyncio.run(play())


def saying(body: bytes, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    return answer


REPORT = ProgressReport(attempt=1, phase="training", progress=Progress(step=3))
TEXT = REPORT.model_dump_json(by_alias=True, exclude_none=True).encode()


def test_progress_is_read_from_the_agent() -> None:
    assert told(saying(TEXT)) == REPORT


NONSENSE = [
    b"<html>", b"{}", b"[]", b"x" * (LIMIT + 1), b'{"attempt": 2, "phase": "training"}',
    b'{"attempt": 1, "phase": "training", "uid": "of another job"}', gzip.compress(TEXT, mtime=0), b"[" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("body", NONSENSE)
def test_what_is_not_a_report_of_the_attempt_is_nonsense(body: bytes) -> None:
    with pytest.raises(MalformedReport) as found:
        told(saying(body))
    assert len(str(found.value)) <= 200
    assert "\n" not in str(found.value)


def test_what_was_compressed_is_not_unpacked_whatever_it_claims() -> None:
    bomb = gzip.compress(b" " * 20_000_000)
    with pytest.raises(MalformedReport):
        told(saying(bomb, **{"Content-Encoding": "gzip"}))


def test_an_answer_in_a_thousand_pieces_is_nonsense() -> None:
    async def drips(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for byte in TEXT * 30:
            await response.write(bytes([byte]))
        return response

    async def drips_slowly(request: web.Request) -> web.StreamResponse:
        body = TEXT + b" " * 200
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        for byte in body:
            await response.write(bytes([byte]))
            await asyncio.sleep(0.005)
        return response

    for answer, why in ((drips, "Content-Length"), (drips_slowly, "pieces")):
        with pytest.raises(MalformedReport, match=why):
            told(answer)


def test_a_redirect_is_not_followed_and_an_error_is_no_answer() -> None:
    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    async def broken(_: web.Request) -> web.Response:
        raise web.HTTPForbidden

    assert told(elsewhere) is None
    assert told(broken) is None


# upgrades: who is older than whom

PLAN = RunPlan(
    job=JobIdentity(namespace="ml", name="a", uid="u"), attempt=1, token="t", nonce="n",
    spec=FineTuneJobSpec(command=("python", "train.py")),
)  # fmt: skip


@contextmanager
def agent(tmp_path: Path, plan: RunPlan) -> Iterator[str]:
    run_dir = RunDir(tmp_path)
    run_dir.write_report(TrainerReport(attempt=plan.attempt, phase="training", progress=Progress(step=7)))
    with serving("127.0.0.1", 0, plan=plan, run_dir=run_dir, phase=lambda: "training") as port:
        yield f"http://127.0.0.1:{port}/progress"


def asks(url: str, asked: Asked) -> int | None:
    async def play() -> ProgressReport | None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            return await fetch(session, url, asked, reads)

    found = asyncio.run(play())
    return found.progress.step if found else None


OLDER = PLAN.model_copy(update={"token": None, "nonce": None})


def test_operator_and_agent_of_one_release(tmp_path: Path) -> None:
    with agent(tmp_path, PLAN) as url:
        assert asks(url, Asked("u", 1, "t", "n")) == 7


def test_a_newer_operator_reads_what_an_older_operators_pods_say(tmp_path: Path) -> None:
    with agent(tmp_path, OLDER) as url:
        assert asks(url, Asked("u", 1)) == 7


def test_an_older_agent_under_an_older_plan_says_neither_uid_nor_nonce() -> None:
    assert told(saying(TEXT), Asked("u", 1)) == REPORT


def test_an_older_operator_under_its_own_plan_is_answered_by_a_newer_agent(tmp_path: Path) -> None:
    with agent(tmp_path, OLDER) as url:
        assert asks(url, Asked("another uid is not looked at by it", 1)._replace(uid="u")) == 7


def test_after_a_rollback_the_older_operator_hears_nothing_which_is_no_failure(tmp_path: Path) -> None:
    with agent(tmp_path, PLAN) as url:
        assert asks(url, Asked("u", 1)) is None


@pytest.mark.parametrize("plan", [PLAN.model_copy(update={"nonce": "of another attempt"}), OLDER])
def test_another_pod_at_the_address_is_not_believed(tmp_path: Path, plan: RunPlan) -> None:
    with (
        agent(tmp_path, plan.model_copy(update={"token": "t"})) as url,
        pytest.raises(MalformedReport, match="another job"),
    ):
        asks(url, Asked("u", 1, "t", "n"))


def test_another_tenants_agent_at_the_address_is_not_believed_by_an_older_plan_either(tmp_path: Path) -> None:
    other = OLDER.model_copy(update={"job": JobIdentity(namespace="evil", name="a", uid="other")})
    with agent(tmp_path, other) as url, pytest.raises(MalformedReport, match="another job"):
        asks(url, Asked("u", 1))


# what nonsense costs


def world(**fields: Any) -> Observed:
    known: dict[str, Any] = {
        "children": (child(nodes=1, token="t", nonce="n"),), "pods": (pod(0, "Running", ip="10.0.0.1"),),
    }  # fmt: skip
    return seen(job(status(Phase.Running)), spec=spec(nodes=1), **known | fields)


def poll(monkeypatch: pytest.MonkeyPatch, answers: Callable[[], ProgressReport], *, times: int) -> tuple[Poller, Any]:
    now = [0.0]
    poller = Poller(Cache(), news=lambda _: None, clock=lambda: now[0], now=lambda: NOW)
    monkeypatch.setattr(module, "fetch", _answering(answers))
    poller.follow(KEY, world())
    (target,) = poller._targets.values()
    for _ in range(times):
        asyncio.run(poller._ask(None, asyncio.Semaphore(), KEY, target))  # type: ignore[arg-type]
        now[0] = target.due
    return poller, target


def _answering(answers: Callable[[], ProgressReport]) -> Callable[..., Awaitable[ProgressReport]]:
    async def answer(*_: Any) -> ProgressReport:
        return answers()

    return answer


def test_nonsense_is_asked_for_rarely_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nonsense() -> ProgressReport:
        raise MalformedReport("slices.0.name: Input should be a valid string")

    with caplog.at_level(logging.INFO):
        poller, target = poll(monkeypatch, nonsense, times=20)
    assert target.interval == NONSENSE_INTERVAL
    (line,) = caplog.messages
    assert line.startswith("ml/a: ")
    assert len(line) < 300
    assert (noted := poller.cache.of(KEY).unreadable) is not None
    assert noted.problem.startswith("slices")


def test_nonsense_is_a_condition_until_a_report_is_read() -> None:
    def word(found: Observed) -> str:
        decision = running(found, NOW)
        assert decision is not None
        told = find(decision.status, "ProgressUnreadable")
        return f"{told.status} {told.message}" if told else "none"

    confused = running(world(unreadable="not valid JSON"), NOW)
    assert word(world()) == "none"
    assert word(world(unreadable="not valid JSON")).startswith("True ")
    assert "not valid JSON" in word(world(unreadable="not valid JSON"))
    assert confused is not None
    after = seen(job(confused.status), children=(child(nodes=1),), pods=(pod(0, "Running"),), spec=spec(nodes=1))
    assert word(after).startswith("True "), "nobody knows yet"
    assert decide(after, NOW).status.phase is Phase.Running
    healed = seen(job(confused.status), children=(child(nodes=1),), pods=(pod(0, "Running"),), report=REPORT)
    assert word(healed).startswith("False ")


def test_reading_is_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[str] = []

    def read(*_: Any, **__: Any) -> ProgressReport:
        where.append(threading.current_thread().name)
        return REPORT

    monkeypatch.setattr(module, "progress_report", read)
    poller = Poller(Cache(), news=lambda _: None)
    asyncio.run(poller._read("ml", b"", ASKED))
    assert where != [threading.main_thread().name]


def test_a_namespace_whose_answers_take_long_to_read_waits_and_the_others_do_not() -> None:
    now = [0.0]
    poller = Poller(Cache(), news=lambda _: None, clock=lambda: now[0], now=lambda: NOW)
    poller.follow(("ml", "a"), world())
    poller.follow(("evil", "a"), world())
    now[0] = 10.0
    assert {key for key, _ in poller.due()} == {("ml", "a"), ("evil", "a")}
    poller._budget.spend("evil", 2.0)
    assert {key for key, _ in poller.due()} == {("ml", "a")}
    now[0] += 60.0
    assert {key for key, _ in poller.due()} == {("ml", "a"), ("evil", "a")}


def test_a_budget_comes_back_with_time_and_is_not_saved_up_for_ever() -> None:
    now = [0.0]
    budget = Budget(lambda: now[0])
    budget.spend("a", 0.4)
    assert not budget.over("a")
    now[0] = 10_000.0
    budget.spend("a", 0.6)
    assert budget.over("a")
    budget.keep(set())
    assert not budget.over("a")


def test_pods_that_do_not_answer_keep_nobody_else_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[str] = []

    async def hangs(_: Any, url: str, asked: Asked, __: Any) -> ProgressReport:
        if asked.uid == "evil":
            waiting.append(url)
            await asyncio.Event().wait()
        return REPORT

    async def play() -> bool:
        poller = Poller(Cache(), news=lambda _: None)
        monkeypatch.setattr(module, "fetch", hangs)
        gate = asyncio.Semaphore(64)
        for number in range(500):
            poller._targets["evil", str(number)] = module._Target(Asked("evil", 1), "", 0.0)
        poller._targets["ml", "a"] = module._Target(ASKED, "", 0.0)
        tasks = [asyncio.create_task(poller._in_turn(None, gate, *each)) for each in poller.due()]  # type: ignore[arg-type]
        for _ in range(50):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return poller.cache.of(("ml", "a")).report is not None

    assert asyncio.run(play())
    assert len(waiting) == OF_NAMESPACE


@pytest.mark.parametrize("ip", ["", "10.0.0.1@evil:80/?", "metadata.internal", "10.0.0.1/../"])
def test_only_an_address_is_asked(ip: str) -> None:
    poller = Poller(Cache(), news=lambda _: None)
    poller.follow(KEY, world(pods=(pod(0, "Running", ip=ip),)))
    assert not poller._targets


def test_a_report_full_of_wrong_entries_is_refused_in_no_time() -> None:
    entries = b",".join([b'{"name":1}'] * 1400)
    data = b'{"attempt":1,"phase":"training","evaluation":{"slices":[' + entries + b"]}}"
    assert 15_000 < len(data) <= LIMIT
    start = time.thread_time()
    for _ in range(10):
        with pytest.raises(MalformedReport):
            progress_report(data, attempt=1, uid="u", nonce="")
    assert time.thread_time() - start < 1.0
