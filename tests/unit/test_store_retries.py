"""Waiting for a store that is away, on a clock of the test's own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import islice

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store.retries import RetryingFolder, waits
from tests.support.faulty_stores import MemoryFolder


@dataclass
class Clock:
    time: float = 0.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


@dataclass
class Away(MemoryFolder):
    """Unavailable until the clock shows `until`."""

    clock: Clock = field(default_factory=Clock)
    until: float = 0.0
    reason: Reason = Reason.StorageUnavailable
    tries: int = 0

    def read(self, path: str) -> bytes:
        self.tries += 1
        if self.clock.time < self.until:
            raise FinetuneError(self.reason, "the store is away")
        return super().read(path)


def patient(folder: Away, seconds: float) -> RetryingFolder:
    return RetryingFolder(folder, seconds=seconds, sleep=folder.clock.sleep, clock=folder.clock, rng=random.Random(1))


def test_a_store_that_comes_back_in_time_is_waited_for() -> None:
    folder = Away({"a": b"1"}, until=20)
    assert patient(folder, seconds=300).read("a") == b"1"
    assert 20 <= folder.clock.time < 26


def test_patience_ends() -> None:
    folder = Away({"a": b"1"}, until=1000)
    with pytest.raises(FinetuneError, match="the store is away"):
        patient(folder, seconds=60).read("a")
    assert folder.clock.time == pytest.approx(60)


@pytest.mark.parametrize("reason", [Reason.CredentialsRejected, Reason.DataNotFound, Reason.InvalidSpec])
def test_other_errors_pass_at_once(reason: Reason) -> None:
    folder = Away({"a": b"1"}, until=1000, reason=reason)
    with pytest.raises(FinetuneError):
        patient(folder, seconds=60).read("a")
    assert (folder.tries, folder.clock.slept) == (1, [])


def test_waiting_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    patient(Away({"a": b"1"}, until=20), seconds=300).read("a")
    assert [r.getMessage() for r in caplog.records] == ["the store is away; trying again for up to 300 s"]


def test_waits_double_up_to_five_seconds_and_spread() -> None:
    first = list(islice(waits(random.Random(1)), 8))
    bounds = [0.5, 1, 2, 4, 5, 5, 5, 5]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(first, bounds, strict=True))
    assert first != list(islice(waits(random.Random(2)), 8))
