"""The API server's clock, whatever this machine's says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import format_datetime

import pytest

from finetune_operator.kube.server_clock import ServerClock
from tests.support.operator_objects import NOW


@dataclass
class Machine:
    """`ahead`: by so many seconds its clock is wrong."""

    ahead: float = 0.0
    steady: float = 1000.0

    def clock(self) -> ServerClock:
        return ServerClock(steady=lambda: self.steady, local=lambda: self.truth + timedelta(seconds=self.ahead))

    @property
    def truth(self) -> datetime:
        return NOW + timedelta(seconds=self.steady - 1000)

    def ask(self, clock: ServerClock, *, there: float = 0.1, back: float = 0.1) -> None:
        sent = clock.steady()
        self.steady += there
        date = format_datetime(self.truth.replace(microsecond=0), usegmt=True)
        self.steady += back
        clock.told(date, sent=sent)


def off(machine: Machine, clock: ServerClock) -> float:
    return abs((clock.now() - machine.truth).total_seconds())


@pytest.mark.parametrize("ahead", [0.0, 1860.0, -1860.0, 86400.0 * 365])
def test_one_answer_sets_it_to_a_second(ahead: float) -> None:
    machine = Machine(ahead)
    clock = machine.clock()
    assert off(machine, clock) == pytest.approx(abs(ahead))
    machine.ask(clock)
    assert off(machine, clock) <= 1.2
    machine.steady += 3600
    assert off(machine, clock) <= 1.2, "it goes on by itself"


def test_each_answer_makes_it_better_or_leaves_it() -> None:
    machine = Machine(1860.0)
    clock = machine.clock()
    before = 2000.0
    for number in range(50):
        machine.steady += 0.37 * number % 1
        machine.ask(clock, there=0.01, back=0.3)
        assert off(machine, clock) <= before + 1e-6
        before = off(machine, clock)
    assert before <= 0.35


def test_an_answer_that_took_long_changes_little() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.ask(clock)
    was = off(machine, clock)
    machine.ask(clock, there=0.1, back=25.0)
    assert off(machine, clock) == pytest.approx(was)


@pytest.mark.parametrize("date", [None, "", "yesterday", "Fri, 32 Jan 2026 00:00:00 GMT"])
def test_what_is_not_a_date_changes_nothing(date: str | None) -> None:
    clock = Machine().clock()
    was = clock.now()
    clock.told(date, sent=clock.steady())
    assert clock.now() == was
