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

from finetune_api.failures import LastWords, Reason
from finetune_api.status import Artifact, FailureClass
from finetune_operator.resources import PODS
from tests.operator_harness import DISCOVERY, Hands, Operator, Start, manifest, wait_for

DONE = LastWords(
    time="2026-01-01T00:00:00Z",
    step=3,
    artifact=Artifact(uri="s3://corp/out", digest="sha256:0", size_bytes=5, kind="adapter"),
)
BROKEN = LastWords(
    failure_class=FailureClass.Internal, reason=Reason.UnexpectedError, message="boom", exit_code=70, rank=1,
    time="2026-01-01T00:00:00.5Z",
)  # fmt: skip


def finish(hands: Hands, job: str, attempt: int) -> None:
    first, second = hands.run(job, attempt)
    hands.end(second)
    hands.end(first, words=DONE)
    wait_for(lambda: hands.phase(job) == "Succeeded", what="success")


def create(hands: Hands, job: str) -> None:
    hands.create(manifest(job))
    finish(hands, job, 1)


def restart(hands: Hands, job: str) -> None:
    hands.create(manifest(job))
    _, second = hands.run(job, 1)
    hands.end(second, code=70, words=BROKEN)
    finish(hands, job, 2)


def give_up(hands: Hands, job: str) -> None:
    hands.create(manifest(job, retry={"maxRestarts": 0}))
    _, second = hands.run(job, 1)
    hands.end(second, code=70, words=BROKEN)
    wait_for(lambda: hands.phase(job) == "Failed", what="failure")


def suspend_and_resume(hands: Hands, job: str) -> None:
    hands.create(manifest(job))
    hands.run(job, 1)
    hands.set_spec(job, suspend=True)
    wait_for(lambda: hands.phase(job) == "Suspended" and not hands.list(PODS), what="suspended")
    hands.set_spec(job, suspend=False)
    finish(hands, job, 2)


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


def left(hands: Hands, job: str) -> dict[str, Any]:
    """What there is in the end, less times and names."""
    status = hands.status(job)
    for each in status["conditions"]:
        del each["lastTransitionTime"]
    for field in ("startTime", "completionTime"):
        status.pop(field, None)
    status.get("lastFailure", {}).pop("time", None)
    return {"status": status, "jobs": hands.jobs(), "services": hands.services()}


@pytest.mark.parametrize("scenario", [create, restart, give_up, suspend_and_resume])
def test_a_crash_after_any_write_changes_nothing(
    start: Start, hands: Hands, scenario: Callable[[Hands, str], None]
) -> None:
    def play(die_after: int | None) -> tuple[dict[str, Any], Operator]:
        operators = Successors(start, die_after)
        try:
            scenario(hands, "j")
            wait_for(lambda: len(hands.jobs()) <= 1, what="old Jobs are gone")
            end = left(hands, "j")
        finally:
            first = operators.end()
        hands.delete("j")
        wait_for(lambda: not (hands.list(PODS) or hands.jobs() or hands.services()), what="clean", seconds=DISCOVERY)
        return end, first

    undisturbed, operator = play(None)
    assert sum(operator.writes.values()) >= 5
    for k in itertools.count(1):
        end, first = play(k)
        assert end == undisturbed, f"after a crash at write {k}: {first.writes}"
        if not first.dead:
            break  # it made fewer writes than that in all its life
