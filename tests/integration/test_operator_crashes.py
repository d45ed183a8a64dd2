"""The operator may die after any of its writes; another one reaches the same end.

For every k: an operator whose k-th write is its last, then one that lives. What is left must be what an undisturbed
operator leaves: the same status, the same children, nothing twice, nothing orphaned.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.kube.resources import PODS
from tests.support.kube_client import DISCOVERY, Kube, wait_for
from tests.support.operator_harness import Operator, Start
from tests.support.operator_scenarios import (
    climb,
    expire,
    give_up,
    left,
    lose_and_regain_a_node,
    queue,
    run_out_of_memory,
    suspend_and_resume,
)


class Successors:
    """Whenever the operator in charge is dead, the next one takes over."""

    def __init__(self, start: Start, die_after: int | None) -> None:
        self.first = self._present = start(die_after=die_after)
        self._start = start
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            if self._present.dead:
                self._present.stop()
                self._present = self._start()

    def end(self) -> Operator:
        self._over.set()
        self._thread.join()
        self._present.stop()
        return self.first


@pytest.mark.parametrize(
    "scenario", [climb, run_out_of_memory, give_up, suspend_and_resume, queue, expire, lose_and_regain_a_node]
)
def test_a_crash_after_any_write_changes_nothing(
    start: Start, kube: Kube, scenario: Callable[[Kube, str], None]
) -> None:
    def play(die_after: int | None) -> tuple[dict[str, Any], Operator]:
        operators = Successors(start, die_after)
        try:
            scenario(kube, "j")
            end = left(kube, "j")
        finally:
            first = operators.end()
        if end["status"]:
            kube.delete("j")
        wait_for(lambda: not (kube.list(PODS) or kube.jobs() or kube.services()), what="clean", seconds=DISCOVERY)
        return end, first

    undisturbed, operator = play(None)
    assert sum(operator.writes.values()) >= 5
    for k in itertools.count(1):
        end, first = play(k)
        assert end == undisturbed, f"after a crash at write {k}: {first.writes}"
        if not first.dead:
            break  # it made fewer writes than that in all its life
