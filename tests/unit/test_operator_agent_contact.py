"""Who answers, and who is silent: the poller with agents of the test's own, on a clock that moves when told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api.plan import ProgressReport
from finetune_api.status import Phase
from finetune_operator.inquiries import progress_poller
from finetune_operator.inquiries.progress_poller import Poller
from finetune_operator.kube.resources import PODS, Key
from finetune_operator.state.agent_contact import AgentContact
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import observe
from tests.support.operator_objects import DEFAULTS, NOW, raw_job, raw_pod, status

HOUR = 3600.0


@dataclass
class Air:
    """Running jobs of one pod each, the agents among them that answer, and the operator's poller."""

    jobs: tuple[str, ...]
    answering: set[str] = field(default_factory=set)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.cache = Cache()
        self.poller = Poller(self.cache, news=lambda _: None, clock=lambda: self.now, now=lambda: NOW)
        self.answering |= set(self.jobs)
        for number, name in enumerate(self.jobs):
            job, pod = raw_job(status=status(Phase.Running).to_json()), raw_pod(uid=name)
            job["metadata"] |= {"name": name, "uid": f"u-{name}"}
            pod["metadata"]["labels"] |= {"finetune.dev/job-name": name, "finetune.dev/job-uid": f"u-{name}"}
            pod["metadata"]["name"] = f"{name}-1-0-x"
            for owner in pod["metadata"].get("ownerReferences", ()):
                owner["name"] = f"{name}-1"
            pod["spec"]["hostname"] = f"{name}-1-0"
            pod["status"]["podIP"] = f"10.0.0.{number}"
            self.cache.jobs.put(job)
            self.cache.feed(PODS, None, pod)

    def leads(self) -> None:
        for name in self.jobs:
            self.poller.follow(("ml", name), observe(self.cache, ("ml", name), DEFAULTS))

    async def fetch(self, _: Any, url: str, *__: Any, **___: Any) -> ProgressReport | None:
        name = self.jobs[int(url.split(":")[1].rpartition(".")[2])]
        return ProgressReport(attempt=1, phase="training") if name in self.answering else None

    def asks(self, seconds: float) -> None:
        """Whoever is due is asked, second by second; without the pauses of a real clock."""

        async def all_due() -> None:
            for key, target in list(self.poller._targets.items()):
                if target.due <= self.now:
                    await self.poller._ask(None, asyncio.Semaphore(), key, target)  # type: ignore[arg-type]

        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            asyncio.run(all_due())

    def silence(self, name: str = "a") -> float | None:
        found = observe(self.cache, ("ml", name), DEFAULTS)
        assert found is not None
        return None if found.heard is None else found.silence


@pytest.fixture
def air(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Air]:
    def make(*jobs: str) -> Air:
        made = Air(jobs)
        monkeypatch.setattr(progress_poller, "fetch", made.fetch)
        made.leads()
        made.asks(60)
        return made

    return make


def test_who_answers_is_not_silent(air: Callable[..., Air]) -> None:
    made = air("a", "b")
    made.asks(1000)
    assert made.silence() == 0


def test_one_that_falls_silent_while_others_answer_is_silent_for_as_long(air: Callable[..., Air]) -> None:
    made = air("a", "b")
    made.answering.remove("a")
    made.asks(HOUR)
    silence = made.silence()
    assert silence is not None
    assert HOUR - 300 < silence <= HOUR
    made.answering.add("a")
    made.asks(200)
    assert made.silence() == 0, "it answers again"


def test_an_operator_that_nobody_answers_is_deaf_and_counts_nothing(air: Callable[..., Air]) -> None:
    made = air("a", "b", "c")
    made.answering.clear()
    made.asks(HOUR)
    assert [made.silence(name) for name in "abc"] == [0, 0, 0]
    made.answering |= {"b", "c"}  # its network is back, and "a" is asked again when its pause is over
    made.asks(200)
    assert (made.silence() or 0) <= 3 * progress_poller.LONGEST_INTERVAL


def test_the_only_job_is_never_silent(air: Callable[..., Air]) -> None:
    made = air("a")
    made.answering.clear()
    made.asks(HOUR)
    assert made.silence() == 0


def test_a_term_that_ended_takes_its_silence_with_it(air: Callable[..., Air]) -> None:
    """It led, stood by for hours, and leads again: nobody was asked meanwhile."""
    made = air("a", "b")
    made.answering.remove("a")
    made.asks(600)
    made.poller.follow_nobody()
    made.now += 9 * HOUR
    made.leads()
    assert made.silence() is None
    made.asks(600)
    assert made.silence() is None, "in this term it has never answered"


def test_a_process_that_was_frozen_has_missed_one_ask(air: Callable[..., Air]) -> None:
    made = air("a", "b")
    made.now += 9 * HOUR
    made.answering.remove("a")
    made.asks(2)
    assert made.silence() == 0
    made.asks(60)
    assert (made.silence() or 0) <= 60


def test_only_answers_of_this_attempt_count() -> None:
    cache = Cache()
    cache.jobs.put(raw_job(status=status(Phase.Running, 2).to_json()))
    key: Key = ("ml", "a")

    def heard() -> object:
        found = observe(cache, key, DEFAULTS)
        assert found is not None
        return found.heard

    assert heard() is None
    cache.note(key, contact=AgentContact("u", 1, NOW))
    assert heard() is None, "of the attempt before"
    cache.note(key, contact=AgentContact("u", 2, NOW))
    assert heard() == NOW
